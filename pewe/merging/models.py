"""The three merges of Jin et al. (2023), and the merge of whole models, one tensor of all models at a time.

Models i = 1..N with parameters theta_i and coefficients c_i (1/N where none are given). Everything is computed in float64.
"""

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pewe.errors import UserError
from pewe.flags import check, flag
from pewe.merging.store import FISHER, GRAM, Statistics, check_finite
from pewe.state import FLOATS

METHODS = ("simple", "fisher", "regmean")
NORMALISATIONS = ("none", "param", "model")
HEAD = re.compile(r"(.*\.)?(classifier|classifier\.out_proj|score)\.weight$")  # rows = labels
INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool)
SINGULAR = 1e-12  # smallest squared pivot of a Gram scaled to a unit diagonal that still counts as regular


@dataclass(frozen=True)
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


@dataclass(frozen=True)
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


def known_rows(weights: Iterable[Tensor], labels: Sequence[Sequence[int]], name: str) -> Tensor:
    """Each row (label) the plain mean over the models whose training data had that label; 0 where none had it."""
    total = known = 0.0
    for number, (weight, own) in enumerate(zip(weights, labels, strict=True)):
        if beyond := [label for label in own if not 0 <= label < len(weight)]:
            raise UserError(f"statistics {number} have a label {beyond[0]}, but {name} has {len(weight)} rows")
        mask = torch.zeros(len(weight), 1, dtype=torch.float64)
        mask[list(own)] = 1
        total, known = total + mask * weight.double(), known + mask
    return total / known.clamp(min=1)


def merge_models(
    models: Sequence[Mapping[str, Tensor]],
    config: MergeConfig,
    statistics: Sequence[Statistics] = (),
    titles: Sequence[str] = (),
) -> Iterator[tuple[str, Tensor]]:
    """Name and merged tensor of every parameter that is not excluded, in the widest dtype that a model has it in.

    Models and statistics may read a tensor when it is asked for (`store.TensorFiles`): no more than one tensor of one
    model, its statistics and the running sums are in memory. RegMean applies to weights with a Gram; biases, norms,
    embeddings and excluded weights get the simple merge. Integers, which are equal in all models, stay as they are.

    Raises UserError, which calls the models by their `titles`, where models or statistics do not fit, or a value that goes
    in or comes out is not finite.
    """
    titles = titles or [f"model {number}" for number in range(len(models))]
    check_config(config, len(models), len(statistics))
    names = check_names(models, titles, config)
    dtypes = {name: common_dtype(name, models, titles) for name in names}
    c = config.coefficients or [1 / len(models)] * len(models)
    if config.method == "regmean" and not any(
        GRAM + name.removesuffix(".weight") in statistics[0].tensors for name in names
    ):
        raise UserError(
            "regmean: no parameter of the models has a Gram in the statistics; expected those of these models"
        )
    floats = [name for name in names if dtypes[name].is_floating_point]
    if config.method == "fisher":
        check_fishers(models[0], statistics, floats)
        if config.normalise == "model":
            c = normalised(c, statistics, floats, config.smoothing)
    for name in names:
        if name not in floats:
            yield name, models[0][name]
            continue
        merged = _merge_one(name, (model[name] for model in models), c, config, statistics).to(dtypes[name])
        if not torch.isfinite(merged).all():
            raise UserError(
                f"{name}: the {config.method} merge of {', '.join(titles)} has values beyond {dtypes[name]}"
            )
        yield name, merged


def _merge_one(
    name: str, tensors: Iterable[Tensor], c: Sequence[float], config: MergeConfig, statistics: Sequence[Statistics]
) -> Tensor:
    """The merge of one parameter by the rule that applies to it."""
    if config.method == "fisher":
        k = normalised(c, statistics, [name], config.smoothing) if config.normalise == "param" else c
        fishers = (sound(one, number, FISHER + name) for number, one in enumerate(statistics))
        return fisher(tensors, fishers, k, config.smoothing)
    if config.head_rule and statistics and HEAD.match(name) and all(one.info.get("labels") for one in statistics):
        return known_rows(tensors, [one.info["labels"] for one in statistics], name)
    gram = GRAM + name.removesuffix(".weight")
    if config.method == "simple" or gram not in statistics[0].tensors or _matches(config.regmean_exclude, name):
        return simple(tensors, c)
    grams = (sound(one, number, gram) for number, one in enumerate(statistics))
    if name.removesuffix(".weight") in statistics[0].info["conv1d"]:  # stored as (d_in, d_out)
        return regmean(tensors, grams, c, config.alpha, config.ridge, name)
    return regmean((tensor.mT for tensor in tensors), grams, c, config.alpha, config.ridge, name).mT


