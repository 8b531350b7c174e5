"""The steps of an experiment for one delta and one seed: what each computes, from what, and whether it is done.

A step is a folder below checkpoints/<suite>/<delta>/seed_<seed>/. It is done if its `step.json` names the inputs that it
would have now and all the files that it wrote are there; a step that is not done computes only what is missing.
"""

import dataclasses
import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import dev_all_ckpt
import tune_all_ckpt
from get_similarity import MEASURES
from pewe.cli import UserError
from pewe.data import task_names
from pewe.fusion import collect_deltas
from pewe.identity import digest
from pewe.results import read_json, read_table, write_json
from pewe.suite import Suite
from pewe.tune import TuneConfig, tune
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
BY_MEASURE = ("Loss", "KL", "EL2N", "Cosine_of_Logits_and_Labels", "GraNd")
BY_MODULE = {
    "GraNd_block": ("GraNd", {"mode": "block"}),
    "GraNd_layer": ("GraNd", {"mode": "layer"}),
    "block": ("block", {}),
}
DEFAULT_INITS = ("Random", *FROM_DELTAS, *BY_MEASURE)
INITS = (*DEFAULT_INITS, *FUSION, *BY_MODULE, *PEMT)
SOURCES = "Full data"  # the row of the source deltas themselves
NO_MATTER = ("device", "quiet", "stack", "pictures")  # flags that do not change a result


@dataclass(frozen=True)
class Step:
    """One folder of the experiment."""

    folder: Path
    config: object  # the configuration of its command
    run: Callable  # (config, finished) -> None
    outputs: Callable[[Path], list[Path]]
    needs: tuple["Step", ...] = ()
    cells: int = 1
    row: str = ""  # of the table, where the step makes cells

    def inputs(self) -> str:
        """A fingerprint of everything that decides what the step makes."""
        flags = {name: value for name, value in dataclasses.asdict(self.config).items() if name not in NO_MATTER}
        return digest([flags, [need.inputs() for need in self.needs]])

    def done(self, material: str) -> bool:
        """Nothing has to be computed."""
        stamp = read_json(self.folder / "step.json") or {}
        outputs = [self.folder / name for name in stamp.get("outputs", [])]
        return stamp.get("inputs") == self.inputs() + material and all(path.is_file() for path in outputs)

    def carry_out(self, material: str, finished: Callable[[int], None]) -> None:
        """Compute what is missing, and note what was made from what."""
        broken = next((need.folder for need in self.needs if not need.done(material)), None)
        if broken:
            raise UserError(f"needs {broken}, which failed")
        self.run(self.config, finished)
        outputs = [os.path.relpath(path, self.folder) for path in self.outputs(self.folder)]
        write_json(self.folder / "step.json", {"inputs": self.inputs() + material, "outputs": outputs})


@dataclass
class Grid:
    """The steps of one delta and seed."""

    suite: Suite
    delta: str
    seed: int
    root: Path
    flags: dict  # that the command line sets for all commands
    limit: int = 0  # updates at most in every run; 0: as the suite says
    steps: dict[str, Step] = field(default_factory=dict)

    @property
    def base(self) -> Path:
        """Folder of all steps."""
        return self.root / self.delta / f"seed_{self.seed}"

    def leave_out(self, tasks: list[str]) -> None:
        """Go on without these tasks."""
        self.flags = {**self.flags, "tasks": [task for task in self.flags["tasks"] if task not in tasks]}
        self.steps.clear()

    def config(self, kind: type, *sections: str, **flags):
        """The configuration of a command of the suite for this delta and seed."""
        common = {"seed": self.seed, "tune_method": self.delta, "delta": self.delta, "quiet": True, **self.flags}
        made = self.suite.config(kind, self.delta, *sections, **{**common, **flags})
        if self.limit and hasattr(made, "train_iters"):
            made.train_iters = min(made.train_iters, self.limit)
        return made

    def step(self, name: str) -> Step:
        """The step of this name, made once."""
        if name not in self.steps:
            self.steps[name] = self._make(name)
        return self.steps[name]

    def _make(self, name: str) -> Step:
        folder = self.base / name
        tasks = len(self.flags["tasks"])
        if name == "sources":
            config = self.config(
                TuneConfig, "tuning", "sources", full_train=True, do_train=True, do_predict=True, output_dir=str(folder)
            )
            if self.delta == "pemt":
                config.tune_method = "pemt_source"
            return Step(folder, config, tune_tasks, runs_of, (), runs(config, tasks), SOURCES)
        if name in ("pairs", "zero_shot"):
            module = tune_all_ckpt if name == "pairs" else dev_all_ckpt
            run = tune_all_ckpt.tune_all if name == "pairs" else dev_all_ckpt.run
            config = self.config(
                module.Config, "tuning", "pairs", source_ckpt_path=self._path("sources"), output_dir=str(folder)
            )
            return Step(folder, config, run, runs_of, (self.step("sources"),), runs(config, tasks**2))
        if name == "statistics":
            config = self.config(collect_deltas.Config, source_ckpt_path=self._path("sources"), full_train=True)
            return Step(folder, config, at_once(collect_deltas.run), statistics_of, (self.step("sources"),))
        if name.startswith("from_"):
            return self._tuning(name, folder, tasks)
        kind, _, what = name.partition("/")
        return self._similarity(what, folder) if kind == "similarity" else self._weights(what, folder)

    def _tuning(self, name: str, folder: Path, tasks: int) -> Step:
        init = name.removeprefix("from_")
        config = self.config(TuneConfig, "tuning", "targets", do_train=True, do_predict=True, output_dir=str(folder))
        if init == "Random":
            return Step(folder, config, tune_tasks, runs_of, (), runs(config, tasks), init)
        if init in PEMT:
            config = replace(config, expert_path=self._path("sources"), **PEMT[init])
            return Step(folder, config, tune_tasks, runs_of, (self.step("sources"),), runs(config, tasks), init)
        config.train_checkpoint = self._path(f"weights/{init}")
        run = tune_scopes if init in BY_MODULE else tune_tasks
        return Step(folder, config, run, runs_of, (self.step(f"weights/{init}"),), runs(config, tasks), init)

    def _similarity(self, name: str, folder: Path) -> Step:
        measure, flags = BY_MODULE.get(name, (name, {}))
        run, kind = MEASURES[measure]
        config = self.config(kind, source_ckpt_path=self._path("sources"), random_tuned_ckpt_path=self._path("from_Random"),
                             output_dir=str(folder), **flags)  # fmt: skip
        needs = ("sources", "from_Random") if measure in ("KL", "block") else ("sources",)
        return Step(
            folder, config, at_once(run), lambda folder: [folder / RESULT], tuple(self.step(need) for need in needs)
        )

    def _weights(self, init: str, folder: Path) -> Step:
        paths = {"source_ckpt_path": self._path("sources"), "save_ckpt_path": str(folder),
                 "tuned_64shot_ckpt_path": self._path("from_Random"), "tuned_ckpt_path": self._path("pairs"),
                 "zero_result_path": f"{self._path('zero_shot')}/{RESULT}",
                 "origin_data_path": self._path(f"similarity/{init}")}  # fmt: skip
        needed, module, flags = (FROM_DELTAS | FUSION).get(init, ((f"similarity/{init}",), unit_model_others, {}))
        config = self.config(module.Config, "weights", **paths, **flags)
        # at most half way between one source and all of them, so that a reduced list of tasks still weighs its sources
        config.effective = min(config.effective, len(self.flags["tasks"]) / 2)
        needs = (self.step("sources"), *(self.step(name) for name in needed))
        return Step(folder, config, at_once(module.run), ensembles_of, needs)

    def _path(self, name: str) -> str:
        return str(self.base / name)


