"""Results that one experiment left in several places, a seed at a time say, as the tables of one. No model is run.

    python -m pewe.reporting.unite --folders results/reference/real/seed_42 results/reference/real/seed_43 --out results/real

Their runs need not be here any more; where they are, `--collect_from` of the grid takes them, and checks each.
"""

from dataclasses import dataclass
from pathlib import Path

from pewe.command import main

import pandas as pd

from pewe.errors import UserError
from pewe.files import write_json, write_table
from pewe.flags import flag
from pewe.own_tasks import write_declared
from pewe.reporting import page
from pewe.reporting.stored import COLUMNS, read_stored

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
    check_alike(abouts)
    for name in COLUMNS:
        if parts := {folder: table for folder, one in stored.items() if len(table := getattr(one, name))}:
            check_apart(parts, name)
            table = pd.concat(parts.values(), ignore_index=True)
            write_table(out / f"{name}.tsv", table.sort_values(KEYS, kind="stable"))
    write_declared(out, dict.fromkeys(stored[folders[0]].cells["task"]))
    first = next(iter(abouts.values()))
    write_json(out / "provenance.json", {**first, "settings": _settings(first), "provenance": abouts})
    page.write(out)
    print((out / "table.txt").read_text(encoding="utf-8"))


def _settings(about: dict) -> dict:
    """What must be the same in all of them."""
    return {name: value for name, value in (about.get("settings") or {}).items() if name not in OWN}


def check_alike(abouts: dict[str, dict]) -> None:
    """Raises UserError that names the first two folders whose suite or other settings differ, or that do not say them."""
    (first, about), *others = abouts.items()
    for folder, other in ((first, about), *others):
        if not _settings(other):
            raise UserError(f"{folder}/provenance.json does not say the settings of its experiment")
        for name, value in _settings(about).items():
            if (own := _settings(other).get(name)) != value:
                raise UserError(f"{folder} is of another experiment than {first}: {name} is {own!r}, not {value!r}")


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
