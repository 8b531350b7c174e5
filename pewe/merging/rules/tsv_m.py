"""TSV-M (Gargiulo et al. 2025, "Task singular vectors: reducing task interference in model merging", algorithm 1).

M_i = U_i S_i V_i, cut to the top 1/N of its triples; U = [U_1 ... U_N], V = [V_1; ...; V_N], S = (S_1, ..., S_N);
merged: P(U) S P(V), P(X) = Q R for X = Q D R (singular values), the nearest matrix with orthonormal columns (rows)
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from pewe.merging.rules.matrices import Triples, decomposed
from pewe.merging.rules.tensors import shares


def tsv_m(matrices: Sequence[Tensor], weights: Tensor) -> Triples:
    """Of M_i (d, h), weights (n,) that sum to 1 (`shares`); each keeps max(1, min(d, h) // N) triples."""
    kept = max(1, min(matrices[0].shape) // len(matrices))
    factors = shares(weights).tolist()
    each = [decomposed(factor * M) for factor, M in zip(factors, matrices, strict=True)]
    U = torch.cat([one.U[:, :kept] for one in each], dim=1)
    V = torch.cat([one.V[:kept] for one in each])
    S = torch.cat([one.S[:kept] for one in each])
    return decomposed(polar(U) * S @ polar(V))


def polar(matrix: Tensor) -> Tensor:
    """The orthogonal factor of the polar decomposition, (d, k) -> (d, k)."""
    U, _, V = decomposed(matrix)
    return U @ V
