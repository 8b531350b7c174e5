"""The steps of an experiment for one delta and one seed: what each computes, and from what.

A step (pewe/grid/step.py) is a folder below checkpoints/<suite>/<delta>/seed_<seed>/.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import pandas as pd

import dev_all_ckpt
import tune_all_ckpt
from get_similarity import MEASURES
from pewe.cli import cause_of
from pewe.data import task_names
from pewe.deltas.checkpoint import BEST, COMMON_INIT
from pewe.deltas.kinds import KINDS
from pewe.grid.commands import (
    at_once,
    ensembles_of,
    matrix_of,
    statistics_of,
    work_of_matrix,
    work_of_statistics,
)
from pewe.grid.own_sources import Own, OwnSources, needs_tasks
from pewe.grid.parts import PAIRS, PAIRS_AS_THEY_ARE, SCOPES, STACKS, blocks, by_scope
from pewe.grid.step import STAMP, WHOLE, Made, Parts, Step
from pewe.grid.suite import Suite
from pewe.merging import collect_deltas
from pewe.merging.combine import ZERO
from pewe.merging.rules import RULES
from pewe.merging.save import SoftmaxConfig
from pewe.reporting.stored import SOURCES
from pewe.similarity import loop
from pewe.similarity.table import RESULT
from pewe.tuning.config import TuneConfig
from pewe.tuning.tune import FailedRuns, tune
from unit_model import ENSEMBLES, MODULES, listed


@dataclass
class Grid:
    """The steps of one delta and seed. A step is named by its kind and of what it is, e.g. ("weights", "Loss")."""

    suite: Suite
    delta: str
    seed: int
    root: Path
    flags: dict  # that the command line sets for all commands
    limit: int = 0  # updates at most in every run; 0: as the suite says
    material: str = ""  # a fingerprint of data and backbone
    own: Own | None = None  # sources that were made elsewhere
    steps: dict[tuple[str, str], Step] = field(default_factory=dict)

    @property
    def base(self) -> Path:
        """Folder of all steps."""
        return self.root / self.delta / f"seed_{self.seed}"

    @property
    def tasks(self) -> int:
        """The number of targets."""
        return len(self.flags["tasks"])

    @property
    def sources(self) -> list[str]:
        """The names of the sources: the targets, or those of one's own."""
        return list(self.own.places) if self.own else self.flags["tasks"]

    @property
    def source_path(self) -> str:
        """Where they lie, as a command is told."""
        return self.own.path if self.own else str(self.folder("sources"))

    def leave_out(self, tasks: list[str]) -> None:
        """Go on without these tasks, which have no source."""
        self.flags = {**self.flags, "tasks": [task for task in self.flags["tasks"] if task not in tasks]}
        self.steps = {("sources", ""): self.step("sources")}  # as it was made

    def inits(self) -> list[str]:
        """The rows of the table that this kind of delta has, those with another combiner (NAME+RULE) aside."""
        own = [name for name, one in ENSEMBLES.items() if not one.kinds or self.delta in one.kinds]
        return list(KINDS[self.delta].inits or ("Random", *own))

    def has(self, init: str) -> bool:
        """Whether this kind of delta has the row."""
        if self.own and not self.own.of_tasks and init in ENSEMBLES and needs_tasks(init):
            return False
        if init not in ENSEMBLES or "+" not in init:
            return init in self.inits()
        kinds = RULES[ENSEMBLES[init].flags["combine"]].kinds
        return listed(init) in self.inits() and (not kinds or self.delta in kinds)

    def rows(self) -> list[str]:
        """`inits`, and the rows with another combiner that this or an earlier call has begun."""
        others = [f"{init}+{rule}" for init in ENSEMBLES for rule in RULES]
        return [
            *self.inits(),
            *(row for row in others if self.has(row) and (self.folder("tuned", row) / STAMP).is_file()),
        ]

    def config(self, kind: type, *sections: str, **flags):
        """The configuration of a command of the suite for this delta and seed."""
        common = {"seed": self.seed, "tune_method": self.delta, "delta": self.delta, "quiet": True, **self.flags}
        common |= {"source_tasks": self.sources, **self.own.size} if self.own else {}
        made = self.suite.config(kind, self.delta, *sections, **{**common, **flags})
        if self.limit and hasattr(made, "train_iters"):
            made = replace(made, train_iters=min(made.train_iters, self.limit))
        if self.limit and hasattr(made, "trace_test"):
            made = replace(made, trace_test=[updates for updates in made.trace_test if updates <= self.limit])
        return made

    def step(self, kind: str, of: str = "") -> Step:
        """The step of this kind, of this init where there is one for each; made once."""
        if (kind, of) not in self.steps:
            make = getattr(self, f"_{kind}")
            self.steps[kind, of] = make(of) if of else make()
        return self.steps[kind, of]

    def folder(self, kind: str, of: str = "") -> Path:
        """The folder of this step."""
        return self.base / (f"from_{of}" if kind == "tuned" else f"{kind}/{of}")

    def _step(
        self, kind: str, of: str, config, run, needs: tuple = (), cells: int = 1, row: str = "", parts: Parts = WHOLE
    ) -> Step:
        needed = tuple(self.step(*need) for need in needs)
        return Step(self.folder(kind, of), config, run, needed, cells, row, self.material, parts)

    def _tuning(self, section: str, output_dir: Path, **flags) -> TuneConfig:
        return self.config(
            TuneConfig, "tuning", section, do_train=True, do_predict=True, output_dir=str(output_dir), **flags
        )

    def _sources(self) -> Step:
        kind = KINDS[self.delta].sources or self.delta
        config = self._tuning("sources", self.folder("sources"), full_train=True, tune_method=kind)
        if self.own:
            return OwnSources(self.folder("sources"), config, tune_tasks, cells=0, places=self.own.places)
        return self._step("sources", "", config, tune_tasks, (), runs(config, self.tasks), SOURCES, STACKS)

    def _pairs(self) -> Step:
        return self._of_pairs("pairs", tune_all_ckpt.Config, tune_all_ckpt.run, PAIRS)

    def _zero_shot(self) -> Step:
        return self._of_pairs("zero_shot", dev_all_ckpt.Config, dev_all_ckpt.run, PAIRS_AS_THEY_ARE)

    def _of_pairs(self, kind: str, config_class: type, command: Callable, parts: Parts) -> Step:
        paths = {"source_ckpt_path": self.source_path, "output_dir": str(self.folder(kind))}
        config = self.config(config_class, "tuning", "pairs", **paths)
        cells = runs(config, self.tasks * len(self.sources))
        return self._step(kind, "", config, tuned_by(command), (("sources",),), cells, parts=parts)

    def _statistics(self) -> Step:
        config = self.config(collect_deltas.Config, source_ckpt_path=self.source_path, full_train=True)
        run = at_once(collect_deltas.run, statistics_of, work_of_statistics)
        return self._step("statistics", "", config, run, (("sources",),))

    def _tuned(self, init: str) -> Step:
        config, needs, run = self._tuning("targets", self.folder("tuned", init)), (), tune_tasks
        parts = STACKS
        own = KINDS[self.delta].inits
        if init in own:
            config = replace(config, expert_path=str(self.folder("sources")), **own[init])
            needs = (("sources",),)
        elif init != "Random":
            config = replace(config, train_checkpoint=str(self.folder("weights", init)))
            needs = (("weights", init),)
            if ENSEMBLES[init].group == MODULES:
                run, parts = tune_scopes, SCOPES
        return self._step("tuned", init, config, run, needs, runs(config, self.tasks), init, parts)

    def _similarity(self, init: str) -> Step:
        ensemble = ENSEMBLES[init]
        measure = MEASURES[ensemble.measure]
        paths = {
            "source_ckpt_path": self.source_path,
            "random_tuned_ckpt_path": self.folder("tuned", "Random"),
            "output_dir": self.folder("similarity", init),
        }
        config = self.config(
            measure.config,
            **{name: str(path) for name, path in paths.items()},
            **self.suite.of_row(init),
            **ensemble.measure_flags,
        )
        needs = (("sources",),) * (not measure.matrix) + (("tuned", "Random"),) * measure.needs_target
        run = at_once(partial(loop.run, measure), matrix_of, work_of_matrix)
        parts = WHOLE if measure.matrix else blocks(measure)
        return self._step("similarity", init, config, run, needs, parts=parts)

    def _base(self) -> str:
        """What differences of the sources are taken from: the init that they share (--common_init), else zero."""
        sources = self.step("sources")
        return str(sources.folder / COMMON_INIT) if sources.config.common_init and not self.own else ZERO

    def _weights(self, init: str) -> Step:
        ensemble = ENSEMBLES[init]
        script = ensemble.load()
        needs = (("similarity", init),) if ensemble.measure else ensemble.needs
        similarity = next((need for need in needs if need[0] == "similarity"), ("similarity", init))
        paths = {
            "source_ckpt_path": self.source_path,
            "save_ckpt_path": self.folder("weights", init),
            "tuned_64shot_ckpt_path": self.folder("tuned", "Random"),
            "tuned_ckpt_path": self.folder("pairs"),
            "zero_result_path": self.folder("zero_shot") / RESULT,
            "origin_data_path": self.folder(*similarity),
        }
        config = self.config(
            script.Config,
            *ensemble.sections,
            "weights",
            **{name: str(path) for name, path in paths.items()},
            **self.suite.of_row(init),
            **ensemble.flags,
        )
        # at most half way between one source and all of them, so that a reduced list of tasks still weighs its sources
        if isinstance(config, SoftmaxConfig) and "effective" not in ensemble.flags:
            others = len(self.sources) - bool({*self.sources} & {*self.flags["tasks"]})  # than the target
            config = replace(config, effective=min(config.effective, (1 + others) / 2) if others > 1 else 0.0)
        rule = RULES[config.combine]
        if rule.differences:
            config = replace(config, base=self._base())
        if rule.statistics and ("statistics", "") not in needs:
            needs = (*needs, ("statistics", ""))
        return self._step("weights", init, config, at_once(script.run, ensembles_of), (("sources",), *needs))


