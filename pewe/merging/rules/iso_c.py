"""Iso-C (Marczak et al. 2025, "No task left behind: isotropic model merging with common and task-specific subspaces").

sum_i M_i = U S V, merged: mean(S) U V
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from pewe.merging.rules.matrices import Triples, decomposed
from pewe.merging.rules.tensors import linear, shares


def iso_c(matrices: Sequence[Tensor], weights: Tensor) -> Triples:
    """Of M_i (d, h), weights (n,) that sum to 1 (`shares`). The triples keep the order of the sum's singular values.

    The mean is over all min(d, h) values, zeros too, so it depends on the space in which the M_i are given.
    """
    U, S, V = decomposed(linear(matrices, shares(weights)))
    return Triples(U, torch.full_like(S, float(S.mean())) if len(S) else S, V)
