"""Fisher-weighted mean of the other tasks' deltas (Matena and Raffel, NeurIPS 2022).

    M_i = sum over sources j != i of (F_j + eps) M_j / sum over j of (F_j + eps)    elementwise

M is the product A B of a LoRA, each matrix of an adapter, the keys and values of a prefix; F_j is the empirical Fisher
information of its entries on task j, which `python -m pewe.merging.collect_deltas` collects; eps is relative to the mean F.
"""

import pewe_environment  # noqa: F401

from dataclasses import dataclass

from pewe.command import main

from pewe.flags import flag
from pewe.merging.deltas import DeltaMergeConfig
from pewe.merging.leave_one_out import leave_one_out
from pewe.merging.save import EnsembleConfig
from pewe.setting import TASK_LIST

delta = "adapter"
smoothing = 1e-6
rank = 0
source_ckpt_path = "checkpoints/adapter/full_data"
save_ckpt_path = "checkpoints/adapter/Fisher"


@dataclass(frozen=True)
class Config(DeltaMergeConfig, EnsembleConfig):
    """Flags; the constants above are their defaults."""

    delta: str = flag(delta, "adapter, lora or prefix")
    combine: str = flag("fisher", "the rule of this script", choices=("fisher",))
    smoothing: float = flag(smoothing, "added to every Fisher value, in units of the tensor's mean Fisher value")
    rank: int = flag(rank, "rank of a merged LoRA or prefix: 0 as the sources, -1 exact (load it with this rank)")
    source_ckpt_path: str = flag(
        source_ckpt_path, "folder with <source>/checkpoint-best.pt and statistics.safetensors", decides=False
    )
    save_ckpt_path: str = flag(save_ckpt_path, "folder of the ensembles", decides=False)


def run(config: Config) -> None:
    """Weights, checkpoints and heat map."""
    leave_one_out(config, TASK_LIST)


if __name__ == "__main__":
    main(run, Config, __doc__)
