"""Merge local model folders by the statistics of each, without their data (Jin et al. 2023).

    python -m pewe.fusion.collect --model A --data a.tsv --output a.safetensors     (once per model)
    python -m pewe.fusion --models A B --stats a.safetensors b.safetensors --method regmean --output M

M is a folder like A: configuration, tokenizer and excluded parameters are A's.
"""

import dataclasses
import shutil
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import save_file

from pewe.cli import UserError, flag, log, log_to, main
from pewe.fusion.merging import MergeConfig, merge_models
from pewe.fusion.store import model_tensors, read_statistics
from pewe.results import replacing, write_json

WEIGHTS = (".safetensors", ".bin", ".pt", ".h5", ".msgpack", ".index.json")


@dataclass
class Config(MergeConfig):
    """Which folders, and how."""

    models: list[str] = flag([], "model folders (config.json and *.safetensors)")
    stats: list[str] = flag([], "statistics file of each model, in the same order; not needed for simple")
    output: str = flag("", "folder to write")


def run(config: Config) -> None:
    """Write the merged model folder; the weights come last, so that a folder that has them is complete."""
    log_to(None)
    if not config.models or not config.output:
        raise UserError("--models and --output are both needed")
    models = [model_tensors(Path(folder)) for folder in config.models]
    statistics = [read_statistics(Path(path)) for path in config.stats]
    source, output = Path(config.models[0]), Path(config.output)
    if output.exists() and output.resolve() in [Path(folder).resolve() for folder in config.models]:
        raise UserError(f"--output {output} is one of the models")
    if config.coefficients and abs(sum(config.coefficients) - 1) > 1e-6:
        log.warning("the coefficients sum to %g; simple averages are scaled by that", sum(config.coefficients))
    merged = dict(merge_models(models, config, statistics))
    kept = {name: models[0][name] for name in models[0] if name not in merged}
    output.mkdir(parents=True, exist_ok=True)
    for path in source.iterdir():
        if path.is_file() and not path.name.endswith(WEIGHTS):
            shutil.copy(path, output / path.name)
    write_json(output / "fusion.json", dataclasses.asdict(config))
    with replacing(output / "model.safetensors") as temporary:
        save_file({name: tensor.contiguous() for name, tensor in (merged | kept).items()}, temporary, {"format": "pt"})
    log.info(
        "%s: %s of %d models, %d tensors merged, %d kept", output, config.method, len(models), len(merged), len(kept)
    )


if __name__ == "__main__":
    main(run, Config, __doc__)
