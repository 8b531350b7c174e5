"""How far the grid is: one bar over the cells of all steps, which moves with the updates of the running units."""

import contextlib
import itertools
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from pewe.cli import log
from pewe.grid.schedule import Outcome, Unit
from pewe.progress import Bar, listening

IN_A_TERMINAL, IN_A_FILE = 1.0, 60.0  # seconds between two looks
_SHAPE = "{desc} {percentage:3.0f}%|{bar}| {n:.1f}/{total_fmt} cells [{elapsed}<{remaining}{postfix}]"


@dataclass(frozen=True)
class Place:
    """Where a running unit stands: the cells of it that are done, in part or in whole, and what it does."""

    unit: str = ""
    cells: float = 0.0
    doing: str = ""  # in the unit's own measure, e.g. "update 120/3000"

    def text(self) -> str:
        """In a line."""
        return ", ".join(filter(None, (self.unit or "start", self.doing)))


class Watch:
    """Where the unit stands that is carried out in this process; its cells and bars tell it."""

    def __init__(self):
        self.unit, self.done, self.bar = "", 0, None

    def begin(self, unit: str) -> None:
        """Another unit begins."""
        self.unit, self.done, self.bar = unit, 0, None

    def finished(self, cells: int) -> None:
        """So many cells more have ended."""
        self.done, self.bar = self.done + cells, None

    def listen(self, bar: Bar) -> None:
        """The bar of what is being done has moved."""
        self.bar = bar

    def place(self) -> Place:
        """As it is now."""
        bar = self.bar
        doing = f"{bar.unit} {bar.n:.0f}/{bar.total:.0f}" if bar and bar.total else ""
        return Place(self.unit, self.done + (bar.share * bar.parts if bar else 0.0), doing)


class Progress:
    """The bar, redrawn by a thread of its own, in a file a line a minute; `look` says where the units in work stand."""

    def __init__(self, cells: int, look: Callable[[], dict[str, Place]], every: float = 0.0):
        self.cells, self.look = cells, look
        self.of: dict[Path, float] = {}  # step in work -> its cells that are done
        self.done = 0.0  # of the steps that have ended
        self.terminal = sys.stderr is not None and sys.stderr.isatty()
        self.every = every or (IN_A_TERMINAL if self.terminal else IN_A_FILE)
        self.start = time.monotonic()
        self.bar = tqdm(total=cells, bar_format=_SHAPE, disable=not self.terminal, dynamic_ncols=True)
        self.lines: list[tqdm] = []  # one for each device, where there are several

    @contextlib.contextmanager
    def shown(self) -> Iterator[None]:
        """Show it until the block ends."""
        ended = threading.Event()
        thread = threading.Thread(target=self._redraw, args=(ended,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            self.draw()
            for bar in (*self.lines, self.bar):
                bar.close()

    def ended(self, unit: Unit, place: Place) -> None:
        """A unit has ended there; a step counts with all of its cells then, whether they failed or not."""
        if unit.part:
            self.of[unit.step.folder] = min(unit.step.cells, self.of.get(unit.step.folder, 0) + place.cells)
        else:
            self.of.pop(unit.step.folder, None)
            self.done += unit.step.cells

    @property
    def at(self) -> float:
        """Cells that are done, and the part that is done of those that are in work."""
        running = sum(place.cells for place in self.look().values())
        return min(self.cells, self.done + sum(list(self.of.values())) + running)

    def left(self) -> str:
        """How long the rest will take, if cells go on as so far; "?" where nothing is done yet."""
        at = self.at
        seconds = (time.monotonic() - self.start) * (self.cells - at) / at if at else None
        return "?" if seconds is None else tqdm.format_interval(seconds)

    def draw(self) -> None:
        """Redraw the bar, or write a line; with several devices, a line for each below it."""
        places = list(self.look().values()) or [Place()]
        several = [f"  {place.text()}" for place in places] if len(places) > 1 else []
        what = f"{len(places)} units" if several else places[0].text()
        if self.terminal:
            self.bar.n = self.at
            self.bar.set_description_str(what, refresh=False)
            self.bar.refresh()
            self._show(several)
        elif sys.stderr is not None:
            spent = tqdm.format_interval(time.monotonic() - self.start)
            line = f"{what}: {self.at:.1f}/{self.cells} cells, {spent} so far, {self.left()} left"
            with contextlib.suppress(OSError):  # a closed pipe is the main thread's to notice
                print("\n".join([line, *several]), file=sys.stderr, flush=True)

    def _show(self, texts: list[str]) -> None:
        """These lines below the bar, and no others."""
        while len(self.lines) < len(texts):
            place = len(self.lines) + 1
            self.lines.append(tqdm(position=place, bar_format="{desc}", leave=False, dynamic_ncols=True))
        for line, text in itertools.zip_longest(self.lines, texts, fillvalue=""):
            line.set_description_str(text)

    def _redraw(self, ended: threading.Event) -> None:
        while not ended.wait(self.every):
            self.draw()


@contextlib.contextmanager
def watched(cells: int) -> Iterator[Callable[[Unit], Outcome]]:
    """What carries out a unit in this process while the bar shows it; `cells` are those of all that is to be done."""
    watch = Watch()
    progress = Progress(cells, lambda: {"": watch.place()})

    def carry_out(unit: Unit) -> Outcome:
        watch.begin(unit.name)
        outcome = unit.carry_out(watch.finished)
        progress.ended(unit, watch.place())
        watch.begin("")
        return outcome

    with logging_redirect_tqdm([log]), progress.shown(), listening(watch.listen):
        yield carry_out
