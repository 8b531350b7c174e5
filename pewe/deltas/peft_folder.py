"""LoRA folders of the library PEFT: `adapter_config.json` beside `adapter_model.safetensors` (or `adapter_model.bin`).

    y = x W + s (x A) B,    s = lora_alpha / r, or lora_alpha / sqrt(r) with use_rslora      (Hu et al. 2022, Kalajdzievski 2023)

PEFT stores A as (r, d_in) and B as (d_out, r); ours are A (d_in, r) and B (r, d_out). Where all projections have one rank
and scale, every number stays as it is. Otherwise A and B get zeros up to the largest rank, and B the quotient of the scales:
the same function. A projection without LoRA, where only some layers have it, gets A = B = 0. Nothing is unpickled but tensors.
"""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch.nn.functional import pad

from pewe.deltas.flags import LORA_TARGETS, WIDEST
from pewe.deltas.peft_config import CONFIG, NO_PATTERN, check_plain, check_targeted, check_targets
from pewe.deltas.projections import SITE, Width, absent, check_complete, check_widths, sizes_of
from pewe.errors import UserError
from pewe.identity import model_digest
from pewe.model_files import json_object
from pewe.state import DeltaState, check_state, float_state, read_stored

WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
PREFIX = "base_model.model."


class Lora(NamedTuple):
    """A projection's matrices, A (d_in, r) and B (r, d_out), and its scale times r."""

    A: torch.Tensor
    B: torch.Tensor
    alpha: float


def is_peft(folder: Path) -> bool:
    """Whether this is a folder of PEFT."""
    return (folder / CONFIG).is_file()


def read_peft(folder: Path, model: str = "") -> tuple[DeltaState, dict]:
    """The state as float32, under our names, and what a checkpoint says of it: rank, alpha, backbone.

    `model` is the backbone, which says how many blocks there are, where the configuration has another name for it.

    Raises UserError that names the file and the entry or tensor: damaged files, another method than LoRA or a kind of it
    that is more than A and B, projections that a T5 has not, or not all of a target, shapes that do not fit the rank.
    """
    path = folder / CONFIG
    config = json_object(path)
    check_plain(config, path)
    tensors, weights = _tensors(folder)
    pairs = _pairs(tensors, weights)
    check_targets(pairs, config, path, weights)
    found = {site: _lora(site, pair, config, path, weights) for site, pair in pairs.items()}
    base = config.get("base_model_name_or_path")
    sizes = sizes_of(model or base, sure=bool(model))
    if not sizes and of_some_layers(found, config, sizes):
        raise UserError(
            f"{path}: some layers may have no LoRA, and the backbone {model or base}, which says how many there are, is not here"
            "; pewe convert --model FOLDER names it"
        )
    found |= without_lora(found, config, sizes, path)
    check_complete(found, weights, sizes)
    widest = max(found.values(), key=lambda one: one.A.shape[1])
    r = widest.A.shape[1]
    state = {}
    for site, one in found.items():
        A, B = widened(one, r, widest.alpha)
        state |= {f"{site}.lora_A": A.contiguous(), f"{site}.lora_B": B.contiguous()}
    check_widths(widths_of(state, weights), weights, sizes)
    check_state(state, None, weights)
    made_for = {"model": base, "backbone": model_digest(base)} if base else {}
    return state, {"lora_r": r, "lora_alpha": widest.alpha, **made_for}


def _tensors(folder: Path) -> tuple[dict, Path]:
    """What is stored in the weights' file, and the file."""
    path = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if path is None:
        raise UserError(f"{folder} has no {WEIGHTS[0]} beside its {CONFIG}")
    content = read_stored(path)
    if not isinstance(content, dict):
        raise UserError(f"{path} is a {type(content).__name__}, not names with tensors")
    return content, path


def _pairs(tensors: Mapping, path: Path) -> dict[str, dict[str, torch.Tensor]]:
    """Projection -> {"A": (r, d_in), "B": (d_out, r)}, float32."""
    pairs: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in float_state(tensors, path).items():
        match = re.fullmatch(rf"{re.escape(PREFIX)}(.+)\.lora_([AB])\.weight", name)
        if not match:
            raise UserError(f"{path}: tensor {name} is none of LoRA's ({PREFIX}NAME.lora_A.weight or lora_B)")
        site = SITE.fullmatch(match[1])
        if not site or site[4] not in LORA_TARGETS:
            raise UserError(f"{path}: tensor {name} is of no projection of a T5 ({', '.join(LORA_TARGETS)})")
        if tensor.dim() != 2:
            raise UserError(f"{path}: tensor {name} has shape {tuple(tensor.shape)}, expected a matrix")
        pairs.setdefault(match[1], {})[match[2]] = tensor
    return pairs


def _lora(site: str, pair: Mapping[str, torch.Tensor], config: Mapping, path: Path, weights: Path) -> Lora:
    """The matrices of a projection, whose rank must be that of the configuration."""
    for letter in "AB":
        if letter not in pair:
            raise UserError(f"{weights}: {site} has no lora_{letter}")
    r, alpha = _scale(site, config, path)
    for letter, axis in (("A", 0), ("B", 1)):
        if pair[letter].shape[axis] != r:
            shape = tuple(pair[letter].shape)
            raise UserError(f"{weights}: {site}.lora_{letter} has shape {shape}, expected rank {r} ({CONFIG})")
    return Lora(pair["A"].mT, pair["B"].mT, alpha)


