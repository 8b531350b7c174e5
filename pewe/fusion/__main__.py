"""Merge local model folders by the statistics of each, without their data (Jin et al. 2023).

    python -m pewe.merging.collect --model A --data a.tsv --output a.safetensors     (once per model)
    python -m pewe.fusion --models A B --stats a.safetensors b.safetensors --method regmean --output M
    python -m pewe.fusion --models A B --base START --method ties --combine_flags density=0.5 --output M

M is a folder like A: configuration, tokenizer and excluded parameters are A's. fusion.json in it, written last, says what it
was made from, and holds a digest of its weights.
"""

import functools
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pewe.command import main

import torch
from safetensors.torch import save_file
from torch import Tensor

from pewe.cli import log, log_to
from pewe.errors import UserError
from pewe.files import hold, read_json, replacing, write_json, write_record
from pewe.flags import flag
from pewe.identity import deciding, file_digest, model_digest
from pewe.merging.combine import ZERO
from pewe.merging.models import MergeConfig, check_config, merge_models
from pewe.merging.rules import RULES
from pewe.merging.statistics import Statistics, check_finite
from pewe.merging.store import WEIGHTS, check_alike, model_tensors, read_statistics

RECORD = "fusion.json"
NOT_COPIED = (".safetensors", ".bin", ".pt", ".h5", ".msgpack", ".index.json", RECORD, "recipe.json")
OF_ONE_MODEL = ("model", "data")  # in the identity of statistics; all else is equal for models that are merged


@dataclass(frozen=True)
class Config(MergeConfig):
    """Which folders, and how."""

    models: list[str] = flag([], "model folders (config.json and *.safetensors)", decides=False)
    stats: list[str] = flag(
        [], "statistics file of each model, in the same order; fisher and regmean need them", decides=False
    )
    base: str = flag(
        "",
        "model folder that all models were tuned from, or zero: what the methods that merge differences need",
        decides=False,
    )
    output: str = flag("", "folder to write", decides=False)


def run(config: Config) -> None:
    """Write the merged model folder; the record comes last, so that a folder that has it is complete."""
    log_to(None)
    output = Path(config.output)
    check_folders(config, output)
    models = [model_tensors(Path(folder)) for folder in config.models]
    check_leftovers(Path(config.models[0]), output)
    statistics = matching_statistics(config)
    if config.coefficients and abs(sum(config.coefficients) - 1) > 1e-6:
        log.warning("the coefficients sum to %g; simple averages are scaled by that", sum(config.coefficients))
    merged = dict(merge_models(models, config, statistics, config.models, common_base(config)))
    kept = {name: models[0][name] for name in models[0] if name not in merged}
    for name, tensor in kept.items():
        check_finite(name, tensor, config.models[0])
    with hold(output):
        (output / RECORD).unlink(missing_ok=True)
        copy_rest(Path(config.models[0]), output, merged)
        with replacing(output / WEIGHTS) as temporary:
            save_file(
                {name: tensor.contiguous() for name, tensor in (merged | kept).items()}, temporary, {"format": "pt"}
            )
        about = {
            "models": {folder: model_digest(folder) for folder in config.models},
            **deciding(config),
            "stats": {path: file_digest(Path(path)) for path in config.stats},
            **({"base": {config.base: model_digest(config.base)}} if config.base not in ("", ZERO) else {}),
        }
        write_record(output / RECORD, {**about, WEIGHTS: file_digest(output / WEIGHTS)})
    log.info(
        "%s: %s of %d models, %d tensors merged, %d kept", output, config.method, len(models), len(merged), len(kept)
    )


def check_folders(config: Config, output: Path) -> None:
    """Raises UserError for settings that cannot be, a model that is named twice, and one that is the output."""
    if not config.models or not config.output:
        raise UserError("--models and --output are both needed")
    check_config(config, len(config.models), len(config.stats))
    places = [Path(folder).resolve() for folder in config.models]
    for number, place in enumerate(places):
        if place in places[:number]:
            raise UserError(f"--models names {config.models[number]} twice")
    if output.resolve() in places:
        raise UserError(f"--output {output} is one of the models")


def check_leftovers(source: Path, output: Path) -> None:
    """Raises UserError where the output folder holds what would be read as a part of the merged model, but is not of it."""
    own = {path.name for path in _copied(source)} | {RECORD, "config.json"}
    for path in sorted(output.glob("[!.]*")):
        if path.suffix in (".json", ".model", ".txt") and path.name not in own:
            raise UserError(f"--output {output} holds {path.name}, which {source} has not; give another folder")


def matching_statistics(config: Config) -> Sequence[Statistics]:
    """The statistics of the models. Raises UserError where they are of another model, or were not collected alike."""
    found: list[Statistics] = []
    for folder, path in zip(config.models, config.stats, strict=bool(config.stats)):
        command = f"python -m pewe.merging.collect --model {folder} --data TRAINING.tsv --output {path}"
        found.append(read_statistics(Path(path), {"model": model_digest(folder)}, command))
    check_alike(found, config.stats, OF_ONE_MODEL)
    return found


def common_base(config: Config) -> Mapping[str, Tensor] | None:
    """What the models are taken as differences from; None where they are merged as they are.

    Raises UserError where the method needs it and it is not given, or takes no differences and it is.
    """
    differences = config.method in RULES and RULES[config.method].differences
    if differences and not config.base:
        raise UserError(
            f"{config.method} merges differences: give the folder that all models were tuned from as --base"
        )
    if config.base and not differences:
        raise UserError(f"--base {config.base}: {config.method} takes no differences")
    return model_tensors(Path(config.base)) if config.base not in ("", ZERO) else None


def _copied(source: Path) -> list[Path]:
    """The files of a model folder that a merge takes over as they are."""
    files = [path for path in source.glob("*") if path.is_file() and not path.name.startswith(".")]
    return [path for path in files if not path.name.endswith(NOT_COPIED)]


def copy_rest(source: Path, output: Path, merged: Mapping[str, Tensor]) -> None:
    """Copy all but weights and records of a model folder, and name in its configuration the widest dtype of the weights."""
    output.mkdir(parents=True, exist_ok=True)
    for path in _copied(source):
        shutil.copy(path, output / path.name)
    settings = read_json(source / "config.json")
    if not isinstance(settings, dict):
        raise UserError(f"{source / 'config.json'} is damaged: expected a JSON object")
    floats = {tensor.dtype for tensor in merged.values() if tensor.is_floating_point()}
    widest = str(functools.reduce(torch.promote_types, floats, torch.float16)).removeprefix("torch.")
    changed = {name: widest for name in ("dtype", "torch_dtype") if settings.get(name, widest) != widest}
    write_json(output / "config.json", {**settings, **changed})


if __name__ == "__main__":
    main(run, Config, __doc__)
