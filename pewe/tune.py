"""The experiment of one init: tune a delta on every task, prefix, batch size and learning rate, test the best step.

Runs are folders: `<output_dir>/<task>/<prefix>/lr_<lr>_bsz_<bsz>_seed_<seed>/` with `run.json` (settings, provenance and,
once finished, the result), `checkpoint-best.pt`, `resume.pt` and TensorBoard scalars. A run is skipped only if its
result exists and its settings equal the current ones. The best run of a task by dev score is copied to
`<output_dir>/<task>/checkpoint-best.pt`, where the ensembles look for it.
"""

import dataclasses
import math
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, product
from pathlib import Path

import pandas as pd

from pewe.backbone import Backbone, BackboneConfig, load_backbone
from pewe.checkpoint import BEST, Shapes, ensemble_checkpoint, read_checkpoint, shapes_of, task_checkpoint
from pewe.cli import UserError, flag, log, log_to, show, suggest
from pewe.data import SPLITS, DataConfig, Encoded, find_prefixes, load_split, split_digest, task_names
from pewe.deltas import Delta, DeltaConfig, DeltaState, attach_delta, unread_flags
from pewe.evaluate import evaluate
from pewe.identity import state_digest
from pewe.pemt import generation_length, prepare_delta, report
from pewe.results import provenance, read_json, replacing, write_config, write_json, write_table
from pewe.train import LR_DECAY_STYLES, OPTIMIZERS, Member, TrainConfig, fit, read_resume
from task_list import METRICS

COLUMNS = [
    "task",
    "prefix",
    "learning_rate",
    "batch_size",
    "seed",
    "metric",
    "dev",
    "test",
    "updates",
    "seconds",
    "run",
]


@dataclass
class TuneConfig(BackboneConfig, DataConfig, DeltaConfig, TrainConfig):
    """Few-shot tuning of each target task."""

    do_train: bool = flag(False, "tune")
    do_predict: bool = flag(False, "test the best checkpoint of each run, or --test_checkpoint where nothing is tuned")
    learning_rate_list: list[float] = flag([5e-4], "learning rates; each is a run")
    bsz_list: list[int] = flag([8], "batch sizes; each is a run")
    output_dir: str = flag("checkpoints/adapter", "folder of runs, log and result.tsv", decides=False)
    train_checkpoint: str = flag(
        "", "folder of ensembles, DIR/without_<task>_checkpoint.pt: init (default: random)", decides=False
    )
    test_checkpoint: str = flag(
        "", "checkpoint file, or folder with <task>/checkpoint-best.pt, to test without tuning", decides=False
    )
    stack: int = flag(1, "runs of equal batch size tuned in lockstep over one backbone", decides=False)
    quiet: bool = flag(False, "warnings only, no progress bar", decides=False)


@dataclass
class Run:
    """One cell of the experiment. `source` names the init where a task has several (tune_all_ckpt.py), else is empty."""

    task: str
    source: str
    prefix: str
    batch_size: int
    learning_rate: float
    folder: Path
    splits: dict[str, Encoded]
    init: DeltaState
    settings: dict


def tune(config: TuneConfig, finished: Callable[[int], None] = lambda runs: None) -> pd.DataFrame:
    """All runs that are not finished yet, `config.stack` at a time; returns and writes the table of results.

    `finished` is told how many runs have a result now that had none, or none known, before.
    """
    if not config.do_train and not config.do_predict:
        raise UserError("nothing to do: give --do_train, --do_predict or both")
    if not config.do_train and not config.test_checkpoint:
        raise UserError("--do_predict without --do_train needs --test_checkpoint")
    return execute(config, lambda delta, task, shapes: {"": initial_state(config, delta, task, shapes)}, finished)


