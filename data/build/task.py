"""Building one task: rows to lines, lines to disjoint train, dev and test sets, sets to files with their record."""

import dataclasses
import hashlib
import heapq
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from data.build.entry import Entry, Row, digest
from data.build.rows import from_files, from_hub, split_files, task_folder
from data.build.sample import FewShot, Smallest, in_share, rank
from pewe.cli import UserError
from pewe.data import Example
from pewe.results import read_json, replacing, write_json

VERSION = 1  # of the text format and the draws: a folder of another version is built again
RECORD = "build.json"
TRAIN_SHARE = 0.8  # of a data set with a single split


@dataclass(frozen=True)
class Settings:
    """What decides the lines of a task."""

    shots: int = 64
    shots_per_class: int = 16
    seeds: tuple[int, ...] = (42,)
    full: bool = False
    max_test: int = 0
    max_full: int = 0


@dataclass
class Counts:
    """What happened to the rows."""

    rows: int = 0
    no_answer: int = 0  # hidden or missing
    empty: int = 0  # nothing left of the input or of every output
    repeated: int = 0  # the input stands in the same split before
    across: int = 0  # the input stands in the test split, too

    def __str__(self) -> str:
        return ", ".join(f"{value} {name}" for name, value in dataclasses.asdict(self).items())


@dataclass
class Source:
    """Where a task's rows come from: the hub, or files on disk."""

    entry: Entry
    folder: Path | None = None
    one_split: bool = False  # files of one split only: it is dealt like a data set that has no other

    def __post_init__(self):
        if self.folder is None:
            return
        found = task_folder(self.entry, self.folder)
        if found is None:
            raise UserError(
                f"task {self.entry.task!r}: {self.folder} has no folder {self.entry.task} or {self.entry.hub}"
            )
        self.folder = found
        present = [split for split in self.entry.splits() if split_files(self.entry, found, split)]
        missing = [split for split in self.entry.splits() if split not in present]
        if missing and present and self.one_split:
            self.entry = dataclasses.replace(self.entry, train=present[0], test="", test_share=1.0)
        elif missing:
            hint = f", only {present[0]}; --one_split deals it into train and test" if present else ""
            raise UserError(f"task {self.entry.task!r}: {found} has no files of split {missing[0]!r}{hint}")

    def rows(self, split: str) -> Iterator[Row]:
        """The rows of a split, as a stream."""
        return from_files(self.entry, self.folder, split) if self.folder else from_hub(self.entry, split)

    def describe(self) -> dict:
        """What the record says about the source, and what a rebuild compares."""
        entry = self.entry
        about = {"hub": entry.hub, "config": entry.config, "train": entry.train, "test": entry.test}
        if self.folder:
            files = [path for split in entry.splits() for path in split_files(entry, self.folder, split)]
            about["files"] = {str(path.relative_to(self.folder)): path.stat().st_size for path in files}
        return about


def build_task(
    source: Source, settings: Settings, out: Path, seen_rows: Callable[[int], None] = lambda _: None
) -> dict:
    """Build a task's folder; a folder that was built with equal settings from an equal source is left as it is.

    Returns the record that is written beside the files. `seen_rows` hears how many more rows were read.
    """
    folder = out / source.entry.task
    wanted = {"version": VERSION, "settings": dataclasses.asdict(settings) | {"seeds": list(settings.seeds)},
              "source": source.describe()}  # fmt: skip
    record = read_json(folder / RECORD)
    if record and all(record.get(key) == value for key, value in wanted.items()) and _complete(folder, record):
        return record | {"skipped": True}
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile("w+", dir=folder, encoding="utf-8", newline="\n") as spool:
        drawn, test, counts = _draw(source, settings, spool, seen_rows)
        (folder / RECORD).unlink(missing_ok=True)
        files = _write(source.entry, settings, folder, drawn, test, spool)
    for name in set(record["files"] if record else ()) - set(files):
        (folder / name).unlink(missing_ok=True)  # of other seeds or shots, drawn without regard to these
    short = next(iter(drawn.values())).short()
    record = wanted | {"kind": source.entry.kind, "metric": source.entry.metric, "counts": dataclasses.asdict(counts),
                       "short": short, "files": files}  # fmt: skip
    write_json(folder / RECORD, record)
    return record


def _complete(folder: Path, record: dict) -> bool:
    sizes = {name: about["bytes"] for name, about in record["files"].items()}
    return all((folder / name).is_file() and (folder / name).stat().st_size == size for name, size in sizes.items())


def lines(entry: Entry, rows: Iterable[Row], counts: Counts) -> Iterator[tuple[int, Example]]:
    """The rows as lines with the key of their input; rows without an answer or text are counted and left out."""
    for number, row in enumerate(rows, start=1):
        counts.rows += 1
        try:
            line = entry.line(row)
        except UserError as error:
            raise UserError(f"row {number}: {error}") from None
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            raise UserError(
                f"task {entry.task!r}, row {number}: not as on the hub ({type(error).__name__}: {error})"
            ) from None
        if line is None or not line[1] or not line[0]:
            counts.no_answer += line is None
            counts.empty += line is not None
            continue
        yield digest(line[0]), Example(*line)


