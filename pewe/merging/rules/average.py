"""The weighted average, and the weighted sums that the means of the other rules are made of."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from pewe.state import DeltaState


def average(states: Sequence[DeltaState], weights: Tensor, flags: object = None) -> DeltaState:
    """theta = sum_i w_i theta_i, float64; the weights are taken as they are (a plain mean: 1/N each)."""
    return {name: totals(((state[name].double(),) for state in states), weights)[0] for name in states[0]}


def totals(terms: Iterable[tuple[Tensor, ...]], weights: Tensor) -> tuple[Tensor, ...]:
    """sum_i w_i x_i of each place x of the terms, float64.

    Of weights (n,) as a running sum, for which no more than one term is in memory; of weights (T, n), a row per target,
    (T, ...) as one product with the stacked terms.
    """
    if weights.dim() == 2:
        return tuple(torch.tensordot(weights.double(), torch.stack(place), 1) for place in zip(*terms, strict=True))
    sums: tuple[Tensor, ...] = ()
    for weight, term in zip(weights.tolist(), terms, strict=True):
        weighted = [weight * tensor for tensor in term]
        sums = tuple(total.add_(one) for total, one in zip(sums, weighted, strict=True)) if sums else tuple(weighted)
    return sums
