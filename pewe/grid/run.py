"""Carry out the grid of an experiment, and gather its results (`python -m pewe.grid`)."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
from tqdm.contrib.logging import logging_redirect_tqdm

from pewe.backbone import check_t5
from pewe.cli import log, log_to
from pewe.data import task_names
from pewe.deltas.kinds import KINDS
from pewe.errors import UserError
from pewe.files import hold, provenance, read_json, read_table, within, write_json, write_table
from pewe.flags import check, suggest
from pewe.grid.config import Config
from pewe.grid.progress import Progress
from pewe.grid.step import Step
from pewe.grid.steps import Grid, plan
from pewe.grid.suite import Suite, read_suite
from pewe.identity import digest, files_digests, model_digest
from pewe.merging.save import WEIGHTS
from pewe.own_tasks import write_declared
from pewe.reporting import page as report
from pewe.reporting.stats import OUTCOMES
from pewe.reporting.stored import SOURCES
from pewe.similarity.table import COLUMNS as SIMILARITY_COLUMNS
from pewe.similarity.table import RESULT
from pewe.tuning.config import TuneConfig
from pewe.tuning.gates import gates_of, mean_gates
from pewe.tuning.runs import COLUMNS
from task_list import GROUP_OF
from unit_model import ENSEMBLES


def material(config: TuneConfig) -> str:
    """A fingerprint of the backbone, the data files of a suite's tasks, and the texts that the kind of delta reads."""
    folders = [Path(config.task_dir) / task for task in task_names(config)]
    data = {folder.name: files_digests(folder.glob("*.tsv")) for folder in folders}
    texts = files_digests(Path(getattr(config, name)) for name in KINDS[config.tune_method].texts)
    return digest([data, model_digest(config.model, config.tokenizer_path), texts])


def check_deltas(config: Config, suite: Suite) -> None:
    """Raises UserError for a delta that the suite does not have."""
    for delta in config.delta:
        if delta not in suite.deltas:
            raise UserError(f"--delta cannot be {suggest(delta, suite.deltas)}")


def grids(config: Config, suite: Suite) -> list[Grid]:
    """One grid for every seed and delta, seed by seed."""
    flags = {"tasks": config.tasks or suite.tasks()} | ({"device": config.device} if config.device else {})
    root, deltas = Path("checkpoints") / name_of(config, suite), config.delta or suite.deltas
    of = {delta: material(suite.config(TuneConfig, delta, tune_method=delta, **flags)) for delta in deltas}
    return [
        Grid(suite, delta, seed, root, flags, config.limit_train_iters, of[delta])
        for seed in config.seeds
        for delta in deltas
    ]


def name_of(config: Config, suite: Suite) -> str:
    """Folder of the experiment below checkpoints/ and results/; a reduced one has its own."""
    limit = f"_iters{config.limit_train_iters}" if config.limit_train_iters else ""
    return (config.name or suite.name) + limit


def carry_out(todo: list[Grid], inits: list[str]) -> dict[str, str]:
    """Every step of every grid; returns the cells that failed. A task whose source fails is left out of its grid.

    Where all of them fail, nothing more is tried: no names at all would mean those of a list.
    """
    progress = Progress(sum(step.cells for grid in todo for step in plan(grid, inits) if step.missing()))
    with logging_redirect_tqdm([log]), progress.shown():
        for grid in todo:
            if without := progress.carry_out(grid.step("sources")):
                grid.leave_out(without)
            for step in plan(grid, inits) if grid.flags["tasks"] else []:
                if step is not grid.step("sources"):
                    progress.carry_out(step)
    return progress.failed


def everything(config: Config, suite: Suite) -> list[Grid]:
    """The grids of all deltas of the suite, and of all seeds that this or an earlier call asked for."""
    found = (Path("checkpoints") / name_of(config, suite)).glob("*/seed_*")
    seeds = {int(path.name.removeprefix("seed_")) for path in found if path.name.removeprefix("seed_").isdecimal()}
    return grids(dataclasses.replace(config, delta=[], seeds=sorted({*config.seeds, *seeds})), suite)


