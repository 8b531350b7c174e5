"""Which runs a configuration asks for, from which init, and in which stacks."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby, product
from pathlib import Path
from typing import TypeVar

from pewe.backbone import Backbone
from pewe.data import SPLITS, chosen_prefixes, few_lines, load_split, task_names
from pewe.deltas.checkpoint import (
    COMMON_INIT,
    MODEL,
    delta_identity,
    ensemble_checkpoint,
    read_checkpoint,
    task_checkpoint,
    write_checkpoint,
)
from pewe.deltas.kinds import KINDS
from pewe.deltas.tunable import Tunable
from pewe.errors import UserError
from pewe.flags import check as check_flags
from pewe.identity import state_digest
from pewe.inputs import check_backbone, check_data, check_files
from pewe.setting import LIMIT_TRAIN_ITERS
from pewe.state import DeltaState, Shapes, shapes_of
from pewe.tuning.config import TuneAllConfig, TuneConfig
from pewe.tuning.member import Member, read_resume
from pewe.tuning.runs import Run, folder_of, run_settings
from pewe.tuning.scalars import check_report

One = TypeVar("One", "Cell", Run)
Inits = Callable[[Tunable, str, str, Shapes], DeltaState]  # of a task and the source, if any: where a run starts


def check(config: TuneConfig) -> None:
    """Everything about the flags that can be told before a model is loaded."""
    check_flags(config)
    check_use(config)
    check_report(config.report_to)
    if config.train_epochs and config.largest_stack > 1:
        raise UserError("--train_epochs: tasks of a stack would end at different updates; --stack must be 1")
    if config.common_init and not KINDS[config.tune_method].scored:
        raise UserError(
            f"--common_init: deltas of --tune_method {config.tune_method} begin with what their task gives them"
        )
    if config.trace_test and not config.do_predict:
        raise UserError("--trace_test scores the test lines: give --do_predict")
    if not config.train_epochs and max(config.trace_test, default=0) > config.train_iters:
        raise UserError(f"--trace_test {max(config.trace_test)}: a run ends after {config.train_iters} updates")
    check_batches(config.bsz_list, config.micro_batch_size)
    tasks = task_names(config)
    check_data(config, tasks, SPLITS, config.one_prefix, config.full_train)
    check_backbone(config)
    if config.train_checkpoint:
        folder = Path(config.train_checkpoint)
        check_files(
            (ensemble_checkpoint(folder, task) for task in tasks), "ensembles", "make them with a script of unit_model/"
        )


def check_batches(sizes: Sequence[int], micro: int) -> None:
    """Raises UserError for a batch that is no whole number of micro-batches."""
    for size in sizes:
        if size > micro and size % micro:
            raise UserError(f"--bsz_list {size} must be a multiple of --micro_batch_size {micro}")


def limited(config: TuneConfig) -> TuneConfig:
    """The configuration with at most as many updates as PEWE_LIMIT_TRAIN_ITERS says."""
    if not LIMIT_TRAIN_ITERS:
        return config
    traced = [updates for updates in config.trace_test if updates <= LIMIT_TRAIN_ITERS]
    return replace(config, train_iters=min(config.train_iters, LIMIT_TRAIN_ITERS), train_epochs=0, trace_test=traced)


def check_use(config: TuneConfig) -> None:
    """Raises UserError where there is nothing to do, and for a checkpoint that is named but would not be read."""
    if isinstance(config, TuneAllConfig):
        for name in ("train_checkpoint", "test_checkpoint"):
            if getattr(config, name):
                raise UserError(f"--{name} would not be read: every run starts at a source (--source_ckpt_path)")
        return
    if not config.do_train and not config.do_predict:
        raise UserError("nothing to do: give --do_train, --do_predict or both")
    if not config.do_train and not config.test_checkpoint:
        raise UserError("--do_predict without --do_train needs --test_checkpoint")
    if config.do_train and config.test_checkpoint:
        raise UserError("--test_checkpoint is tested as it is, without tuning: leave --do_train out")
    if not config.do_train and config.train_checkpoint:
        raise UserError("--train_checkpoint is where tuning starts: give --do_train, and no --test_checkpoint")


@dataclass(frozen=True)
class Cell:
    """What names a run of a configuration."""

    task: str
    source: str  # of its init, where the task has several
    prefix: str
    batch_size: int
    learning_rate: float


def cells(config: TuneConfig, sources: Sequence[str] = ("",)) -> list[Cell]:
    """Every run of the configuration, from each of these inits."""
    return [
        Cell(task, source, prefix, batch_size, rate)
        for task in task_names(config)
        for prefix in chosen_prefixes(config, task)
        for source, batch_size, rate in product(sources, config.bsz_list, config.learning_rate_list)
    ]


def plan(config: TuneConfig, backbone: Backbone, delta: Tunable, inits: Inits, chosen: Sequence[Cell]) -> Iterator[Run]:
    """The runs of these cells, each with its data read and its init checked before anything is tuned."""
    for task, group in groupby(chosen, key=lambda cell: cell.task):
        delta.for_task(config, task, backbone.tokenizer)
        shapes, states = shapes_of(delta), {}
        for cell in group:
            if cell.source not in states:
                states[cell.source] = inits(delta, task, cell.source, shapes)
            prefix, init = cell.prefix, states[cell.source]
            splits = {split: load_split(backbone.tokenizer, config, task, prefix, split) for split in SPLITS}
            lines, largest = len(splits["train"].inputs), max(config.bsz_list)
            if config.do_train and lines < largest:
                raise UserError(f"task {task!r}: {few_lines(lines, largest)}")
            settings = run_settings(config, delta, task, prefix, cell.batch_size, cell.learning_rate, splits, init)
            folder = folder_of(Path(config.output_dir), {**asdict(cell), "seed": config.seed})
            yield Run(**asdict(cell), folder=folder, splits=splits, init=init, settings=settings, model=config.model)


def initial_state(config: TuneConfig, delta: Tunable, task: str, shapes: Shapes) -> DeltaState:
    """The ensemble for this target, the checkpoint to test, or a random delta that depends on seed and task only.

    With --common_init on the seed only.
    """
    use = {"shapes": shapes, "built_on": delta.built_on, "made_for": delta_identity(config)}
    if not config.do_train:
        path = Path(config.test_checkpoint)
        path = task_checkpoint(path, task) if path.is_dir() else path
        hint = "--test_checkpoint names a file, or a folder with one per task"
        return read_checkpoint(path, config.tune_method, hint=hint, **use)
    if config.train_checkpoint:
        path = ensemble_checkpoint(Path(config.train_checkpoint), task)
        return read_checkpoint(path, config.tune_method, hint="make it with a script of unit_model/", **use)
    delta.initialise([f"{config.seed}" if config.common_init else f"{config.seed}/{task}"])
    return delta.states()[0]


def stacks(chosen: Sequence[One], length_of: Callable[[One], float], config: TuneConfig) -> list[list[One]]:
    """Groups of at most `config.largest_stack` cells or runs of the same batch size, whether they are finished or not.

    Those of like input lengths come together, since attention pads to the longest input.
    """
    found, size = [], config.largest_stack
    for _, group in groupby(sorted(chosen, key=lambda one: one.batch_size), lambda one: one.batch_size):
        together = sorted(group, key=length_of)
        found += [together[start : start + size] for start in range(0, len(together), size)]
    return found


def length_of(run: Run) -> float:
    """Tokens of a training input of a run, on average."""
    return run.splits["train"].mean_length()


def in_lockstep(stack: Sequence[Run]) -> Iterator[list[tuple[Run, Member]]]:
    """The runs of a stack that have the same number of updates behind them; after a kill between two files, not all have."""

    def key(pair: tuple[Run, Member]) -> tuple[bool, bool, int]:
        _, member = pair
        return member.resumes, member.progress.finished, member.progress.updates

    for _, group in groupby(sorted([(run, prepare(run)) for run in stack], key=key), key):
        yield list(group)


def prepare(run: Run) -> Member:
    """The member of a run, with the progress in its resume file if that is sound and was written under the same settings."""
    member = Member(
        task=run.task,
        metric=run.metric,
        train=run.splits["train"],
        dev=run.splits["dev"],
        batch_size=run.batch_size,
        learning_rate=run.learning_rate,
        folder=run.folder,
        init=run.init,
        settings=run.settings,
        args=run.args,
        test=run.splits["test"],
    )
    if saved := read_resume(member.resume_file, run.settings):
        member.progress, member.resumes = saved["progress"], True
    return member


def keep_common_init(config: TuneConfig, runs: Sequence[Run]) -> None:
    """Write the delta that all runs begin with (--common_init): what differences of theirs are taken from."""
    starts = {state_digest(run.init) for run in runs}
    if config.common_init and config.do_train and len(starts) == 1:
        about = {**delta_identity(config), MODEL: config.model, "seed": config.seed}
        write_checkpoint(Path(config.output_dir) / COMMON_INIT, config.tune_method, runs[0].init, about)