def at_once(command: Callable) -> Callable:
    """A command without cells of its own, as a step carries it out."""
    return lambda config, finished: command(config)


def runs(config: TuneConfig, inits: int) -> int:
    """Runs of a tuning command from so many inits."""
    return inits * len(config.learning_rate_list) * len(config.bsz_list)


def runs_of(folder: Path) -> list[Path]:
    """The `run.json` of every row of the tables in a folder of runs."""
    tables = sorted(folder.rglob(RESULT))
    return [table.parent / run / "run.json" for table in tables for run in read_table(table, ["run"])["run"]]


def ensembles_of(folder: Path) -> list[Path]:
    """The checkpoints and tables of weights of an ensemble."""
    return [*sorted(folder.rglob("without_*_checkpoint.pt")), *sorted(folder.rglob("final_weight.tsv"))]


def statistics_of(folder: Path) -> list[Path]:
    """The statistics of the sources, which lie beside their checkpoints."""
    return sorted(folder.parent.glob("sources/*/statistics.safetensors"))


class FailedTasks(Exception):
    """Some tasks of a step failed: task -> cause."""

    def __init__(self, causes: dict[str, Exception]):
        super().__init__(", ".join(causes))
        self.causes = causes


def tune_tasks(config: TuneConfig, finished: Callable[[int], None]) -> None:
    """Tune all tasks; where that fails, every task by itself, so that one bad task costs one cell."""
    try:
        tune(config, finished)
    except Exception:
        tasks = task_names(config)
        if len(tasks) == 1:
            raise
        causes = {}
        for task in tasks:
            try:
                tune(replace(config, tasks=[task]), finished)
            except Exception as cause:
                causes[task] = cause
        good = [task for task in tasks if task not in causes]
        if good:
            tune(replace(config, tasks=good))  # all finished: writes their common table
        if causes:
            raise FailedTasks(causes) from None


def tune_scopes(config: TuneConfig, finished: Callable[[int], None]) -> None:
    """Tune from the ensemble of every block or layer, each into its own folder."""
    for folder in sorted(path.parent for path in Path(config.train_checkpoint).glob("*/final_weight.tsv")):
        tune_tasks(
            replace(config, train_checkpoint=str(folder), output_dir=f"{config.output_dir}/{folder.name}"), finished
        )


def plan(grid: Grid, inits: list[str]) -> list[Step]:
    """The steps that these inits need, each after those that it needs."""
    ordered: dict[Path, Step] = {}

    def add(step: Step) -> None:
        for need in step.needs:
            add(need)
        ordered.setdefault(step.folder, step)

    own = [init for init in inits if (init in PEMT) == (grid.delta == "pemt")]
    for name in ("sources", *(f"from_{init}" for init in own)):
        add(grid.step(name))
    return list(ordered.values())
