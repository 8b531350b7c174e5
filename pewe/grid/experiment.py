"""An experiment: what the command line and the suite ask for, resolved once into grids of steps."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from pewe.data import task_names
from pewe.deltas.kinds import KINDS
from pewe.errors import UserError
from pewe.flags import check, complaint, suggest
from pewe.grid.config import Config
from pewe.grid.own_sources import Own, own_sources
from pewe.grid.step import Step
from pewe.grid.steps import Grid, plan
from pewe.grid.suite import Suite, read_suite
from pewe.identity import digest, files_digests, model_digest
from pewe.tuning.config import TuneConfig
from unit_model import ENSEMBLES


@dataclass(frozen=True)
class Experiment:
    """Everything that is asked for."""

    config: Config
    title: str
    name: str  # folder below checkpoints/ and results/
    models: list[str]  # backbones
    todo: list[Grid]  # of the deltas and seeds that are asked for
    everything: list[Grid]  # of all deltas of the suite, and of all seeds that this or an earlier call asked for

    @property
    def folder(self) -> Path:
        """Where the steps lie."""
        return Path("checkpoints") / self.name

    @property
    def out(self) -> Path:
        """Where the tables lie."""
        return Path("results") / self.name

    def steps(self) -> list[Step]:
        """The steps of what is asked for."""
        return [step for grid in self.todo for step in plan(grid, self.config.init)]

    def without(self) -> list[str]:
        """The rows that are asked for, but that sources of one's own do not have."""
        return [init for init in self.config.init if any(grid.own and not grid.has(init) for grid in self.todo)]

    def unknown(self) -> list[str]:
        """The rows that are asked for, but that no kind of delta that is asked for has."""
        return [init for init in self.config.init if not any(grid.own or grid.has(init) for grid in self.todo)]

    def lacking(self) -> list[str]:
        """What is wrong with sources of one's own, in words."""
        steps = [grid.step("sources") for grid in self.todo if grid.own]
        return list(dict.fromkeys(why for step in steps if (why := step.missing())))

    def cells(self) -> int:
        """The cells of those that are not done."""
        return sum(step.cells for step in self.steps() if step.missing())


def resolve(config: Config) -> Experiment:
    """Raises UserError for what is not allowed, or not known."""
    check(config)
    suite = read_suite(config.suite)
    for delta in config.delta:
        if delta not in suite.deltas:
            raise UserError(f"--delta cannot be {suggest(delta, suite.deltas)}")
    check_combiners(config.init)
    name = name_of(config, suite)
    everything = dataclasses.replace(config, delta=[], seeds=sorted({*config.seeds, *seeds_of(name)}))
    todo = grids(config, suite)
    models = {suite.config(TuneConfig, grid.delta, tune_method=grid.delta).model for grid in todo}
    return Experiment(config, suite.title, name, sorted(models), todo, grids(everything, suite))


def check_combiners(inits: list[str]) -> None:
    """Raises UserError for a combiner (NAME+RULE) that there is not, or that the script of its init does not take."""
    for init in inits:
        if "+" in init:
            ensemble = ENSEMBLES[init]
            if wrong := complaint(ensemble.load().Config, "combine", ensemble.flags["combine"]):
                raise UserError(f"--init {init}: its combiner {wrong}")


def seeds_of(name: str) -> set[int]:
    """The seeds that earlier calls asked for."""
    found = (Path("checkpoints") / name).glob("*/seed_*")
    return {int(path.name.removeprefix("seed_")) for path in found if path.name.removeprefix("seed_").isdecimal()}


def grids(config: Config, suite: Suite) -> list[Grid]:
    """One grid for every seed and delta, seed by seed."""
    flags = {"tasks": config.tasks or suite.tasks()} | ({"device": config.device} if config.device else {})
    root, deltas = Path("checkpoints") / name_of(config, suite), config.delta or suite.deltas
    of = {delta: material(suite.config(TuneConfig, delta, tune_method=delta, **flags)) for delta in deltas}
    own = {delta: own_of(config, suite, delta, flags["tasks"]) for delta in deltas}
    return [
        Grid(suite, delta, seed, root, flags, config.limit_train_iters, of[delta], own[delta])
        for seed in config.seeds
        for delta in deltas
    ]


def own_of(config: Config, suite: Suite, delta: str, tasks: list[str]) -> Own | None:
    """The sources of one's own of a kind of delta: of the command line, else of the suite; None where they are tuned."""
    given = config.source_ckpt_path or suite.own(delta, "source_ckpt_path", "")
    asked = config.source_tasks or suite.own(delta, "source_tasks", [])
    if not given and config.source_tasks:
        raise UserError("--source_tasks names sources of your own: give --source_ckpt_path")
    return own_sources(delta, given, asked, tasks, fetch=not config.dry_run) if given else None


def name_of(config: Config, suite: Suite) -> str:
    """Folder of the experiment below checkpoints/ and results/; a reduced one, and one with other sources, has its own."""
    own = "_own" if config.source_ckpt_path else ""
    limit = f"_iters{config.limit_train_iters}" if config.limit_train_iters else ""
    return (config.name or suite.name) + own + limit


def material(config: TuneConfig) -> str:
    """A fingerprint of the backbone, the data files of a suite's tasks, and the texts that the kind of delta reads."""
    folders = [Path(config.task_dir) / task for task in task_names(config)]
    data = {folder.name: files_digests(folder.glob("*.tsv")) for folder in folders}
    texts = files_digests(Path(getattr(config, name)) for name in KINDS[config.tune_method].texts)
    return digest([data, model_digest(config.model, config.tokenizer_path), texts])
