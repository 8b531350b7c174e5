"""Cosine of hidden states by block: how alike source j and a delta tuned on the target process the target's dev data
(Lv et al. 2023, section 5).

    S[i, j, b] = sum over dev examples of cos(H_b(theta_i), H_b(theta_j))      higher is more similar

H_b is the output of block b, before the final layer norm, over the tokens that are not padding, flattened
(`cos_withoutpad`); theta_i is tuned from random init (`--random_tuned_ckpt_path`); the first dev batch of target i.
"""

import pewe_environment  # noqa: F401

from dataclasses import dataclass
from functools import partial

from pewe.command import main

import torch
from torch import Tensor

from pewe.batches import Batch
from pewe.flags import flag
from pewe.similarity.config import TargetConfig
from pewe.similarity.loop import run
from pewe.similarity.measure import Measure
from pewe.similarity.scoring import Sources

mode = "cos_withoutpad"


@dataclass(frozen=True)
class BlockConfig(TargetConfig):
    """Similarity by hidden states."""

    mode: str = flag(mode, "cos_withoutpad, the only mode of the paper", choices=(mode,))
    output_dir: str = flag("checkpoints/adapter/similarity/block", "folder of result.tsv", decides=False)


@torch.no_grad()
def score(sources: Sources, batch: Batch) -> dict[str, Tensor]:
    """Summed cosines of each block and each of the K sources, (K,), without unit."""
    values: dict[str, Tensor] = {}
    for piece in sources.pieces(batch):
        lines: dict[str, Tensor] = {}

        def watch(name: str, line: Tensor, lines: dict[str, Tensor] = lines) -> None:
            if name.split(".")[1:] == ["block", name.split(".")[-1]]:
                lines[name] = line

        _, packed = sources.states(piece, watch)
        for name, line in lines.items():
            layout = packed.encoder if name.startswith("encoder") else packed.decoder
            members = line.float().unflatten(0, (sources.stack, -1))  # (1 + K, n, d)
            row = layout.row[: members.shape[1]]
            values[name] = values.get(name, 0) + cosines(members[:1], members[1:], row).sum(1)
    return values


def cosines(target: Tensor, sources: Tensor, row: Tensor) -> Tensor:
    """Of the rows' flattened states (tokens x d): (1, n, d), (K, n, d) and each token's row (n,), give (K, rows)."""

    def by_row(products: Tensor) -> Tensor:
        sums = products.new_zeros(len(products), int(row[-1]) + 1)
        return sums.index_add(1, row, products.sum(2))

    norms = (by_row(target * target) * by_row(sources * sources)).sqrt()
    return by_row(target * sources) / norms.clamp(min=1e-12)


MEASURE = Measure("block", score, higher_is_more_similar=True, needs_target=True, config=BlockConfig)

if __name__ == "__main__":
    main(partial(run, MEASURE), MEASURE.config, __doc__)
