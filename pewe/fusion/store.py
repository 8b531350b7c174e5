"""Model folders and statistics files: safetensors, of which each tensor is read when it is asked for.

A statistics file holds no data, only

    gram.<linear layer>   (d, d)   mean of x^T x over the inputs x of that layer, float64
    fisher.<parameter>    shape of the parameter, mean of squared gradients

and in its header what they were made of: `fisher`, `batches`, `examples`, `padding`, `labels`.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from pewe.cli import UserError
from pewe.results import replacing

GRAM, FISHER = "gram.", "fisher."


class Statistics(NamedTuple):
    """The tensors of a model's statistics by name, and what is known of their making."""

    tensors: Mapping[str, Tensor]
    info: dict


class TensorFiles(Mapping[str, Tensor]):
    """The tensors of safetensors files by name; each is read from its file, mapped for that long, when it is asked for."""

    def __init__(self, paths: Sequence[Path]):
        self.paths = {name: path for path in paths for name in _open(path).keys()}  # noqa: SIM118

    def __getitem__(self, name: str) -> Tensor:
        return _open(self.paths[name]).get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.paths)

    def __len__(self) -> int:
        return len(self.paths)

    def __contains__(self, name: object) -> bool:
        return name in self.paths


def _open(path: Path):
    if not path.is_file():
        raise UserError(f"there is no file {path}")
    try:
        return safe_open(path, framework="pt")
    except SafetensorError as error:
        raise UserError(f"{path} is not a safetensors file: {error}") from None


def model_tensors(folder: Path) -> TensorFiles:
    """The weights of a local model folder (`*.safetensors`, in one file or many), tied weights once.

    Raises UserError where the folder has no config.json or no such file.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files or not (folder / "config.json").is_file():
        raise UserError(f"{folder} is no model folder: expected config.json and *.safetensors (save_pretrained)")
    return TensorFiles(files)


def write_statistics(path: Path, statistics: Statistics) -> None:
    """Write a statistics file atomically."""
    tensors = {name: tensor.contiguous() for name, tensor in statistics.tensors.items()}
    with replacing(path) as temporary:
        save_file(tensors, temporary, {"statistics": json.dumps(statistics.info)})


def read_statistics(path: Path) -> Statistics:
    """A statistics file, its tensors read when asked for. Raises UserError for a file that is none."""
    header = (_open(path).metadata() or {}).get("statistics")
    if header is None:
        raise UserError(f"{path} holds no statistics: expected a file of `python -m pewe.fusion.collect`")
    return Statistics(TensorFiles([path]), json.loads(header))
