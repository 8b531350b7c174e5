"""The Fisher-weighted mean (Matena and Raffel, NeurIPS 2022)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pewe.flags import flag
from pewe.merging.rules.average import totals
from pewe.merging.statistics import FISHER, Statistics, sound
from pewe.state import DeltaState

SMALLEST = 1e-10  # of a smoothing in units of the mean Fisher value


@dataclass(frozen=True)
class FisherFlags:
    """The smoothing eps."""

    smoothing: float = flag(
        1e-6, "Fisher: added to every Fisher value, in units of the tensor's mean Fisher value", low=0
    )
    relative: ClassVar[bool] = True  # in these units; of whole models as in the release, a Fisher value itself


def fisher(
    states: Sequence[DeltaState], weights: Tensor, flags: FisherFlags, statistics: Sequence[Statistics]
) -> DeltaState:
    """theta = sum_i w_i (F_i + eps) theta_i / sum_i w_i (F_i + eps), elementwise (equation 4 of the paper), float64.

    F_i is the Fisher information of source i. Weights (T, n) give tensors (T, ...).
    """
    return {name: fisher_mean(_pairs(states, statistics, name), weights, flags) for name in states[0]}


def _pairs(
    states: Sequence[DeltaState], statistics: Sequence[Statistics], name: str
) -> Iterator[tuple[Tensor, Tensor]]:
    """A tensor of every source, and its Fisher."""
    for number, (state, one) in enumerate(zip(states, statistics, strict=True)):
        tensor = state[name].double()
        yield tensor, sound(one, number, FISHER + name, tuple(tensor.shape))


def fisher_mean(pairs: Iterator[tuple[Tensor, Tensor]], weights: Tensor, flags: FisherFlags) -> Tensor:
    """The mean of one tensor, from pairs theta_i, F_i.

    A relative smoothing is in units of the mean of F over the values and (weighted) sources; where all are 0, it is 1.
    """
    terms = ((F * theta, theta, F) for theta, F in pairs)
    product, theta, F = totals(terms, weights)
    mass = weights.sum(-1).view(-1, *[1] * (F.dim() - 1)) if weights.dim() == 2 else weights.sum()
    eps = torch.as_tensor(flags.smoothing, dtype=torch.float64)
    if flags.relative:
        own = F.flatten(weights.dim() - 1).mean(-1).view(mass.shape)
        eps = eps.clamp(min=SMALLEST) * own / mass
        eps = torch.where(eps > 0, eps, 1.0)
    return (product + eps * theta) / (F + eps * mass)
