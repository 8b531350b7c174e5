"""The content of result files, and where two folders of them differ."""

import json
import math
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import safe_open

TIMES = frozenset({"seconds", "time", "provenance", "machine", "test_runtime", "test_samples_per_second", "sha256"})
# what another spelling of a flag, or a file more beside the inputs, may change
SETTINGS = TIMES | {"settings", "args", "learning_rate", "prefix", "run", "checkpoint"}
# logs, pictures, and what says where or of what a result was made rather than what it is
SKIPPED_NAMES = (
    "log.txt",
    "config.json",
    "step.json",
    "provenance.json",
    "test_metrics.txt",
    "recipe.json",
    "build.json",
    "resume.pt",
)
SKIPPED_KINDS = (".png", ".html", ".md", ".tex", ".txt", ".lock")


def result_files(folder: Path) -> dict[str, Path]:
    """The files below a folder that hold results, by relative name."""
    return {
        str(path.relative_to(folder)): path
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        and not path.name.startswith(".")
        and "tensorboard" not in path.parts
        and path.name not in SKIPPED_NAMES
        and path.suffix not in SKIPPED_KINDS
    }


def leftovers(folder: Path) -> list[str]:
    """Temporary files of writers that are gone."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob(".*.tmp*"))


def differences(right: Path, found: Path, ignored: frozenset[str] = TIMES, tolerance: float = 0.0) -> list[str]:
    """What differs in the results below two folders: a file that only one has, or the first place of a file that both have.

    Numbers may differ by `tolerance`; entries and columns named in `ignored` do not count.
    """
    a, b = result_files(right), result_files(found)
    said = [f"{name} is missing" for name in a if name not in b] + [f"{name} is new" for name in b if name not in a]
    for name in a.keys() & b.keys():
        if a[name].read_bytes() == b[name].read_bytes():
            continue
        try:
            place = next(unequal(read(a[name], ignored), read(b[name], ignored), tolerance), None)
        except Exception as error:  # whatever a damaged file raises
            place = f"cannot be read ({type(error).__name__})"
        if place is not None:
            said.append(f"{name}: {place}")
    return sorted(said)


def read(path: Path, ignored: frozenset[str]):
    """A file as plain values and tensors, without the ignored entries."""
    if path.suffix == ".pt":
        return _without(torch.load(path, map_location="cpu", weights_only=True), ignored)
    if path.suffix == ".safetensors":
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if path.suffix == ".json":
        return _without(json.loads(path.read_text(encoding="utf-8")), ignored)
    if path.suffix in (".tsv", ".csv"):
        return _table(path, "," if path.suffix == ".csv" else "\t", ignored)
    return path.read_bytes()


def _without(value, ignored: frozenset[str]):
    if isinstance(value, dict):
        return {key: _without(one, ignored) for key, one in value.items() if key not in ignored}
    return [_without(one, ignored) for one in value] if isinstance(value, list | tuple) else value


def _table(path: Path, separator: str, ignored: frozenset[str]) -> list[list]:
    head, *rows = [line.split(separator) for line in path.read_text(encoding="utf-8").splitlines()]
    kept = [number for number, name in enumerate(head) if name not in ignored]
    return [[_cell(row[number]) if number < len(row) else None for number in kept] for row in [head, *rows]]


def _cell(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def unequal(a, b, tolerance: float, place: str = "") -> Iterator[str]:
    """The places where two values differ."""
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        if a.shape != b.shape or a.dtype != b.dtype:
            yield f"{place} is {b.dtype} {tuple(b.shape)}, not {a.dtype} {tuple(a.shape)}"
        elif not torch.equal(a, b) and not (tolerance and torch.allclose(a, b, rtol=0, atol=tolerance, equal_nan=True)):
            yield f"{place} differs by {float((a.double() - b.double()).abs().max()):.3g}"
    elif isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        for key in a:
            yield from unequal(a[key], b[key], tolerance, f"{place}/{key}")
    elif isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        for number, (one, other) in enumerate(zip(a, b, strict=True)):
            yield from unequal(one, other, tolerance, f"{place}/{number}")
    elif isinstance(a, float) and isinstance(b, float):
        if not (a == b or (math.isnan(a) and math.isnan(b)) or abs(a - b) <= tolerance):
            yield f"{place} is {b}, not {a}"
    elif type(a) is not type(b) or a != b:
        yield f"{place} is {str(b)[:60]}, not {str(a)[:60]}"
