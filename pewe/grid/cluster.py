"""The units of an experiment on many devices: Ray (https://docs.ray.io) starts them where something is free.

A worker is an actor with one device; it loads the backbone once and tokenises once. Results are files: Ray holds nothing that
they do not tell. A unit whose worker dies, with its node or alone, begins again on another one from its last validation.
"""

import itertools
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from pewe import ROOT
from pewe.cli import log
from pewe.errors import UserError
from pewe.files import patient
from pewe.grid.progress import Place, Progress, Watch
from pewe.grid.schedule import Outcome, Schedule, Unit
from pewe.progress import listening

TRIES = 3  # times that a unit is begun whose worker dies
STARTS = 3  # of Ray on this machine, which gives up after half a minute
LATE = "timed out"  # what it says then
LOOK = 1.0  # seconds between two looks at the workers
SEEN = ".seen_by_all"  # a file in the experiment's folder, by which a worker tells that it sees the same folder


def load_ray() -> ModuleType:
    """The library. Raises UserError where it is missing."""
    try:
        import ray
    except ModuleNotFoundError:
        raise UserError(
            "--devices and --ray_address need Ray: pip install -r requirements-cluster.txt (--part I/N works without it)"
        ) from None
    return ray


class Worker:
    """One device, in a process of its own."""

    def __init__(self, folder: str, seen: str, token: str):
        os.chdir(folder)
        self.where = None if _reads(Path(seen), token) else folder
        self.watch, self.listening = Watch(), listening(lambda bar: self.watch.listen(bar))
        self.listening.__enter__()  # as long as the process lives

    def about(self) -> tuple[str, str]:
        """Where it is, and what is wrong with the folder there, if anything."""
        import platform

        import ray

        devices = ray.get_gpu_ids()
        wrong = f"does not see {self.where} as it is here: all nodes need one file system" if self.where else ""
        return f"{platform.node()}{' GPU ' + ','.join(map(str, devices)) if devices else ''}", wrong

    def carry_out(self, unit: Unit) -> tuple[Outcome, Place]:
        """A unit, and how many of its cells it has told."""
        self.watch.begin(unit.name)
        with patient():
            outcome = unit.carry_out(self.watch.finished)
        place = self.watch.place()
        self.watch.begin("")
        return outcome, place

    def place(self) -> Place:
        """Where it stands."""
        return self.watch.place()


def _reads(path: Path, token: str) -> bool:
    try:
        return path.read_text(encoding="utf-8") == token
    except OSError:
        return False


