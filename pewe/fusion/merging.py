"""The three merges of Jin et al. (2023), and the merge of whole models, one tensor of all models at a time.

Models i = 1..N with parameters theta_i and coefficients c_i (1/N where none are given). Everything is computed in float64.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pewe.cli import UserError, check, flag
from pewe.fusion.store import FISHER, GRAM, Statistics

METHODS = ("simple", "fisher", "regmean")
NORMALISATIONS = ("none", "param", "model")
HEAD = re.compile(r"(.*\.)?(classifier|classifier\.out_proj|score)\.weight$")  # rows = labels
SINGULAR = 1e-12  # smallest squared pivot of a Gram scaled to a unit diagonal that still counts as regular


@dataclass
class MergeRules:
    """How parameters are merged; defaults of the release, except that its alpha depends on the experiment (0.1, 0.9 or 1)."""

    alpha: float = flag(
        0.1,
        "RegMean: factor of the off-diagonal Gram entries; 0 is the diagonal variant, 1 the full Gram",
        low=0,
        high=1,
    )
    ridge: float = flag(0.0, "RegMean: added to every Gram's diagonal, in units of its mean diagonal entry", low=0)
    smoothing: float = flag(1e-10, "Fisher: added to every Fisher value", above=0)
    normalise: str = flag(
        "none", "Fisher: none, or divide by its norm over each param or over the whole model", choices=NORMALISATIONS
    )
    exclude: list[str] = flag([], "regular expressions of parameters that stay those of the first model")
    regmean_exclude: list[str] = flag([], "regular expressions of parameters that RegMean averages simply")
    head_rule: bool = flag(True, "simple, RegMean: average a head's row over the models that know its label only")


@dataclass
class MergeConfig(MergeRules):
    """One merge."""

    method: str = flag("regmean", "simple, fisher or regmean", choices=METHODS)
    coefficients: list[float] = flag([], "one factor per model; simple does not normalise them (default: 1/N each)")


def simple(tensors: Iterable[Tensor], coefficients: Sequence[float]) -> Tensor:
    """sum_i c_i theta_i; the coefficients are taken as they are."""
    return sum(c * tensor.double() for c, tensor in zip(coefficients, tensors, strict=True))


def fisher(tensors: Iterable[Tensor], fishers: Iterable[Tensor], factors: Sequence[float], smoothing: float) -> Tensor:
    """sum_i k_i (F_i + eps) theta_i / sum_i k_i (F_i + eps), elementwise (Matena and Raffel 2022, equation 4)."""
    above = below = 0.0
    for tensor, information, k in zip(tensors, fishers, factors, strict=True):
        weight = k * (information.double() + smoothing)
        above, below = above + weight * tensor.double(), below + weight
    return above / below


def shrunk(gram: Tensor, alpha: float, ridge: float = 0.0) -> Tensor:
    """alpha G + (1 - alpha) diag G, plus ridge times the mean of diag G on the diagonal; (d, d) float64."""
    gram = gram.double()
    diagonal = gram.diagonal()
    return alpha * gram + torch.diag((1 - alpha) * diagonal + ridge * diagonal.mean())


def regmean(
    maps: Iterable[Tensor],
    grams: Iterable[Tensor],
    coefficients: Sequence[float],
    alpha: float,
    ridge: float,
    name: str,
) -> Tensor:
    """M* = (sum_i c_i G_i)^-1 sum_i c_i G_i M_i of maps y = x M, M (d_in, d_out), with shrunk Grams (d_in, d_in).

    The least-squares solution for all models' inputs (Jin et al. 2023, equation 2). With a ridge, directions without
    data get the mean of the models. Raises UserError where the sum of the Grams is singular.
    """
    total = product = 0.0
    for matrix, gram, c in zip(maps, grams, coefficients, strict=True):
        if gram.shape != (len(matrix), len(matrix)):
            raise UserError(f"{name}: its Gram is {tuple(gram.shape)}, expected {len(matrix)} x {len(matrix)}")
        weight = c * shrunk(gram, alpha, ridge)
        total, product = total + weight, product + weight @ matrix.double()
    return solve(total, product, name)


def solve(gram: Tensor, right: Tensor, name: str) -> Tensor:
    """gram^-1 right, float64, by Cholesky of the Gram scaled to a unit diagonal. Raises UserError where it is singular."""
    scale = gram.diagonal().clamp(min=0).sqrt()
    factor, failed = torch.linalg.cholesky_ex(gram / scale[:, None] / scale)
    if failed or not (scale > 0).all() or not factor.diagonal().square().min() > SINGULAR:
        raise UserError(
            f"{name}: the merged Gram ({len(gram)} x {len(gram)}) is singular, some input direction never occurs; "
            "set --ridge (e.g. 1e-6), a smaller --alpha, or exclude the parameter from RegMean"
        )
    return torch.cholesky_solve(right / scale[:, None], factor) / scale[:, None]


def known_rows(weights: Iterable[Tensor], labels: Sequence[Sequence[int]]) -> Tensor:
    """Each row (label) the plain mean over the models whose training data had that label; 0 where none had it."""
    total = known = 0.0
    for weight, own in zip(weights, labels, strict=True):
        mask = torch.zeros(len(weight), 1, dtype=torch.float64)
        mask[list(own)] = 1
        total, known = total + mask * weight.double(), known + mask
    return total / known.clamp(min=1)


def merge_models(
    models: Sequence[Mapping[str, Tensor]], config: MergeConfig, statistics: Sequence[Statistics] = ()
) -> Iterator[tuple[str, Tensor]]:
    """Name and merged tensor of every parameter that is not excluded, in the dtype of the first model.

    Models and statistics may read a tensor when it is asked for (`store.TensorFiles`): no more than one tensor of one
    model, its statistics and the running sums are in memory. RegMean applies to weights with a Gram; biases, norms,
    embeddings and excluded weights get the simple merge. Raises UserError where models or statistics do not fit.
    """
    check_config(config, len(models), len(statistics))
    names = [name for name in models[0] if not _matches(config.exclude, name)]
    check_models(models, names)
    c = config.coefficients or [1 / len(models)] * len(models)
    if config.method == "regmean" and not any(
        GRAM + name.removesuffix(".weight") in statistics[0].tensors for name in names
    ):
        raise UserError(
            "regmean: no parameter of the models has a Gram in the statistics; expected those of these models"
        )
    if config.method == "fisher":
        check_fishers(models[0], statistics, names)
        if config.normalise == "model":
            c = normalised(c, statistics, names, config.smoothing)
    for name in names:
        merged = _merge_one(name, (model[name] for model in models), c, config, statistics)
        yield name, merged.to(models[0][name].dtype)


def _merge_one(
    name: str, tensors: Iterable[Tensor], c: Sequence[float], config: MergeConfig, statistics: Sequence[Statistics]
) -> Tensor:
    """The merge of one parameter by the rule that applies to it."""
    if config.method == "fisher":
        k = normalised(c, statistics, [name], config.smoothing) if config.normalise == "param" else c
        return fisher(tensors, (one.tensors[FISHER + name] for one in statistics), k, config.smoothing)
    if config.head_rule and statistics and HEAD.match(name) and all(one.info.get("labels") for one in statistics):
        return known_rows(tensors, [one.info["labels"] for one in statistics])
    gram = GRAM + name.removesuffix(".weight")
    if config.method == "simple" or gram not in statistics[0].tensors or _matches(config.regmean_exclude, name):
        return simple(tensors, c)
    for number, one in enumerate(statistics):
        if gram not in one.tensors:
            raise UserError(f"statistics {number} have no {gram}; expected the Grams of the same kind of model")
    grams = (one.tensors[gram] for one in statistics)
    if name.removesuffix(".weight") in statistics[0].info["conv1d"]:  # stored as (d_in, d_out)
        return regmean(tensors, grams, c, config.alpha, config.ridge, name)
    return regmean((tensor.mT for tensor in tensors), grams, c, config.alpha, config.ridge, name).mT


def normalised(
    c: Sequence[float], statistics: Sequence[Statistics], names: Sequence[str], smoothing: float
) -> list[float]:
    """c_i / (||F_i|| + eps), the norm over all values of these parameters."""
    squares = [sum(one.tensors[FISHER + name].double().square().sum().item() for name in names) for one in statistics]
    return [factor / (square**0.5 + smoothing) for factor, square in zip(c, squares, strict=True)]


def check_config(config: MergeConfig, models: int, statistics: int) -> None:
    """Raises UserError for settings that do not fit each other or the numbers of models and statistics."""
    check(config)
    if not models:
        raise UserError("there are no models to merge")
    if config.coefficients and len(config.coefficients) != models:
        raise UserError(f"--coefficients has {len(config.coefficients)} numbers for {models} models")
    if statistics != models and (statistics or config.method != "simple"):
        raise UserError(f"{config.method}: {statistics} statistics for {models} models; expected one per model")


def check_models(models: Sequence[Mapping[str, Tensor]], names: Sequence[str]) -> None:
    """Raises UserError unless every model has these tensors in the shape of the first model's."""
    for number, model in enumerate(models):
        for name in names:
            if name not in model:
                raise UserError(f"model {number} has no tensor {name}, which model 0 has; --exclude it?")
            if model[name].shape != models[0][name].shape:
                found, expected = tuple(model[name].shape), tuple(models[0][name].shape)
                raise UserError(f"model {number}: {name} has shape {found}, expected {expected}; --exclude it?")


def check_fishers(model: Mapping[str, Tensor], statistics: Sequence[Statistics], names: Sequence[str]) -> None:
    """Raises UserError unless all statistics have the Fisher values of these parameters."""
    for number, one in enumerate(statistics):
        for name in names:
            if FISHER + name not in one.tensors or one.tensors[FISHER + name].shape != model[name].shape:
                raise UserError(f"statistics {number} have no {FISHER}{name} of shape {tuple(model[name].shape)}")


def _matches(patterns: Sequence[str], name: str) -> bool:
    return any(re.match(pattern, name) for pattern in patterns)
