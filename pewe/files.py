"""Result files: written to a temporary name and renamed, read by column name, with their provenance beside them."""

import contextlib
import csv
import dataclasses
import datetime
import importlib.metadata
import io
import itertools
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import filelock
import pandas as pd
from safetensors import SafetensorError

from pewe import INSTALLED, ROOT, identity
from pewe.cli import log
from pewe.errors import UserError, write_fault
from pewe.flags import checked_name

PARTS = ".parts"  # folder in that of a step, for what belongs to one part of its work; gone when the step is done
_HOST = re.sub(r"[^\w-]", "_", platform.node()) or "here"  # of this machine, in the names of temporary folders


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file that takes the place of `path` when the block ends well; a killed writer leaves `path` as it was.

    It lies in a folder of its own, since some libraries write other files beside it. What killed writers left is removed.
    Raises UserError that names `path` where it cannot be written.
    """
    place = path.with_name(f".{path.name}.{_HOST}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep(path.parent)
        place.mkdir(exist_ok=True)
        yield place / path.name
        (place / path.name).replace(path)
    except BrokenPipeError:
        raise
    except (OSError, RuntimeError, SafetensorError) as error:
        named = Path(os.fsdecode(getattr(error, "filename", None) or place))
        if named not in (place / path.name, place, path, *path.parents) or not (fault := write_fault(error)):
            raise
        raise UserError(f"cannot write {path}: {fault}") from error
    finally:
        shutil.rmtree(place, ignore_errors=True)


def sweep(folder: Path) -> None:
    """Remove what writers left in a folder that no longer live: of `replacing` on this machine, and of earlier versions.

    Those named no machine in their temporary files, so that one counts as left only when it is a day old, too.
    """
    for left in folder.glob(".*.*.tmp"):
        *_, host, process, _ = left.name.rsplit(".", 3)
        if not process.isdecimal() or _lives(int(process)):
            continue
        if host == _HOST and left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        elif left.is_file() and time.time() - left.stat().st_mtime > 86_400:
            left.unlink(missing_ok=True)


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # it is another user's
        pass
    return True


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, content: dict) -> None:
    """Write a JSON file atomically."""
    write_text(path, json.dumps(content, indent=1, default=str) + "\n")


def read_json(path: Path) -> dict | None:
    """The object in a JSON file, or None where there is none or it is damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def within(content: dict | None, *names: str, kind: type = dict):
    """What stands in nested objects under these names; None where there is no such thing, or it is of another kind."""
    for name in names:
        content = content.get(name) if isinstance(content, dict) else None
    return content if isinstance(content, kind) else None


def write_record(path: Path, content: dict) -> None:
    """Write a JSON file with a fingerprint of its content, atomically."""
    write_json(path, identity.sealed(content))


def read_record(path: Path) -> dict | None:
    """The content that `write_record` wrote; None, with a warning where it was changed since, if there is no such record."""
    content = read_json(path)
    found = None if content is None else identity.unsealed(content)
    if found is None and path.is_file():
        log.warning("%s is damaged, or of an earlier version, and counts as absent", path)
    return found


_patience = [False]


@contextlib.contextmanager
def patient() -> Iterator[None]:
    """Until the block ends, whoever wants to hold a folder waits for it: another of ours may be about to end there."""
    before, _patience[0] = _patience[0], True
    try:
        yield
    finally:
        _patience[0] = before


@contextlib.contextmanager
def hold(folder: Path, wait: bool = False, flag: str = "") -> Iterator[None]:
    """Keep other processes from writing into a folder; the lock of a process that has died is free.

    With `wait`, until whoever holds it has finished; it is said who. Raises UserError that names the holder. The `flag` that
    names the folder is given where that must not be a similarity's, whose table or orientation would be lost.
    """
    if flag and "measure" in (read_json(folder / "config.json") or {}):
        raise UserError(f"{flag} {folder} is the folder of a similarity, which would be lost; give another folder")
    folder.mkdir(parents=True, exist_ok=True)
    owner = folder / ".lock.owner"
    lock = filelock.FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        if not (wait or _patience[0]):
            raise UserError(f"{folder} is in use by {holder_in(owner)}; wait for it, or give another folder") from None
        log.warning("%s is in use by %s; waiting", folder, holder_in(owner))
        lock.acquire()
    try:
        owner.write_text(f"process {os.getpid()} on {platform.node()}: {' '.join(sys.argv)[:200]}\n", encoding="utf-8")
        for place, _, _ in os.walk(folder):
            sweep(Path(place))
        yield
    finally:
        owner.unlink(missing_ok=True)
        lock.release()


