"""Zero-shot dev score of every source delta on every target: what Performance weights are compared with.

Writes `<output_dir>/result.tsv` (target, source, ..., dev). Resumes; `--stack N` scores N pairs in one forward.
"""

from dataclasses import dataclass, fields, replace

from pewe.command import main

import pandas as pd

from pewe.flags import flag
from pewe.tuning.config import TrainConfig, TuneAllConfig


@dataclass(frozen=True)
class Config(TuneAllConfig):
    """Flags."""

    hidden = (
        *(one.name for one in fields(TrainConfig) if one.name not in ("seed", "predict_batch_size")),
        *("do_train", "do_predict", "train_checkpoint", "test_checkpoint"),
    )  # accepted, because the original's script gives them
    output_dir: str = flag("checkpoints/adapter/zero_shot", "folder of result.tsv", decides=False)


def untuned(config: Config) -> Config:
    """Score only, whatever the flags of training say (the original's script gives them)."""
    return replace(config, do_train=False, do_predict=False)


def run(config: Config, *how) -> pd.DataFrame:
    """As pewe.tuning.tune, which loads the model's code."""
    from pewe.tuning.tune import tune_all

    return tune_all(untuned(config), *how)


if __name__ == "__main__":
    main(run, Config, __doc__)
