"""The grid's bar: it moves with the updates of the running step, and says how long the rest will take."""

import io
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from pewe.grid.progress import Progress
from pewe.grid.step import Made
from pewe.progress import Bar, listening


class Terminal(io.StringIO):
    """A stream that says it is one."""

    def isatty(self):
        return True


def step(cells: int, run):
    """A step that does this."""
    folder = Path("checkpoints/mini/adapter/seed_42/sources")
    return SimpleNamespace(folder=folder, cells=cells, missing=lambda: "new", carry_out=run)


def test_a_hidden_bar_counts_and_tells():
    told = []
    with listening(lambda bar: told.append((bar.n, bar.share))), Bar(total=4, disable=True) as bar:
        bar.update(1)
        bar.update(2)
    Bar(total=4, disable=True).update(1)
    assert told == [(1, 0.25), (3, 0.75)]


def half_way(progress: Progress, seen: list) -> Made:
    """Two deltas of four in lockstep, half of their updates done; then a pause in which no update comes."""
    with Bar(total=200, unit="update", disable=True, parts=2) as bar:
        bar.update(100)
        seen.append((progress.at, progress.doing()))
        time.sleep(0.3)
    progress._finished(2)
    seen.append((progress.at, progress.doing()))
    return Made([], {"boolq": "diverged"}, ["boolq"])


@pytest.mark.parametrize("stream", [Terminal, io.StringIO], ids=["terminal", "file"])
def test_the_bar_moves_within_a_step(stream, monkeypatch):
    monkeypatch.setattr(sys, "stderr", stream())
    progress, seen = Progress(8, every=0.05), []
    assert progress.left() == "?"
    with progress.shown():
        assert progress.carry_out(step(4, lambda finished: half_way(progress, seen))) == ["boolq"]
    assert seen == [(1.0, "update 100/200"), (2.0, "")] and progress.at == 4
    assert progress.failed == {"mini/adapter/seed_42/sources/boolq": "diverged"}
    text = sys.stderr.getvalue()
    lines = [
        line for line in text.replace("\r", "\n").split("\n") if "1.0/8 cells" in line and "update 100/200" in line
    ]
    assert len(lines) >= 3 and all("sources" in line for line in lines)
    assert "\r" in text if stream is Terminal else "so far, 00:00 left" in text or "so far, 00:01 left" in text


def test_a_step_that_fails_counts_as_done(monkeypatch):
    def fails(finished):
        raise MemoryError

    progress = Progress(3)
    assert progress.carry_out(step(3, fails)) == [] and progress.at == 3
    assert "out of memory" in progress.failed["mini/adapter/seed_42/sources"]
