"""KnOTS (Stoica et al. 2025, "Model merging with SVD to tie the KnOTS", section 4): the space of all sources by an SVD.

[M_1^T ... M_N^T] = U S [V_1 ... V_N], singular values above 1e-5; V = TIES(V_1, ..., V_N); M^T = lambda U S V

The space is that of `core_space`, which needs no product of LoRA; sums are the same in both.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pewe.flags import flag
from pewe.merging.rules.matrices import Pair, RankFlags, Triples, decomposed, merged_products
from pewe.merging.rules.tensors import used
from pewe.merging.rules.ties import ties_of_one
from pewe.state import DeltaState

LEAST = 1e-5  # singular values up to it are left out


@dataclass(frozen=True)
class KnotsFlags(RankFlags):
    """Defaults of the release's TIES for LoRA."""

    density: float = flag(0.2, "KnOTS: share of the entries of each V_i that are kept", low=0, high=1)
    scale: float = flag(0.6, "KnOTS: lambda, the factor of the merged matrices", low=0)


def knots(states: Sequence[DeltaState], weights: Tensor, flags: KnotsFlags) -> DeltaState:
    """States with LoRA (d, r), (r, h) as they are, or differences of matrices (d, h) (`matrices`), weights (n,).

    Tensors that are no matrices are scale sum_i w_i theta_i. Raises UserError as `used`.
    """
    states, weights = used(states, weights, flags)

    def of_matrices(matrices: list[Tensor]) -> Tensor:
        U, S, parts = tied(matrices)
        return flags.scale * (U * S @ ties_of_one(parts, weights, flags.density)).mT

    def of_pairs(pairs: list[Pair]) -> Triples:
        return decomposed(of_matrices([A @ B for A, B in pairs]))

    return merged_products(states, flags.scale * weights, flags.rank, of_pairs, of_matrices)


def tied(matrices: Sequence[Tensor]) -> tuple[Tensor, Tensor, list[Tensor]]:
    """U (h, k), S (k,) and V_i (k, d) with M_i^T = U S V_i, of M_i (d, h)."""
    U, S, V = decomposed(torch.cat([matrix.mT for matrix in matrices], dim=1))
    kept = S > LEAST
    return U[:, kept], S[kept], list(V[kept].split(len(matrices[0]), dim=1))
