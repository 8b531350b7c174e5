"""A step of an experiment: one command with its folder, carried out again only where something has changed.

Its `step.json` is written before the work begins and says what it is made from: the deciding flags, data and backbone, and
what the steps that it needs have made. Afterwards it holds a fingerprint of every file that was made. A step is done if all
of that is so today; one that is not done computes only what is missing.
"""

import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from pewe.errors import UserError
from pewe.files import PARTS, read_json, write_record
from pewe.identity import PROVENANCE, deciding, difference, digest, file_print, has_print, unsealed
from pewe.meter import WORK, Work

STAMP = "step.json"


@dataclass
class Made:
    """What a step made: its files, the cells that failed with their causes, and the tasks that have no result at all."""

    files: list[Path]
    failed: dict[str, str] = field(default_factory=dict)
    without: list[str] = field(default_factory=list)
    work: Work = field(default_factory=Work)  # beside what the records of its runs say

    def __add__(self, other: "Made") -> "Made":
        work = self.work + other.work
        return Made(self.files + other.files, self.failed | other.failed, self.without + other.without, work)


@dataclass(frozen=True)
class Parts:
    """How several processes can share the work of a step: the names of the parts, and one of them carried out.

    What a part holds follows from the configuration and what the step is made from. The step itself, carried out afterwards,
    finds the work done and makes what belongs to the whole.
    """

    names: Callable[[object], list[str]]  # of the configuration; asked when the step may begin
    carry_out: Callable[[object, str, Callable[[int], None]], None]  # configuration, name, finished


WHOLE = Parts(lambda config: [], lambda config, name, finished: None)


@dataclass(frozen=True)
class Step:
    """One folder of the experiment."""

    folder: Path
    config: object  # the configuration of its command
    run: Callable[..., Made]  # (config, finished, again: whether to try what has failed)
    needs: tuple["Step", ...] = ()
    cells: int = 1
    row: str = ""  # of the table, where the step makes cells
    material: str = ""  # a fingerprint of data and backbone
    parts: Parts = WHOLE

    @property
    def name(self) -> str:
        """Its place below checkpoints/."""
        return "/".join(self.folder.parts[1:])

    def made_from(self) -> dict:
        """Everything that decides what the step makes, the content of what it needs included."""
        needs = {os.path.relpath(need.folder, self.folder): need.content() for need in self.needs}
        return {**deciding(self.config), "data and backbone": self.material, **needs}

    def content(self) -> str:
        """A fingerprint of what the step has made."""
        return digest({name: saved[0] for name, saved in (self.stamp() or {}).get("files", {}).items()})

    def stamp(self) -> dict | None:
        """The stored stamp where that is sound, else None."""
        return unsealed(read_json(self.folder / STAMP))

    def missing(self, serves: list[str] | None = None) -> str:
        """Why the step has to be carried out, in words; empty where it is done: for these tasks, or without any failure."""
        for need in self.needs:
            if why := need.missing(self.config.tasks):
                return f"{need.folder.name}: {why}"
        stamp = self.stamp()
        if why := difference(stamp and stamp.get("made_from"), self.made_from()):
            return why
        if stamp["state"] != "done":
            return "it was interrupted"
        changed = [name for name, saved in stamp["files"].items() if not has_print(self.folder / name, saved)]
        if changed:
            return f"{changed[0]} is missing, or was changed after it was written"
        failed = stamp["failed"] if serves is None else [task for task in serves if task in stamp["without"]]
        return f"{next(iter(failed))} failed" if failed else ""

    def lacking(self) -> str:
        """Which step that this one needs is missing, and why; empty where none is."""
        for need in self.needs:
            if why := need.missing(self.config.tasks):
                return f"needs {need.folder}, which failed ({why})"
        return ""

    def begin(self) -> dict:
        """Note what the step is made from before its work begins; returns that."""
        made_from, stamp = self.made_from(), self.stamp()
        if not stamp or stamp["state"] != "started" or difference(stamp["made_from"], made_from):
            shutil.rmtree(self.folder / PARTS, ignore_errors=True)
            write_record(self.folder / STAMP, {"made_from": made_from, "state": "started", "files": {}})
        return made_from

    def carry_out(self, finished: Callable[[int], None], again: bool = True) -> Made:
        """Compute what is missing, and note what was made from what, before and after."""
        if why := self.lacking():
            raise UserError(why)
        made_from = self.begin()
        made = self.run(self.config, finished, again)
        files = {os.path.relpath(path, self.folder): file_print(path) for path in made.files}
        about = {"made_from": made_from, "state": "done", "failed": made.failed, "without": made.without}
        write_record(self.folder / STAMP, {**about, "files": files, PROVENANCE: {WORK: asdict(made.work)}})
        shutil.rmtree(self.folder / PARTS, ignore_errors=True)
        return made
