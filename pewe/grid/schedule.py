"""Which units of an experiment can begin: those whose needs are published.

A unit is what one process carries out at a time: a part of a step (a fixed stack of runs, a block of targets), or the step
itself, from its parts where it has some. Whoever carries units out asks for the next one and says how it ended; in one
process, one after the other, or on many devices (pewe/grid/cluster.py). The schedule holds nothing that the files do not tell.
"""

import heapq
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pewe.cli import cause_of, log
from pewe.files import PARTS, read_record, write_record
from pewe.grid.step import Made, Step
from pewe.grid.steps import Grid, plan
from pewe.identity import digest

DONE = "unit.json"  # in the folder of a part: what the step was made from when it was carried out


@dataclass(frozen=True)
class Outcome:
    """What a unit has made, or why it has made nothing."""

    made: Made | None = None
    cause: str = ""


@dataclass(frozen=True)
class Unit:
    """A part of a step, or (no part) the step itself."""

    step: Step
    part: str = ""
    shared: bool = False  # the step itself, whose parts have been carried out

    @property
    def name(self) -> str:
        """The name of the step, and that of the part."""
        return f"{self.step.name} [{self.part}]" if self.part else self.step.name

    @property
    def record(self) -> Path:
        """The file that says that a part is done."""
        return self.step.folder / PARTS / self.part / DONE

    def published(self) -> bool:
        """Whether a part has been carried out from what the step is made from now."""
        saved = read_record(self.record)
        return saved is not None and saved["made_from"] == digest(self.step.made_from())

    def carry_out(self, finished: Callable[[int], None]) -> Outcome:
        """Do it; what goes wrong is in the outcome. Where a part fails, the step itself tries again and says why."""
        try:
            if not self.part:
                return Outcome(self.step.carry_out(ignored if self.shared else finished, again=not self.shared))
            self.step.parts.carry_out(self.step.config, self.part, finished)
            write_record(self.record, {"made_from": digest(self.step.made_from())})
            return Outcome(Made([]))
        except Exception as error:
            return Outcome(cause=cause_of(error))


def ignored(cells: int) -> None:
    """Nobody is told: the parts have said it."""


@dataclass
class _Open:
    """A step in work."""

    place: tuple[int, int]
    waiting: int = 0  # needs that have not ended
    parts: int = 0  # parts that have not ended
    after: list[Step] = field(default_factory=list)


class Schedule:
    """The units of some grids, in the order of grids, steps and parts. A task whose source fails is left out of its grid.

    Where all of them fail, nothing more of that grid is tried: no names at all would mean those of a list.
    """

    def __init__(self, todo: list[Grid], inits: list[str]):
        self.inits = inits
        self.failed: dict[str, str] = {}  # cell -> cause
        self.steps: dict[Path, _Open] = {}
        self._ready: list[tuple[tuple[int, int], int, int, Unit]] = []
        self._count = itertools.count()
        self._grid_of: dict[Path, tuple[int, Grid]] = {}
        for number, grid in enumerate(todo):
            sources = grid.step("sources")
            self._grid_of[sources.folder] = number, grid
            self.steps[sources.folder] = _Open((number, 0))
            self._begin(sources)

    def next(self) -> Unit | None:
        """A unit that can begin, the first in order; None where all others wait for what is in work, or none is left."""
        return heapq.heappop(self._ready)[-1] if self._ready else None

    def __iter__(self) -> Iterator[Unit]:
        """The units that can begin now."""
        while unit := self.next():
            yield unit

    def again(self, unit: Unit) -> None:
        """A unit whose worker has died."""
        self._push(unit, 0)

    def ended(self, unit: Unit, outcome: Outcome) -> None:
        """Note how a unit ended; others may begin now."""
        state = self.steps[unit.step.folder]
        if unit.part:
            if outcome.cause:
                log.warning("%s: %s", unit.name, outcome.cause)
            state.parts -= 1
            if not state.parts:
                self._push(Unit(unit.step, shared=True), 0)
            return
        if outcome.made is None:
            self.failed[unit.step.name] = outcome.cause
        else:
            self.failed |= {f"{unit.step.name}/{cell}": cause for cell, cause in outcome.made.failed.items()}
        self._end(unit.step, outcome.made.without if outcome.made else [])

    def _push(self, unit: Unit, number: int) -> None:
        heapq.heappush(self._ready, (self.steps[unit.step.folder].place, number, next(self._count), unit))

    def _begin(self, step: Step) -> None:
        """Its needs have ended: find its parts, unless it is done, or lacks something."""
        if not step.missing():
            return self._end(step, [])
        if step.lacking():
            return self._push(Unit(step), 0)
        step.begin()
        units = [Unit(step, part) for part in step.parts.names(step.config)]
        todo = [unit for unit in units if not unit.published()]
        self.steps[step.folder].parts = len(todo)
        for number, unit in enumerate(todo):
            self._push(unit, number)
        if not todo:
            self._push(Unit(step, shared=bool(units)), 0)

    def _end(self, step: Step, without: list[str]) -> None:
        if step.folder in self._grid_of:
            self._expand(*self._grid_of.pop(step.folder), without)
        for other in self.steps.pop(step.folder).after:
            self.steps[other.folder].waiting -= 1
            if not self.steps[other.folder].waiting:
                self._begin(other)

    def _expand(self, number: int, grid: Grid, without: list[str]) -> None:
        """The sources of a grid have ended: the other steps, each after those that it needs."""
        if without:
            grid.leave_out(without)
        steps = [step for step in plan(grid, self.inits) if step is not grid.step("sources")]
        if not grid.flags["tasks"]:
            return
        for place, step in enumerate(steps, start=1):
            self.steps[step.folder] = _Open((number, place))
            for need in step.needs:
                if need.folder in self.steps and need is not grid.step("sources"):
                    self.steps[need.folder].after.append(step)
                    self.steps[step.folder].waiting += 1
        for step in [step for step in steps if not self.steps[step.folder].waiting]:
            self._begin(step)
