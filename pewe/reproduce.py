"""The paper's experiment as one grid: delta x seed x init x task, its similarities, ensembles, few-shot runs and tables.

Steps (pewe/grid.py) that are done are skipped; a cell that fails is listed at the end with its cause, and the others go on.
The results are gathered in results/<suite>/ (pewe/report.py).
"""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from pewe import report
from pewe.backbone import DEVICES
from pewe.cli import UserError, check, flag, log, log_to, main, seed_flag, suggest
from pewe.data import task_names
from pewe.deltas import TUNE_METHODS
from pewe.grid import DEFAULT_INITS, INITS, PEMT, SOURCES, FailedTasks, Grid, Step, plan
from pewe.identity import digest, files_digests, model_digest
from pewe.pemt import mean_gates, read_gates
from pewe.results import numeric, provenance, read_json, read_table, write_json, write_table
from pewe.suite import Suite, read_suite
from pewe.tune import COLUMNS, TuneConfig
from pewe.weights import COLUMNS as SIMILARITY_COLUMNS
from pewe.weights import RESULT
from task_list import GROUP_OF


@dataclass
class Config:
    """What part of which suite."""

    suite: str = flag("mini", "mini, qa32, all51, or a file like those in scripts/suites")
    delta: list[str] = flag([], "delta methods (default: all of the suite)", choices=TUNE_METHODS, unique=True)
    init: list[str] = flag(
        list(DEFAULT_INITS),
        f"rows of the table: {', '.join(INITS)} (GraNd_block, GraNd_layer, block: one row per block or layer; PEMT: delta pemt)",
        choices=INITS,
        unique=True,
    )
    seeds: list[int] = seed_flag([42, 43, 44], "seeds of init, data order and dropout")
    dry_run: bool = flag(False, "print the steps, what is done, and the estimated time; compute nothing")
    limit_train_iters: int = flag(0, "at most so many updates in every run (a reduced experiment, kept apart)", low=0)
    tasks: list[str] = flag([], "some tasks instead of the suite's", unique=True)
    name: str = flag("", "folder below checkpoints/ and results/ (default: the suite's name)", name=True)
    device: str = flag("", "auto, cpu or cuda instead of the suite's", choices=DEVICES)


def material(config: TuneConfig) -> str:
    """A fingerprint of the backbone and the data files of a suite's tasks."""
    folders = [Path(config.task_dir) / task for task in task_names(config)]
    data = {folder.name: files_digests(folder.glob("*.tsv")) for folder in folders}
    return digest([data, model_digest(config.model, config.tokenizer_path)])


def grids(config: Config, suite: Suite) -> Iterator[Grid]:
    """One grid for every seed and delta, seed by seed."""
    for delta in config.delta:
        if delta not in suite.deltas:
            raise UserError(f"--delta cannot be {suggest(delta, suite.deltas)}")
    flags = {"tasks": config.tasks or suite.tasks()} | ({"device": config.device} if config.device else {})
    root = Path("checkpoints") / name_of(config, suite)
    for seed in config.seeds:
        for delta in config.delta or suite.deltas:
            yield Grid(suite, delta, seed, root, flags, config.limit_train_iters)


def name_of(config: Config, suite: Suite) -> str:
    """Folder of the experiment below checkpoints/ and results/; a reduced one has its own."""
    limit = f"_iters{config.limit_train_iters}" if config.limit_train_iters else ""
    return (config.name or suite.name) + limit


class Progress:
    """One bar over the cells of all steps; the cells that failed; the steps that have results."""

    def __init__(self, cells: int, material: str):
        self.bar, self.material = tqdm(total=cells, unit="cell", smoothing=0.05), material
        self.failed: dict[str, str] = {}
        self.finished: list[tuple[Grid, Step]] = []

    def carry_out(self, grid: Grid, step: Step) -> list[str]:
        """Do a step unless it is done; returns the tasks that failed in it."""
        before, name, failed = self.bar.n, "/".join(step.folder.parts[1:]), []
        if not step.done(self.material):
            self.bar.set_description(name)
            try:
                step.carry_out(self.material, self.bar.update)
            except FailedTasks as error:
                failed = list(error.causes)
                self.failed |= {f"{name}/{task}": str(cause) for task, cause in error.causes.items()}
            except Exception as error:
                self.failed[name] = str(error) or type(error).__name__
            self.bar.update(step.cells - (self.bar.n - before))
        if step.done(self.material) or failed:
            self.finished.append((grid, step))
        return failed


def carry_out(config: Config, suite: Suite) -> Progress:
    """Every step of every grid. A task whose source fails is left out of its grid."""
    todo = list(grids(config, suite))
    stamp = material(todo[0].step("sources").config)
    waiting = [step for grid in todo for step in plan(grid, config.init) if not step.done(stamp)]
    progress = Progress(sum(step.cells for step in waiting), stamp)
    with logging_redirect_tqdm([log]):
        for grid in todo:
            if failed := progress.carry_out(grid, grid.step("sources")):
                grid.leave_out(failed)
            for step in plan(grid, config.init):
                progress.carry_out(grid, step)
    progress.bar.close()
    return progress


