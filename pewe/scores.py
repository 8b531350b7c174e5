"""The table of scores that tuning writes, `result.tsv`, read and held against the records of the runs that it names."""

import math
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from pewe.data import SPLITS
from pewe.errors import UserError
from pewe.files import numeric, read_record, read_table, within
from pewe.identity import digest

RECORD = "run.json"  # a run's own record, in its folder
_CONDITIONS = ("metric", "max_input_length", "max_output_length", "backbone")  # of its settings, beside the dev lines


def read_scores(path: Path, names: Sequence[str], scores: Sequence[str]) -> pd.DataFrame:
    """Its rows, with these columns and more: `run`, "" where it names none, `init`, the fingerprint of the run's start,
    `scored_on`, one of its dev lines, backbone and lengths, those of its lines (`check_lines`), and what these were drawn
    from: `sample`, the prefix of the files, and `full_train`.

    A table without records of runs beside it is taken as it is, these are None. Raises UserError with the line for a score that
    is no finite number, or not that of the run's record.
    """
    table = read_table(path, [*names, *scores])
    runs = list(table["run"].fillna("")) if "run" in table else [""] * len(table)
    records = [read_record(path.parent / run / RECORD) if run else None for run in runs]
    for score in scores:
        table[score] = numeric(table, score, path)
        for line, (found, record) in enumerate(zip(table[score], records, strict=True), start=2):
            result = within(record, "result") or {}
            if score in result and not _same(found, result[score]):
                raise UserError(
                    f"{path}, line {line}: {score} is {found}, but {result[score]} in {runs[line - 2]}/{RECORD}; "
                    "the table was changed after it was written: run the command that wrote it again"
                )
    inits = [within(record, "settings", "init", kind=str) for record in records]
    texts = {"init": inits, "scored_on": map(_scored_on, records)}
    texts |= {f"{split}_lines": [lines_in(record, split) for record in records] for split in SPLITS}
    texts["sample"] = [within(record, "settings", "prefix", kind=str) for record in records]
    texts["full_train"] = [within(record, "settings", "full_train", kind=bool) for record in records]
    columns = {name: pd.Series(list(found), table.index, dtype=object) for name, found in texts.items()}
    return table.assign(run=runs, **columns)  # as text, None would become nan


def lines_in(record: dict | None, split: str) -> str | None:
    """The fingerprint of a run's lines of a split in its record; None where there is none."""
    return within(record, "settings", "data", split, kind=str)


def check_lines(runs: pd.DataFrame, split: str, alike: Sequence[str]) -> None:
    """Raises UserError that names two runs of other lines of a split, though equal in the columns `alike`.

    `runs` has their names in the column `name`, and the fingerprints in `<split>_lines`; one without is held against none.
    """
    told = runs.dropna(subset=[f"{split}_lines"])
    for key, part in told.groupby(list(alike), sort=False):
        first, *others = part.drop_duplicates(f"{split}_lines")["name"]
        if others:
            what = " ".join(part for part in key if isinstance(part, str))
            raise UserError(
                f"{what}: the {split} lines of {others[0]} are not those of {first}; they are not comparable"
            )


def _scored_on(record: dict | None) -> str | None:
    lines, settings = lines_in(record, "dev"), within(record, "settings") or {}
    return lines and digest([lines, *(settings.get(name) for name in _CONDITIONS)])


def _same(found: float, stored: float | None) -> bool:
    return stored is not None and math.isclose(found, stored, rel_tol=1e-12)
