"""Task arithmetic (Ilharco et al. 2023, "Editing models with task arithmetic", section 2).

tau = lambda sum_i tau_i
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from pewe.flags import flag
from pewe.merging.rules.tensors import linear, per_tensor, shares, used
from pewe.state import DeltaState


@dataclass(frozen=True)
class TaskArithmeticFlags:
    """Of equal weights, a scale of 1/N is the average of the N sources."""

    scale: float = flag(0.3, "task arithmetic: lambda, the factor of the sum of all differences", low=0)


def task_arithmetic(states: Sequence[DeltaState], weights: Tensor, flags: TaskArithmeticFlags) -> DeltaState:
    """lambda sum_i N w_i tau_i of differences tau_i, weights (n,) that sum to 1; N is their effective number (`shares`).

    Tensors of any shape. Raises UserError as `used`.
    """
    states, weights = used(states, weights, flags)
    factors = flags.scale * shares(weights)
    return per_tensor(states, lambda name, tensors: linear(tensors, factors))
