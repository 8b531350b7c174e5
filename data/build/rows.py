"""Rows of a split: streamed from the Hugging Face hub, or from Parquet, Arrow, JSON, CSV and TSV files on disk."""

import csv
import gzip
import itertools
import json
import re
import sys
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from data.build.entry import Entry
from pewe.errors import UserError

INSTALL = "pip install -r requirements-data.txt"
ALIASES = {"validation": ("dev", "valid", "val"), "test": (), "train": ()}


# ---- the hub


def from_hub(entry: Entry, split: str) -> Iterator[dict[str, Any]]:
    """Stream a split from the hub. Raises UserError with every reason where no way of reading it works."""
    if not entry.hub:
        raise UserError(f"task {entry.task!r}: no public source is known; give its files with --from_dir")
    try:
        import datasets
    except ImportError:
        raise UserError(f"the hub is read with the package 'datasets': {INSTALL}") from None
    _reach_hub()
    datasets.disable_progress_bars()
    reasons = []
    for read in (_conversion, _as_it_is) if entry.scripted else (_as_it_is, _conversion):
        try:
            rows = iter(read(datasets, entry, split))
            return itertools.chain([next(rows)], rows)
        except Exception as error:  # the library raises a dozen kinds, from offline to a script that nothing runs
            said = " ".join(str(error).split())[:200]
            reasons.append(f"{read.__name__.strip('_')}: {type(error).__name__}: {said}")
    where = f"{entry.hub} {entry.config}".strip()
    raise UserError(f"task {entry.task!r}: cannot read split {split!r} of {where} ({'; '.join(reasons)})")


def _reach_hub() -> None:
    """Raise UserError where the hub does not answer at all: the library would try for a minute and then say much."""
    from huggingface_hub.constants import ENDPOINT

    try:
        urllib.request.urlopen(urllib.request.Request(ENDPOINT, method="HEAD"), timeout=20).close()
    except urllib.error.HTTPError:
        return  # it answers
    except OSError as error:
        raise UserError(
            f"the hub does not answer ({getattr(error, 'reason', error)}); --from_dir builds from files on disk"
        ) from None


def _as_it_is(datasets, entry: Entry, split: str):
    """The data set's own files."""
    rows = datasets.load_dataset(entry.hub, entry.config or None, split=split, streaming=True)
    columns = [column for column in rows.column_names or () if column in entry.columns]
    return rows.select_columns(columns) if columns else rows


def _conversion(datasets, entry: Entry, split: str):
    """The hub's own Parquet conversion, which it also keeps of data sets that were published as a script."""
    files = f"hf://datasets/{entry.hub}@refs/convert/parquet/{entry.config or '*'}/*{split}/*.parquet"
    return datasets.load_dataset(
        "parquet", data_files=files, split="train", streaming=True, columns=list(entry.columns)
    )


# ---- files


def task_folder(entry: Entry, folder: Path) -> Path | None:
    """Where a task's files are below `folder`: named after the task or its data set, with its configuration below.

    A data set of several tasks (super_glue) must have the configuration's folder, since its splits have equal names.
    """
    own, *shared = [name for name in (entry.task, entry.hub, entry.hub.rpartition("/")[2]) if name]
    for name in (own, *shared):
        if (folder / name / entry.config).is_dir():
            return folder / name / entry.config
    for name in (own,) if entry.shares_hub else (own, *shared):
        if (folder / name).is_dir():
            return folder / name
    return None


def split_files(entry: Entry, folder: Path, split: str) -> list[Path]:
    """The files of a split, sorted: `validation.jsonl`, `validation-00000-of-00002.parquet`, `validation/data.arrow`, ..."""
    files = [path for path in sorted(folder.rglob("*")) if _reader(path) and path.is_file()]
    files = [path for path in files if not any(part.startswith(".") for part in path.relative_to(folder).parts)]
    for name in (split, *ALIASES.get(split, ())):
        pattern = re.compile(rf"{re.escape(name)}([-_]\d+(-of-\d+)?)?", re.IGNORECASE)
        found = [path for path in files if any(pattern.fullmatch(part) for part in _parts(path, folder))]
        folders = {path.parent for path in found}
        if len(folders) > 1:
            several = " and ".join(map(str, sorted(folders)[:2]))
            raise UserError(f"task {entry.task!r}: split {name!r} is in several folders, {several}; keep the right one")
        if found:
            return found
    return []


def _parts(path: Path, folder: Path) -> tuple[str, ...]:
    *folders, name = path.relative_to(folder).parts
    return (*folders, name.split(".")[0])


