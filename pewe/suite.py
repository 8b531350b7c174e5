"""A suite: one experiment as a file of flags (scripts/suites/*.toml).

base = "OTHER.toml"        what is not set here is taken from it
title = "..."
[all]                      flags of every command
[tuning]                   flags of all tuning;  [sources] [targets] [pairs]  of the tuning of one kind
[weights]                  flags of unit_model/
[delta.NAME]               flags of a delta method, with sources = {...}, targets = {...} for its own tuning
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from pewe.cli import ROOT, UserError, read_toml, suggest
from pewe.data import task_names
from pewe.deltas import TUNE_METHODS
from pewe.ensemble import EnsembleConfig
from pewe.tune import TuneConfig

FOLDER = ROOT / "scripts" / "suites"
SECTIONS = ("all", "tuning", "sources", "targets", "pairs", "weights")
FLAGS = {field.name for kind in (TuneConfig, EnsembleConfig) for field in dataclasses.fields(kind)}


@dataclass(frozen=True)
class Suite:
    """The content of a suite file."""

    name: str
    title: str
    sections: dict[str, dict]

    @property
    def deltas(self) -> list[str]:
        """The delta methods of the suite."""
        return list(self.sections["delta"])

    def config(self, kind: type, delta: str, /, *sections: str, **flags):
        """The configuration of a command: [all], these sections, the delta's own flags for them, then `flags`."""
        own = self.sections["delta"].get(delta, {})
        chosen = dict(self.sections.get("all", {}))
        for section in sections:
            chosen |= self.sections.get(section, {})
        chosen |= own
        for section in sections:
            chosen |= own.get(section, {})
        names = {field.name for field in dataclasses.fields(kind)}
        return kind(**{name: value for name, value in (chosen | flags).items() if name in names})

    def tasks(self) -> list[str]:
        """The tasks of the suite."""
        return task_names(self.config(TuneConfig, self.deltas[0]))


def read_suite(name: str) -> Suite:
    """The suite of this name, or in this file. Raises UserError that names the file and the key."""
    path = Path(name) if name.endswith(".toml") else FOLDER / f"{name}.toml"
    if not path.is_file():
        known = [found.stem for found in sorted(FOLDER.glob("*.toml"))]
        raise UserError(f"there is no suite {suggest(name, known)} (or a file that ends in .toml)")
    content = _read(path)
    for section, flags in content.items():
        if isinstance(flags, dict):
            _check(path, section, flags)
    if not content.get("delta"):
        raise UserError(f"{path}: a section [delta.NAME] is needed, NAME one of {', '.join(TUNE_METHODS)}")
    return Suite(path.stem, content.get("title", path.stem), content)


def _read(path: Path) -> dict:
    content = read_toml(path)
    if "base" not in content:
        return content
    base = _read(path.parent / content["base"])
    return base | {
        key: base.get(key, {}) | value if isinstance(value, dict) else value for key, value in content.items()
    }


def _check(path: Path, section: str, flags: dict) -> None:
    if section == "delta":
        for method, own in flags.items():
            if method not in TUNE_METHODS:
                raise UserError(f"{path}: unknown delta {suggest(method, TUNE_METHODS)}")
            _check(path, f"delta.{method}", own)
        return
    if not section.startswith("delta.") and section not in SECTIONS:
        raise UserError(f"{path}: unknown section {suggest(section, SECTIONS)}")
    for flag, value in flags.items():
        if isinstance(value, dict):
            _check(path, flag, value)
        elif flag not in FLAGS:
            raise UserError(f"{path}, [{section}]: unknown flag {suggest(flag, sorted(FLAGS))}")
