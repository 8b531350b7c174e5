"""The grid's bar: it moves with the updates of the running step, and says how long the rest will take."""

import io
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from pewe.grid.progress import Place, Progress, Watch
from pewe.grid.schedule import Unit
from pewe.progress import Bar, listening


class Terminal(io.StringIO):
    """A stream that says it is one."""

    def isatty(self):
        return True


def a_step(cells: int):
    """A step of so many cells."""
    return SimpleNamespace(folder=Path("checkpoints/mini/adapter/seed_42/sources"), name="sources", cells=cells)


def test_a_hidden_bar_counts_and_tells():
    told = []
    with listening(lambda bar: told.append((bar.n, bar.share))), Bar(total=4, disable=True) as bar:
        bar.update(1)
        bar.update(2)
    Bar(total=4, disable=True).update(1)
    assert told == [(1, 0.25), (3, 0.75)]


@pytest.mark.parametrize("stream", [Terminal, io.StringIO], ids=["terminal", "file"])
def test_the_bar_moves_within_a_unit(stream, monkeypatch):
    """Two deltas of four in lockstep, half of their updates done; then a pause in which no update comes."""
    monkeypatch.setattr(sys, "stderr", stream())
    watch, seen = Watch(), []
    progress = Progress(8, lambda: {"": watch.place()}, every=0.05)
    assert progress.left() == "?"
    with progress.shown(), listening(watch.listen):
        watch.begin("sources [0]")
        with Bar(total=200, unit="update", disable=True, parts=2) as bar:
            bar.update(100)
            seen.append((progress.at, watch.place().doing))
            time.sleep(0.3)
        watch.finished(2)
        seen.append((progress.at, watch.place().doing))
        progress.ended(Unit(a_step(4), "0"), watch.place())
        watch.begin("")
        seen.append((progress.at, watch.place().unit))
    assert seen == [(1.0, "update 100/200"), (2.0, ""), (2.0, "")]
    progress.ended(Unit(a_step(4)), Place())
    assert progress.at == 4
    text = sys.stderr.getvalue()
    lines = [
        line for line in text.replace("\r", "\n").split("\n") if "1.0/8 cells" in line and "update 100/200" in line
    ]
    assert len(lines) >= 3 and all("sources" in line for line in lines)
    assert "\r" in text if stream is Terminal else "so far, 00:00 left" in text or "so far, 00:01 left" in text


@pytest.mark.parametrize("stream", [Terminal, io.StringIO], ids=["terminal", "file"])
def test_several_devices_share_one_bar_and_have_a_line_each(stream, monkeypatch):
    monkeypatch.setattr(sys, "stderr", stream())
    places = {"a": Place("sources [0]", 1.5, "update 3/4"), "b": Place("sources [1]", 0.5)}
    progress = Progress(4, lambda: places)
    progress.draw()
    text = sys.stderr.getvalue()
    assert progress.at == 2 and "2.0/4 cells" in text and "2 units" in text
    assert "  sources [0], update 3/4" in text and "  sources [1]" in text


def test_a_step_that_fails_counts_as_done():
    progress = Progress(3, dict)
    progress.ended(Unit(a_step(3)), Place())
    assert progress.at == 3