def execute(config: TuneConfig, inits: Callable[[Delta, str, Shapes], dict[str, DeltaState]],
            finished: Callable[[int], None]) -> pd.DataFrame:  # fmt: skip
    """Plan the runs of every task from each of its inits (source -> state), carry out those without a result."""
    check(config)
    out = Path(config.output_dir)
    log_to(out / "log.txt", config.quiet)
    log.info("settings:\n%s", show(config))
    write_config(out, config)
    backbone = load_backbone(config)
    delta = attach_delta(backbone.model, config, config.stack)
    runs = list(plan(config, backbone, delta, inits))
    pending = [run for run in runs if result_of(run) is None]
    if len(pending) < len(runs):
        log.info("%d of %d runs are finished already", len(runs) - len(pending), len(runs))
    finished(len(runs) - len(pending))
    for stack in stacks(pending, config):
        tune_stack(backbone, delta, stack, config)
        write_results(out, runs)
        finished(len(stack))
    table = write_results(out, runs)
    if not config.quiet:
        print(table.to_string(index=False))
    return table


def check(config: TuneConfig) -> None:
    """Everything about the flags that can be told before a model is loaded."""
    for name in ("train_iters", "valid_interval", "log_interval", "early_stop", "predict_batch_size", "micro_batch_size",
                 "stack", "max_input_length", "max_output_length"):  # fmt: skip
        if getattr(config, name) < 1:
            raise UserError(f"--{name} must be at least 1, not {getattr(config, name)}")
    for name, known in (("lr_decay_style", LR_DECAY_STYLES), ("optimizer", OPTIMIZERS)):
        if getattr(config, name) not in known:
            raise UserError(f"unknown --{name} {suggest(getattr(config, name), known)}")
    if config.train_epochs and config.stack > 1:
        raise UserError("--train_epochs: tasks of a stack would end at different updates; --stack must be 1")
    for name, kind in (("learning_rate_list", "positive"), ("bsz_list", "at least 1")):
        wrong = [value for value in getattr(config, name) if not value > 0]
        if wrong:
            raise UserError(f"--{name}: {wrong[0]} must be {kind}")
    for size in config.bsz_list:
        if size > config.micro_batch_size and size % config.micro_batch_size:
            raise UserError(f"--bsz_list {size} must be a multiple of --micro_batch_size {config.micro_batch_size}")


def plan(config: TuneConfig, backbone: Backbone, delta: Delta, inits) -> Iterator[Run]:
    """Every run of the configuration, with its data read and its init checked before anything is tuned."""
    for task in task_names(config):
        prepare_delta(delta, config, task, backbone.tokenizer)
        shapes = shapes_of(delta)
        prefixes = find_prefixes(Path(config.task_dir), task)
        states = inits(delta, task, shapes)
        for prefix in prefixes[:1] if config.one_prefix else prefixes:
            splits = {split: load_split(backbone.tokenizer, config, task, prefix, split) for split in SPLITS}
            lines, largest = len(splits["train"].inputs), max(config.bsz_list)
            if config.do_train and lines < largest:
                raise UserError(f"task {task!r}: {lines} training lines are fewer than one batch of {largest}")
            for source, batch_size, learning_rate in product(states, config.bsz_list, config.learning_rate_list):
                name = f"lr_{learning_rate:g}_bsz_{batch_size}_seed_{config.seed}"
                folder = Path(config.output_dir) / task / source / prefix / name
                init = states[source]
                settings = run_settings(config, delta, task, prefix, batch_size, learning_rate, splits, init)
                yield Run(task, source, prefix, batch_size, learning_rate, folder, splits, init, settings)


def initial_state(config: TuneConfig, delta: Delta, task: str, shapes) -> DeltaState:
    """The ensemble for this target, the checkpoint to test, or a random delta that depends on seed and task only."""
    if not config.do_train:
        path = Path(config.test_checkpoint)
        path = task_checkpoint(path, task) if path.is_dir() else path
        return read_checkpoint(
            path, config.tune_method, shapes, "--test_checkpoint names a file, or a folder with one per task",
            built_on=delta.built_on,
        )  # fmt: skip
    if config.train_checkpoint:
        path = ensemble_checkpoint(Path(config.train_checkpoint), task)
        return read_checkpoint(path, config.tune_method, shapes, "make it with a script of unit_model/")
    delta.initialise([f"{config.seed}/{task}"])
    return delta.states()[0]


