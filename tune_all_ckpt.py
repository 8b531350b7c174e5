"""Tune every source delta a few steps on every target: what Euclidean and Performance weights are made of.

Writes `<output_dir>/<target>/<source>/checkpoint-best.pt` and `result.tsv` (target, source, ..., dev, test). The best
checkpoint is that of a tuned step, never the source itself. Resumes; `--stack N` tunes N pairs in lockstep.
"""

from dataclasses import dataclass

from pewe.command import main

from pewe.flags import flag
from pewe.tuning.config import TuneAllConfig


@dataclass(frozen=True)
class Config(TuneAllConfig):
    """Flags."""

    do_train: bool = flag(True, "tune", decides=False)
    start_is_candidate: bool = flag(False, "the source itself competes for the best checkpoint")
    train_iters: int = flag(200, "updates at most")
    output_dir: str = flag("checkpoints/adapter/tuned_all", "folder of the tuned pairs", decides=False)


def run(config: Config, *how):
    """As pewe.tuning.tune, which loads the model's code."""
    from pewe.tuning.tune import tune_all

    return tune_all(config, *how)


if __name__ == "__main__":
    main(run, Config, __doc__)
