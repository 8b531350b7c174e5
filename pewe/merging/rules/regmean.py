"""Regression mean (Jin et al., ICLR 2023): the linear maps whose outputs fit those of all sources best."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pewe.errors import UserError
from pewe.flags import flag
from pewe.merging.rules.average import totals
from pewe.merging.statistics import GRAM, Statistics, sound
from pewe.state import DeltaState

SINGULAR = 1e-12  # smallest squared pivot of a Gram scaled to a unit diagonal that still counts as regular


@dataclass(frozen=True)
class RegMeanFlags:
    """How Grams are shrunk."""

    alpha: float = flag(
        0.9,
        "RegMean: factor of the off-diagonal Gram entries; 0 is the diagonal variant, 1 the full Gram",
        low=0,
        high=1,
    )
    ridge: float = flag(1e-6, "RegMean: added to every Gram's diagonal, in units of its mean diagonal entry", low=0)


def regmean(
    states: Sequence[DeltaState], weights: Tensor, flags: RegMeanFlags, statistics: Sequence[Statistics]
) -> DeltaState:
    """M = (sum_i w_i G_i)^-1 sum_i w_i G_i M_i of maps y = x M, M (d_in, d_out), with shrunk Grams G_i (d_in, d_in).

    The least-squares solution for all sources' inputs (equation 2 of the paper), float64. With a ridge, directions without
    data get the mean of the sources. Weights (T, n) give maps (T, d_in, d_out). Raises UserError where the sum of the
    Grams is singular.
    """
    return {name: solve(*totals(_terms(states, statistics, flags, name), weights), name) for name in states[0]}


def metric(
    states: Sequence[DeltaState], weights: Tensor, flags: RegMeanFlags, statistics: Sequence[Statistics], name: str
) -> Tensor:
    """sum_i w_i G_i of the inputs of one map, (d_in, d_in), or (T, d_in, d_in) for weights (T, n)."""
    grams = (gram_of(*of, name, state[name], flags) for of, state in zip(enumerate(statistics), states, strict=True))
    return totals(((gram,) for gram in grams), weights)[0]


def _terms(
    states: Sequence[DeltaState], statistics: Sequence[Statistics], flags: RegMeanFlags, name: str
) -> Iterator[tuple[Tensor, Tensor]]:
    """G_i and G_i M_i of one map."""
    for number, (state, one) in enumerate(zip(states, statistics, strict=True)):
        M = state[name].double()
        G = gram_of(number, one, name, M, flags)
        yield G, G @ M


def gram_of(number: int, statistics: Statistics, name: str, M: Tensor, flags: RegMeanFlags) -> Tensor:
    """The shrunk Gram (d_in, d_in) of the inputs of a map of source `number`, a layer or its weight."""
    key = GRAM + name.removesuffix(".weight")
    return shrunk(sound(statistics, number, key, (len(M), len(M))), flags.alpha, flags.ridge)


def shrunk(gram: Tensor, alpha: float, ridge: float = 0.0) -> Tensor:
    """alpha G + (1 - alpha) diag G, plus ridge times the mean of diag G on the diagonal; (d, d) float64."""
    gram = gram.double()
    diagonal = gram.diagonal()
    return alpha * gram + torch.diag((1 - alpha) * diagonal + ridge * diagonal.mean())


def solve(gram: Tensor, right: Tensor, name: str) -> Tensor:
    """gram^-1 right, float64, by Cholesky of the Gram scaled to a unit diagonal. Raises UserError where it is singular."""
    if gram.dim() == 3:
        return torch.stack([solve(one, own, name) for one, own in zip(gram, right, strict=True)])
    scale = gram.diagonal().clamp(min=0).sqrt()
    factor, failed = torch.linalg.cholesky_ex(gram / scale[:, None] / scale)
    if failed or not (scale > 0).all() or not factor.diagonal().square().min() > SINGULAR:
        raise UserError(
            f"{name}: the merged Gram ({len(gram)} x {len(gram)}) is singular, some input direction never occurs; "
            "set --ridge (e.g. 1e-6), a smaller --alpha, or exclude the parameter from RegMean"
        )
    return torch.cholesky_solve(right / scale[:, None], factor) / scale[:, None]
