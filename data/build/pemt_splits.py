"""The splits of PEMT's release: its order of rows, its few-shot draw, its dev and test (Lin et al. 2024).

Train, dev and test are the original's train, validation and test. A task without a test set of its own halves its
validation split; a large one gives the first 1,000 rows of the permuted train split to dev. Rows are permuted by torch's
generator with seed 42, few-shot rows are the first k of each class after Python's shuffle, as in the release.
"""

import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TextIO

import torch

from data.build.entry import Entry, Row
from data.build.lines import Counts, Rows, SeenRows, Settings, Splits, as_text, read, told
from pewe.data import Example
from pewe.errors import UserError

SEED = 42  # of the original's splits
HELD_OUT = 1000  # train rows that are dev, where the task is large


@dataclass(frozen=True)
class PemtEntry(Entry):
    """An entry with PEMT's splits. Without `dev` and `held_out`, the test split is halved into dev and test."""

    dev: str = ""  # the split that is dev
    held_out: int = 0  # rows of the train split that are dev
    max_train: int = 0  # rows of the train split that are trained on; 0: all
    group: Callable[[Row], str] | None = None  # what a row is scored together with

    def splits(self) -> tuple[str, ...]:
        """Train, test, and dev where it has a split of its own."""
        return tuple(filter(None, (*super().splits(), self.dev)))

    def line(self, row: Row) -> tuple[str, tuple[str, ...]] | None:
        """As of any entry; the group stands behind the answer."""
        line = super().line(row)
        return line if line is None or self.group is None else (line[0], (*line[1], self.group(row)))

    def spread(self, example: Example, scored: bool) -> Iterator[Example]:
        """A line for each answer. A scored one (dev, test) has the other answers, or the group, behind it."""
        for answer in example.outputs[:1] if self.group else example.outputs:
            others = tuple(other for other in example.outputs if other != answer) if scored else ()
            yield Example(example.input, (answer, *others))


def permutation(size: int) -> list[int]:
    """The original's order of a split's rows."""
    return torch.randperm(size, generator=torch.Generator().manual_seed(SEED)).tolist()


def few_shot(classes: Sequence[str | None], shots: int, seed: int) -> list[int]:
    """The first `shots` rows of each class in Python's shuffled order; rows of class None are not taken."""
    order = list(range(len(classes)))
    random.Random(seed).shuffle(order)
    taken: Counter = Counter()
    chosen = []
    for index in order:
        if classes[index] is not None and taken[classes[index]] < shots:
            taken[classes[index]] += 1
            chosen.append(index)
    return chosen


def deal(
    entry: PemtEntry, rows: Rows, settings: Settings, spool: TextIO, seen_rows: SeenRows
) -> tuple[Splits, dict[str, int], Counts]:
    """The original's splits, without regard to inputs that are repeated. No few-shot line is a dev line."""
    if not entry.test:
        raise UserError(f"task {entry.task!r} keeps the splits of its data set: --one_split cannot deal them")
    counts = Counts()
    found = {split: list(told(read(entry, rows(split), counts), counts, seen_rows)) for split in entry.splits()}
    train, test = found[entry.train], found[entry.test]
    order, tested = permutation(len(train)), permutation(len(test))
    held, order = order[: entry.held_out], order[entry.held_out :]
    if entry.dev:
        dev = found[entry.dev]
    elif entry.held_out:
        dev = _at(train, held)
    else:
        half = len(test) // 2
        dev, tested = _at(test, tested[:half]), tested[half:]
    splits: Splits = []
    free = [None if example is None else example.outputs[0] if entry.labels else "" for example in train]
    for index in held:
        free[index] = None
    for seed in settings.seeds:
        chosen = few_shot(free, settings.shots_per_class, seed)
        splits += [
            (seed, "train", _texts(entry, _at(train, chosen), scored=False)),
            (seed, "dev", _texts(entry, dev, scored=True)),
            (seed, "test", _texts(entry, _at(test, tested), scored=True, most=settings.max_test)),
        ]
    limit = min(filter(None, (entry.max_train, settings.max_full)), default=0) or len(order)
    splits.append((None, "train", _texts(entry, _at(train, order[:limit]), scored=False)))
    sizes = Counter(name for name in free if name is not None)
    short = {name: sizes[name] for name in entry.labels or ("",) if sizes[name] < settings.shots_per_class}
    return splits, short, counts


def _at(examples: Sequence[Example | None], indices: Iterable[int]) -> list[Example | None]:
    return [examples[index] for index in indices]


def _texts(entry: PemtEntry, examples: Iterable[Example | None], scored: bool, most: int = 0) -> Iterator[str]:
    """The lines of a file; of rows with an answer, `most` at most."""
    known = [example for example in examples if example is not None]
    for example in known[: most or None]:
        yield from map(as_text, entry.spread(example, scored))
