"""Between rows and files: settings, counts, rows as lines, lines as files. Shared by the ways of dealing lines to splits."""

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from data.build.entry import Entry, Row, digest
from pewe.data import Example
from pewe.errors import UserError
from pewe.files import replacing

Rows = Callable[[str], Iterable[Row]]  # the rows of a split
SeenRows = Callable[[int], None]  # hears how many more rows were read
Splits = list[tuple[int | None, str, Iterable[str]]]  # seed (None: the full train file), split, lines of the file


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


def read(entry: Entry, rows: Iterable[Row], counts: Counts) -> Iterator[Example | None]:
    """Each row as a line; None, counted, for a row without an answer or text."""
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
        good = line is not None and line[0] and line[1]
        counts.no_answer += line is None
        counts.empty += line is not None and not good
        yield Example(*line) if good else None


def lines(entry: Entry, rows: Iterable[Row], counts: Counts) -> Iterator[tuple[int, Example]]:
    """The lines of the rows that have an answer and text, each with the key of its input."""
    for example in read(entry, rows, counts):
        if example is not None:
            yield digest(example.input), example


def told(items: Iterable, counts: Counts, seen_rows: SeenRows, every: int = 1000) -> Iterator:
    """The items; `seen_rows` hears how many more rows were read."""
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


def write_file(path: Path, texts: Iterable[str]) -> dict:
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
    return {
        "sha256": checksum.hexdigest(),
        "bytes": size,
        "lines": count,
        "input_words": round(words_in / max(count, 1), 1),
        "output_words": round(words_out / max(count, 1), 1),
        "labels": dict(sorted(labels.items())) if len(labels) <= 20 else {},
    }
