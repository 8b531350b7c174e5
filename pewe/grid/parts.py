"""The steps whose work several processes can share, and into what: stacks of runs, blocks of targets."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import dev_all_ckpt
from pewe.data import task_names
from pewe.files import PARTS, read_record
from pewe.grid.step import Parts
from pewe.merging.save import RECORD
from pewe.similarity import loop
from pewe.similarity.measure import Measure
from pewe.tuning.config import TuneConfig
from pewe.tuning.parts import number_of_parts, tune_part
from pewe.tuning.work import Work, pairs_of, work_of

BLOCK = 8  # targets of a similarity in one part


def numbered(count: int) -> list[str]:
    """The names of so many parts; what is only one is no part."""
    return [str(number) for number in range(count)] if count > 1 else []


def stacks(work: Callable[[TuneConfig], Work], flag: str = "") -> Parts:
    """The stacks of a tuning command; where a task has several inits, `flag` names them."""

    def names(config) -> list[str]:
        return numbered(number_of_parts(config, task_names(config, flag, scored=False) if flag else ("",)))

    return Parts(names, lambda config, name, finished: tune_part(work(config), int(name), finished))


STACKS = stacks(work_of)
PAIRS = stacks(pairs_of, "source_tasks")
PAIRS_AS_THEY_ARE = stacks(lambda config: pairs_of(dev_all_ckpt.untuned(config)), "source_tasks")


def by_scope(config: TuneConfig) -> dict[str, TuneConfig]:
    """The configurations of the tuning from the ensembles of each block or layer, each with a folder of its own."""
    ensembles = Path(config.train_checkpoint)
    return {
        scope: replace(config, train_checkpoint=str(ensembles / scope), output_dir=f"{config.output_dir}/{scope}")
        for scope in read_record(ensembles / RECORD)["scopes"]
    }


def _of_scopes(config: TuneConfig) -> list[str]:
    return [f"{scope}/{n}" for scope, own in by_scope(config).items() for n in range(number_of_parts(own))]


def _tune_scope(config: TuneConfig, name: str, finished: Callable[[int], None]) -> None:
    scope, _, number = name.rpartition("/")
    tune_part(work_of(by_scope(config)[scope]), int(number), finished)


SCOPES = Parts(_of_scopes, _tune_scope)


def blocks(measure: Measure) -> Parts:
    """Blocks of targets of a similarity, each with all sources."""

    def names(config) -> list[str]:
        return numbered(-(-len(task_names(config, scored=False)) // BLOCK))

    def carry_out(config, name: str, finished: Callable[[int], None]) -> None:
        tasks, start = task_names(config, scored=False), int(name) * BLOCK
        sources = task_names(config, "source_tasks", scored=False)
        out = str(Path(config.output_dir) / PARTS / name)
        own = {"tasks": tasks[start : start + BLOCK], "source_tasks": sources, "output_dir": out, "pictures": False}
        loop.run(measure, replace(config, **own))

    return Parts(names, carry_out)
