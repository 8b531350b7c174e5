"""SIGKILL at random moments, the same command with other settings in between, and two processes at once in one folder.

    python -m tests.fuzz.kills --seed 1 --count 100 [--pairs 20] [--only 'suite|tuning'] [--failures FILE]

A round starts a command and kills it until it comes to its end by itself; every third time it is started with other settings,
which may come to their end. What is right: all results equal those of one clean run, and no temporary file is left. Of two
processes that are started within two seconds, each comes to its end or says on one line who holds the folder (exit code 2).
`--count` is the number of kills. The classes are those of tests.fuzz.inputs.
"""

import argparse
import re
import shlex
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from tests.fuzz import inputs, process
from tests.fuzz.compare import TIMES, differences, leftovers
from tests.fuzz.process import Outcome
from tests.fuzz.world import World

ROUNDING = 1e-5  # members that go on in another stack are multiplied in other batches
LONG = ("--train_iters", "16", "--valid_interval", "2", "--early_stop", "99")
# name -> command, flags that make it longer, flags of the other settings
KINDS: dict[str, tuple[str, tuple[str, ...], tuple[str, ...]]] = {
    "tuning": ("tune_two", LONG, ("--max_grad_norm", "1e-3")),
    "pairs": ("pairs", ("--train_iters", "4", "--stack", "2"), ("--train_iters", "3")),
    "similarity": (
        "GraNd",
        ("--stack", "1", "--max_batches", "-1", "--predict_batch_size", "1"),
        ("--max_input_length", "7"),
    ),
    "ensembles": ("Loss_weights", (), ("--effective", "1.2")),
    "statistics": ("statistics", ("--batch_size", "1"), ("--examples", "2")),
    "merges": ("RegMean", (), ("--alpha", "0.9")),
    "suite": ("suite", (), ("--suite", "{other_suite.toml}")),
    "fusion": ("fusion", ("--updates", "20", "--protocols", "pairwise", "incremental"), ("--updates", "3")),
    "pemt": ("pemt", LONG, ("--sparsity", "0")),
    "experts": ("experts", ("--train_iters", "6"), ("--train_iters", "3")),
}


@dataclass
class Scene:
    """A command in a folder of its own, the result of a clean run, and its time."""

    world: World
    name: str
    folder: Path
    words: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def begin(self) -> "Scene":
        """Run it cleanly once."""
        command, longer, other = KINDS[self.name]
        shutil.rmtree(self.folder, ignore_errors=True)
        self.words = [*self.world.ready(command, self.folder / "clean", self.world.place), *longer]
        places = [str(self.world.place(word[1:-1])) if word.startswith("{") else word for word in other]
        self.others = [*self.words, *places]
        outcome = process.run(self.words, self.folder / "clean", 300)
        if outcome.code != 0:
            raise RuntimeError(outcome.err)
        self.seconds = outcome.seconds
        return self

    def fresh(self) -> Path:
        """A working folder as before the first start."""
        root = self.folder / "work"
        shutil.rmtree(root, ignore_errors=True)
        self.world.ready(KINDS[self.name][0], root, self.world.place)
        return root

    def start(self, words: list[str], root: Path, number: int = 0) -> int:
        """Start a process; its output goes beside its folder."""
        return process.start(words, root, self.folder / f"out{number}", self.folder / f"err{number}")

    def outcome(self, code, number: int = 0) -> Outcome:
        """What a process did that has ended."""
        texts = [(self.folder / f"{kind}{number}").read_text(errors="replace") for kind in ("out", "err")]
        return Outcome(process.TIMEOUT if code is None else code, *texts, 0.0)

    def wrong(self, root: Path, mixed: bool) -> tuple[str, str]:
        """Class and remark of what lies in the folder; other settings may have left files of their own."""
        found = differences(self.folder / "clean", root, TIMES, ROUNDING)
        found = [one for one in found if not (mixed and one.endswith("is new"))]
        if found:
            return "silent", f"{len(found)} differ: {'; '.join(found[:3])}"
        left = leftovers(root)
        return ("unclear", f"temporary files are left: {left[:3]}") if left else ("accepted_same", "")


def failure(outcome: Outcome) -> tuple[str, str] | None:
    """Class and remark of a process that neither ended well nor was killed."""
    if outcome.traceback:
        return "traceback", outcome.err.strip().splitlines()[-1][:300]
    return None if outcome.code == 0 else ("unclear", f"exit code {outcome.code}: {outcome.err.strip()[-300:]}")


