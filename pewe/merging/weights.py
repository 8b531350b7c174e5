"""From similarities S[i, j] to ensemble weights W[i, j] (Lv et al. 2023, section 3).

w_i = softmax over sources j != i of (orientation * S[i, j] / tau)
"""

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from pewe.cli import log
from pewe.errors import UserError
from pewe.reporting.stats import effective_numbers


def allowed_sources(targets: Sequence[str], sources: Sequence[str]) -> Tensor:
    """(T, n) True where source j may help target i: everywhere but on itself."""
    allowed = torch.tensor([[target != source for source in sources] for target in targets])
    for target, row in zip(targets, allowed, strict=True):
        if not row.any():
            raise UserError(f"there is no source for target {target!r} but itself")
    return allowed


def softmax_weights(
    S: Tensor, temperature: float | Tensor, higher_is_more_similar: bool = False, allowed: Tensor | None = None
) -> Tensor:
    """Softmax of the oriented similarities over the allowed sources (all of them unless given), (T, n), rows sum to 1, float64.

    `temperature` has the unit of S; one number, or one per target (T, 1). However small it is, the weights are the limit:
    the most similar source has all of it, equally similar ones share it.
    """
    temperature = torch.as_tensor(temperature, dtype=torch.float64)
    allowed = torch.ones_like(S, dtype=torch.bool) if allowed is None else allowed
    if not ((temperature > 0) & torch.isfinite(temperature)).all():
        raise UserError(f"the temperature must be a finite number above 0, not {temperature.tolist()}")
    if not torch.isfinite(S[allowed]).all():
        raise UserError("a similarity is not finite; no weights can be made from it")
    oriented = S.double() if higher_is_more_similar else -S.double()
    oriented = oriented.masked_fill(~allowed, float("-inf"))
    below = oriented - oriented.amax(
        1, keepdim=True
    )  # 0 at the most similar: no quotient is beyond the range of floats
    return torch.softmax(below / temperature, dim=1)


def top_sources(S: Tensor, count: int, higher_is_more_similar: bool, allowed: Tensor) -> Tensor:
    """`allowed` (T, n) without all but the `count` most similar sources of each target; of equally similar ones the first."""
    oriented = (S.double() if higher_is_more_similar else -S.double()).masked_fill(~allowed, float("-inf"))
    best = oriented.argsort(dim=1, descending=True, stable=True)[:, :count]
    return allowed & torch.zeros_like(allowed).scatter(1, best, True)


def uniform_weights(allowed: Tensor) -> Tensor:
    """The same weight for every allowed source, (T, n), float64."""
    return allowed.double() / allowed.sum(1, keepdim=True)


def temperature_for(S: Tensor, effective: float, higher_is_more_similar: bool, allowed: Tensor) -> float:
    """The temperature at which the median over targets of the effective number of sources is `effective`.

    Bisection on the logarithm of the temperature; the effective number grows with it. Where most targets have so many
    equally similar sources that no temperature is low enough, the lowest.
    """
    most = int(allowed.sum(1).median())
    if not 1 < effective < most:
        raise UserError(f"the effective number of sources must lie between 1 and {most}, not {effective:g}")
    ends = [torch.where(allowed, S.double(), end) for end in (-math.inf, math.inf)]
    spread = (ends[0].amax(1) / 2 - ends[1].amin(1) / 2).max().item()  # half of it: the whole may be beyond the floats
    low, high = (math.log(spread or 1.0) + sign * 12 * math.log(10) for sign in (-1, 1))
    for _ in range(120):
        middle = (low + high) / 2
        W = softmax_weights(S, _exp(middle), higher_is_more_similar, allowed)
        low, high = (middle, high) if np.median(effective_numbers(W.numpy())) < effective else (low, middle)
    return _exp((low + high) / 2)


def warn_of_collapse(S: Tensor, W: Tensor, temperature: float, higher: bool, allowed: Tensor) -> None:
    """Say it where more than half of the targets, which have a choice, take almost all their weight from one source."""
    most, found = int(allowed.sum(1).median()), effective_numbers(W.numpy())
    if most < 2 or (found < 1.5).mean() <= 0.5:
        return
    wanted = min(3.0, (1 + most) / 2)  # of two or three sources not all
    log.warning(
        "with tem %g the median effective number of sources is %.1f: %d of %d targets take almost all their weight from "
        "one source; tem %.3g would give %g (--effective %g)",
        temperature,
        np.median(found),
        (found < 1.5).sum(),
        len(found),
        temperature_for(S, wanted, higher, allowed),
        wanted,
        wanted,
    )


def _exp(logarithm: float) -> float:
    """e^x, within the range of positive floats."""
    return math.exp(min(max(logarithm, -740.0), 709.0))


def as_tensor(frame: pd.DataFrame) -> Tensor:
    """The values of a matrix as float64, 0 on the diagonal where it is missing."""
    return torch.tensor(frame.fillna(0.0).to_numpy(dtype=float, copy=True))
