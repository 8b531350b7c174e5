"""Building one task: rows to lines, lines to disjoint train, dev and test sets, sets to files with their record."""

import dataclasses
import heapq
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from data.build import pemt_splits
from data.build.entry import Entry, Row, digest
from data.build.lines import Counts, Rows, SeenRows, Settings, Splits, as_text, lines, told, write_file
from data.build.rows import from_files, from_hub, split_files, task_folder
from data.build.sample import FewShot, Smallest, in_share, rank
from pewe.cli import log
from pewe.data import SPLITS
from pewe.errors import UserError
from pewe.files import read_json, within, write_json
from pewe.flags import name_fault

VERSION = 1  # of the text format and the draws: a folder of another version is built again
RECORD = "build.json"
TRAIN_SHARE = 0.8  # of a data set with a single split


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


def build_task(source: Source, settings: Settings, out: Path, seen_rows: SeenRows = lambda _: None) -> dict:
    """Build a task's folder; a folder that was built with equal settings from an equal source is left as it is.

    Returns the record that is written beside the files. `seen_rows` hears how many more rows were read.
    """
    entry, folder, deal = source.entry, out / source.entry.task, _deal
    if isinstance(entry, pemt_splits.PemtEntry):
        settings, deal = dataclasses.replace(settings, shots=settings.shots_per_class), pemt_splits.deal
    wanted = {
        "version": VERSION,
        "settings": dataclasses.asdict(settings) | {"seeds": list(settings.seeds)},
        "source": source.describe(),
    }
    record = read_built(folder)
    if record and all(record.get(key) == value for key, value in wanted.items()) and _complete(folder, record):
        return record | {"skipped": True}
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile("w+", dir=folder, encoding="utf-8", newline="\n") as spool:
        splits, short, counts = deal(entry, source.rows, settings, spool, seen_rows)
        (folder / RECORD).unlink(missing_ok=True)
        files = _write(entry, settings, folder, splits)
    for name in set(record["files"] if record else ()) - set(files):
        (folder / name).unlink(missing_ok=True)  # of other seeds or shots, drawn without regard to these
    record = wanted | {
        "kind": entry.kind,
        "metric": entry.metric,
        "counts": dataclasses.asdict(counts),
        "short": short,
        "files": files,
    }
    write_json(folder / RECORD, record)
    return record


def read_built(folder: Path) -> dict | None:
    """The record beside a task's files; None, with a warning where it is of another shape, if there is no such record."""
    path = folder / RECORD
    record = read_json(path)
    if path.is_file() and not (record and _well_formed(record)):
        log.warning("%s is damaged, or not of this builder, and counts as absent", path)
        return None
    return record


def _well_formed(record: dict) -> bool:
    settings, counts, files = (within(record, name) for name in ("settings", "counts", "files"))
    texts = [record.get("kind"), record.get("metric")]
    if settings is None or counts is None or not files or not all(isinstance(text, str) for text in texts):
        return False
    numbers = [settings.get("shots"), *(counts.get(field.name) for field in dataclasses.fields(Counts))]
    for name, about in files.items():
        labels = within(about, "labels")
        if name_fault(name) or labels is None or not isinstance(about.get("sha256"), str):
            return False
        numbers += [*labels.values(), *(about.get(key) for key in ("bytes", "lines", "input_words", "output_words"))]
    seeds = within(settings, "seeds", kind=list)
    ends = [f"_{settings.get('shots')}_{seeds[0]}_{split}.tsv" for split in SPLITS] if seeds else []
    return (
        all(type(number) in (int, float) for number in numbers)
        and bool(ends)
        and all(any(name.endswith(end) for name in files) for end in ends)
    )


def _complete(folder: Path, record: dict) -> bool:
    sizes = {name: about["bytes"] for name, about in record["files"].items()}
    return all((folder / name).is_file() and (folder / name).stat().st_size == size for name, size in sizes.items())


def _deal(
    entry: Entry, rows: Rows, settings: Settings, spool: TextIO, seen_rows: SeenRows
) -> tuple[Splits, dict[str, int], Counts]:
    """One pass over each split: test lines first, then the train split, without any input of the test split."""
    counts = Counts()
    limits = [limit for limit in (settings.max_test, entry.test_lines) if limit]
    test = Smallest(f"{entry.task} test", min(limits, default=0))
    held: set[int] = set()
    if entry.test:
        for key, example in told(lines(entry, rows(entry.test), counts), counts, seen_rows):
            counts.repeated += key in held
            if key not in held and in_share(f"{entry.task} share", key, entry.test_share):
                test.offer(key, example)
            held.add(key)
    shots = settings.shots_per_class if entry.labels else settings.shots
    drawn = {seed: FewShot(entry.task, seed, shots, entry.labels) for seed in settings.seeds}
    seen: set[int] = set()
    for key, example in told(lines(entry, rows(entry.train), counts), counts, seen_rows):
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
    few_shot = {seed: few.draw() for seed, few in drawn.items()}
    chosen = {digest(example.input) for splits in few_shot.values() for split in splits for example in split}
    splits = [
        (seed, name, map(as_text, examples))
        for seed, (train, dev) in few_shot.items()
        for name, examples in (("train", train), ("dev", dev), ("test", test.by_arrival()))
    ]
    full = _full(entry, settings.max_full, spool, chosen)
    return [*splits, (None, "train", full)], next(iter(drawn.values())).short(), counts


def _write(entry: Entry, settings: Settings, folder: Path, splits: Splits) -> dict:
    """Write every file of the task; returns for each its checksum, size and statistics."""
    files = {}
    for seed, split, texts in splits:
        if seed is None and not settings.full:
            continue
        prefix = "full" if seed is None else f"{settings.shots}_{seed}"
        path = folder / f"{entry.task}_{prefix}_{split}.tsv"
        about = write_file(path, texts)
        if about["lines"]:
            files[path.name] = about
            continue
        path.unlink()
        if seed is not None:  # else every line of the source is a few-shot or test line
            raise UserError(f"task {entry.task!r}: no lines for {split}; the source has too few rows with an answer")
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
