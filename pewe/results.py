"""Result files: written to a temporary name and renamed, read by column name, with their provenance beside them."""

import contextlib
import dataclasses
import datetime
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import filelock
import pandas as pd
import torch

from pewe import identity
from pewe.cli import ROOT, UserError, log


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name that takes the place of `path` when the block ends well; a killed writer leaves `path` as it was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def remove_temporary(folders: Iterable[Path]) -> None:
    """Remove what killed writers left in folders that this process holds (`replacing`)."""
    for folder in folders:
        for path in folder.glob(".*.tmp"):
            path.unlink()


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, content: dict) -> None:
    """Write a JSON file atomically."""
    write_text(path, json.dumps(content, indent=1, default=str) + "\n")


def read_json(path: Path) -> dict | None:
    """The content of a JSON file, or None where there is none or it is damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError, RecursionError):  # no JSON, no UTF-8, brackets without end
        return None


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


@contextlib.contextmanager
def hold(folder: Path, wait: bool = False) -> Iterator[None]:
    """Keep other processes from writing into a folder; the lock of a process that has died is free.

    With `wait`, until whoever holds it has finished. Raises UserError that names the holder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    owner = folder / ".lock.owner"
    lock = filelock.FileLock(folder / ".lock", timeout=-1 if wait else 0)
    try:
        with lock:
            owner.write_text(
                f"process {os.getpid()} on {platform.node()}: {' '.join(sys.argv)[:200]}\n", encoding="utf-8"
            )
            try:
                yield
            finally:
                owner.unlink(missing_ok=True)
    except filelock.Timeout:
        holder = owner.read_text(encoding="utf-8").strip() if owner.is_file() else "another process"
        raise UserError(f"{folder} is in use by {holder}; wait for it, or give another folder") from None


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Write a tab-separated table with a header, atomically."""
    with replacing(path) as temporary:
        table.to_csv(temporary, sep="\t", index=False)


def read_table(path: Path, columns: list[str]) -> pd.DataFrame:
    """A tab-separated table that has at least these columns; text stays text ("nan" and "null" are names, not gaps)."""
    if not path.is_file():
        raise UserError(f"there is no table {path}")
    try:
        table = pd.read_csv(path, sep="\t", dtype={"target": str, "source": str, "scope": str, "task": str}, na_values=[""],
                            keep_default_na=False, float_precision="round_trip")  # fmt: skip
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not a tab-separated table: {error}") from None
    missing = [column for column in columns if column not in table.columns]
    if missing:
        raise UserError(f"{path}: column {missing[0]!r} is missing; the header must have: {', '.join(columns)}")
    return table


def numeric(table: pd.DataFrame, column: str, path: Path) -> pd.Series:
    """A column as floats. Raises UserError with the first line that is not a number."""
    values = pd.to_numeric(table[column], errors="coerce")
    bad = values.isna() & (table[column].astype(str).str.lower() != "nan")
    if bad.any():
        line = int(bad.to_numpy().argmax())
        raise UserError(f"{path}, line {line + 2}: {column} must be a number, not {table[column].iloc[line]!r}")
    return values.astype(float)


def provenance() -> dict:
    """Versions, commit, machine and time: what a reader needs to trust or repeat a number."""
    git = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=12"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    packages = ("torch", "transformers", "opendelta", "numpy")
    return {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": git.stdout.strip() or "unknown",
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in packages},
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "threads": torch.get_num_threads(),
    }


def write_config(folder: Path, config) -> None:
    """`config.json`: the resolved settings (a dataclass or a dict) and the provenance."""
    settings = dataclasses.asdict(config) if dataclasses.is_dataclass(config) else config
    write_json(folder / "config.json", {"settings": settings, "provenance": provenance()})
