"""What `adapter_config.json` of the library PEFT may say of a LoRA, and which projections it is on (`peft_folder.py` reads it).

The rule of the projections is PEFT's: names that end a module's name, or a pattern of all of it; without the excluded; of the
layers to transform.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from pewe.errors import UserError

CONFIG = "adapter_config.json"
# entries that change nothing of a stored LoRA, beside those that `_scale` reads
SILENT = {
    "alpha_pattern",
    "auto_mapping",
    "base_model_name_or_path",
    "ensure_weight_tying",
    "eva_config",
    "exclude_modules",
    "inference_mode",
    "layers_pattern",
    "layers_to_transform",
    "lora_alpha",
    "lora_dropout",
    "megatron_core",
    "peft_type",
    "peft_version",
    "qalora_group_size",
    "r",
    "rank_pattern",
    "revision",
    "runtime_config",
    "target_modules",
    "task_type",
    "use_rslora",
}
# values of other entries that mean plain LoRA, beside null, false, 0 and empty lists
PLAIN = {"bias": ("none",), "init_lora_weights": (True, "gaussian", "eva", "orthogonal")}
PLAIN |= dict.fromkeys(("loftq_config", "megatron_config"), ({},))
NO_PATTERN = (re.error, TypeError, ValueError, OverflowError, RecursionError)  # what a name that is no pattern raises
TYPES = {"lora_dropout": int | float | None, "use_rslora": int | None, "layers_pattern": list | str | None}
TYPES |= dict.fromkeys(("rank_pattern", "alpha_pattern"), dict | None)
TYPES |= dict.fromkeys(("target_modules", "exclude_modules"), list | str | None)
TYPES |= {"base_model_name_or_path": str | None}


def check_plain(config: Mapping, path: Path) -> None:
    """Raises UserError for the first entry that says more than LoRA's two matrices and their scale can."""
    if config.get("peft_type") != "LORA":
        raise UserError(f"{path}: peft_type is {config.get('peft_type')!r}; only 'LORA' can be taken")
    if config.get("task_type") not in (None, "SEQ_2_SEQ_LM"):
        raise UserError(f"{path}: task_type is {config['task_type']!r}; expected 'SEQ_2_SEQ_LM', a T5's")
    for name, kind in TYPES.items():
        if not isinstance(config.get(name), kind):
            raise UserError(f"{path}: {name} is {config[name]!r:.60}; expected {kind}")
    for name, value in config.items():
        if name not in SILENT and (value or value == {}) and value not in PLAIN.get(name, ()):
            raise UserError(f"{path}: {name} is {str(value)[:60]!r}; only LoRA's plain A and B can be taken")


def check_targets(sites: Mapping[str, object], config: Mapping, path: Path, weights: Path) -> None:
    """Raises UserError for a projection that PEFT would not give this LoRA, and for a target that has no tensors."""
    try:
        outside = next((site for site in sites if not targeted(site, config)), "")
    except NO_PATTERN as error:
        raise UserError(f"{path}: target_modules, exclude_modules or layers_to_transform: {error}") from None
    if outside:
        raise UserError(
            f"{weights} has LoRA on {outside}, which target_modules, exclude_modules and layers_to_transform of {CONFIG} leave out"
        )
    named = config.get("target_modules")
    if isinstance(named, list) and (none := [one for one in named if not any(_is(site, one) for site in sites)]):
        raise UserError(f"{weights} has no LoRA on {none[0]!r}, which target_modules of {CONFIG} names")


def check_targeted(without: Iterable[str], config: Mapping, path: Path) -> None:
    """Raises UserError for the first of the projections without LoRA that should have it."""
    if site := next((site for site in without if targeted(site, config)), ""):
        raise UserError(f"{path} gives {site} LoRA (target_modules), but there are no tensors of it")


def targeted(site: str, config: Mapping) -> bool:
    """Whether PEFT gives a projection this LoRA: its names or pattern, without the excluded, of the layers to transform."""
    named, excluded, layers = (config.get(one) for one in ("target_modules", "exclude_modules", "layers_to_transform"))
    if excluded and _any(site, excluded):
        return False
    if not named or named == "all-linear":
        return True
    if isinstance(named, str) or site in named or layers is None or layers == []:
        return _any(site, named)
    return _any(site, named) and _layer(site, config.get("layers_pattern")) in (
        layers if isinstance(layers, list) else [layers]
    )


def _layer(site: str, patterns: str | list[str] | None) -> int | None:
    """The first number behind a name of this pattern, or behind any name: that of the block."""
    before = [rf"(?:^|.*?\.){one}" for one in ([patterns] if isinstance(patterns, str) else patterns or ())]
    for one in before if patterns else [r".*?\.[^.]*"]:
        if found := re.match(rf"{one}\.(?P<number>\d+)\.", site):
            return int(found["number"])
    return None


def _any(site: str, names: str | list[str]) -> bool:
    """Whether the pattern is of all of a projection's name, or one of the names is its end."""
    return bool(re.fullmatch(names, site)) if isinstance(names, str) else any(_is(site, one) for one in names)


def _is(site: str, name: str) -> bool:
    return f".{site}".endswith(f".{name}")
