"""One malformed input: the command that meets it, what is right, and the judgement of what the command did."""

import os
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.fuzz.compare import SETTINGS, differences, leftovers, result_files
from tests.fuzz.process import TIMEOUT, Outcome, run
from tests.fuzz.world import COMMANDS, OUTPUTS, World

REFUSE = "refuse"  # one line that names it, exit code 2
SAME = "same"  # accepted, with the numbers of the sound input
EITHER = "either"  # refused, or accepted with the numbers of the sound input
ANY = "any"  # refused, or accepted: it is odd, and no other number would be right
FOUND = "found"  # data.build.check: exit code 1, and a finding that names it
GOOD = ("clean", "accepted_same")
BAD = ("traceback", "silent", "hang", "unclear")


class Box:
    """The folder of one case: `root`, where the command works, and copies of the inputs that are spoiled."""

    def __init__(self, world: World, folder: Path, rng: random.Random):
        self.world, self.folder, self.rng = world, folder, rng
        self.root, self.copies = folder / "root", {}
        self.root.mkdir(parents=True)

    def place(self, name: str) -> Path:
        """A place of the world, or its copy here."""
        return self.copies.get(name) or self.world.place(name)

    def take(self, name: str) -> Path:
        """A copy of a place that may be spoiled."""
        if name not in self.copies:
            source, path = self.world.place(name), self.input(name.replace(":", "_").replace("/", "_"))
            shutil.copytree(source, path) if source.is_dir() else shutil.copy(source, path)
            self.copies[name] = path
        return self.copies[name]

    def input(self, name: str) -> Path:
        """A path for an input that the world does not have."""
        path = self.folder / "inputs" / name
        path.parent.mkdir(exist_ok=True)
        return path

    def words(self, command: str, *more) -> list[str]:
        """The words of a command that reads the places of this box, with more flags."""
        return [*self.world.ready(command, self.root, self.place), *map(str, more)]

    def earlier(self, command: str) -> Path:
        """Put the results of an earlier clean run of the command here; returns the folder `out`."""
        for name in OUTPUTS:
            if (self.world.clean(command) / name).exists():
                shutil.copytree(self.world.clean(command) / name, self.root / name, dirs_exist_ok=True)
        return self.root / "out"

    def lost(self) -> list[str]:
        """Results of before the command that are gone or changed."""
        before = self.folder / "before"
        return (
            [said for said in differences(before, self.root) if not said.endswith("is new")] if before.exists() else []
        )

    def elsewhere(self, known: frozenset[str]) -> list[str]:
        """What lies beside the root and the inputs, or in the root though it is neither known nor an output folder."""
        beside = {path.name for path in self.folder.iterdir()} - {"root", "inputs", "like", "before"}
        return sorted(beside | ({path.name for path in self.root.iterdir()} - {*OUTPUTS, *known}))


@dataclass
class Case:
    """A command and what is right; `names` are words of which the error must have one."""

    words: list[str]
    right: str
    names: tuple[str, ...]
    command: str = ""  # the command of the world whose clean numbers are right
    like: tuple[Box, list[str]] | None = None  # or: a sound command that must give the same
    check: Callable[[Box, str], str] | None = None  # or: of box and command, what is wrong with what was accepted
    prepare: Callable[[], None] | None = None
    tolerance: float = 1e-5
    writes: frozenset[str] = frozenset()  # names in the root that it may write besides the output folders
    causes: bool = False  # the cause may stand on stdout, as that of a cell of a suite
    loose: str = ""  # a stored file that was spoiled and that no number of this command depends on, unless it is read


Variant = Callable[[Box], Case]


def spoiled(
    command: str | tuple[str, ...],
    place: str,
    edit: Callable,
    right: str = REFUSE,
    *more,
    earlier: bool = True,
    check=None,
) -> Variant:
    """A command (or one of several) on a place that `edit(path, rng)` spoils; the edit returns the file or words to be named."""

    def make(box: Box) -> Case:
        chosen = command if isinstance(command, str) else box.rng.choice(command)
        named = edit(box.take(place), box.rng)
        if right == REFUSE and earlier and not COMMANDS[chosen].start and box.rng.random() < 0.5:
            box.earlier(chosen)
        return Case(box.words(chosen, *more), right, words_of(named), chosen, check=check)

    return make


