"""Results that one experiment left in several places, a seed at a time say, as the tables of one. No model is run.

    python -m pewe.reporting.unite --folders results/reference/real/seed_42 results/reference/real/seed_43 --out results/real

Their runs need not be here any more; where they are, `--collect_from` of the grid takes them, and checks each.
"""

from dataclasses import dataclass
from pathlib import Path

from pewe.command import main

import pandas as pd

from pewe.cli import log
from pewe.errors import UserError
from pewe.files import write_json, write_table
from pewe.flags import flag
from pewe.own_tasks import write_declared
from pewe.reporting import page
from pewe.reporting.stored import COLUMNS, check_same_lines, read_stored

KEYS = ["delta", "init", "seed"]
OWN = ("delta", "init", "seeds", "devices", "ray_address", "part", "wait", "collect_from", "dry_run", "name", "device")


@dataclass(frozen=True)
class Config:
    """Which results, and where they go."""

    folders: list[str] = flag([], "folders with cells.tsv, of one suite", unique=True)
    out: str = flag("", "folder of the united tables and report, none of these")


def run(config: Config) -> None:
    """Read, check, write. Raises UserError for results of two experiments, and for a row and seed that two folders have."""
    if len(config.folders) < 2 or not config.out:
        raise UserError("--folders (two at least) and --out are both needed")
    folders, out = [Path(folder) for folder in config.folders], Path(config.out)
    if out.resolve() in [folder.resolve() for folder in folders]:
        raise UserError(f"--out {out} is one of --folders; give another place")
    stored = {folder: read_stored(folder) for folder in folders}
    abouts = {str(folder): one.about for folder, one in stored.items()}
    settings, tables = alike(abouts), {}
    for name in COLUMNS:
        if parts := {folder: table for folder, one in stored.items() if len(table := getattr(one, name))}:
            check_apart(parts, name)
            tables[name] = pd.concat(parts.values(), ignore_index=True).sort_values(KEYS, kind="stable")
            if lacking := [str(folder) for folder in folders if folder not in parts]:
                log.warning("%s is of the other folders alone: there is none in %s", f"{name}.tsv", ", ".join(lacking))
    check_same_lines(tables["cells"])
    for name in COLUMNS:
        if name in tables:
            write_table(out / f"{name}.tsv", tables[name])
        else:
            (out / f"{name}.tsv").unlink(missing_ok=True)  # of other folders
    write_declared(out, dict.fromkeys(stored[folders[0]].cells["task"]))
    first = next(iter(abouts.values()))
    write_json(out / "provenance.json", {**first, "settings": settings, "provenance": abouts})
    page.write(out)
    print((out / "table.txt").read_text(encoding="utf-8"))


def _settings(about: dict) -> dict:
    """What must be the same in all of them."""
    return {name: value for name, value in (about.get("settings") or {}).items() if name not in OWN}


def alike(abouts: dict[str, dict]) -> dict:
    """The settings that all of them share. Raises UserError that names two folders whose settings differ, or one that says none.

    What a folder does not say, as one of before there was that setting, was not set in it: alike where the others leave it empty.
    """
    told = {folder: _settings(about) for folder, about in abouts.items()}
    if silent := [folder for folder, own in told.items() if not own]:
        raise UserError(f"{silent[0]}/provenance.json does not say the settings of its experiment")
    shared: dict = {}
    for name in dict.fromkeys(name for own in told.values() for name in own):
        (first, value), *others = ((folder, own.get(name)) for folder, own in told.items())
        for folder, own in others:
            if own != value and (own or value):
                raise UserError(f"{folder} is of another experiment than {first}: {name} is {own!r}, not {value!r}")
        shared[name] = next(own[name] for own in told.values() if name in own)
    return shared


def check_apart(parts: dict[Path, pd.DataFrame], name: str) -> None:
    """Raises UserError for a row and seed that two folders have."""
    seen: dict[tuple, Path] = {}
    for folder, table in parts.items():
        for key in table[KEYS].drop_duplicates().itertuples(index=False, name=None):
            if key in seen:
                raise UserError(f"{folder / name}.tsv has {' '.join(map(str, key))}, as {seen[key]} has")
            seen[key] = folder


if __name__ == "__main__":
    main(run, Config, __doc__)
