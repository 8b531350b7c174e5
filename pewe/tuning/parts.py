"""The stacks of a tuning command as parts that several processes may tune at the same time.

What a stack holds follows from the flags and the data alone, not from who is free or what is finished. A part writes the
folders of its runs; the command itself, called afterwards, finds them finished and writes what belongs to all of them.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

from pewe.backbone import Backbone
from pewe.cli import cause_of, log, log_to
from pewe.data import SPLITS, chosen_prefixes, load_split, task_names
from pewe.deltas.attach import attached
from pewe.errors import UserError
from pewe.files import PARTS, hold
from pewe.flags import check as check_flags
from pewe.tuning.config import TuneConfig
from pewe.tuning.plan import Cell, cells, in_lockstep, limited, plan, stacks
from pewe.tuning.tune import stored, tune_stack
from pewe.tuning.work import Work


def number_of_parts(config: TuneConfig, sources: Sequence[str] = ("",)) -> int:
    """The stacks of a configuration; loads no model and no data. None where the tasks or their data cannot be named."""
    try:
        return len(stacks(cells(config, sources), lambda cell: 0.0, config))
    except UserError:  # the command itself says why
        return 0


def tune_part(work: Work, number: int, finished: Callable[[int], None]) -> None:
    """Tune the runs of one stack that have no result yet; no other process may do so meanwhile."""
    config, name = limited(work.config), str(number)
    work = replace(work, config=config)
    out = Path(config.output_dir)
    with hold(out / PARTS / name, wait=True):
        log_to(out / "logs" / f"part_{name}.txt", config.quiet)
        backbone, _ = attached(config, config.largest_stack)
        check_flags(config)
        known = stacks(sound_cells(work, backbone), length_by_data(work, backbone), config)
        if number < len(known):
            _tune(work, known[number], finished)


def sound_cells(work: Work, backbone: Backbone) -> list[Cell]:
    """The cells of the tasks whose data can be read; of the others the command itself says what is wrong."""
    config, tasks = work.config, []
    for task in task_names(config):
        try:
            for prefix in chosen_prefixes(config, task):
                for split in SPLITS:
                    load_split(backbone.tokenizer, config, task, prefix, split)
            tasks.append(task)
        except UserError:
            continue
    return cells(replace(config, tasks=tasks), work.sources) if tasks else []


def length_by_data(work: Work, backbone: Backbone) -> Callable[[Cell], float]:
    """Tokens of a training input of a cell, on average."""

    @cache
    def of(task: str, prefix: str) -> float:
        return load_split(backbone.tokenizer, work.config, task, prefix, "train").mean_length()

    return lambda cell: of(cell.task, cell.prefix)


def _tune(work: Work, chosen: Sequence[Cell], finished: Callable[[int], None]) -> None:
    """These cells in one stack; where that fails, each alone, so that a bad one costs itself only."""
    config = work.config
    try:
        backbone, delta = attached(config, config.largest_stack)
        runs = list(plan(config, backbone, delta, work.inits, chosen))
        done = stored(runs, config)
        finished(len(done))
        for pairs in in_lockstep([run for run in runs if run.folder not in done]):
            ended, _ = tune_stack(backbone, delta, pairs, config)
            finished(len(ended))
    except Exception as error:
        log.warning("%s: %s", ", ".join(dict.fromkeys(cell.task for cell in chosen)), cause_of(error))
        for cell in chosen if len(chosen) > 1 else ():
            _tune(work, [cell], finished)
