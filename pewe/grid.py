"""The steps of an experiment for one delta and one seed: what each computes, and from what.

A step (pewe/step.py) is a folder below checkpoints/<suite>/<delta>/seed_<seed>/.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pandas as pd

import dev_all_ckpt
import tune_all_ckpt
from get_similarity import MEASURES
from pewe.checkpoint import BEST
from pewe.cli import cause_of
from pewe.data import task_names
from pewe.ensemble import RECORD
from pewe.fusion import collect_deltas
from pewe.pemt import GATES
from pewe.results import read_record
from pewe.step import Made, Step
from pewe.suite import Suite
from pewe.tune import FailedRuns, TuneConfig, tune
from pewe.weights import RESULT
from unit_model import (
    unit_model_average,
    unit_model_cos,
    unit_model_Euclidean,
    unit_model_Fisher,
    unit_model_others,
    unit_model_Performance,
    unit_model_RegMean,
)

# init -> what its weights are made from: the other steps, and the command with its own flags
FROM_DELTAS = {
    "Average": ((), unit_model_average, {}),
    "Manual": ((), unit_model_average, {"manual_division": True}),
    "Cosine": (("from_Random",), unit_model_cos, {}),
    "Euclidean": (("pairs",), unit_model_Euclidean, {}),
    "Performance": (("pairs", "zero_shot"), unit_model_Performance, {}),
}
FUSION = {  # of Dataless Knowledge Fusion
    "Fisher": (("statistics",), unit_model_Fisher, {}),
    "RegMean": (("statistics",), unit_model_RegMean, {}),
}
PEMT = {  # init -> flags: the whole of stage 2, and without one of its parts; rows of the delta pemt only
    "PEMT": {},
    "PEMT_no_gate": {"pemt_gate": False},
    "PEMT_no_sparsity": {"sparsity": 0.0},
    "PEMT_no_prompt": {"pemt_prompt": False},
    "PEMT_no_adapter": {"pemt_adapter": False},
}
OF_THE_PAPER = ("Loss", "KL", "EL2N", "Cosine_of_Logits_and_Labels", "GraNd")
BY_MEASURE = (*OF_THE_PAPER, "TextEmb")
BEST_SOURCE = {"Best_source": "Loss"}  # init -> the measure by which a single source is copied
BY_MODULE = {
    "GraNd_block": ("GraNd", {"mode": "block"}),
    "GraNd_layer": ("GraNd", {"mode": "layer"}),
    "block": ("block", {}),
}
DEFAULT_INITS = ("Random", *FROM_DELTAS, *OF_THE_PAPER)
INITS = (*DEFAULT_INITS, "TextEmb", *BEST_SOURCE, *FUSION, *BY_MODULE, *PEMT)
SOURCES = "Full data"  # the row of the source deltas themselves


@dataclass
class Grid:
    """The steps of one delta and seed."""

    suite: Suite
    delta: str
    seed: int
    root: Path
    flags: dict  # that the command line sets for all commands
    limit: int = 0  # updates at most in every run; 0: as the suite says
    material: str = ""  # a fingerprint of data and backbone
    steps: dict[str, Step] = field(default_factory=dict)

    @property
    def base(self) -> Path:
        """Folder of all steps."""
        return self.root / self.delta / f"seed_{self.seed}"

    def leave_out(self, tasks: list[str]) -> None:
        """Go on without these tasks, which have no source."""
        self.flags = {**self.flags, "tasks": [task for task in self.flags["tasks"] if task not in tasks]}
        self.steps = {"sources": self.step("sources")}

    def inits(self) -> list[str]:
        """The rows of the table that this kind of delta has."""
        return [init for init in INITS if (init in PEMT) == (self.delta == "pemt")]

    def config(self, kind: type, *sections: str, **flags):
        """The configuration of a command of the suite for this delta and seed."""
        common = {"seed": self.seed, "tune_method": self.delta, "delta": self.delta, "quiet": True, **self.flags}
        made = self.suite.config(kind, self.delta, *sections, **{**common, **flags})
        if self.limit and hasattr(made, "train_iters"):
            made.train_iters = min(made.train_iters, self.limit)
            made.trace_test = [updates for updates in made.trace_test if updates <= self.limit]
        return made

    def step(self, name: str) -> Step:
        """The step of this name, made once."""
        if name not in self.steps:
            self.steps[name] = self._make(name)
        return self.steps[name]

    def _make(self, name: str) -> Step:
        kind, _, what = name.partition("/")
        if name.startswith("from_"):
            return self._tuning(name)
        if kind in ("similarity", "weights"):
            return (self._similarity if kind == "similarity" else self._weights)(name, what)
        tasks, path = len(self.flags["tasks"]), self._path(name)
        if name == "sources":
            config = self.config(
                TuneConfig, "tuning", "sources", full_train=True, do_train=True, do_predict=True, output_dir=path
            )
            if self.delta == "pemt":
                config.tune_method = "pemt_source"
            return self._step(name, config, tune_tasks, (), runs(config, tasks), SOURCES)
        if name in ("pairs", "zero_shot"):
            module, command = (
                (tune_all_ckpt, tune_all_ckpt.tune_all) if name == "pairs" else (dev_all_ckpt, dev_all_ckpt.run)
            )
            config = self.config(
                module.Config, "tuning", "pairs", source_ckpt_path=self._path("sources"), output_dir=path
            )
            return self._step(name, config, tuned_by(command), ("sources",), runs(config, tasks**2))
        config = self.config(collect_deltas.Config, source_ckpt_path=self._path("sources"), full_train=True)
        return self._step(name, config, at_once(collect_deltas.run, statistics_of), ("sources",))

    def _step(self, name: str, config, run, needs: tuple[str, ...], cells: int = 1, row: str = "") -> Step:
        needed = tuple(self.step(need) for need in needs)
        return Step(self.base / name, config, run, needed, cells, row, self.material)

    def _tuning(self, name: str) -> Step:
        init, tasks, path = name.removeprefix("from_"), len(self.flags["tasks"]), self._path(name)
        config = self.config(TuneConfig, "tuning", "targets", do_train=True, do_predict=True, output_dir=path)
        if init == "Random":
            return self._step(name, config, tune_tasks, (), runs(config, tasks), init)
        if init in PEMT:
            config = replace(config, expert_path=self._path("sources"), **PEMT[init])
            return self._step(name, config, tune_tasks, ("sources",), runs(config, tasks), init)
        config.train_checkpoint = self._path(f"weights/{init}")
        run = tune_scopes if init in BY_MODULE else tune_tasks
        return self._step(name, config, run, (f"weights/{init}",), runs(config, tasks), init)

    def _similarity(self, name: str, what: str) -> Step:
        measure, flags = BY_MODULE.get(what, (what, {}))
        run, kind = MEASURES[measure]
        config = self.config(kind, source_ckpt_path=self._path("sources"), random_tuned_ckpt_path=self._path("from_Random"),
                             output_dir=self._path(name), **flags)  # fmt: skip
        needs = {"KL": ("sources", "from_Random"), "block": ("sources", "from_Random"), "TextEmb": ()}
        return self._step(name, config, at_once(run, matrix_of), needs.get(measure, ("sources",)))

    def _weights(self, name: str, init: str) -> Step:
        paths = {"source_ckpt_path": self._path("sources"), "save_ckpt_path": self._path(name),
                 "tuned_64shot_ckpt_path": self._path("from_Random"), "tuned_ckpt_path": self._path("pairs"),
                 "zero_result_path": f"{self._path('zero_shot')}/{RESULT}",
                 "origin_data_path": self._path(f"similarity/{BEST_SOURCE.get(init, init)}")}  # fmt: skip
        by_similarity = ((f"similarity/{BEST_SOURCE.get(init, init)}",), unit_model_others, {})
        needed, module, flags = (FROM_DELTAS | FUSION).get(init, by_similarity)
        flags = {**flags, **({"top_k": 1} if init in BEST_SOURCE else {})}
        config = self.config(module.Config, "weights", **paths, **flags)
        # at most half way between one source and all of them, so that a reduced list of tasks still weighs its sources
        config.effective = min(config.effective, len(self.flags["tasks"]) / 2)
        return self._step(name, config, at_once(module.run, ensembles_of), ("sources", *needed))

    def _path(self, name: str) -> str:
        return str(self.base / name)


def runs(config: TuneConfig, inits: int) -> int:
    """Runs of a tuning command from so many inits."""
    return inits * len(config.learning_rate_list) * len(config.bsz_list)


def at_once(command: Callable, files_of: Callable[[object], list[Path]]) -> Callable[..., Made]:
    """A command without cells of its own, as a step carries it out; `files_of` its configuration are what it made."""

    def carry_out(config, finished) -> Made:
        command(config)
        return Made(files_of(config))

    return carry_out


def matrix_of(config) -> list[Path]:
    """The table of a similarity, and its record."""
    return [Path(config.output_dir) / name for name in (RESULT, RECORD)]


def ensembles_of(config) -> list[Path]:
    """The files of an ensemble, and its record."""
    folder = Path(config.save_ckpt_path)
    return [folder / name for name in (RECORD, *read_record(folder / RECORD)["files"])]


def statistics_of(config) -> list[Path]:
    """The statistics of the sources, which lie beside their checkpoints."""
    return [collect_deltas.statistics_file(Path(config.source_ckpt_path), task) for task in config.tasks]


def tuned_by(command: Callable) -> Callable[..., Made]:
    """A tuning command as a step carries it out: runs that diverged are cells that failed."""

    def carry_out(config, finished) -> Made:
        try:
            return Made(files_of_runs(Path(config.output_dir), command(config, finished)))
        except FailedRuns as error:
            failed = {str(folder.relative_to(config.output_dir)): cause for folder, cause in error.causes.items()}
            return Made(files_of_runs(Path(config.output_dir), error.table), failed, list(error.tasks))

    return carry_out


def files_of_runs(out: Path, table: pd.DataFrame) -> list[Path]:
    """The records of the runs of a table, their gates, the best checkpoints of its tasks, and the stored table."""
    folders = [out / run for run in table["run"]]
    found = [folder / name for folder in folders for name in ("run.json", GATES)]
    best = {folder.parents[1] / BEST for folder in folders}
    return [out / RESULT, *(path for path in (*found, *sorted(best)) if path.is_file())]


def tune_tasks(config: TuneConfig, finished: Callable[[int], None]) -> Made:
    """Tune all tasks; where that fails, every task by itself, so that one bad task costs one cell."""
    tasks = task_names(config)
    try:
        return tuned_by(tune)(config, finished)
    except Exception as error:
        if len(tasks) == 1:
            return Made([], {tasks[0]: cause_of(error)}, tasks)
    return sum((tune_tasks(replace(config, tasks=[task]), finished) for task in tasks), Made([]))


def tune_scopes(config: TuneConfig, finished: Callable[[int], None]) -> Made:
    """Tune from the ensemble of every block or layer, each into its own folder."""
    made, ensembles = Made([]), Path(config.train_checkpoint)
    for scope in read_record(ensembles / RECORD)["scopes"]:
        own = replace(config, train_checkpoint=str(ensembles / scope), output_dir=f"{config.output_dir}/{scope}")
        one = tune_tasks(own, finished)
        made += Made(one.files, {f"{scope}/{cell}": cause for cell, cause in one.failed.items()}, one.without)
    return made


def plan(grid: Grid, inits: list[str]) -> list[Step]:
    """The steps that these inits need, each after those that it needs."""
    ordered: dict[Path, Step] = {}

    def add(step: Step) -> None:
        for need in step.needs:
            add(need)
        ordered.setdefault(step.folder, step)

    for name in ("sources", *(f"from_{init}" for init in inits if init in grid.inits())):
        add(grid.step(name))
    return list(ordered.values())