# Settings that cannot change the result of a run, or that its own entries below replace.
_NOT_IDENTITY = {"task_list", "tasks", "one_prefix", "task_dir", "output_dir", "quiet", "stack", "device", "train_checkpoint",
                 "test_checkpoint", "learning_rate_list", "bsz_list", "log_interval", "full_train"}  # fmt: skip


def run_settings(config, delta, task, prefix, batch_size, learning_rate, splits, init) -> dict:
    """What decides the result of a run: it is repeated when any of this changes."""
    ignored = _NOT_IDENTITY | unread_flags(delta)
    settings = {name: value for name, value in dataclasses.asdict(config).items() if name not in ignored}
    return {
        "task": task,
        "prefix": prefix,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        **settings,
        "data": {split: split_digest(encoded) for split, encoded in splits.items()},
        "init": state_digest(init),
        **({"built_on": delta.built_on} if delta.built_on else {}),
    }


def equal_settings(saved: dict, run: Run) -> bool:
    """Whether the content of a run.json has the settings of this run; further entries, of earlier versions, do not count."""
    settings = saved.get("settings") or {}
    return {name: settings.get(name) for name in run.settings} == run.settings


def result_of(run: Run) -> dict | None:
    """The stored result of a run with exactly these settings, or None."""
    saved = read_json(run.folder / "run.json") or {}
    return saved.get("result") if equal_settings(saved, run) else None


def stacks(runs: Sequence[Run], config: TuneConfig) -> Iterator[list[tuple[Run, Member]]]:
    """Groups of at most `config.stack` runs that have the same batch size and the same number of updates behind them.

    Runs of like input lengths come together, since attention pads to the longest input.
    """
    pairs = [(run, prepare(run, config)) for run in runs]

    def key(pair):
        run, member = pair
        return run.batch_size, member.resume_file.is_file(), member.progress.finished, member.progress.updates

    for _, group in groupby(sorted(pairs, key=key), key):
        together = sorted(group, key=lambda pair: pair[0].splits["train"].mean_length())
        for start in range(0, len(together), config.stack):
            yield together[start : start + config.stack]


def prepare(run: Run, config: TuneConfig) -> Member:
    """The member of a run: continues from its resume file if that was written under the same settings."""
    saved = read_json(run.folder / "run.json") or {}
    if not equal_settings(saved, run):
        if run.folder.exists():
            log.info("%s: the settings or the data have changed; starting again", run.folder)
            shutil.rmtree(run.folder)
        write_json(run.folder / "run.json", {"settings": run.settings, "provenance": provenance()})
    member = Member(
        task=run.task, metric=METRICS[run.task], train=run.splits["train"], dev=run.splits["dev"],
        learning_rate=run.learning_rate, folder=run.folder, init=run.init, args=run.settings,
    )  # fmt: skip
    read_resume(member)
    return member


def tune_stack(backbone: Backbone, delta: Delta, pairs: Sequence[tuple[Run, Member]], config: TuneConfig) -> None:
    """Tune, test and record one stack."""
    runs, members = zip(*pairs, strict=True)
    prepare_delta(delta, config, runs[0].task, backbone.tokenizer)
    if config.do_train and not members[0].progress.finished:
        micro = min(runs[0].batch_size, config.micro_batch_size)
        quirks = config.as_original and delta.papers_trainer
        fit(backbone, delta, members, for_run(config, runs[0]), runs[0].batch_size // micro, micro,
            generation_length(config), quirks, config.quiet)  # fmt: skip
    start = time.perf_counter()
    if config.do_train:
        delta.load([read_checkpoint(run.folder / BEST, config.tune_method) for run in runs])
    else:
        delta.load([run.init for run in runs])
        for member, score in zip(members, _score(backbone, delta, runs, "dev", config), strict=True):
            member.progress.best = score
    tested = time.perf_counter()
    tests = _score(backbone, delta, runs, "test", config) if config.do_predict else [None] * len(runs)
    end = time.perf_counter()
    for run, member, test in zip(runs, members, tests, strict=True):
        block = {}
        if config.do_predict:
            epochs = member.progress.updates * run.batch_size / len(member.train.inputs)
            block = report(backbone, delta, run, test, epochs, end - tested, config)
        _record(run, member, test, (end - start) / len(runs), block)


