"""What work this process has done: lines through the backbone, updates, seconds. It decides nothing.

A line counts once for every delta that sees it, in tuning, scoring, generation and statistics alike: its forward, with a
gradient or without. An update counts once for every delta, or set of weights, that is tuned.
"""

import contextlib
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass
class Work:
    """Lines through the backbone, updates of one delta, seconds of wall time."""

    lines: float = 0.0
    updates: float = 0.0
    seconds: float = 0.0

    def __add__(self, other: "Work") -> "Work":
        return Work(self.lines + other.lines, self.updates + other.updates, self.seconds + other.seconds)

    def __sub__(self, other: "Work") -> "Work":
        return Work(self.lines - other.lines, self.updates - other.updates, self.seconds - other.seconds)


UNKNOWN = Work(math.nan, math.nan, math.nan)
WORK = "work"  # entry of a record's provenance: what it has cost

_done = Work()


def count(lines: float = 0, updates: float = 0, seconds: float = 0.0) -> None:
    """So much more has been done; seconds beside those that pass, of an earlier call whose work goes on here."""
    _done.lines += lines
    _done.updates += updates
    _done.seconds += seconds


def so_far() -> Work:
    """What has been done until now; only a difference of two means anything."""
    return Work(_done.lines, _done.updates, _done.seconds + time.perf_counter())


@contextlib.contextmanager
def metered() -> Iterator[Work]:
    """A `Work` that is filled when the block ends."""
    spent, before = Work(), so_far()
    try:
        yield spent
    finally:
        found = so_far() - before
        spent.lines, spent.updates, spent.seconds = found.lines, found.updates, found.seconds
