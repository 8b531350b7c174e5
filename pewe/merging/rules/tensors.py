"""What the rules share: which sources count, and a walk over their tensors."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pewe.errors import UserError
from pewe.flags import check
from pewe.merging.average import fitting
from pewe.merging.rules.average import totals
from pewe.merging.statistics import check_finite
from pewe.reporting.stats import effective_numbers
from pewe.state import DeltaState


def used(states: Sequence[DeltaState], weights: Tensor, flags) -> tuple[list[DeltaState], Tensor]:
    """The states whose weight is not 0, and their weights (n,) in float64: a source of weight 0 is as one left out.

    Raises UserError for a flag out of its range, for weights that do not fit or are not finite or all 0, and for states
    with other tensors than the first, values that are not finite, or whole numbers that differ.
    """
    check(flags)
    if weights.shape != (len(states),):
        raise UserError(f"{len(states)} states for weights of shape {tuple(weights.shape)}")
    if not torch.isfinite(weights).all():
        raise UserError("the weights of a merge must be finite numbers")
    for number, state in enumerate(states):
        for name, tensor in fitting(state, states[0], str(number), "0").items():
            check_finite(name, tensor, f"source {number}")
    kept = weights.nonzero().flatten().tolist()
    if not kept:
        raise UserError("all weights of a merge are 0, so it has no source")
    return [states[number] for number in kept], weights[kept].double()


def shares(weights: Tensor) -> Tensor:
    """N w_i with N the effective number of sources (n,): 1 each for sources of equal weight, whose sum is that of a paper.

    Rules made for sums, sum_i tau_i, take weights that sum to 1 this way: few sources with weight count as few.
    """
    sizes = weights.abs()[None]
    return weights * float(effective_numbers((sizes / sizes.sum()).numpy())[0])


def linear(tensors: Sequence[Tensor], factors: Tensor) -> Tensor:
    """sum_i f_i theta_i, float64."""
    return totals(((tensor.double(),) for tensor in tensors), factors)[0]


def per_tensor(states: Sequence[DeltaState], merge: Callable[[str, list[Tensor]], Tensor]) -> DeltaState:
    """merge(name, tensors of all states) of every tensor of floats; whole numbers, equal in all, stay as they are."""
    return {
        name: merge(name, [state[name] for state in states]) if first.is_floating_point() else first.clone()
        for name, first in states[0].items()
    }
