"""The merge of whole models by a rule, one tensor of all models at a time (Jin et al. 2023).

Models i = 1..N with parameters theta_i and coefficients c_i (1/N where none are given). Everything is computed in float64.
"""

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pewe.cli import parse
from pewe.errors import UserError
from pewe.flags import check, flag
from pewe.merging.rules import RULES, Rule
from pewe.merging.rules.average import totals
from pewe.merging.rules.fisher import FisherFlags
from pewe.merging.rules.regmean import RegMeanFlags
from pewe.merging.statistics import FISHER, GRAM, Statistics, check_finite
from pewe.state import FLOATS

METHODS = {"simple": "average", "fisher": "fisher", "regmean": "regmean"}  # of the paper: name -> its rule
OTHERS = [name for name, rule in RULES.items() if not (rule.kinds or rule.statistics or name in METHODS.values())]
NORMALISATIONS = ("none", "param", "model")
HEAD = re.compile(r"(.*\.)?(classifier|classifier\.out_proj|score)\.weight$")  # rows = labels
Models = Sequence[Mapping[str, Tensor]]
INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool)


@dataclass(frozen=True)
class MergeRules(RegMeanFlags, FisherFlags):
    """How parameters are merged; defaults of the release, except that its alpha depends on the experiment (0.1, 0.9 or 1)."""

    alpha: float = flag(
        0.1, "RegMean: factor of the off-diagonal Gram entries; 0 is the diagonal variant, 1 the full Gram"
    )
    ridge: float = flag(0.0, "RegMean: added to every Gram's diagonal, in units of its mean diagonal entry")
    smoothing: float = flag(1e-10, "Fisher: added to every Fisher value", above=0)
    relative: ClassVar[bool] = False  # the smoothing is a Fisher value itself
    normalise: str = flag(
        "none", "Fisher: none, or divide by its norm over each param or over the whole model", choices=NORMALISATIONS
    )
    exclude: list[str] = flag([], "regular expressions of parameters that stay those of the first model")
    regmean_exclude: list[str] = flag([], "regular expressions of parameters that RegMean averages simply")
    head_rule: bool = flag(True, "simple, RegMean: average a head's row over the models that know its label only")


@dataclass(frozen=True)
class MergeConfig(MergeRules):
    """One merge."""

    method: str = flag("regmean", f"one of {', '.join([*METHODS, *OTHERS])}", choices=[*METHODS, *OTHERS])
    combine_flags: list[str] = flag([], f"flags of {', '.join(OTHERS)}: NAME=VALUE, or NAME for a switch", unique=True)
    coefficients: list[float] = flag([], "one factor per model; simple does not normalise them (default: 1/N each)")


@dataclass(frozen=True)
class Parameters(Mapping[str, Tensor]):
    """Some tensors of a model by their names, each read when it is asked for.

    Transposed for maps y = x M of x W^T; float64 differences where there is a base.
    """

    model: Mapping[str, Tensor]
    names: Sequence[str]
    transposed: bool = False
    base: Mapping[str, Tensor] | None = None

    def __getitem__(self, name: str) -> Tensor:
        tensor = self.model[name].mT if self.transposed else self.model[name]
        return tensor if self.base is None else tensor.double() - self.base[name].double()

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


def known_rows(weights: Iterable[Tensor], labels: Sequence[Sequence[int]], name: str) -> Tensor:
    """Each row (label) the plain mean over the models whose training data had that label; 0 where none had it."""

    def terms() -> Iterator[tuple[Tensor, Tensor]]:
        for number, (weight, own) in enumerate(zip(weights, labels, strict=True)):
            if beyond := [label for label in own if not 0 <= label < len(weight)]:
                raise UserError(f"statistics {number} have a label {beyond[0]}, but {name} has {len(weight)} rows")
            mask = torch.zeros(len(weight), 1, dtype=torch.float64)
            mask[list(own)] = 1
            yield mask * weight.double(), mask

    total, known = totals(terms(), torch.ones(len(labels)))
    return total / known.clamp(min=1)


