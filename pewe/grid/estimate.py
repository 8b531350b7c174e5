"""What an experiment will take (`--dry_run`)."""

import pandas as pd

from pewe.grid.experiment import Experiment
from pewe.grid.gather import known_rows
from pewe.grid.steps import plan
from pewe.reporting.stored import SOURCES


def show_plan(experiment: Experiment) -> None:
    """Print every step with its state, and the time that the waiting runs will take, judged by finished ones."""
    known = known_rows(experiment.out / "cells.tsv", ["delta", "init", "seconds"])
    known["seconds"] = pd.to_numeric(known["seconds"], errors="coerce")
    total, unknown = 0.0, False
    for grid in experiment.todo:
        for step in plan(grid, experiment.config.init):
            why = step.missing()
            reason = f"  ({why})" if why and step.stamp() else ""
            print(f"{'to do  ' if why else 'done   '} {step.name}  {step.cells} cells{reason}")
            if step.row and why:
                like = (known["delta"] == grid.delta) & ((known["init"] == SOURCES) == (step.row == SOURCES))
                seconds = known["seconds"][like].mean()  # nan of none
                unknown |= not seconds >= 0
                total += step.cells * seconds if seconds >= 0 else 0.0
    print(
        f"estimated time of the tuning: {total / 60:.0f} minutes"
        + (", and runs of a kind not timed yet" if unknown else "")
    )
