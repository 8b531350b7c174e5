"""Model folders and files of tensors: safetensors, of which each tensor is read when it is asked for.

A statistics file holds no data, only

    gram.<linear layer>   (d, d)   mean of x^T x over the inputs x of that layer, float64
    fisher.<parameter>    shape of the parameter, mean of squared gradients

In its header stand a fingerprint of every tensor, by which a changed byte is noticed, what the statistics were made from
(`identity`), and what was found: `fisher`, `batches`, `examples`, `padding`, `labels`.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from pewe.cli import log
from pewe.errors import UserError
from pewe.files import replacing
from pewe.identity import by_content, difference, digest, sealed, unsealed
from pewe.merging.statistics import Statistics, check_finite
from pewe.model_files import index_files

WEIGHTS = "model.safetensors"
RECORD, PRINTS, IDENTITY = "record", "tensors", "identity"  # in a header: all of it, digests, what it was made from


class TensorFiles(Mapping[str, Tensor]):
    """The tensors of safetensors files by name; each is read from its file, mapped for that long, when it is asked for."""

    def __init__(self, paths: Sequence[Path]):
        self.paths: dict[str, Path] = {}
        for path in paths:
            for name in _open(path).keys():  # noqa: SIM118
                if name in self.paths:
                    raise UserError(f"tensor {name} stands in two files, {self.paths[name]} and {path.name}")
                self.paths[name] = path

    def __getitem__(self, name: str) -> Tensor:
        try:
            return _open(self.paths[name]).get_tensor(name)
        except (SafetensorError, RuntimeError) as error:
            raise UserError(f"{self.paths[name]}: cannot read tensor {name} ({error})") from None

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
        raise UserError(f"{path} is not a safetensors file, or is damaged: {error}") from None


def model_tensors(folder: Path) -> TensorFiles:
    """The weights of a local model folder (model.safetensors, or the files of its index), tied weights once.

    Raises UserError where the folder has no config.json or no such file.
    """
    files = [folder / WEIGHTS]
    if not files[0].is_file():
        index = folder / f"{WEIGHTS}.index.json"
        files = index_files(index) if index.is_file() else []
    if not files or not (folder / "config.json").is_file():
        raise UserError(f"{folder} is no model folder: expected config.json and {WEIGHTS} (save_pretrained)")
    return TensorFiles(files)


# ---- files of tensors that know what they were made from


def write_tensors(path: Path, tensors: Mapping[str, Tensor], identity: Mapping, info: Mapping | None = None) -> None:
    """Write tensors, what they were made from and what else is known of them, atomically.

    Raises UserError for a tensor that is not finite.
    """
    own = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    for name, tensor in own.items():
        check_finite(name, tensor, f"{path} is not written")
    prints = {name: digest(tensor) for name, tensor in own.items()}
    record = sealed({**(info or {}), IDENTITY: dict(identity), PRINTS: prints})
    with replacing(path) as temporary:
        save_file(own, temporary, {RECORD: json.dumps(record, default=str)})


def read_tensors(path: Path) -> Statistics:
    """The tensors of a file that `write_tensors` wrote, read when asked for, and its record.

    Raises UserError for a missing or damaged file, and for one that has no record.
    """
    if not path.is_file():
        raise UserError(f"there is no file {path}")
    return Statistics(TensorFiles([path]), _checked_record(path))


@by_content
def _checked_record(path: Path) -> dict:
    """The record in a header, after comparing every tensor with it."""
    header = (_open(path).metadata() or {}).get(RECORD)
    if header is None:
        raise UserError(f"{path} has no record of what it was made from (another file, or an earlier version)")
    try:
        record = unsealed(json.loads(header))
    except (ValueError, RecursionError):
        record = None
    tensors = TensorFiles([path])
    prints = (record or {}).get(PRINTS, {})
    wrong = [name for name in {**prints, **tensors} if prints.get(name) != digest(tensors.get(name))]
    if record is None or wrong:
        raise UserError(
            f"{path} is damaged: {f'tensor {wrong[0]}' if wrong else 'its header'} has changed since it was written"
        )
    return record


def stale(path: Path, identity: Mapping) -> str:
    """Why a file of tensors is not one that was made from this, in words; empty where it is."""
    try:
        why = difference(read_tensors(path).info[IDENTITY], identity)
    except UserError as error:
        return str(error)
    return f"{path} was made from something else: {why}" if why else ""


def made(path: Path, identity: Mapping, make: Callable[[], Statistics]) -> Statistics:
    """What a file of tensors holds; made (again) where it is missing, damaged or was made from something else."""
    if why := stale(path, identity):
        if path.exists():
            log.info("%s; it is made again", why)
        tensors, info = make()
        write_tensors(path, tensors, identity, info)
    return read_tensors(path)


def read_statistics(path: Path, identity: Mapping, command: str) -> Statistics:
    """A statistics file that was made from this. Raises UserError with the command that makes it, where it was not."""
    if why := stale(path, identity):
        raise UserError(f"{why}; run {command}")
    return read_tensors(path)


def check_alike(statistics: Sequence[Statistics], titles: Sequence[str], own: Sequence[str]) -> None:
    """Raises UserError unless all were collected with the same flags; `own` are the entries in which they may differ."""
    for one, title in zip(statistics, titles, strict=True):
        flags = {name: value for name, value in statistics[0].info[IDENTITY].items() if name not in own}
        if why := difference(one.info[IDENTITY], flags):
            raise UserError(f"{title} was not collected as {titles[0]}: {why}; collect both with the same flags")
