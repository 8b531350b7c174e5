"""Gather the results of an experiment into the tables of results/<name>/."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd

from pewe.cli import log
from pewe.deltas.kinds import KINDS
from pewe.errors import UserError
from pewe.files import provenance, read_json, read_table, within, write_json, write_table
from pewe.grid.step import Step
from pewe.grid.steps import Grid
from pewe.grid.work import costs_of
from pewe.merging.save import WEIGHTS
from pewe.own_tasks import write_declared
from pewe.reporting.stats import OUTCOMES
from pewe.scores import RECORD, lines_in
from pewe.similarity.table import COLUMNS as SIMILARITY_COLUMNS
from pewe.similarity.table import RESULT
from pewe.tuning.gates import gates_of, mean_gates
from pewe.tuning.runs import COLUMNS
from task_list import GROUP_OF
from unit_model import ENSEMBLES


def collect(grids: Sequence[Grid], out: Path, about: dict) -> None:
    """Gather the results of all steps that hold today into the tables of results/<suite>/; of a stale step no row stays."""
    tasks = grids[0].flags["tasks"]
    tables: dict[str, list[pd.DataFrame]] = {
        "cells": [],
        "curves": [],
        "trace": [],
        "weights": [],
        "similarities": [],
        "costs": [],
    }
    for grid in grids:
        key = {"delta": grid.delta, "seed": grid.seed}
        grid.leave_out((grid.step("sources").stamp() or {}).get("without", []))
        for name, parts in results_of(grid) if grid.flags["tasks"] else []:
            tables[name].append(parts.assign(**key))
    for name, parts in tables.items():
        write_rows(out / f"{name}.tsv", pd.concat(parts, ignore_index=True) if parts else pd.DataFrame())
    write_declared(out, tasks)
    write_json(out / "provenance.json", {**about, "provenance": provenance()})


def results_of(grid: Grid) -> Iterator[tuple[str, pd.DataFrame]]:
    """(table, rows) of every step of a grid that holds today, failed cells aside."""
    for step in (grid.step("sources"), *(grid.step("tuned", init) for init in grid.rows())):
        if not step.missing(serves=[]):
            yield from cells_of(step, grid.root.parent)
            if step.stamp()["files"]:  # else they are sources of one's own
                yield "costs", costs_of(step)
            if step.row in KINDS[grid.delta].inits:
                gates = gates_of([path.parent for path in files_of(step, RECORD)])
                yield "weights", mean_gates(gates).assign(init=step.row)
    for init in [init for init in grid.rows() if init in ENSEMBLES]:
        if not (step := grid.step("weights", init)).missing():
            for path in files_of(step, WEIGHTS):
                table = read_table(path, ["target", "source", "weight"])
                yield "weights", table.assign(init="/".join((init, *path.parent.relative_to(step.folder).parts)))
        if ENSEMBLES[init].measure and not (step := grid.step("similarity", init)).missing():
            table = read_table(step.folder / RESULT, SIMILARITY_COLUMNS)
            inits = [init if scope == "all" else f"{init}/{scope}" for scope in table["scope"]]
            yield "similarities", table.drop(columns="scope").assign(init=inits)


def files_of(step: Step, name: str) -> list[Path]:
    """The files of this name that a step has made."""
    return [step.folder / path for path in step.stamp()["files"] if Path(path).name == name]


def cells_of(step: Step, root: Path) -> Iterator[tuple[str, pd.DataFrame]]:
    """The results of a step, one row per run that is its own, and their learning curves, one row per validation."""
    own = {str(path.parent.relative_to(root)) for path in files_of(step, RECORD)}
    for path in files_of(step, RESULT):
        init = "/".join((step.row, *path.parent.relative_to(step.folder).parts))
        table = read_table(path, COLUMNS)[COLUMNS].assign(init=init)
        table["group"] = table["task"].map(GROUP_OF)
        table["run"] = [str((path.parent / run).relative_to(root)) for run in table["run"]]
        table = table[table["run"].isin(own)]
        records = {run: read_json(root / run / RECORD) for run in table["run"]}
        for split in ("train", "test"):
            table = table.assign(**{f"{split}_lines": [lines_in(records[run], split) for run in table["run"]]})
        yield "cells", table
        for name, part in (("curves", "history"), ("trace", "trace")):
            points = [
                {"init": init, "task": row.task, "prefix": row.prefix, **point, "dev": point.get("dev", row.dev)}
                for row in table.itertuples()
                for point in within(records[row.run], "result", part, kind=list) or []
            ]
            if points:
                yield name, pd.DataFrame(points)[["init", "task", *POINTS[name]]]


KEYS = ["delta", "init", "seed"]
POINTS = {  # further columns of the tables that have several rows for a run; dev in trace is that of the best step
    "curves": ["updates", "dev"],
    "trace": ["prefix", "dev", "point", "updates", *OUTCOMES],
}


def write_rows(path: Path, rows: pd.DataFrame) -> None:
    """Write a table in the order of delta, init and seed, with six digits; none where there are no rows.

    Rows that stood there and have no place in it any more are kept beside it, as <name>.previous.tsv.
    """
    old = known_rows(path, KEYS)
    new = rows[KEYS].drop_duplicates() if len(rows) else pd.DataFrame(columns=KEYS)
    gone = old[KEYS].drop_duplicates().merge(new, how="left", indicator=True).query("_merge == 'left_only'")
    if len(gone):
        path.replace(path.with_name(f"{path.stem}.previous.tsv"))
        log.warning(
            "%s: left out, since their steps do not hold today (the table is kept as %s.previous.tsv): %s",
            path,
            path.stem,
            "; ".join(" ".join(map(str, row)) for row in gone[KEYS].itertuples(index=False)),
        )
    if not len(rows):
        return path.unlink(missing_ok=True)
    columns = [*KEYS, *(column for column in rows.columns if column not in KEYS)]
    numbers = rows.select_dtypes("float").columns
    rows[numbers] = rows[numbers].map(lambda value: float(f"{value:.6g}"))
    write_table(path, rows[columns].sort_values(KEYS, kind="stable"))


def known_rows(path: Path, columns: list[str]) -> pd.DataFrame:
    """A stored table of results; without rows where there is none, or it is damaged."""
    try:
        return read_table(path, columns)
    except UserError as error:
        if path.exists():
            log.warning("%s", error)
        return pd.DataFrame(columns=columns)