def from_files(entry: Entry, folder: Path, split: str) -> Iterator[dict[str, Any]]:
    """Stream a split from files. Raises UserError that names the file, and where it has lines the line, if one is damaged."""
    for path in split_files(entry, folder, split):
        try:
            yield from _reader(path)(path, entry.columns)
        except (OSError, EOFError, ValueError, zlib.error, RecursionError) as error:
            raise UserError(f"{path} is damaged or not what its name says: {error}") from None


def _lines(path: Path) -> Iterator[str]:
    """The lines, with their ends. Raises UserError with the number of one that is not UTF-8."""
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        for number, line in enumerate(file, start=1):
            try:
                line.encode()
            except UnicodeEncodeError as error:
                byte = len(line[: error.start].encode())
                raise UserError(f"{path}, line {number}: not UTF-8 (byte {byte})") from None
            yield line


def _jsonl(path: Path, columns: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(_lines(path), start=1):
        if line.strip():
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise UserError(f"{path}, line {number}: not JSON: {error}") from None
            yield _object(row, f"{path}, line {number}", columns)


def _object(row: Any, where: str, columns: tuple[str, ...]) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise UserError(f"{where}: expected an object with the columns {', '.join(columns)}")
    return row


def _json(path: Path, columns: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """An array of objects; anything else is read as JSON lines, which the hub often calls .json."""
    first = next(filter(str.strip, _lines(path)), "")
    if not first.lstrip().startswith("["):
        yield from _jsonl(path, columns)
        return
    try:
        rows = json.loads("".join(_lines(path)))
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: not JSON: {error}") from None
    for number, row in enumerate(rows, start=1):
        yield _object(row, f"{path}, row {number}", columns)


def _csv(path: Path, columns: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """Cells between commas, a cell with commas, quotes or line breaks in quotes."""
    csv.field_size_limit(sys.maxsize)
    rows = csv.reader(_lines(path), strict=True)  # strict: a quote that is never closed would swallow the rest
    try:
        yield from _table(path, ((rows.line_num, cells) for cells in rows if cells))
    except csv.Error as error:
        raise UserError(f"{path}, line {rows.line_num}: {error}") from None


def _tsv(path: Path, columns: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """Cells between tabs. There is no quoting: a quote is a character, a line is a row.

    Raises UserError for a cell that can only have been quoted as in CSV, since its text would be another one.
    """

    def rows() -> Iterator[tuple[int, list[str]]]:
        for number, line in enumerate(_lines(path), start=1):
            cells = line.rstrip("\r\n").split("\t")
            if any(map(_quoted, cells)):
                raise UserError(
                    f'{path}, line {number}: a cell is quoted as in CSV ("..""..""..."), which .tsv has not; give .csv or .jsonl'
                )
            if cells != [""]:
                yield number, cells

    yield from _table(path, rows())


def _quoted(cell: str) -> bool:
    inner = cell[1:-1]
    return cell[:1] == cell[-1:] == '"' and '""' in inner and '"' not in inner.replace('""', "")


def _table(path: Path, rows: Iterator[tuple[int, list[str]]]) -> Iterator[dict[str, Any]]:
    """Numbered rows, the first of which names the columns. Raises UserError for a row of another length."""
    _, header = next(rows, (0, []))
    if repeated := [name for name in header if header.count(name) > 1]:
        raise UserError(f"{path}: the header names column {repeated[0]!r} twice")
    for number, cells in rows:
        if len(cells) != len(header):
            raise UserError(f"{path}, line {number}: expected {len(header)} cells as in the header, not {len(cells)}")
        yield dict(zip(header, cells, strict=True))


def _pyarrow():
    try:
        import pyarrow.ipc
        import pyarrow.parquet
    except ImportError:
        raise UserError(f"Parquet and Arrow files are read with the package 'pyarrow': {INSTALL}") from None
    return pyarrow


def _parquet(path: Path, columns: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    with _pyarrow().parquet.ParquetFile(path) as file:
        present = [name for name in file.schema_arrow.names if name in columns]
        for batch in file.iter_batches(batch_size=1000, columns=present or None):
            yield from batch.to_pylist()


def _arrow(path: Path, columns: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """What `Dataset.save_to_disk` writes."""
    with path.open("rb") as file, _pyarrow().ipc.open_stream(file) as batches:
        for batch in batches:
            present = [name for name in batch.schema.names if name in columns]
            yield from batch.select(present or batch.schema.names).to_pylist()


_READERS = {
    ".jsonl": _jsonl,
    ".json": _json,
    ".csv": _csv,
    ".tsv": _tsv,
    ".parquet": _parquet,
    ".arrow": _arrow,
}
_NOT_ROWS = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")


def _reader(path: Path) -> Callable | None:
    suffix = Path(path.stem).suffix if path.suffix == ".gz" else path.suffix
    return None if path.name in _NOT_ROWS else _READERS.get(suffix)
