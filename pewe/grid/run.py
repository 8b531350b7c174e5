"""Carry out the grid of an experiment, and gather its results (`python -m pewe.grid`)."""

import dataclasses
from pathlib import Path

from tqdm.contrib.logging import logging_redirect_tqdm

from pewe.backbone import check_t5
from pewe.cli import log, log_to
from pewe.errors import UserError
from pewe.grid import cluster
from pewe.grid.config import Config
from pewe.grid.estimate import show_plan
from pewe.grid.experiment import Experiment, resolve
from pewe.grid.gather import collect
from pewe.grid.merge import take
from pewe.grid.progress import Progress, watched
from pewe.grid.schedule import Schedule
from pewe.grid.split import alone, carry_out_part, one_of_parts
from pewe.places import check_place
from pewe.reporting import page as report


def run(config: Config) -> None:
    """Resolve what is asked for; then carry it out, or (--dry_run) say what would be done."""
    log_to(None, quiet=True)
    experiment = resolve(config)
    if without := experiment.without():
        log.warning("without %s: rows of sources that are tasks of the data, in one folder", ", ".join(without))
    if unknown := experiment.unknown():
        kinds = ", ".join(dict.fromkeys(grid.delta for grid in experiment.todo))
        log.warning("without %s: no row of %s", ", ".join(unknown), kinds)
    if config.dry_run:
        return show_plan(experiment)
    for model in experiment.models:
        check_t5(model)  # before any step, not once for every cell
    if lacking := experiment.lacking():
        raise UserError(lacking[0])
    check_place(experiment.folder)
    if config.part:
        with one_of_parts(experiment):
            return told(carry_out_part(experiment))
    with alone(experiment):
        for folder in config.collect_from:
            take(experiment, Path(folder))
        failed = on_devices(experiment) if config.devices or config.ray_address else carry_out(experiment)
        publish(experiment)
    told(failed)


def carry_out(experiment: Experiment) -> dict[str, str]:
    """Every unit in this process, one after the other; returns the cells that failed, with their causes."""
    schedule = Schedule(experiment.todo, experiment.config.init)
    with watched(experiment.cells()) as carry_out_unit:
        for unit in schedule:
            schedule.ended(unit, carry_out_unit(unit))
    return schedule.failed


def on_devices(experiment: Experiment) -> dict[str, str]:
    """The same on many devices."""
    config = experiment.config
    with cluster.connected(config.devices, config.ray_address, config.device != "cpu") as (ray, needs):
        team = cluster.Team(ray, needs, experiment.folder)
        progress = Progress(experiment.cells(), lambda: dict(team.places))
        with logging_redirect_tqdm([log]), progress.shown():
            return cluster.carry_out(Schedule(experiment.todo, config.init), team, progress)


def publish(experiment: Experiment) -> None:
    """Gather the results, write the report, print the table."""
    out = experiment.out
    about = {"title": experiment.title, "settings": dataclasses.asdict(experiment.config)}
    collect(experiment.everything, out, about)
    if (out / "cells.tsv").is_file():
        report.write(out)
        print((out / "table.txt").read_text(encoding="utf-8"))
        print(f"tables and report: {out}")


def told(failed: dict[str, str]) -> None:
    """Print the cells that failed. Raises UserError where there are any."""
    for cell, cause in failed.items():
        print(f"failed: {cell}: {cause}")
    if failed:
        raise UserError(f"{len(failed)} cells or steps failed; the same command tries them again")
