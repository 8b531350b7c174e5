"""Euclidean: sources that a few steps of tuning on the target move least (Lv et al. 2023, section 3).

    S[i, j] = sum over delta tensors of || theta_j - theta_j tuned on i ||_2,    w_i = softmax over j != i of (-S[i, j] / tem)

`scripts/adapter_tuneall.sh` makes the tuned deltas (`tuned_ckpt_path`). The untouched sources are averaged.
"""

from dataclasses import dataclass
from pathlib import Path

import torch

from pewe.cli import flag, log_to, main
from pewe.deltas import DeltaState
from pewe.ensemble import EnsembleConfig, ensemble_tasks, ensemble_weights, read_states, save_ensembles, save_weights
from pewe.weights import allowed_sources
from task_list import QA_task_list as TASK_LIST

delta = "adapter"
tem = 0.1
tuned_ckpt_path = "checkpoints/adapter/tuned_all"
source_ckpt_path = "checkpoints/adapter/full_data"
save_ckpt_path = "checkpoints/adapter/Euclidean"


@dataclass
class Config(EnsembleConfig):
    """Flags; the constants above are their defaults."""

    delta: str = flag(delta, "adapter, lora or prefix")
    tem: float = flag(tem, "temperature of the softmax", above=0)
    tuned_ckpt_path: str = flag(tuned_ckpt_path, "folder with <target>/<source>/checkpoint-best.pt", decides=False)
    source_ckpt_path: str = flag(source_ckpt_path, "folder with <source>/checkpoint-best.pt", decides=False)
    save_ckpt_path: str = flag(save_ckpt_path, "folder of the ensembles", decides=False)


def distance(first: DeltaState, second: DeltaState) -> float:
    """Sum over tensors of the L2 norm of the difference (not the norm over all tensors)."""
    return sum(float((first[name].double() - second[name].double()).norm()) for name in first)


def run(config: Config) -> None:
    """Weights, checkpoints and heat map."""
    log_to(None, config.quiet)
    tasks = ensemble_tasks(config, TASK_LIST)
    sources = read_states(config.source_ckpt_path, config.delta, tasks)
    S = torch.zeros(len(tasks), len(tasks), dtype=torch.float64)
    for i, target in enumerate(tasks):
        others = [j for j in range(len(tasks)) if j != i]
        tuned = read_states(str(Path(config.tuned_ckpt_path) / target), config.delta, [tasks[j] for j in others])
        S[i, others] = torch.tensor(
            [distance(sources[j], state) for j, state in zip(others, tuned, strict=True)]
        ).double()
    W, tem = ensemble_weights(config, S, config.tem, False, allowed_sources(tasks, tasks))
    save_weights(config, tasks, tasks, W, f"{config.delta}: weights from Euclidean, tem {tem:g}")
    save_ensembles(config, tasks, sources, W)


if __name__ == "__main__":
    main(run, Config, __doc__)
