"""How far the grid is: one bar over the cells of all steps, which moves with the updates of the running step."""

import contextlib
import sys
import threading
import time
from collections.abc import Iterator

from tqdm import tqdm

from pewe.cli import cause_of
from pewe.grid.step import Step
from pewe.progress import Bar, listening

IN_A_TERMINAL, IN_A_FILE = 1.0, 60.0  # seconds between two looks
_SHAPE = "{desc} {percentage:3.0f}%|{bar}| {n:.1f}/{total_fmt} cells [{elapsed}<{remaining}{postfix}]"


class Progress:
    """The bar, redrawn by a thread of its own, in a file a line a minute; and the cells that failed with their causes."""

    def __init__(self, cells: int, every: float = 0.0):
        self.cells, self.done, self.name, self.running = cells, 0, "", None
        self.failed: dict[str, str] = {}
        self.terminal = sys.stderr is not None and sys.stderr.isatty()
        self.every = every or (IN_A_TERMINAL if self.terminal else IN_A_FILE)
        self.start = time.monotonic()
        self.bar = tqdm(total=cells, bar_format=_SHAPE, disable=not self.terminal, dynamic_ncols=True)

    @contextlib.contextmanager
    def shown(self) -> Iterator[None]:
        """Show it until the block ends."""
        ended = threading.Event()
        thread = threading.Thread(target=self._redraw, args=(ended,), daemon=True)
        with listening(self._listen):
            thread.start()
            try:
                yield
            finally:
                ended.set()
                thread.join()
                self.draw()
                self.bar.close()

    def carry_out(self, step: Step) -> list[str]:
        """Do a step unless it is done; returns the tasks that have no result in it."""
        if not step.missing():
            return []
        before, without = self.done, []
        self.name, self.running = "/".join(step.folder.parts[1:]), None
        try:
            made = step.carry_out(self._finished)
            without = made.without
            self.failed |= {f"{self.name}/{cell}": cause for cell, cause in made.failed.items()}
        except Exception as error:
            self.failed[self.name] = cause_of(error)
        self.done, self.running = before + step.cells, None
        return without

    def _finished(self, cells: int) -> None:
        self.done, self.running = self.done + cells, None

    def _listen(self, bar: Bar) -> None:
        self.running = bar

    @property
    def at(self) -> float:
        """Cells that are done, and the part that is done of those that are in work."""
        running = self.running
        return min(self.cells, self.done + (running.share * running.parts if running else 0.0))

    def left(self) -> str:
        """How long the rest will take, if cells go on as so far; "?" where nothing is done yet."""
        at = self.at
        seconds = (time.monotonic() - self.start) * (self.cells - at) / at if at else None
        return "?" if seconds is None else tqdm.format_interval(seconds)

    def doing(self) -> str:
        """Where the running step stands in its own unit, e.g. "update 120/3000"."""
        running = self.running
        return f"{running.unit} {running.n:.0f}/{running.total:.0f}" if running and running.total else ""

    def draw(self) -> None:
        """Redraw the bar, or write a line."""
        doing = self.doing()
        if self.terminal:
            self.bar.n = self.at
            self.bar.set_description_str(self.name, refresh=False)
            self.bar.set_postfix_str(doing, refresh=False)
            self.bar.refresh()
        elif sys.stderr is not None:
            spent = tqdm.format_interval(time.monotonic() - self.start)
            parts = [
                f"{self.name or 'start'}: {self.at:.1f}/{self.cells} cells",
                doing,
                f"{spent} so far, {self.left()} left",
            ]
            with contextlib.suppress(OSError):  # a closed pipe is the main thread's to notice
                print(", ".join(filter(None, parts)), file=sys.stderr, flush=True)

    def _redraw(self, ended: threading.Event) -> None:
        while not ended.wait(self.every):
            self.draw()