def merge_models(
    models: Models,
    config: MergeConfig,
    statistics: Sequence[Statistics] = (),
    titles: Sequence[str] = (),
    base: Mapping[str, Tensor] | None = None,
) -> Iterator[tuple[str, Tensor]]:
    """Name and merged tensor of every parameter that is not excluded, in the widest dtype that a model has it in.

    Models and statistics may read a tensor when it is asked for (`store.TensorFiles`): no more than one tensor of one
    model, its statistics and the running sums are in memory. RegMean applies to weights with a Gram; biases, norms,
    embeddings and excluded weights get the simple merge. Integers, which are equal in all models, stay as they are.
    Rules that take differences from the `base` that all models were tuned from, or from zero, may hold all of them.

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
    if config.method in METHODS:
        merges = ((name, _merge_one(name, models, c, config, statistics)) for name in floats)
    else:
        merges = merge_by_rule(RULES[config.method], models, c, config, floats, base)
    yield from ((name, models[0][name]) for name in names if name not in floats)
    for name, tensor in merges:
        merged = tensor.to(dtypes[name])
        if not torch.isfinite(merged).all():
            raise UserError(
                f"{name}: the {config.method} merge of {', '.join(titles)} has values beyond {dtypes[name]}"
            )
        yield name, merged


def _merge_one(
    name: str, models: Models, c: Sequence[float], config: MergeConfig, statistics: Sequence[Statistics]
) -> Tensor:
    """The merge of one parameter by the rule that applies to it."""
    rule, transposed = RULES[METHODS[config.method]], False
    if rule.statistics == FISHER:
        c = normalised(c, statistics, [name], config.smoothing) if config.normalise == "param" else c
    elif config.head_rule and statistics and HEAD.match(name) and all(one.info.get("labels") for one in statistics):
        return known_rows((model[name] for model in models), [one.info["labels"] for one in statistics], name)
    elif rule.statistics == GRAM:
        layer = name.removesuffix(".weight")
        if GRAM + layer in statistics[0].tensors and not _matches(config.regmean_exclude, name):
            transposed = layer not in statistics[0].info["conv1d"]  # else it is stored as (d_in, d_out)
        else:
            rule = RULES["average"]
    parts = [Parameters(model, [name], transposed) for model in models]
    merged = rule.apply(parts, torch.tensor(c, dtype=torch.float64), config, statistics)[name]
    return merged.mT if transposed else merged


def merge_by_rule(
    rule: Rule,
    models: Models,
    c: Sequence[float],
    config: MergeConfig,
    names: Sequence[str],
    base: Mapping[str, Tensor] | None,
) -> Iterator[tuple[str, Tensor]]:
    """Name and merge, float64, of these parameters by a rule without statistics, together where it looks at all of them.

    Raises UserError for flags that the rule has not, and a base that has not the parameters.
    """
    flags = parse(rule.flags, [f"--{item}" for item in config.combine_flags])
    for name in names if base is not None else []:
        if name not in base or base[name].shape != models[0][name].shape:
            raise UserError(f"--base has no {name} of shape {tuple(models[0][name].shape)}; --exclude it?")
        check_finite(name, base[name], "--base")
    for group in [[name] for name in names] if rule.by_tensor else [names]:
        states = [Parameters(model, group, base=base) for model in models]
        merged = rule.apply(states, torch.tensor(c, dtype=torch.float64), flags)
        yield from ((name, tensor if base is None else tensor + base[name].double()) for name, tensor in merged.items())


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
    if config.combine_flags and config.method in METHODS:
        raise UserError(f"--combine_flags {config.combine_flags[0]}: {config.method} has flags of its own, see --help")
    if statistics and config.method not in METHODS:
        raise UserError(f"{config.method} takes no statistics")
    if statistics != models and (statistics or config.method in ("fisher", "regmean")):
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


def check_names(models: Models, titles: Sequence[str], config: MergeConfig) -> list[str]:
    """The parameters to merge, which all models have. Raises UserError for a tensor that only some have."""
    first = models[0]
    for flag_name in ("exclude", *(("regmean_exclude",) if config.method == "regmean" else ())):
        for pattern in getattr(config, flag_name):
            if not any(_matches([pattern], name) for name in first):
                raise UserError(f"--{flag_name} {pattern!r} matches no tensor of {titles[0]}")
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


def common_dtype(name: str, models: Models, titles: Sequence[str]) -> torch.dtype:
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
