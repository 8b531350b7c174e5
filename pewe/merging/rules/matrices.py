"""Rules for matrices, applied to states: to the product of every LoRA, and to every other tensor with two axes.

A pair of LoRA is A (d, r) and B (r, h), applied as y = x A B (alpha / r), so M_i = A_i B_i is what the sources differ by:
LoRA starts at B = 0, and states with LoRA are taken as they are, not as differences. Other matrices are differences.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from pewe.cli import log
from pewe.errors import UserError
from pewe.flags import flag
from pewe.merging.rules.tensors import linear, per_tensor
from pewe.state import DeltaState


class Triples(NamedTuple):
    """M = U diag(S) V, float64: U (d, k) with orthonormal columns, S (k,) in falling order of worth, V (k, h)."""

    U: Tensor
    S: Tensor
    V: Tensor

    def matrix(self) -> Tensor:
        """M (d, h)."""
        return self.U * self.S @ self.V


Pair = tuple[Tensor, Tensor]  # A (d, r) and B (r, h)


@dataclass(frozen=True)
class RankFlags:
    """The rank of what is written."""

    rank: int = flag(0, "rank of a merged LoRA: 0 as the sources, -1 exact (load it with this rank)", low=-1)


def decomposed(matrix: Tensor) -> Triples:
    """Singular value decomposition, (d, h) -> k = min(d, h)."""
    return Triples(*torch.linalg.svd(matrix.double(), full_matrices=False))


def merged_products(
    states: Sequence[DeltaState],
    weights: Tensor,
    rank: int,
    of_pairs: Callable[[list[Pair]], Triples],
    of_matrices: Callable[[list[Tensor]], Tensor] | None = None,
) -> DeltaState:
    """Every pair of LoRA merged by `of_pairs` and cut to the rank, other matrices by `of_matrices`, the rest sum_i w_i theta_i.

    Without `of_matrices` they are sums too, and LoRA is expected. The cut keeps the first triples; the largest share of
    the squared norm that it loses is logged. Raises UserError for a rank that cannot be.
    """
    pairs = lora_names(states[0])
    if not pairs and of_matrices is None:
        raise UserError(f"tensor {next(iter(states[0]))} is of no LoRA; this rule merges products of lora_A and lora_B")
    if rank and not pairs:
        raise UserError(f"--rank {rank} is for LoRA, which the sources do not have")
    factors, lost = {}, 0.0
    target, source = ranks(states[0], pairs, len(states), rank) if pairs else (0, 0)
    for name in pairs:
        triples = of_pairs([(state[f"{name}.lora_A"].double(), state[f"{name}.lora_B"].double()) for state in states])
        factors[f"{name}.lora_A"], factors[f"{name}.lora_B"] = cut(triples, target, target / source)
        lost = max(lost, float(triples.S[target:].square().sum() / triples.S.square().sum().clamp(min=1e-300)))
    if pairs:
        log.info("merged LoRA of rank %d: at most %.2g of the squared norm of a product is lost", target, lost)

    def merge(name: str, tensors: list[Tensor]) -> Tensor:
        if of_matrices is not None and tensors[0].dim() == 2:
            return of_matrices([tensor.double() for tensor in tensors])
        return linear(tensors, weights)

    rest = [{name: tensor for name, tensor in state.items() if name not in factors} for state in states]
    made = factors | per_tensor(rest, merge)
    return {name: made[name] for name in states[0]}


def lora_names(state: DeltaState) -> list[str]:
    """The projections with a LoRA, in the state's order."""
    return [name.removesuffix(".lora_A") for name in state if name.endswith(".lora_A")]


def lora_ranks(state: DeltaState, pairs: Sequence[str]) -> tuple[int, int]:
    """The rank of these LoRA, and the largest that one of their products can have."""
    shapes = [(state[f"{name}.lora_A"].shape, state[f"{name}.lora_B"].shape) for name in pairs]
    return shapes[0][0][1], max(min(a[0], b[1]) for a, b in shapes)


def ranks(state: DeltaState, pairs: Sequence[str], sources: int, wanted: int) -> tuple[int, int]:
    """The rank of the result and that of the sources. Raises UserError for a rank that cannot be."""
    source, full = lora_ranks(state, pairs)
    rank = {0: source, -1: min(sources * source, full)}.get(wanted, wanted)
    if not 0 < rank <= max(full, source):
        raise UserError(f"--rank {wanted}: a merged LoRA of rank {rank} is not possible, expected 1 to {full}")
    return rank, source


def cut(triples: Triples, rank: int, scale: float) -> Pair:
    """A (d, rank) and B (rank, h) with A B = scale times the first `rank` triples; both have the roots of its values.

    `scale` makes up for alpha / r of another rank. Where there are fewer triples, the rest of A and B is 0.
    """
    U, S, V = triples.U[:, :rank], triples.S[:rank], triples.V[:rank]
    root, missing = (scale * S).sqrt(), rank - len(S)
    return pad(U * root, (0, missing)), pad(root[:, None] * V, (0, 0, 0, missing))
