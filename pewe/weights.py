"""From similarities S[i, j] to ensemble weights W[i, j] (Lv et al. 2023, section 3).

w_i = softmax over sources j != i of (orientation * S[i, j] / tau)
"""

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from pewe.cli import UserError

COLUMNS = ["target", "source", "scope", "value"]  # of a similarity table
RESULT = "result.tsv"  # its name in the folder of a measure


def similarity_frame(table: pd.DataFrame, where: str = "the similarity table") -> pd.DataFrame:
    """Rows (target, source, value) of one scope as a matrix, targets down and sources across, in order of appearance.

    Raises UserError where a pair stands twice, is missing (other than target = source), or is not finite.
    """
    pairs = table[["target", "source"]]
    if pairs.duplicated().any():
        target, source = pairs[pairs.duplicated()].iloc[0]
        raise UserError(f"{where}: the pair target {target!r}, source {source!r} stands twice")
    frame = table.pivot(index="target", columns="source", values="value")
    frame = frame.loc[pd.unique(table["target"]), pd.unique(table["source"])].astype(float)
    frame.columns.name = frame.index.name = None
    bad = ~np.isfinite(frame.to_numpy())
    for i, j in zip(*np.nonzero(bad), strict=True):
        if frame.index[i] != frame.columns[j]:
            problem = "is missing" if np.isnan(frame.iat[i, j]) else f"is {frame.iat[i, j]}"
            raise UserError(f"{where}: the value of target {frame.index[i]!r}, source {frame.columns[j]!r} {problem}")
    return frame


def allowed_sources(targets: Sequence[str], sources: Sequence[str]) -> Tensor:
    """(T, n) True where source j may help target i: everywhere but on itself."""
    allowed = torch.tensor([[target != source for source in sources] for target in targets])
    for target, row in zip(targets, allowed, strict=True):
        if not row.any():
            raise UserError(f"there is no source for target {target!r} but itself")
    return allowed


def softmax_weights(S: Tensor, temperature: float | Tensor, higher_is_more_similar: bool, allowed: Tensor) -> Tensor:
    """Softmax of the oriented similarities over the allowed sources, (T, n), rows sum to 1, float64.

    `temperature` has the unit of S; one number, or one per target (T, 1). However small it is, the weights are the limit:
    the most similar source has all of it, equally similar ones share it.
    """
    temperature = torch.as_tensor(temperature, dtype=torch.float64)
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


def effective_numbers(W: Tensor) -> Tensor:
    """exp(entropy) of each row, (T,): 1 if one source has all the weight, n if n sources share it equally."""
    return torch.exp(torch.special.entr(W).sum(1))


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
        low, high = (middle, high) if effective_numbers(W).quantile(0.5) < effective else (low, middle)
    return _exp((low + high) / 2)


def _exp(logarithm: float) -> float:
    """e^x, within the range of positive floats."""
    return math.exp(min(max(logarithm, -740.0), 709.0))
