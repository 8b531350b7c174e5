"""The table of scores that tuning writes, `result.tsv`, read and held against the records of the runs that it names."""

import math
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from pewe.errors import UserError
from pewe.files import numeric, read_record, read_table, within

RECORD = "run.json"  # a run's own record, in its folder


def read_scores(path: Path, names: Sequence[str], scores: Sequence[str]) -> pd.DataFrame:
    """Its rows, with these columns and two more: `run`, "" where it names none, and `init`, the fingerprint of the run's start.

    A table without records of runs beside it is taken as it is, `init` is None. Raises UserError with the line for a score that
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
    return table.assign(run=runs, init=pd.Series(inits, table.index, dtype=object))  # as text, None would become nan


def _same(found: float, stored: float | None) -> bool:
    return stored is not None and math.isclose(found, stored, rel_tol=1e-12)
