"""What carrying out a unit costs beside its work: 10,000 stub units through the schedule of the grid.

    python -m benchmarks.scaling                        in this process
    python -m benchmarks.scaling --devices 2            the same by Ray on two workers

A stub waits for `unit_seconds` and writes its record, as a real unit does. Of the wall time of all devices, what is not waiting is
overhead: the schedule, Ray, stamps and records. `idle share` is that part of the whole.
"""

import os
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks import measure
from pewe.cli import main
from pewe.files import write_text
from pewe.flags import flag
from pewe.grid import cluster
from pewe.grid.progress import Progress
from pewe.grid.schedule import Schedule
from pewe.grid.step import Made, Parts, Step


@dataclass(frozen=True)
class Config:
    """Sizes."""

    units: int = flag(10_000, "stub units", low=1)
    steps: int = flag(20, "steps that share them", low=1)
    unit_seconds: float = flag(0.02, "seconds that a stub waits", low=0)
    devices: int = flag(0, "workers of Ray; 0: in this process, without Ray", low=0)
    name: str = flag("scaling", "name of the result file")


@dataclass(frozen=True)
class Stub:
    """The configuration of a stub step."""

    tasks: tuple[str, ...]
    seconds: float


def whole(folder: Path, config: Stub, finished, again: bool) -> Made:
    """What a step makes in the end: one file."""
    write_text(folder / "result.tsv", "done\n")
    return Made([folder / "result.tsv"])


def wait(config: Stub, name: str, finished) -> None:
    """One unit."""
    time.sleep(config.seconds)
    finished(1)


def parts(number: int) -> Parts:
    """So many units."""
    return Parts(partial(_names, number), wait)


def _names(number: int, config: Stub) -> list[str]:
    return [str(part) for part in range(number)]


class Grid:
    """Sources, and steps that need them, as the schedule sees a grid."""

    def __init__(self, config: Config, root: Path):
        self.flags = {"tasks": ["stub"]}
        stub = Stub(("stub",), config.unit_seconds)
        sources = Step(root / "sources", stub, partial(whole, root / "sources"))
        self.steps = {("sources", ""): sources}
        for number in range(config.steps):
            folder, share = root / f"from_{number}", config.units // config.steps
            own = Step(folder, stub, partial(whole, folder), (sources,), share, parts=parts(share))
            self.steps["tuned", str(number)] = own

    def inits(self) -> list[str]:
        """All rows."""
        return [name for kind, name in self.steps if kind == "tuned"]

    def step(self, kind: str, of: str = "") -> Step:
        """The step of this name."""
        return self.steps[kind, of]


def in_this_process(schedule: Schedule) -> None:
    """One after the other."""
    for unit in schedule:
        schedule.ended(unit, unit.carry_out(lambda cells: None))


def on_devices(schedule: Schedule, folder: Path, devices: int) -> float:
    """By Ray; returns the seconds until the first worker was there."""
    start = time.perf_counter()
    with cluster.connected(str(devices), "", on_gpu=False) as (ray, needs):
        team = cluster.Team(ray, needs, folder)
        while len(team.idle) < devices:
            team.hire()
            team.welcome()
            time.sleep(0.1)
        begun = time.perf_counter() - start
        cluster.carry_out(schedule, team, Progress(1, dict, every=600))
        return begun


def bench(config: Config) -> None:
    """Carry all of them out once."""
    with tempfile.TemporaryDirectory() as place:
        os.environ["PYTHONPATH"] = os.pathsep.join([str(Path.cwd()), os.environ.get("PYTHONPATH", "")])
        folder = Path(place) / "checkpoints" / "stubs"
        folder.mkdir(parents=True)
        grid = Grid(config, folder)
        start = time.perf_counter()
        schedule = Schedule([grid], grid.inits())
        if config.devices:
            begun = on_devices(schedule, folder, config.devices)
        else:
            begun = in_this_process(schedule) or 0.0
        wall = time.perf_counter() - start - begun
    if schedule.failed:
        raise RuntimeError(f"{len(schedule.failed)} stubs failed: {next(iter(schedule.failed.values()))}")
    devices = max(1, config.devices)
    units = config.units // config.steps * config.steps
    overhead = (wall * devices - units * config.unit_seconds) / units
    idle = overhead / (overhead + config.unit_seconds)
    line = {"case": f"{units} units of {config.unit_seconds:g} s, {config.devices or 'no'} workers of Ray"}
    line |= {"seconds": round(wall, 1), "overhead_ms": round(1000 * overhead, 2), "idle_share": round(idle, 3)}
    print("  ".join(f"{name} {value}" for name, value in line.items()))
    measure.write(config.name, config, [line])


if __name__ == "__main__":
    main(bench, Config, __doc__)
