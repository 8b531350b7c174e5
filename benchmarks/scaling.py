"""What carrying out a unit costs beside its work: 10,000 stub units through the schedule of the grid.

    python -m benchmarks.scaling                        in this process
    python -m benchmarks.scaling --devices 0 2          the same, and again by Ray on two workers

A stub waits for `unit_seconds` and writes its record, as a real unit does. Of the wall time of all devices, what is not waiting is
overhead: the schedule, Ray, stamps and records. `idle_share` is that part of the whole. `cpu_ms` is the CPU time of this process
a unit, which bounds how many units a second it can give out; others on the machine do not lengthen it.
"""

import os
import tempfile
import time
from collections.abc import Callable
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
    devices: list[int] = flag([0], "workers of Ray, one case each; 0: in this process, without Ray", low=0)
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

    def has(self, init: str) -> bool:
        """Whether there is such a row."""
        return ("tuned", init) in self.steps

    def step(self, kind: str, of: str = "") -> Step:
        """The step of this name."""
        return self.steps[kind, of]


def took(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds of the clock, and of this process on a CPU."""
    start, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - start, time.process_time() - cpu


def in_order(schedule: Schedule) -> None:
    """In this process, one after the other."""
    for unit in schedule:
        schedule.ended(unit, unit.carry_out(lambda cells: None))


def on_devices(schedule: Schedule, folder: Path, devices: int) -> tuple[float, float]:
    """By Ray; what it `took` from when all workers were there."""
    with cluster.connected(str(devices), "", on_gpu=False) as (ray, needs):
        team = cluster.Team(ray, needs, folder)
        while len(team.idle) < devices:
            team.hire()
            team.welcome()
            time.sleep(0.1)
        return took(lambda: cluster.carry_out(schedule, team, Progress(1, dict, every=600)))


def case(config: Config, devices: int) -> dict:
    """Carry all of them out once; returns the line of the result. Raises RuntimeError where a stub fails."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "checkpoints" / "stubs"
        folder.mkdir(parents=True)
        grid = Grid(config, folder)
        schedule = Schedule([grid], grid.inits())
        wall, cpu = on_devices(schedule, folder, devices) if devices else took(lambda: in_order(schedule))
    if schedule.failed:
        raise RuntimeError(f"{len(schedule.failed)} stubs failed: {next(iter(schedule.failed.values()))}")
    units = config.units // config.steps * config.steps
    overhead = (wall * max(1, devices) - units * config.unit_seconds) / units
    idle = overhead / (overhead + config.unit_seconds)
    line = {"case": f"{units} units of {config.unit_seconds:g} s, {devices or 'no'} workers of Ray"}
    line |= {"seconds": round(wall, 1), "overhead_ms": round(1000 * overhead, 2), "idle_share": round(idle, 3)}
    line |= {"cpu_ms": round(1000 * cpu / units, 2)}
    print("  ".join(f"{name} {value}" for name, value in line.items()), flush=True)
    return line


def bench(config: Config) -> None:
    """Every case, and the result."""
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path.cwd()), os.environ.get("PYTHONPATH", "")])
    measure.write(config.name, config, [case(config, devices) for devices in config.devices])


if __name__ == "__main__":
    main(bench, Config, __doc__)