def sound(statistics: Statistics, number: int, name: str) -> Tensor:
    """A Gram or Fisher. Raises UserError where there is none, or it is not finite, or a Fisher value is below 0."""
    if name not in statistics.tensors:
        raise UserError(f"statistics {number} have no {name}; expected those of the same kind of model")
    tensor = statistics.tensors[name]
    if not torch.isfinite(tensor).all() or (name.startswith(FISHER) and (tensor < 0).any()):
        raise UserError(f"statistics {number}: {name} has values that are not finite, or below 0; collect them anew")
    return tensor


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
    check_coefficients(config.coefficients, config.method)
    check_patterns(config)


def check_patterns(config: MergeRules) -> None:
    """Raises UserError for a pattern that is no regular expression."""
    for flag_name in ("exclude", "regmean_exclude"):
        for pattern in getattr(config, flag_name):
            try:
                re.compile(pattern)
            except re.error as error:
                raise UserError(f"--{flag_name} {pattern!r} is no regular expression: {error}") from None


def check_coefficients(coefficients: Sequence[float], method: str) -> None:
    """Raises UserError for coefficients that are not finite, that cancel out, or below 0 where they are weights."""
    for value in coefficients:
        if not math.isfinite(value) or (value < 0 and method != "simple"):
            raise UserError(f"--coefficients: {value:g} is not a finite number of at least 0")
    if coefficients and abs(sum(coefficients)) <= 1e-12 * sum(map(abs, coefficients)):
        raise UserError("--coefficients sum to 0")


def check_names(models: Sequence[Mapping[str, Tensor]], titles: Sequence[str], config: MergeConfig) -> list[str]:
    """The parameters to merge, which all models have. Raises UserError for a tensor that only some have."""
    first = models[0]
    for pattern in config.exclude:
        if not any(_matches([pattern], name) for name in first):
            raise UserError(f"--exclude {pattern!r} matches no tensor of {titles[0]}")
    for model, title in zip(models, titles, strict=True):
        missing = [name for name in first if name not in model and not _matches(config.exclude, name)]
        extra = [name for name in model if name not in first and not _matches(config.exclude, name)]
        if missing:
            raise UserError(f"{title} has no tensor {missing[0]}, which {titles[0]} has; --exclude it?")
        if extra:
            raise UserError(f"{title} has a tensor {extra[0]}, which {titles[0]} has not; --exclude it?")
    names = [name for name in first if not _matches(config.exclude, name)]
    if not names:
        raise UserError("there is nothing to merge: --exclude matches every tensor")
    return names


def common_dtype(name: str, models: Sequence[Mapping[str, Tensor]], titles: Sequence[str]) -> torch.dtype:
    """The widest dtype that the models have a tensor in; of integers the one they share.

    Raises UserError unless it has one shape, and is of finite floats, or of integers or truth values that are all equal.
    """
    first = dtype = None
    for model, title in zip(models, titles, strict=True):
        tensor = model[name]
        first, dtype = (tensor, tensor.dtype) if first is None else (first, dtype)
        if tensor.shape != first.shape:
            found, expected = tuple(tensor.shape), tuple(first.shape)
            raise UserError(f"{title}: {name} has shape {found}, expected {expected} as in {titles[0]}; --exclude it?")
        if tensor.dtype in FLOATS and first.dtype in FLOATS:
            check_finite(name, tensor, title)
            dtype = torch.promote_types(dtype, tensor.dtype)
        elif tensor.dtype not in INTEGERS or tensor.dtype != first.dtype:
            raise UserError(
                f"{title}: {name} is of {tensor.dtype}, which is not merged with {first.dtype}; --exclude it?"
            )
        elif not torch.equal(tensor, first):
            raise UserError(f"{title}: {name} ({tensor.dtype}) is not equal to that of {titles[0]}; --exclude it?")
    return dtype


def check_fishers(model: Mapping[str, Tensor], statistics: Sequence[Statistics], names: Sequence[str]) -> None:
    """Raises UserError unless all statistics have the Fisher values of these parameters."""
    for number, one in enumerate(statistics):
        for name in names:
            if FISHER + name not in one.tensors or one.tensors[FISHER + name].shape != model[name].shape:
                raise UserError(f"statistics {number} have no {FISHER}{name} of shape {tuple(model[name].shape)}")


def _matches(patterns: Sequence[str], name: str) -> bool:
    return any(re.match(pattern, name) for pattern in patterns)
