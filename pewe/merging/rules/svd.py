"""SVD of the sum: products of LoRA averaged, and cut to a rank. The control beside averages of A and B apart.

M = sum_i w_i A_i B_i, A B = its best approximation of rank r in the Frobenius norm (Eckart and Young 1936)
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from pewe.merging.rules.matrices import RankFlags, decomposed, merged_products
from pewe.merging.rules.tensors import used
from pewe.state import DeltaState


@dataclass(frozen=True)
class SvdFlags(RankFlags):
    """The rank alone."""


def svd(states: Sequence[DeltaState], weights: Tensor, flags: SvdFlags) -> DeltaState:
    """States with LoRA, as they are (`matrices`), weights (n,); tensors of no LoRA are sum_i w_i theta_i.

    Raises UserError as `used`, and for states without LoRA.
    """
    states, weights = used(states, weights, flags)

    def of_pairs(pairs):
        return decomposed(sum(weight * A @ B for weight, (A, B) in zip(weights.tolist(), pairs, strict=True)))

    return merged_products(states, weights, flags.rank, of_pairs)
