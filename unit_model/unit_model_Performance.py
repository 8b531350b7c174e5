"""Performance: sources that a few steps of tuning on the target improve most (Lv et al. 2023, section 3).

    S[i, j] = dev score of theta_j tuned on i - zero-shot dev score of theta_j on i,    w_i = softmax over j != i of (S / tem)

`scripts/adapter_tuneall.sh` makes the tuned deltas and their scores (`tuned_ckpt_path`), `scripts/adapter_devall.sh` the
zero-shot scores (`zero_result_path`). The *tuned* deltas are averaged.
"""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch

from pewe.cli import UserError, flag, log_to, main
from pewe.ensemble import EnsembleConfig, ensemble_tasks, ensemble_weights, read_states, save_ensembles, save_weights
from pewe.results import numeric, read_table
from pewe.weights import allowed_sources
from task_list import QA_task_list as TASK_LIST

delta = "adapter"
tem = 0.001
tuned_ckpt_path = "checkpoints/adapter/tuned_all"
zero_result_path = "checkpoints/adapter/zero_shot/result.tsv"
save_ckpt_path = "checkpoints/adapter/Performance"


@dataclass
class Config(EnsembleConfig):
    """Flags; the constants above are their defaults."""

    delta: str = flag(delta, "adapter, lora or prefix")
    tem: float = flag(tem, "temperature of the softmax, in the unit of the metric", above=0)
    tuned_ckpt_path: str = flag(
        tuned_ckpt_path, "folder with result.tsv and <target>/<source>/checkpoint-best.pt", decides=False
    )
    zero_result_path: str = flag(zero_result_path, "result.tsv of dev_all_ckpt.py", decides=False)
    source_ckpt_path: str = flag("", "not used: the tuned deltas are averaged", decides=False)
    save_ckpt_path: str = flag(save_ckpt_path, "folder of the ensembles", decides=False)


def dev_scores(path: Path, tasks: list[str]) -> pd.DataFrame:
    """Dev scores by name, targets down and sources across; the best where a pair has several runs."""
    table = read_table(path, ["target", "source", "dev"])
    frame = table.assign(dev=numeric(table, "dev", path)).pivot_table(
        index="target", columns="source", values="dev", aggfunc="max"
    )
    frame = frame.reindex(index=tasks, columns=tasks)
    for target in tasks:
        for source in tasks:
            if target != source and pd.isna(frame.loc[target, source]):
                raise UserError(f"{path} has no dev score of target {target!r}, source {source!r}")
    return frame


def run(config: Config) -> None:
    """Weights, checkpoints and heat map."""
    log_to(None, config.quiet)
    tasks = ensemble_tasks(config, TASK_LIST)
    tuned, zero = (
        dev_scores(path, tasks) for path in (Path(config.tuned_ckpt_path) / "result.tsv", Path(config.zero_result_path))
    )
    gains = torch.tensor((tuned - zero).fillna(0.0).to_numpy())
    W, tem = ensemble_weights(config, gains, config.tem, True, allowed_sources(tasks, tasks))
    save_weights(config, tasks, tasks, W, f"{config.delta}: weights from Performance, tem {tem:g}")
    for i, target in enumerate(tasks):
        others = [j for j in range(len(tasks)) if j != i]
        states = read_states(str(Path(config.tuned_ckpt_path) / target), config.delta, [tasks[j] for j in others])
        save_ensembles(config, [target], states, W[i : i + 1, others])


if __name__ == "__main__":
    main(run, Config, __doc__)