def _draw(source: Source, settings: Settings, spool: TextIO, seen_rows: Callable[[int], None]):
    """One pass over each split: test lines first, then the train split, without any input of the test split."""
    entry, counts = source.entry, Counts()
    limits = [limit for limit in (settings.max_test, entry.test_lines) if limit]
    test = Smallest(f"{entry.task} test", min(limits, default=0))
    held: set[int] = set()
    if entry.test:
        for key, example in _told(lines(entry, source.rows(entry.test), counts), counts, seen_rows):
            counts.repeated += key in held
            if key not in held and in_share(f"{entry.task} share", key, entry.test_share):
                test.offer(key, example)
            held.add(key)
    shots = settings.shots_per_class if entry.labels else settings.shots
    drawn = {seed: FewShot(entry.task, seed, shots, entry.labels) for seed in settings.seeds}
    seen: set[int] = set()
    for key, example in _told(lines(entry, source.rows(entry.train), counts), counts, seen_rows):
        counts.across += key in held
        counts.repeated += key in seen
        if key in held or key in seen:
            continue
        seen.add(key)
        if not entry.test and not in_share(f"{entry.task} deal", key, TRAIN_SHARE):
            test.offer(key, example)
            continue
        for few in drawn.values():
            few.offer(key, example)
        if settings.full:
            spool.write(as_text(example))
    return drawn, test.by_arrival(), counts


def _told(items: Iterable, counts: Counts, seen_rows: Callable[[int], None], every: int = 1000) -> Iterator:
    before = counts.rows
    for item in items:
        yield item
        if counts.rows - before >= every:
            seen_rows(counts.rows - before)
            before = counts.rows
    seen_rows(counts.rows - before)


def as_text(example: Example) -> str:
    """A line of the file: input TAB output [TAB further outputs]."""
    return "\t".join((example.input, *example.outputs)) + "\n"


def _write(
    entry: Entry, settings: Settings, folder: Path, drawn: dict[int, FewShot], test: list[Example], spool: Path
) -> dict:
    """Write every file of the task; returns for each its checksum, size and statistics."""
    files, chosen = {}, set()
    for seed, few in drawn.items():
        train, dev = few.draw()
        prefix = f"{entry.task}_{settings.shots}_{seed}"
        for split, examples in (("train", train), ("dev", dev), ("test", test)):
            if not examples:
                raise UserError(
                    f"task {entry.task!r}: no lines for {split}; the source has too few rows with an answer"
                )
            files[f"{prefix}_{split}.tsv"] = _write_file(folder / f"{prefix}_{split}.tsv", map(as_text, examples))
        chosen |= {digest(example.input) for example in (*train, *dev)}
    if settings.full:
        name = f"{entry.task}_full_train.tsv"
        about = _write_file(folder / name, _full(entry, settings.max_full, spool, chosen))
        if about["lines"]:
            files[name] = about
        else:  # every line of the source is a few-shot or test line
            (folder / name).unlink()
    return files


def _full(entry: Entry, limit: int, spool: TextIO, chosen: set[int]) -> Iterator[str]:
    """The train lines that no few-shot file has; with a limit, that many of them drawn at random, in the source's order."""
    salt = f"{entry.task} full"

    def kept() -> Iterator[tuple[int, str]]:
        spool.seek(0)
        for line in spool:
            key = digest(line.partition("\t")[0])
            if key not in chosen:
                yield key, line

    last = None
    if limit:
        last = max(heapq.nsmallest(limit, (rank(salt, key) for key, _ in kept())), default=None)
    for key, line in kept():
        if last is None or rank(salt, key) <= last:
            yield line


def _write_file(path: Path, texts: Iterable[str]) -> dict:
    """Write lines atomically; returns checksum, size, number of lines, mean words of input and output, and labels."""
    checksum, size, count, words_in, words_out = hashlib.sha256(), 0, 0, 0, 0
    labels: dict[str, int] = {}
    with replacing(path) as temporary, temporary.open("wb") as file:
        for text in texts:
            data = text.encode()
            file.write(data)
            checksum.update(data)
            size, count = size + len(data), count + 1
            source, output = text.rstrip("\n").split("\t")[:2]
            words_in, words_out = words_in + len(source.split()), words_out + len(output.split())
            if len(labels) <= 20:
                labels[output] = labels.get(output, 0) + 1
    return {"sha256": checksum.hexdigest(), "bytes": size, "lines": count, "input_words": round(words_in / max(count, 1), 1),
            "output_words": round(words_out / max(count, 1), 1),
            "labels": dict(sorted(labels.items())) if len(labels) <= 20 else {}}  # fmt: skip