@contextmanager
def connected(devices: str, address: str, on_gpu: bool) -> Iterator[tuple[ModuleType, dict]]:
    """Ray, and what a worker needs: on this machine, or (`address`) on a cluster that is there."""
    ray = load_ray()
    cores, cards = os.cpu_count() or 1, _cards() if on_gpu and not address else 0
    wanted = int(devices) if devices.isdecimal() else cards or cores
    local = {"num_cpus": max(cores, wanted), "num_gpus": min(cards, wanted) if cards else 0, "include_dashboard": False}
    ours = {name: value for name, value in os.environ.items() if name.startswith("PEWE_")}
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    about = {"runtime_env": {"env_vars": {**ours, "PYTHONPATH": path}}}
    start(ray, address, **about, **({} if address else local))
    try:
        there = ray.cluster_resources()
        cores, cards = int(there.get("CPU", 1)), int(there.get("GPU", 0)) if on_gpu else 0
        slots = int(devices) if devices.isdecimal() else 0
        threads = max(1, cores // (slots or cards or cores))
        yield ray, {"num_cpus": threads, "num_gpus": 1 if cards else 0, "slots": slots}
    finally:
        ray.shutdown()


def start(ray: ModuleType, address: str, **about) -> None:
    """Start Ray, or reach it. Raises UserError where that fails; on a busy machine after some tries."""
    for attempt in range(1, STARTS + 1):
        try:
            ray.init(address or "local", log_to_driver=False, logging_level="ERROR", **about)
            return
        except Exception as error:  # of many kinds, bare ones too
            where = f"--ray_address {address}: Ray is not reached" if address else "Ray did not start on this machine"
            late = LATE in str(error) and not address
            if attempt == STARTS or not late:
                said = f" in {STARTS} tries; other work keeps it busy" if late else ""
                raise UserError(f"{where}{said}: {_line(error)}") from None
            log.warning("%s: %s Trying again (%d of %d)", where, _line(error), attempt + 1, STARTS)
            ray.shutdown()


def _cards() -> int:
    import torch

    return torch.cuda.device_count()


class Team:
    """The workers: hired as devices come, each with one unit at a time."""

    def __init__(self, ray: ModuleType, needs: dict, folder: Path):
        self.ray, self.needs = ray, dict(needs)
        self.slots = self.needs.pop("slots")
        self.seen, self.token = folder / SEEN, secrets.token_hex(8)
        self.seen.write_text(self.token, encoding="utf-8")
        self.coming: dict = {}  # answer to `about` -> worker
        self.idle: list = []
        self.busy: dict = {}  # answer of a unit -> worker, unit
        self.names: dict = {}
        self.asked: dict = {}  # worker -> answer to `place`
        self.places: dict[str, Place] = {}
        self.died: dict[str, int] = {}  # unit -> times that its worker died

    def hire(self) -> None:
        """A worker for each device that has none yet."""
        there = self.ray.cluster_resources()
        kind = "GPU" if self.needs["num_gpus"] else "CPU"
        free = int(there.get(kind, 0) // (self.needs["num_gpus"] or self.needs["num_cpus"]))
        wanted = min(free, self.slots) if self.slots else free
        threads = {"env_vars": {"OMP_NUM_THREADS": str(self.needs["num_cpus"])}}
        actor = self.ray.remote(Worker).options(max_concurrency=2, runtime_env=threads, **self.needs)
        for _ in range(wanted - len(self.coming) - len(self.idle) - len(self.busy)):
            worker = actor.remote(str(Path.cwd()), str(self.seen.resolve()), self.token)
            self.coming[worker.about.remote()] = worker

    def welcome(self) -> None:
        """The workers that have begun."""
        for answer in self._ended(self.coming):
            worker = self.coming.pop(answer)
            try:
                name, wrong = self.ray.get(answer)
            except self.ray.exceptions.RayError as error:
                log.warning("a worker did not begin: %s", _line(error))
                self._dismiss(worker)
                continue
            if wrong:
                raise UserError(f"{name} {wrong}")
            numbered = (f"{name} #{number}" for number in itertools.count(1))
            self.names[worker] = next(one for one in numbered if one not in self.names.values())
            self.idle.append(worker)

    def give(self, unit: Unit) -> None:
        """A unit to a worker that is idle."""
        worker = self.idle.pop()
        self.busy[worker.carry_out.options(name=unit.name).remote(unit)] = worker, unit

    def ended(self, seconds: float) -> Iterator[tuple[Unit, Outcome | None, Place]]:
        """The units that end within this time, with no outcome where a unit has to begin again."""
        answers = [*self.busy, *self.coming]
        done, _ = self.ray.wait(answers, timeout=seconds) if answers else ([], time.sleep(seconds))
        for answer in [answer for answer in done if answer in self.busy]:
            worker, unit = self.busy.pop(answer)
            self.places.pop(self.names[worker], None)
            try:
                outcome, place = self.ray.get(answer)
                self.idle.append(worker)
            except self.ray.exceptions.RayError as error:
                outcome, place = self._lost(unit, error), Place()
                self._dismiss(worker)
            yield unit, outcome, place

    def _dismiss(self, worker) -> None:
        """Its device is free for another one, whether its process has died or not."""
        self.ray.kill(worker)
        self.names.pop(worker, None)
        self.asked.pop(worker, None)

    def _lost(self, unit: Unit, error: Exception) -> Outcome | None:
        self.died[unit.name] = self.died.get(unit.name, 0) + 1
        log.warning("%s: its worker has died: %s", unit.name, _line(error))
        if self.died[unit.name] < TRIES:
            return None
        return Outcome(cause=f"its worker died {TRIES} times, the last time: {_line(error)}")

    def look(self) -> None:
        """Ask every busy worker where it stands; answers that have come are in `places`."""
        for worker, _ in self.busy.values():
            answer = self.asked.setdefault(worker, worker.place.remote())
            if self._ended([answer]):
                try:
                    self.places[self.names[worker]] = self.ray.get(self.asked.pop(worker))
                except self.ray.exceptions.RayError:
                    self.asked.pop(worker, None)

    def _ended(self, answers) -> list:
        answers = list(answers)
        return self.ray.wait(answers, num_returns=len(answers), timeout=0)[0] if answers else []


def _line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def carry_out(schedule: Schedule, team: Team, progress: Progress) -> dict[str, str]:
    """Every unit on whatever is free; returns the cells that failed, with their causes."""
    waiting: list[Unit] = []  # for a worker
    looked = float("-inf")
    while True:
        if time.monotonic() - looked > LOOK:
            team.hire()
            team.look()
            looked = time.monotonic()
        team.welcome()
        while unit := waiting.pop() if waiting else schedule.next():
            if not team.idle:
                waiting.append(unit)
                break
            team.give(unit)
        if not team.busy and not waiting:
            return schedule.failed
        for unit, outcome, place in team.ended(LOOK):
            if outcome is None:
                waiting.append(unit)
            else:
                progress.ended(unit, place)
                schedule.ended(unit, outcome)
