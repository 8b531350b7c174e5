"""Results that were made elsewhere: what of another folder of the same experiment is finished and fits."""

import shutil
from pathlib import Path

from pewe.errors import UserError
from pewe.files import read_json, read_record, replacing
from pewe.grid.experiment import Experiment
from pewe.grid.step import STAMP, Step
from pewe.identity import difference, has_print, unsealed
from pewe.scores import RECORD


def take(experiment: Experiment, folder: Path) -> None:
    """Copy every step that is done there, fits, and is not done here; of one that is not done there, its finished runs.

    What does not fit is refused by name. A step comes after those that it needs, so that what it was made from can be
    compared. Raises UserError where there is no such folder.
    """
    if not folder.is_dir():
        raise UserError(f"--collect_from {folder}: there is no such folder; expected checkpoints/NAME of another place")
    for step in experiment.steps():
        there = folder / step.folder.relative_to(experiment.folder)
        if not (there / STAMP).exists() or not step.missing():
            continue
        stamp = unsealed(read_json(there / STAMP)) or {}
        why = step.lacking() or difference(stamp.get("made_from"), step.made_from())
        names = [*stamp["files"], STAMP] if not why and finished(stamp) else []
        if not why and not (names := names or finished_runs(there)):
            why = "nothing of it is finished"
        why = why or next(filter(None, (fault(experiment, step, there, name, stamp) for name in names)), "")
        if why:
            print(f"refused: {there}: {why}")
            continue
        for name in names:
            with replacing(step.folder / name) as temporary:
                shutil.copy2(there / name, temporary)
        print(f"taken: {there}" + ("" if STAMP in names else ", its finished runs"))


def finished(stamp: dict) -> bool:
    """Whether a step is done, and no cell of it failed."""
    return stamp["state"] == "done" and not stamp["failed"]


def finished_runs(there: Path) -> list[str]:
    """The files of the runs that have a result; the step itself will tell whether it is one of theirs."""
    runs = [path.parent for path in sorted(there.glob(f"**/{RECORD}")) if "result" in (read_record(path) or {})]
    files = [path for run in runs for path in sorted(run.iterdir()) if path.is_file() and path.name != "resume.pt"]
    return [str(path.relative_to(there)) for path in files if not path.name.startswith(".")]


def fault(experiment: Experiment, step: Step, there: Path, name: str, stamp: dict) -> str:
    """What is wrong with a file of a step, in words; empty where nothing is."""
    if not (step.folder / name).resolve().is_relative_to(experiment.folder.resolve()):
        return f"{name} would lie outside of {experiment.folder}"
    if name in stamp["files"] and not has_print(there / name, stamp["files"][name]):
        return f"{name} is missing, or was changed after it was written"
    return ""