def for_run(config: TuneConfig, run: Run) -> TuneConfig:
    """--train_epochs as updates of this run, with a validation after each epoch; no original knows the starting delta."""
    config = replace(config, start_is_candidate=config.start_is_candidate and not config.as_original)
    if not config.train_epochs:
        return config
    updates = math.ceil(len(run.splits["train"].inputs) / run.batch_size)
    return replace(config, train_iters=config.train_epochs * updates, valid_interval=updates)


def _score(backbone: Backbone, delta: Delta, runs: Sequence[Run], split: str, config: TuneConfig) -> list[float]:
    splits, names = [run.splits[split] for run in runs], [METRICS[run.task] for run in runs]
    return evaluate(backbone, delta, splits, names, config.predict_batch_size, generation_length(config))


def _record(run: Run, member: Member, test: float | None, seconds: float, block: dict) -> None:
    progress = member.progress
    row = {
        "task": run.task, "prefix": run.prefix, "learning_rate": run.learning_rate, "batch_size": run.batch_size,
        "seed": run.settings["seed"], "metric": member.metric, "dev": progress.best, "test": test,
        "updates": progress.updates, "seconds": round(progress.seconds + seconds, 2),
    }  # fmt: skip
    if run.source:
        row = {"task": run.task, "source": run.source, **row}
    result = {**row, "block": block, "best_updates": progress.best_updates, "history": progress.history}
    write_json(run.folder / "run.json", {"settings": run.settings, "provenance": provenance(), "result": result})
    log.info("%s: dev %.4f%s", run.folder, progress.best, "" if test is None else f", test {test:.4f}")


def write_results(out: Path, runs: Sequence[Run]) -> pd.DataFrame:
    """`result.tsv` of all finished runs, and the best checkpoint of each task (and source) where the ensembles look for it."""
    finished = [(run, result) for run in runs if (result := result_of(run)) is not None]
    columns = ["target", "source", *COLUMNS[1:]] if any(run.source for run in runs) else list(COLUMNS)
    rows = [
        {"target": result["task"], **result, **result["block"], "run": str(run.folder.relative_to(out))}
        for run, result in finished
    ]
    columns[-1:-1] = dict.fromkeys(name for _, result in finished for name in result["block"])
    table = pd.DataFrame(rows, columns=columns)
    write_table(out / "result.tsv", table)
    for (task, source), group in groupby(finished, key=lambda pair: (pair[0].task, pair[0].source)):
        best, _ = max(group, key=lambda pair: pair[1]["dev"])
        if (best.folder / BEST).is_file():
            with replacing(
                task_checkpoint(out / task / source if source else out, "" if source else task)
            ) as temporary:
                shutil.copyfile(best.folder / BEST, temporary)
    return table


@dataclass
class TuneAllConfig(TuneConfig):
    """Every source on every target."""

    source_ckpt_path: str = flag(
        "checkpoints/adapter/full_data", "folder with <source>/checkpoint-best.pt", decides=False
    )
    source_tasks: list[str] = flag([], "names of the sources (default: the targets)")


def tune_all(config: TuneAllConfig, finished: Callable[[int], None] = lambda runs: None) -> pd.DataFrame:
    """Tune (`--do_train`) or only score every source delta on every target; rows (target, source, ..., dev, test).

    The tuned delta of a pair is copied to `<output_dir>/<target>/<source>/checkpoint-best.pt`.
    """
    names = task_names(replace(config, tasks=config.source_tasks)) if config.source_tasks else task_names(config)
    states: dict[str, DeltaState] = {}

    def inits(delta: Delta, task: str, shapes: Shapes) -> dict[str, DeltaState]:
        for name in names:
            if name not in states:
                path = task_checkpoint(Path(config.source_ckpt_path), name)
                states[name] = read_checkpoint(path, config.tune_method, shapes, "tune the sources first")
        return states

    return execute(config, inits, finished)