def collect(config: Config, suite: Suite, out: Path) -> None:
    """Gather the results of all steps that hold today into the tables of results/<suite>/; of a stale step no row stays."""
    tables: dict[str, list[pd.DataFrame]] = {"cells": [], "curves": [], "trace": [], "weights": [], "similarities": []}
    for grid in everything(config, suite):
        key = {"delta": grid.delta, "seed": grid.seed}
        grid.leave_out((grid.step("sources").stamp() or {}).get("without", []))
        for name, parts in results_of(grid) if grid.flags["tasks"] else []:
            tables[name].append(parts.assign(**key))
    for name, parts in tables.items():
        write_rows(out / f"{name}.tsv", pd.concat(parts, ignore_index=True) if parts else pd.DataFrame())
    write_declared(out, everything(config, suite)[0].flags["tasks"])
    about = {"title": suite.title, "settings": dataclasses.asdict(config), "provenance": provenance()}
    write_json(out / "provenance.json", about)


def results_of(grid: Grid) -> Iterator[tuple[str, pd.DataFrame]]:
    """(table, rows) of every step of a grid that holds today, failed cells aside."""
    for step in (grid.step("sources"), *(grid.step("tuned", init) for init in grid.inits())):
        if not step.missing(serves=[]):
            yield from cells_of(step, grid.root.parent)
            if step.row in KINDS[grid.delta].inits:
                gates = gates_of([path.parent for path in files_of(step, "run.json")])
                yield "weights", mean_gates(gates).assign(init=step.row)
    for init in [init for init in grid.inits() if init in ENSEMBLES]:
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
    own = {str(path.parent.relative_to(root)) for path in files_of(step, "run.json")}
    for path in files_of(step, RESULT):
        init = "/".join((step.row, *path.parent.relative_to(step.folder).parts))
        table = read_table(path, COLUMNS)[COLUMNS].assign(init=init)
        table["group"] = table["task"].map(GROUP_OF)
        table["run"] = [str((path.parent / run).relative_to(root)) for run in table["run"]]
        table = table[table["run"].isin(own)]
        yield "cells", table
        results = {
            row.run: within(read_json(root / row.run / "run.json"), "result") or {} for row in table.itertuples()
        }
        for name, part in (("curves", "history"), ("trace", "trace")):
            points = [
                {"init": init, "task": row.task, "prefix": row.prefix, **point, "dev": point.get("dev", row.dev)}
                for row in table.itertuples()
                for point in results[row.run].get(part, [])
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


def show_plan(todo: list[Grid], inits: list[str], out: Path) -> None:
    """Print every step with its state, and the time that the waiting runs will take, judged by finished ones."""
    known = known_rows(out / "cells.tsv", ["delta", "init", "seconds"])
    known["seconds"] = pd.to_numeric(known["seconds"], errors="coerce")
    total, unknown = 0.0, False
    for grid in todo:
        for step in plan(grid, inits):
            why = step.missing()
            reason = f"  ({why})" if why and step.stamp() else ""
            print(f"{'to do  ' if why else 'done   '} {'/'.join(step.folder.parts[1:])}  {step.cells} cells{reason}")
            if step.row and why:
                like = (known["delta"] == grid.delta) & ((known["init"] == SOURCES) == (step.row == SOURCES))
                seconds = known["seconds"][like].mean()  # nan of none
                unknown |= not seconds >= 0
                total += step.cells * seconds if seconds >= 0 else 0.0
    print(
        f"estimated time of the tuning: {total / 60:.0f} minutes"
        + (", and runs of a kind not timed yet" if unknown else "")
    )


def run(config: Config) -> None:
    """Carry out the grid, gather the results, write the report; print the table and the cells that failed."""
    check(config)
    log_to(None, quiet=True)
    suite = read_suite(config.suite)
    check_deltas(config, suite)
    name = name_of(config, suite)
    out = Path("results") / name
    todo = grids(config, suite)
    if config.dry_run:
        return show_plan(todo, config.init, out)
    for model in {suite.config(TuneConfig, grid.delta, tune_method=grid.delta).model for grid in todo}:
        check_t5(model)  # before any step, not once for every cell
    with hold(Path("checkpoints") / name), hold(out):
        failed = carry_out(todo, config.init)
        collect(config, suite, out)
        if (out / "cells.tsv").is_file():
            report.write(out)
            print((out / "table.txt").read_text(encoding="utf-8"))
            print(f"tables and report: {out}")
    for cell, cause in failed.items():
        print(f"failed: {cell}: {cause}")
    if failed:
        raise UserError(f"{len(failed)} cells or steps failed; the same command tries them again")
