"""RegMean of the other tasks' deltas (Jin et al., ICLR 2023): the maps that fit all of their outputs best.

    M_i = (sum over sources j != i of G_j)^-1 * sum over j of G_j M_j,    G_j = alpha G + (1 - alpha) diag G

M is the product A B of a LoRA, each matrix of an adapter, the keys and values of a prefix; G_j = E[x^T x] over the inputs
of the map on task j, which `python -m pewe.merging.collect_deltas` collects.
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
alpha = 0.9
ridge = 1e-6
rank = 0
source_ckpt_path = "checkpoints/adapter/full_data"
save_ckpt_path = "checkpoints/adapter/RegMean"


@dataclass(frozen=True)
class Config(DeltaMergeConfig, EnsembleConfig):
    """Flags; the constants above are their defaults."""

    delta: str = flag(delta, "adapter, lora or prefix")
    combine: str = flag("regmean", "the rule of this script", choices=("regmean",))
    alpha: float = flag(alpha, "factor of the off-diagonal Gram entries; 0 is the diagonal variant, 1 the full Gram")
    ridge: float = flag(ridge, "added to every Gram's diagonal, in units of its mean diagonal entry")
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
