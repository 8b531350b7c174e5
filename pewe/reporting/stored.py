"""The tables that an experiment left in its folder, read and checked; and the mean scores of its rows."""

from dataclasses import dataclass, field
from math import isnan
from pathlib import Path

import pandas as pd

from pewe.deltas.kinds import KINDS
from pewe.errors import UserError
from pewe.files import numeric, read_json, read_table
from pewe.flags import suggest
from pewe.own_tasks import declare
from pewe.reporting import stats
from pewe.reporting.stats import OUTCOMES
from pewe.scores import check_lines
from task_list import METRICS
from unit_model import ENSEMBLES, listed

SOURCES = "Full data"  # the row of the source deltas themselves


class Rows(tuple[str, ...]):
    """Names of rows. NAME+RULE is one of them too, though not listed, where NAME is an ensemble."""

    def __contains__(self, name: object) -> bool:
        return super().__contains__(name) or name in ENSEMBLES


INITS = Rows(("Random", *ENSEMBLES, *(init for kind in KINDS.values() for init in kind.inits)))
BASELINES = ("Random", "Average")
REFERENCES = (*BASELINES, "Best_source", "TextEmb", "Manual")  # what all other rows are contrasted with
INIT, TUNING = "init", "tuning"  # parts of a row's cost: what its init is made from, and its own tuning
COLUMNS = {  # of the tables: names and numbers
    "cells": (["delta", "init", "task", "prefix"], ["seed", "dev", "test", "seconds"]),
    "weights": (["delta", "init", "target", "source"], ["seed", "weight"]),
    "similarities": (["delta", "init", "target", "source"], ["seed", "value"]),
    "curves": (["delta", "init", "task"], ["seed", "updates", "dev"]),
    "trace": (["delta", "init", "task", "prefix", "point"], ["seed", "dev", "updates", *OUTCOMES]),
    "costs": (["delta", "init", "part"], ["seed", "lines", "updates", "seconds"]),
}


@dataclass
class Stored:
    """What an experiment left in its folder."""

    folder: Path
    cells: pd.DataFrame
    weights: pd.DataFrame
    similarities: pd.DataFrame
    curves: pd.DataFrame
    trace: pd.DataFrame
    about: dict
    costs: pd.DataFrame = field(default_factory=pd.DataFrame)


def read_stored(folder: Path) -> Stored:
    """The tables of a folder. Raises UserError where the cells are missing."""
    if not (folder / "cells.tsv").is_file():
        raise UserError(f"there is no {folder / 'cells.tsv'}; make it with scripts/reproduce.sh")
    declare(folder)
    tables = {name: _in_order(folder / f"{name}.tsv", *columns) for name, columns in COLUMNS.items()}
    check_same_lines(tables["cells"])
    return Stored(folder, about=read_json(folder / "provenance.json") or {}, **tables)


def check_same_lines(cells: pd.DataFrame) -> None:
    """Raises UserError that names two cells of a task and prefix that were tested, or tuned, on other lines.

    Cells that do not say so, as those of earlier versions, are held against none.
    """
    names = cells[["delta", "init", "seed", "task"]].astype(str).agg(" ".join, axis=1)
    runs = cells.assign(name=names, of_sources=cells["init"] == SOURCES)
    for split, alike in (("test", ["task", "prefix"]), ("train", ["task", "prefix", "delta", "of_sources"])):
        if f"{split}_lines" in runs:
            check_lines(runs, split, alike)


def _in_order(path: Path, names: list[str], numbers: list[str]) -> pd.DataFrame:
    """A table with its rows in the order of the paper's inits; empty where there is none.

    Raises UserError for a table without rows or with a column missing, a cell that is no number, or an unknown init or task.
    """
    if not path.is_file():
        return pd.DataFrame()
    table, order = read_table(path, [*names, *numbers]), Rows((*INITS, SOURCES))
    if table.empty:
        raise UserError(f"{path} has no rows")
    checked = {column: numeric(table, column, path, defined=column != "dev") for column in numbers}
    table = table.assign(**{column: values for column, values in checked.items() if column != "seed"})
    known = {"init": order, **dict.fromkeys(("task", "target"), METRICS)}  # a source need not be a task
    for column in known.keys() & set(table):
        for line, name in enumerate(table[column].fillna(""), start=2):
            if (name.split("/")[0] if column == "init" else name) not in known[column]:
                raise UserError(f"{path}, line {line}: {column} cannot be {suggest(name, known[column])}")
    places = {name: (order.index(listed(name)), "+" in name) for name in table["init"].unique()}
    return table.sort_values("init", key=lambda names: names.map(places), kind="stable")


def seed_scores(cells: pd.DataFrame, delta: str) -> pd.DataFrame:
    """Test scores, inits and seeds down, their mean and the tasks by group across; a seed without some task has no mean."""
    scored = stats.scores(cells[cells["delta"] == delta])
    tasks = [task for task in METRICS if task in set(scored["task"])]
    frame = scored.pivot_table(index=["init", "seed"], columns="task", values="test", sort=False)[tasks]
    frame.insert(0, "mean", frame.mean(axis=1, skipna=False))
    return frame


def score_table(cells: pd.DataFrame, delta: str) -> tuple[pd.DataFrame, pd.Series]:
    """Mean over seeds of the test score, inits down, the mean and the tasks by group across; and by init "deviation (seeds)".

    The deviation is that of a sample (divisor n - 1); one seed has none. It counts the seeds that have all tasks.
    """
    frame = seed_scores(cells, delta)
    groups, inits = frame.groupby(level="init"), cells["init"].unique()
    spread = groups["mean"].agg(lambda scores: f"{deviation_text(scores.std(ddof=1))} ({scores.count()})")
    return groups.mean().reindex(inits).dropna(how="all"), spread.reindex(inits)


def deviation_text(deviation: float) -> str:
    """Three decimals; a dash where one seed has no deviation."""
    return "–" if isnan(deviation) else f"{deviation:.3f}"


def varied(cells: pd.DataFrame) -> str:
    """What the seeds of an experiment vary, in a sentence; by the prefixes of the data also the few-shot sample."""
    tuned = cells[cells["init"] != SOURCES]
    samples = tuned.groupby(["task", "seed"])["prefix"].agg(lambda names: tuple(sorted(set(names))))
    always = "The seeds vary the random init, the order of the data and dropout"
    if (samples.groupby(level="task").nunique() > 1).any():
        return f"{always}, and the few-shot sample."
    return f"{always}, not the few-shot sample: all seeds share one."


def plain_rows(cells: pd.DataFrame) -> pd.DataFrame:
    """The cells of the main table: without the rows by block or layer."""
    return cells[~cells["init"].str.contains("/")]
