"""Core Space (Panariello et al. 2025, "Accurate and efficient low-rank model merging in core space", section 3).

U: orthonormal basis of the columns of [A_1 ... A_N], V: of the rows of [B_1; ...; B_N];
core matrices C_i = U^T A_i B_i V^T (at most N r x N r), merged by another rule: C; M = U C V

Nothing is lost: A_i B_i = U C_i V. Linear rules give the same as in the full space.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pewe.flags import flag
from pewe.merging.rules.iso_c import iso_c
from pewe.merging.rules.matrices import Pair, RankFlags, Triples, decomposed, merged_products
from pewe.merging.rules.tensors import linear, used
from pewe.merging.rules.ties import ties_of_one
from pewe.merging.rules.tsv_m import tsv_m
from pewe.state import DeltaState


@dataclass(frozen=True)
class CoreSpaceFlags(RankFlags):
    """TSV-M and TIES ask for a scale of 1; Iso-C's is to be searched (3.5 to 4.5 served its users with LoRA)."""

    inside: str = flag("tsv_m", "core space: the rule inside", choices=("linear", "ties", "iso_c", "tsv_m"))
    scale: float = flag(1.0, "core space: factor of the merged matrices", low=0)
    density: float = flag(0.2, "core space: density of TIES inside, of each matrix", low=0, high=1)


def core_space(states: Sequence[DeltaState], weights: Tensor, flags: CoreSpaceFlags) -> DeltaState:
    """States with LoRA (d, r), (r, h) as they are, or differences of matrices (d, h) (`matrices`), weights (n,).

    Tensors that are no matrices are scale sum_i w_i theta_i. Raises UserError as `used`.
    """
    states, weights = used(states, weights, flags)
    rule = inside(flags)

    def of_pairs(pairs: list[Pair]) -> Triples:
        return in_core(*core(pairs))

    def of_matrices(matrices: list[Tensor]) -> Tensor:
        return in_core(*core_of_matrices(matrices)).matrix()

    def in_core(U: Tensor, V: Tensor, cores: list[Tensor]) -> Triples:
        merged = rule(cores, weights)
        return Triples(U @ merged.U, flags.scale * merged.S, merged.V @ V)

    return merged_products(states, flags.scale * weights, flags.rank, of_pairs, of_matrices)


def core(pairs: Sequence[Pair]) -> tuple[Tensor, Tensor, list[Tensor]]:
    """U (d, m), V (n, h) and the core matrices C_i (m, n), m and n the numbers of independent columns and rows."""
    U = independent(torch.cat([A for A, _ in pairs], dim=1))
    V = independent(torch.cat([B for _, B in pairs]).mT).mT
    return U, V, [(U.mT @ A) @ (B @ V.mT) for A, B in pairs]


def core_of_matrices(matrices: Sequence[Tensor]) -> tuple[Tensor, Tensor, list[Tensor]]:
    """The same of matrices M_i (d, h) of any rank: for products of LoRA the same space, in another basis."""
    U = independent(torch.cat(list(matrices), dim=1))
    V = independent(torch.cat(list(matrices)).mT).mT
    return U, V, [U.mT @ M @ V.mT for M in matrices]


def independent(matrix: Tensor) -> Tensor:
    """An orthonormal basis of the columns (d, n) -> (d, rank), of falling singular values."""
    if matrix.shape[0] < matrix.shape[1]:  # X = R^T Q^T has the left singular vectors of R^T
        matrix = torch.linalg.qr(matrix.mT, mode="r").R.mT
    U, S, _ = decomposed(matrix)
    least = S.amax() * max(matrix.shape) * torch.finfo(S.dtype).eps
    return U[:, least < S]


def inside(flags: CoreSpaceFlags) -> Callable[[list[Tensor], Tensor], Triples]:
    """The rule for matrices (d, h) and weights (n,)."""

    def ties(matrices: list[Tensor], weights: Tensor) -> Triples:
        return decomposed(ties_of_one(matrices, weights, flags.density))

    rules = {
        "linear": lambda matrices, weights: decomposed(linear(matrices, weights)),
        "ties": ties,
        "iso_c": iso_c,
        "tsv_m": tsv_m,
    }
    return rules[flags.inside]