def holder_in(owner: Path) -> str:
    """Who holds a folder, by the file that says so."""
    return owner.read_text(encoding="utf-8").strip() if owner.is_file() else "another process"


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Write a tab-separated table with a header, atomically. Nothing is quoted: raises UserError for a tab or line break."""
    texts = {column: table[column].unique() for column in table.select_dtypes(["object", "string"])}
    for cell in itertools.chain(table.columns, *texts.values()):
        if isinstance(cell, str) and any(character in cell for character in "\t\n\r"):
            raise UserError(f"cannot write {path}: there is a tab or a line break in {cell!r}")
    with replacing(path) as temporary:
        table.to_csv(temporary, sep="\t", index=False, quoting=csv.QUOTE_NONE)


TEXTS = ("target", "source", "scope", "task", "delta", "init", "prefix", "group", "run", "point")  # columns of names
TEXTS += ("train_lines", "test_lines")  # and of fingerprints
_PARTS = ("target", "source", "scope", "task", "delta")  # of them, those that become a part of a path


def read_table(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    """A tab-separated table that has at least these columns; text stays text ("nan" and "null" are names, not gaps).

    Nothing is quoted. Raises UserError with the line for cells that do not fit the header, and for a name that would lead
    out of the folder that it becomes a part of.
    """
    if not path.is_file():
        raise UserError(f"there is no table {path}")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not a tab-separated table: {error}") from None
    header, *rows = (line.split("\t") for line in text.removesuffix("\n").split("\n"))
    if len(set(header)) < len(header):
        raise UserError(f"{path}: a column stands twice in the header: {', '.join(header)}")
    missing = [column for column in columns if column not in header]
    if missing:
        raise UserError(f"{path}: column {missing[0]!r} is missing; the header must have: {', '.join(columns)}")
    for line, cells in enumerate(rows, start=2):
        if len(cells) != len(header):
            raise UserError(f"{path}, line {line}: {len(cells)} cells, expected {len(header)}, parted by tabs")
    for place, column in enumerate(header):
        names = [cells[place] for cells in rows] if column in _PARTS else []
        for name in dict.fromkeys(names):
            if name or column in columns:  # what is not asked for may be empty
                checked_name(name, f"{path}, line {names.index(name) + 2}: {column}")
    return pd.read_csv(
        io.StringIO(text),
        sep="\t",
        dtype=dict.fromkeys(TEXTS, str),
        na_values={name: [""] for name in TEXTS},  # an empty cell is no name; a number it is not either, see `numeric`
        keep_default_na=False,
        quoting=csv.QUOTE_NONE,
        skip_blank_lines=False,
        float_precision="round_trip",
    )


def numeric(table: pd.DataFrame, column: str, path: Path, defined: bool = False) -> pd.Series:
    """A column as floats, nan among them unless they have to be `defined`.

    Raises UserError with the first line that is not a number (empty, say), or infinite.
    """
    values = pd.to_numeric(table[column], errors="coerce")
    named = table[column].astype(str).str.lower() == "nan"
    bad = values.isna() & (defined | ~named) | (table[column].dtype == bool)
    if bad.any():
        line = int(bad.to_numpy().argmax())
        raise UserError(f"{path}, line {line + 2}: {column} must be a number, not {table[column].iloc[line]!r}")
    if (infinite := values.abs() == float("inf")).any():
        line = int(infinite.to_numpy().argmax())
        raise UserError(f"{path}, line {line + 2}: {column} must be finite, not {values.iloc[line]}")
    return values.astype(float)


def provenance() -> dict:
    """Versions, commit, machine and time: what a reader needs to trust or repeat a number."""
    commit = f"version {_version('pewe')}" if INSTALLED else _commit()
    packages = ("torch", "transformers", "opendelta", "numpy")
    torch = sys.modules.get("torch")  # where nothing was computed by it, it is not loaded for this
    return {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": commit,
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in packages},
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "device": torch.cuda.get_device_name() if torch and torch.cuda.is_available() else "cpu",
        "threads": torch.get_num_threads() if torch else 1,
    }


def _commit() -> str:
    describe = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        found = subprocess.run(describe, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:  # there is no git
        found = ""
    return found or "unknown"


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def check_out(folder: Path, config) -> None:
    """Raises UserError where the `config.json` of --out is that of another command, whose files and settings would be lost.

    It is one of this command where the settings in it are those of this dataclass, or of an earlier or later version of it.
    """
    found, own = read_json(folder / "config.json"), {one.name for one in dataclasses.fields(config)}
    there = set(within(found, "settings") or {})
    if (folder / "config.json").is_file() and not (there and (there <= own or own <= there)):
        raise UserError(
            f"--out {folder} has the config.json of something else, which would be lost; give another folder"
        )


def write_config(folder: Path, config) -> None:
    """`config.json`: the resolved settings (a dataclass or a dict) and the provenance."""
    settings = dataclasses.asdict(config) if dataclasses.is_dataclass(config) else config
    write_json(folder / "config.json", {"settings": settings, "provenance": provenance()})