def _scale(site: str, config: Mapping, path: Path) -> tuple[int, float]:
    """Rank of a projection, and its scale times the rank."""
    r, alpha = (
        _of_site(site, config, path, *names) for names in (("r", "rank_pattern"), ("lora_alpha", "alpha_pattern"))
    )
    if type(r) is not int or not 1 <= r <= WIDEST:
        raise UserError(f"{path}: r is {r!r} for {site}, expected a whole number from 1")
    if type(alpha) not in (int, float) or not 0 < alpha < torch.finfo(torch.float32).max:
        raise UserError(
            f"{path}: lora_alpha is {str(alpha)[:40]} for {site}, expected a number above 0 that float32 has"
        )
    return r, float(alpha) * (math.sqrt(r) if config.get("use_rslora") else 1.0)


def _of_site(site: str, config: Mapping, path: Path, name: str, patterns: str) -> object:
    """An entry, or what its patterns say of this projection: the first that its name ends with, as in PEFT."""
    own = config.get(patterns) or {}
    if not isinstance(own, dict):
        raise UserError(f"{path}: {patterns} is {own!r}, not names with numbers")
    try:
        found = (value for pattern, value in own.items() if re.match(rf"(.*\.)?({pattern})$", site))
        return next(found, config.get(name))
    except NO_PATTERN as error:
        raise UserError(f"{path}: {patterns} has a name that is no pattern ({error})") from None


def of_some_layers(found: Mapping[str, Lora], config: Mapping, sizes: Mapping[str, int]) -> bool:
    """Whether projections of the same targets may be without LoRA: in blocks behind these, or where a pattern leaves them out."""
    by_pattern = isinstance(config.get("target_modules"), str) or bool(config.get("exclude_modules"))
    return config.get("layers_to_transform") not in (None, []) or (by_pattern and any(absent(found, sizes)))


def without_lora(found: Mapping[str, Lora], config: Mapping, sizes: Mapping[str, int], path: Path) -> dict[str, Lora]:
    """The projections that a LoRA of some layers leaves as they are, with matrices of zeros; none of one for all layers.

    Raises UserError for a projection that the configuration gives LoRA, but the weights do not.
    """
    if not of_some_layers(found, config, sizes):
        return {}
    check_targeted(absent(found, sizes), config, path)
    widths = {SITE.fullmatch(site)[4]: (one.A.shape[0], one.B.shape[1]) for site, one in found.items()}
    made = {}
    for site in absent(found, sizes):
        d, h = widths[SITE.fullmatch(site)[4]]
        made[site] = Lora(torch.zeros(d, 1), torch.zeros(1, h), 1.0)
    return made


def check_names(state: Mapping[str, torch.Tensor], path: Path) -> None:
    """Raises UserError for a tensor that is no matrix of a LoRA of ours."""
    for name, tensor in state.items():
        if name.startswith(PREFIX):
            raise UserError(f"{path} is a file of PEFT (tensor {name}); give its folder")
        site, _, letter = name.rpartition(".lora_")
        if letter not in ("A", "B") or not SITE.fullmatch(site) or tensor.dim() != 2:
            raise UserError(
                f"{path}: tensor {name}, shape {tuple(tensor.shape)}, is no matrix A or B of a LoRA on a T5"
            )


def widths_of(state: Mapping[str, torch.Tensor], path: Path) -> dict[str, Width]:
    """Projection -> width of a LoRA of ours. Raises UserError for one that lacks A or B."""
    widths = {}
    for site in dict.fromkeys(name.rpartition(".lora_")[0] for name in state):
        for letter in "AB":
            if f"{site}.lora_{letter}" not in state:
                raise UserError(f"{path}: {site} has no lora_{letter}")
        widths[site] = (state[f"{site}.lora_A"].shape[0], state[f"{site}.lora_B"].shape[1])
    return widths


def widened(one: Lora, r: int, alpha: float) -> tuple[torch.Tensor, torch.Tensor]:
    """A (d, r) and B (r, h) of the same function at this rank and scale alpha / r."""
    own, missing = one.A.shape[1], r - one.A.shape[1]
    factor = (one.alpha / own) / (alpha / r)
    B = one.B if factor == 1 else one.B * factor
    return pad(one.A, (0, missing)), pad(B, (0, 0, 0, missing))


def says_scale(args: Mapping) -> bool:
    """Whether a checkpoint says its rank and alpha."""
    return {"lora_r", "lora_alpha"} <= args.keys()


def fitted(state: DeltaState, args: Mapping, r: int, alpha: float, path: Path) -> tuple[DeltaState, dict]:
    """The same function at another rank and scale; as it is where it does not say its own.

    Raises UserError for a rank that is too small, and for tensors that are no LoRA.
    """
    if not says_scale(args) or (args["lora_r"], args["lora_alpha"]) == (r, alpha):
        return state, dict(args)
    if args["lora_r"] > r:
        raise UserError(f"{path} has rank {args['lora_r']}, more than {r}; give --lora_r {args['lora_r']}")
    check_names(state, path)
    made = {}
    for site in widths_of(state, path):
        one = Lora(state[f"{site}.lora_A"], state[f"{site}.lora_B"], args["lora_alpha"])
        made[f"{site}.lora_A"], made[f"{site}.lora_B"] = widened(one, r, alpha)
    return made, {**args, "lora_r": r, "lora_alpha": alpha}
