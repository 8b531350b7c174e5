"""A suite: one experiment as a file of flags (scripts/suites/*.toml).

base = "OTHER.toml"        what is not set here is taken from it (a path that starts at this file's folder)
title = "..."
[all]                      flags of every command; source_ckpt_path, source_tasks: sources of one's own, for all steps
[tuning]                   flags of all tuning;  [sources] [targets] [pairs]  of the tuning of one kind
[weights]                  flags of unit_model/
[row.NAME]                 flags of one row alone: of its script in unit_model/, and of its measure
[delta.NAME]               flags of a delta method, with sources = {...}, targets = {...} for its own tuning

Every value is checked against its flag in both files.
"""

import dataclasses
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from get_similarity import MEASURES
from pewe.cli import ROOT, embedded, read_toml, settled
from pewe.data import task_names
from pewe.deltas.kinds import KINDS
from pewe.errors import UserError
from pewe.flags import check_file, checked_name, complaint, suggest
from pewe.merging.save import SoftmaxConfig
from pewe.texts import visible
from pewe.tuning.config import TuneConfig
from unit_model import ENSEMBLES, listed

FOLDER = ROOT / "scripts" / "suites"
TUNING = ("tuning", "sources", "targets", "pairs")
SECTIONS = {"all": (TuneConfig, SoftmaxConfig), **dict.fromkeys(TUNING, (TuneConfig,)), "weights": (SoftmaxConfig,)}
# flags that the grid gives to its commands
SET = (
    "seed",
    "tune_method",
    "delta",
    "quiet",
    "output_dir",
    "save_ckpt_path",
    "train_checkpoint",
    "test_checkpoint",
    "do_train",
    "do_predict",
)
OWN = ("source_ckpt_path", "source_tasks")  # of all steps alike


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
        return settled(kind(**{name: embedded(value) for name, value in (chosen | flags).items() if name in names}))

    def of_row(self, init: str) -> dict:
        """The flags of a row alone; NAME+RULE has those of NAME too."""
        rows = self.sections.get("row", {})
        return rows.get(listed(init), {}) | rows.get(init, {})

    def own(self, delta: str, name: str, default: typing.Any) -> typing.Any:
        """A flag as [all] or [delta.NAME] has it; `default` where neither has."""
        chosen = self.sections.get("all", {}) | self.sections["delta"].get(delta, {})
        return embedded(chosen.get(name, default))

    def tasks(self) -> list[str]:
        """The tasks of the suite."""
        return task_names(self.config(TuneConfig, self.deltas[0]))


def read_suite(name: str) -> Suite:
    """The suite of this name, or in this file. Raises UserError that names the file and the key."""
    path = Path(name) if name.endswith(".toml") else FOLDER / f"{name}.toml"
    if not path.is_file():
        known = [found.stem for found in visible(FOLDER.glob("*.toml"))]
        raise UserError(f"there is no suite {suggest(name, known)} (or a file that ends in .toml)")
    content = _read(path, ())
    if not content.get("delta"):
        raise UserError(f"{path}: a section [delta.NAME] is needed, NAME one of {', '.join(KINDS)}")
    return Suite(checked_name(path.stem, f"--suite {name}: its name"), content.get("title", path.stem), content)


def _read(path: Path, seen: tuple[Path, ...]) -> dict:
    """The content of a file, checked, over that of the file that it is based on; `seen` are those that are based on it."""
    if path.resolve() in seen:
        raise UserError(f"{path}: base = {path.name!r} leads back to this file")
    content = read_toml(path)
    _check(path, content)
    if "base" not in content:
        return content
    lower = path.parent / content["base"]
    if not lower.is_file():
        raise UserError(f"{path}: base: there is no file {lower}")
    base = _read(lower, (*seen, path.resolve()))
    return base | {
        key: base.get(key, {}) | value if isinstance(value, dict) else value for key, value in content.items()
    }


def _check(path: Path, content: dict) -> None:
    """Raises UserError for an unknown section or flag, or a value that its flag cannot have; names file, section and key."""
    for key, value in content.items():
        if key in ("base", "title"):
            if not isinstance(value, str):
                raise UserError(f"{path}: {key} must be str, not {value!r}")
        elif key == "row":
            _check_rows(path, value)
        elif key != "delta" and key not in SECTIONS:
            what = "section" if isinstance(value, dict) else "key"
            raise UserError(f"{path}: unknown {what} {suggest(key, ['base', 'title', *SECTIONS, 'row', 'delta'])}")
        elif key != "delta":
            _check_section(path, key, value, SECTIONS[key])
    for method, own in _table(path, "delta", content.get("delta", {})).items():
        if method not in KINDS:
            raise UserError(f"{path}: unknown delta {suggest(method, KINDS)}")
        flags = _table(path, f"delta.{method}", own)
        _check_section(path, f"delta.{method}", {k: v for k, v in flags.items() if k not in SECTIONS}, SECTIONS["all"])
        for section in SECTIONS.keys() & flags:
            _check_section(path, f"delta.{method}.{section}", flags[section], SECTIONS[section])


def _check_rows(path: Path, content) -> None:
    """The same for [row.NAME]; what makes a row the one that its name says cannot be set."""
    for name, flags in _table(path, "row", content).items():
        if name not in ENSEMBLES:
            raise UserError(f"{path}: unknown row {suggest(name, ENSEMBLES)}")
        ensemble = ENSEMBLES[name]
        if wrong := complaint(ensemble.load().Config, "combine", ensemble.flags.get("combine", "average")):
            raise UserError(f"{path}: [row.{name}]: its combiner {wrong}")
        own = [ensemble.load().Config, *([MEASURES[ensemble.measure].config] if ensemble.measure else [])]
        _check_section(path, f"row.{name}", flags, own)
        for flag in {**ensemble.flags, **ensemble.measure_flags}.keys() & flags.keys():
            raise UserError(f"{path}, [row.{name}]: {flag} cannot be set, it is what makes this row")


def _check_section(path: Path, section: str, flags, config_classes: Sequence[type]) -> None:
    for name in SET if config_classes is SECTIONS["all"] else (*SET, *OWN):
        if name in _table(path, section, flags):
            raise UserError(f"{path}, [{section}]: {name} cannot be set in a suite; each step and seed has its own")
    check_file(flags, config_classes, f"{path}, [{section}]")


def _table(path: Path, section: str, content) -> dict:
    if not isinstance(content, dict):
        raise UserError(f"{path}: {section} must be a section [{section}] of flags, not {content!r}")
    return content
