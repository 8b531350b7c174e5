"""Who may work on an experiment: one process that carries out all of it, or N that have a part each (`--part I/N`).

Every unit belongs to one of the parts, whoever asks and when. The N processes may be started again and again, in any order and at
the same time, until nothing is left; the same command without --part then gathers the tables.
"""

import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from pewe.errors import UserError
from pewe.files import PARTS, hold, patient
from pewe.grid.experiment import Experiment
from pewe.grid.progress import watched
from pewe.grid.schedule import Schedule
from pewe.identity import digest
from pewe.places import check_free


@contextmanager
def alone(experiment: Experiment) -> Iterator[None]:
    """Nobody else works on the experiment, neither on all of it nor on a part. Raises UserError that names who does."""
    wait = experiment.config.wait
    with ExitStack() as held:
        held.enter_context(hold(experiment.folder, wait))
        held.enter_context(hold(experiment.out, wait))
        for part in sorted((experiment.folder / PARTS).glob("*_of_*")):
            held.enter_context(hold(part, wait))
        yield


@contextmanager
def one_of_parts(experiment: Experiment) -> Iterator[None]:
    """Nobody else works on this part, nor on all of the experiment."""
    number, count = part_of(experiment.config.part)
    with hold(experiment.folder / PARTS / f"{number}_of_{count}", experiment.config.wait):
        check_free(experiment.folder)
        yield


def part_of(text: str) -> tuple[int, int]:
    """I and N. Raises UserError for anything but 1 <= I <= N."""
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise UserError(f"--part must be I/N with 1 <= I <= N, e.g. 2/8, not {text!r}")
    return int(match[1]), int(match[2])


def carry_out_part(experiment: Experiment) -> dict[str, str]:
    """The units of this part whose needs are done, until there is none; returns the cells that failed."""
    number, count = part_of(experiment.config.part)
    failed: dict[str, str] = {}
    tried: set[str] = set()
    with watched(experiment.cells()) as carry_out_unit:
        while True:
            schedule = Schedule(experiment.todo, experiment.config.init)
            ready = list(schedule)
            own = [
                unit for unit in ready if int(digest(unit.name), 16) % count == number - 1 and unit.name not in tried
            ]
            if not own:
                print(f"part {number}/{count}: {len(tried)} units done; {len(ready)} wait for it or for others")
                return failed
            for unit in own:
                tried.add(unit.name)
                with patient():
                    schedule.ended(unit, carry_out_unit(unit))
            failed |= schedule.failed
