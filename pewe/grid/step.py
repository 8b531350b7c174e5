"""A step of an experiment: one command with its folder, carried out again only where something has changed.

Its `step.json` is written before the work begins and says what it is made from: the deciding flags, data and backbone, and
what the steps that it needs have made. Afterwards it holds a fingerprint of every file that was made. A step is done if all
of that is so today; one that is not done computes only what is missing.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from pewe.errors import UserError
from pewe.files import read_json, write_record
from pewe.identity import deciding, difference, digest, file_print, has_print, unsealed

STAMP = "step.json"


@dataclass
class Made:
    """What a step made: its files, the cells that failed with their causes, and the tasks that have no result at all."""

    files: list[Path]
    failed: dict[str, str] = field(default_factory=dict)
    without: list[str] = field(default_factory=list)

    def __add__(self, other: "Made") -> "Made":
        return Made(self.files + other.files, self.failed | other.failed, self.without + other.without)


@dataclass(frozen=True)
class Step:
    """One folder of the experiment."""

    folder: Path
    config: object  # the configuration of its command
    run: Callable[..., Made]  # (config, finished)
    needs: tuple["Step", ...] = ()
    cells: int = 1
    row: str = ""  # of the table, where the step makes cells
    material: str = ""  # a fingerprint of data and backbone

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

    def carry_out(self, finished: Callable[[int], None]) -> Made:
        """Compute what is missing, and note what was made from what, before and after."""
        for need in self.needs:
            if why := need.missing(self.config.tasks):
                raise UserError(f"needs {need.folder}, which failed ({why})")
        made_from = self.made_from()
        write_record(self.folder / STAMP, {"made_from": made_from, "state": "started", "files": {}})
        made = self.run(self.config, finished)
        files = {os.path.relpath(path, self.folder): file_print(path) for path in made.files}
        about = {"made_from": made_from, "state": "done", "failed": made.failed, "without": made.without}
        write_record(self.folder / STAMP, {**about, "files": files})
        return made