def killed(scene: Scene, rng: Random, most: int) -> dict:
    """Start and kill until the command comes to its end, or so many times and then once more."""
    root, starts, kills, mixed, found = scene.fresh(), 0, 0, False, None
    began = time.monotonic()
    while found is None:
        last = kills >= most
        other = not last and starts % 3 == 2
        pid, started = scene.start(scene.others if other else scene.words, root), time.monotonic()
        code = process.wait(pid, 120 if last else rng.uniform(0.02, 0.7) * scene.seconds + 0.02)
        starts += 1
        mixed |= other
        if code is None:
            process.kill(pid)
            kills += 1
        elif code != 0:
            found = failure(scene.outcome(code))
        elif not other:
            found = scene.wrong(root, mixed)
            if starts == 1:  # faster than the clean run was, which may have been the first of all
                scene.seconds = time.monotonic() - started
        if last and code is None:
            found = ("hang", "no end")
    kind, remark = found
    about = f"{kills} kills in {starts} starts{', other settings' if mixed else ''}; {remark}"
    return record(f"{scene.name}/kills", kind, about, scene, kills=kills, seconds=time.monotonic() - began)


def two(scene: Scene, rng: Random) -> dict:
    """Two processes in one folder; the second, one time in three, with other settings."""
    root, other = scene.fresh(), rng.random() < 1 / 3
    delay = rng.uniform(0, min(2.0, 0.8 * scene.seconds))
    began = time.monotonic()
    pids = [scene.start(scene.words, root)]
    time.sleep(delay)
    pids.append(scene.start(scene.others if other else scene.words, root, 1))
    outcomes = [scene.outcome(process.wait(pid, 120), number) for number, pid in enumerate(pids)]
    for pid, outcome in zip(pids, outcomes, strict=True):
        if outcome.code == process.TIMEOUT:
            process.kill(pid)
    kind, remark = judged_two(scene, outcomes, root, other)
    about = f"{delay:.2f} s apart{', other settings' if other else ''}, exit codes {[one.code for one in outcomes]}; {remark}"
    return record(f"{scene.name}/two at once", kind, about, scene, kills=0, seconds=time.monotonic() - began)


def judged_two(scene: Scene, outcomes: list[Outcome], root: Path, other: bool) -> tuple[str, str]:
    """Class and remark of two processes and of what they left."""
    if any(outcome.code == process.TIMEOUT for outcome in outcomes):
        return "hang", "no end"
    if torn := next((one for one in outcomes if one.traceback), None):
        return failure(torn)
    refused = [one for one in outcomes if one.code != 0]
    if len(refused) == 2 or any(one.code != 2 or len(one.errors) != 1 for one in refused):
        return "unclear", f"{refused[0].err.strip()[-300:]}"
    if other:
        again = process.run(scene.words, root, 120)
        if again.code != 0:
            return failure(again)
    return scene.wrong(root, other)


def record(name: str, kind: str, remark: str, scene: Scene, **more) -> dict:
    """What a driver reports of a case."""
    command = f"{shlex.join(scene.words)}   # other settings: {shlex.join(scene.others[len(scene.words) :])}"
    return {"name": name, "class": kind, "remark": remark, "right": "same", "command": command, "stderr": "", **more}


def judged(world: World, args: argparse.Namespace) -> Iterator[dict]:
    """Rounds of every kind in turn until there are `--count` kills, then `--pairs` pairs."""
    names = [name for name in KINDS if re.search(args.only, name)]
    scenes = {name: Scene(world, name, world.folder / "work" / name).begin() for name in names}
    rng, kills, turn = Random(args.seed), 0, 0
    while kills < args.count:
        found = killed(scenes[names[turn % len(names)]], rng, min(7, args.count - kills))
        kills, turn = kills + found["kills"], turn + 1
        yield found
    for number in range(args.pairs):
        yield two(scenes[names[number % len(names)]], rng)
    print(f"{kills} kills, {args.pairs} pairs")


if __name__ == "__main__":
    parser = inputs.flags(__doc__, 100)
    parser.add_argument("--pairs", type=int, default=20, help="pairs of processes that are started at once")
    sys.exit(inputs.drive(parser, judged))