def runs(config: TuneConfig, inits: int) -> int:
    """Runs of a tuning command from so many inits."""
    return inits * len(config.learning_rate_list) * len(config.bsz_list)


def tuned_by(command: Callable) -> Callable[..., Made]:
    """A tuning command as a step carries it out: runs that diverged are cells that failed."""

    def carry_out(config, finished, again=True) -> Made:
        try:
            return Made(files_of_runs(config, command(config, finished, again)))
        except FailedRuns as error:
            failed = {str(folder.relative_to(config.output_dir)): cause for folder, cause in error.causes.items()}
            return Made(files_of_runs(config, error.table), failed, list(error.tasks))

    return carry_out


def files_of_runs(config: TuneConfig, table: pd.DataFrame) -> list[Path]:
    """The records of the runs of a table, the tables beside them, the best checkpoints of its tasks, and the stored table."""
    out, names = Path(config.output_dir), ("run.json", *KINDS[config.tune_method].tables.values())
    folders = [out / run for run in table["run"]]
    found = [folder / name for folder in folders for name in names]
    best = {folder.parents[1] / BEST for folder in folders}
    return [out / RESULT, *(path for path in (*found, *sorted(best), out / COMMON_INIT) if path.is_file())]


def tune_tasks(config: TuneConfig, finished: Callable[[int], None], again: bool = True) -> Made:
    """Tune all tasks; where that fails, every task by itself, so that one bad task costs one cell."""
    tasks = task_names(config)
    try:
        return tuned_by(tune)(config, finished, again)
    except Exception as error:
        if len(tasks) == 1:
            return Made([], {tasks[0]: cause_of(error)}, tasks)
    return sum((tune_tasks(replace(config, tasks=[task]), finished, again) for task in tasks), Made([]))


def tune_scopes(config: TuneConfig, finished: Callable[[int], None], again: bool = True) -> Made:
    """Tune from the ensemble of every block or layer, each into its own folder."""
    made = Made([])
    for scope, own in by_scope(config).items():
        one = tune_tasks(own, finished, again)
        made += Made(one.files, {f"{scope}/{cell}": cause for cell, cause in one.failed.items()}, one.without)
    return made


def plan(grid: Grid, inits: list[str]) -> list[Step]:
    """The steps that these inits need, each after those that it needs; none for sources that are there already."""
    ordered: dict[Path, Step] = {}

    def add(step: Step) -> None:
        for need in step.needs:
            add(need)
        ordered.setdefault(step.folder, step)

    add(grid.step("sources"))
    for init in inits:
        if grid.has(init):
            add(grid.step("tuned", init))
    return [step for step in ordered.values() if step.cells]
