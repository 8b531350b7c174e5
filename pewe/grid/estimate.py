"""What an experiment will take (`--dry_run`): runs, updates, hours, memory and disk of every step, and what is missing for it."""

from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from pewe.data import sampled_prefixes, task_names
from pewe.errors import UserError
from pewe.files import provenance, read_json, within
from pewe.grid.experiment import Experiment
from pewe.grid.forecast import Estimate, Timings, estimate, tuning_of, updates_of
from pewe.grid.gather import known_rows
from pewe.grid.simulate import in_time
from pewe.grid.step import Step
from pewe.grid.steps import plan


def show_plan(experiment: Experiment) -> None:
    """Print every step with its state and what it will take, the whole, and what is missing before it can start."""
    known, todo, missing = timings(experiment), {}, set()
    for grid in experiment.todo:
        for step in plan(grid, experiment.config.init):
            why, stamp = step.missing(), step.stamp()
            about = ""
            if why:
                try:
                    todo[step.folder] = found = estimate(grid, step, known)
                    about = f", {described(found)}"
                except UserError as error:
                    missing.add(str(error))
                    todo[step.folder] = Estimate(step.cells, updates_of(step)) if step.row else Estimate()
            reason = f"  ({why})" if why and stamp else ""
            print(f"{'to do  ' if why else 'done   '} {step.name}  {step.cells} cells{about}{reason}")
    print(f"\nthe whole: {described(total(todo.values()))}")
    for how in sorted({found.how for found in todo.values() if found.how}):
        print(f"times: {how}")
    for line in sorted(missing | missing_data(experiment)):
        print(f"missing: {line}")
    if experiment.config.devices and all(found.how for found in todo.values()):
        show_devices(experiment, todo)


def missing_data(experiment: Experiment) -> set[str]:
    """What is wrong with the folders of the tasks, and with sources of one's own."""
    found = set(experiment.lacking())
    for config in {grid.delta: tuning_of(grid) for grid in experiment.todo}.values():
        for task in task_names(config):
            try:
                sampled_prefixes(config, task)
            except UserError as error:
                found.add(str(error))
    return found


def described(found: Estimate) -> str:
    """In words."""
    parts = [f"{found.runs} runs, {found.updates} updates"] * bool(found.runs)
    parts += [
        f"{hours(found.seconds)} of one device, peak {found.memory / 2**30:.1f} GiB, disk {found.disk / 2**30:.2f} GiB"
    ]
    return ", ".join(parts)


def hours(seconds: float) -> str:
    """A duration in the unit that fits."""
    return f"{seconds / 3600:.1f} hours" if seconds >= 3600 else f"{seconds / 60:.1f} minutes"


def total(found: Iterable[Estimate]) -> Estimate:
    """Of all steps; the memory is the largest."""
    found = list(found)
    memory = max((one.memory for one in found), default=0.0)
    sums = {name: sum(getattr(one, name) for one in found) for name in ("runs", "updates", "seconds", "disk")}
    return Estimate(**sums, memory=memory)


def show_devices(experiment: Experiment, todo: dict[Path, Estimate]) -> None:
    """The critical path, and the expected time on 1, 8, 64 and the devices that are asked for."""
    steps = [step for step in experiment.steps() if step.folder in todo]
    took = {step.folder: (max(1, parts_of(step)), todo[step.folder].seconds) for step in steps}
    grids = [(grid, plan(grid, experiment.config.init)) for grid in experiment.todo]
    sources = {step.folder: grid.step("sources") for grid, own in grids for step in own}
    longest, path = in_time(steps, took, 10**9, sources)
    print(f"critical path: {hours(longest)}: {' > '.join(step.name for step in path)}")
    asked = [int(experiment.config.devices)] if experiment.config.devices.isdecimal() else []
    for devices in sorted({1, 8, 64, *asked}):
        print(f"on {devices} device{'s' * (devices > 1)}: {hours(in_time(steps, took, devices, sources)[0])}")


def parts_of(step: Step) -> int:
    """The parts of a step; those of blocks or layers, which are not known before the ensemble is made, count as one."""
    try:
        return len(step.parts.names(step.config))
    except TypeError:
        return 1


def timings(experiment: Experiment) -> Timings:
    """Of the stored results of the experiment; none where they are of another device."""
    known = known_rows(experiment.out / "cells.tsv", ["delta", "init", "seconds"])
    known["seconds"] = pd.to_numeric(known["seconds"], errors="coerce")
    device = within(read_json(experiment.out / "provenance.json"), "provenance", "device", kind=str)
    return Timings(known if device in (None, provenance()["device"]) else known[:0], provenance()["device"])