def collect(config: Config, suite: Suite, finished: list[tuple[Grid, Step]], out: Path) -> None:
    """Gather the stored results of these steps into the tables of results/<suite>/."""
    tables: dict[str, list[pd.DataFrame]] = {"cells": [], "curves": [], "weights": [], "similarities": []}
    for grid, step in {step.folder: (grid, step) for grid, step in finished}.values():
        key = {"delta": grid.delta, "seed": grid.seed}
        if step.row:
            for cells, curves in cells_of(step, grid.root.parent):
                tables["cells"].append(cells.assign(**key))
                tables["curves"].append(curves.assign(**key))
        if step.row in PEMT:
            tables["weights"].append(mean_gates(read_gates(step.folder)).assign(init=step.row, **key))
        kind, _, what = str(step.folder.relative_to(grid.base)).partition("/")
        if kind == "weights":
            tables[kind] += [part.assign(**key) for part in weights_of(step.folder, what)]
        if kind == "similarity" and (step.folder / RESULT).is_file():
            table = read_table(step.folder / RESULT, SIMILARITY_COLUMNS)
            inits = [what if scope == "all" else f"{what}/{scope}" for scope in table["scope"]]
            tables["similarities"].append(table.drop(columns="scope").assign(init=inits, **key))
    for name, parts in tables.items():
        if parts:
            add_rows(out / f"{name}.tsv", pd.concat(parts, ignore_index=True))
    about = {"title": suite.title, "settings": dataclasses.asdict(config), "provenance": provenance()}
    write_json(out / "provenance.json", about)


def weights_of(folder: Path, init: str) -> Iterator[pd.DataFrame]:
    """The tables of weights of an ensemble: one, or one for every block or layer."""
    for path in sorted(folder.rglob("final_weight.tsv")):
        table = read_table(path, ["target", "source", "weight"])
        yield table.assign(init="/".join((init, *path.parent.relative_to(folder).parts)))


def cells_of(step: Step, root: Path) -> Iterator[tuple[pd.DataFrame, pd.DataFrame]]:
    """The results of a step, one row per run, and their learning curves, one row per validation."""
    for path in sorted(step.folder.rglob(RESULT)):
        scope = path.parent.relative_to(step.folder).parts
        init = "/".join((step.row, *scope))
        table = read_table(path, COLUMNS)[COLUMNS].assign(init=init)
        table["group"] = table["task"].map(GROUP_OF)
        table["run"] = [str((path.parent / run).relative_to(root)) for run in table["run"]]
        curves = [
            {"init": init, "task": row.task, "updates": point["updates"], "dev": point["dev"]}
            for row in table.itertuples()
            for point in (read_json(root / row.run / "run.json") or {}).get("result", {}).get("history", [])
        ]
        yield table, pd.DataFrame(curves)


KEYS = ("delta", "init", "seed")


def add_rows(path: Path, rows: pd.DataFrame) -> None:
    """Replace the rows of these deltas, inits and seeds in a table; other rows stay."""
    if path.is_file():
        old = read_table(path, KEYS)
        new = set(zip(*(rows[key].astype(str) for key in KEYS), strict=True))
        stays = [key not in new for key in zip(*(old[key].astype(str) for key in KEYS), strict=True)]
        rows = pd.concat([old[stays], rows], ignore_index=True)
    columns = [*KEYS, *(column for column in rows.columns if column not in KEYS)]
    numbers = rows.select_dtypes("float").columns
    rows[numbers] = rows[numbers].map(lambda value: float(f"{value:.6g}"))
    write_table(path, rows[columns].sort_values(list(KEYS), kind="stable"))


def show_plan(config: Config, suite: Suite, out: Path) -> None:
    """Print every step with its state, and the time that the waiting runs will take, judged by finished ones."""
    known = pd.DataFrame()
    if (out / "cells.tsv").is_file():
        known = read_table(out / "cells.tsv", ["delta", "init", "seconds"])
        known["seconds"] = numeric(known, "seconds", out / "cells.tsv")
    total, unknown = 0.0, False
    todo = list(grids(config, suite))
    stamp = material(todo[0].step("sources").config)
    for grid in todo:
        for step in plan(grid, config.init):
            done = step.done(stamp)
            print(f"{'done   ' if done else 'to do  '} {'/'.join(step.folder.parts[1:])}  {step.cells} cells")
            if step.row and not done:
                like = (
                    known[(known["delta"] == grid.delta) & ((known["init"] == SOURCES) == (step.row == SOURCES))]
                    if len(known)
                    else known
                )
                unknown |= not len(like)
                total += step.cells * like["seconds"].mean() if len(like) else 0.0
    print(
        f"estimated time of the tuning: {total / 60:.0f} minutes"
        + (", and runs of a kind not timed yet" if unknown else "")
    )


def run(config: Config) -> None:
    """Carry out the grid, gather the results, write the report; print the table and the cells that failed."""
    check(config)
    log_to(None, quiet=True)
    suite = read_suite(config.suite)
    out = Path("results") / name_of(config, suite)
    if config.dry_run:
        return show_plan(config, suite, out)
    progress = carry_out(config, suite)
    collect(config, suite, progress.finished, out)
    if (out / "cells.tsv").is_file():
        report.write(out)
        print((out / "table.txt").read_text(encoding="utf-8"))
        print(f"tables and report: {out}")
    for cell, cause in progress.failed.items():
        print(f"failed: {cell}: {cause}")
    if progress.failed:
        raise UserError(f"{len(progress.failed)} cells or steps failed; the same command tries them again")


if __name__ == "__main__":
    main(run, Config, __doc__)