def words_of(named) -> tuple[str, ...]:
    """What an edit says is to be named: a file counts by its name and by its folder's."""
    if isinstance(named, Path):
        return (named.name, named.parent.name)
    return (named,) if isinstance(named, str) else tuple(str(one) for one in named or ())


def carry_out(case: Case, box: Box, timeout: float = 30.0) -> tuple[Outcome, str, str]:
    """Run the case; returns what it did, its class and a remark. `timeout` is of an idle machine, in seconds."""
    timeout *= max(1.0, os.getloadavg()[0] / os.cpu_count())
    case.writes |= {path.name for path in box.root.iterdir()}
    if result_files(box.root):
        shutil.copytree(box.root, box.folder / "before", symlinks=True)
    outcome = run(case.words, box.root, timeout, case.prepare)
    return outcome, *judge(case, box, outcome)


def judge(case: Case, box: Box, outcome: Outcome) -> tuple[str, str]:
    """The class of an outcome, one of GOOD or BAD, and a remark."""
    if outcome.code == TIMEOUT:
        return "hang", f"no end after {outcome.seconds:.0f} s"
    if outcome.traceback:
        return "traceback", outcome.err.strip().splitlines()[-1][:300]
    if box.elsewhere(case.writes):
        return "silent", f"it wrote or ran {box.elsewhere(case.writes)}"
    if strange := [line for line in outcome.out.splitlines() if "/web_questions:" in line]:
        return "silent", f"a task that nobody named: {strange[0][:200]}"
    if left := leftovers(box.folder):
        return "unclear", f"temporary files are left: {left[:3]}"
    if case.command == "check" and (case.right == FOUND or outcome.code == 1):
        named = any(name in outcome.out for name in case.names)
        return ("clean", "") if outcome.code == 1 and named else ("silent", f"not found: exit code {outcome.code}")
    if outcome.code == 2:
        return refusal(case, box, outcome)
    if outcome.code != 0:
        return "unclear", f"exit code {outcome.code}: {outcome.err.strip()[-200:]}"
    return acceptance(case, box, outcome)


def refusal(case: Case, box: Box, outcome: Outcome) -> tuple[str, str]:
    """Whether a refusal was due, is one line that names the input, and lost nothing."""
    if case.right == SAME:
        return "unclear", f"refused, though it is sound: {outcome.err.strip()[-300:]}"
    if len(outcome.errors) != 1:
        return "unclear", f"{len(outcome.errors)} lines of error: {outcome.err.strip()[-300:]}"
    causes = [line for line in outcome.out.splitlines() if line.startswith("failed:") and case.causes]
    said = "\n".join([outcome.err[outcome.err.index("error:") :], *causes])
    if not any(name and name in said for name in case.names):
        return "unclear", f"names none of {case.names}: {said[:300]}"
    if lost := box.lost():
        return "unclear", f"earlier results are lost: {lost[:2]}; {outcome.errors[0][:200]}"
    return "clean", outcome.errors[0][:300]


def acceptance(case: Case, box: Box, outcome: Outcome) -> tuple[str, str]:
    """Whether an acceptance was due and the result is what it must be."""
    if case.right == REFUSE:
        return "silent", "accepted"
    if case.check:
        problem = case.check(box, case.command)
    elif case.right == ANY:
        problem = ""
    else:
        problem = "; ".join(different(case, box)[:3])
    return ("silent", problem[:300]) if problem else ("accepted_same", "")


def different(case: Case, box: Box) -> list[str]:
    """Where the results differ from those of the sound command."""
    if case.like is None:
        found = differences(box.world.clean(case.command), box.root, SETTINGS, case.tolerance)
        earlier = (box.folder / "before").exists()  # what other settings have left does no harm
        return [one for one in found if not (earlier and one.endswith("is new")) and one.split(": ")[0] != case.loose]
    other, words = case.like
    outcome = run(words, other.root)
    if outcome.code != 0:
        return [f"the sound command has failed: {outcome.err.strip()[-300:]}"]
    return differences(other.root, box.root, SETTINGS, case.tolerance)
