"""The experiment of one init: tune a delta on every task, prefix, batch size and learning rate, test the best step.

What is stored, and when it holds, is in pewe/tuning/runs.py: a run is skipped only if its result exists, was made from exactly
what it would be made from now, and its best checkpoint is there. A run that diverges is recorded as failed; the others go on.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd
import torch

from pewe.backbone import Backbone
from pewe.cli import log, log_settings, log_to
from pewe.deltas.attach import attached
from pewe.deltas.checkpoint import BEST, checksum, read_checkpoint
from pewe.deltas.kinds import KINDS
from pewe.deltas.tunable import MEASURED, Tested, Tunable
from pewe.errors import UserError
from pewe.files import hold, write_config
from pewe.meter import so_far
from pewe.state import DeltaState
from pewe.tuning.choices import ORIGINAL, OURS
from pewe.tuning.config import TuneAllConfig, TuneConfig
from pewe.tuning.member import Member, read_resume, write_best
from pewe.tuning.outcomes import scores_on, test_best
from pewe.tuning.plan import cells, check, in_lockstep, keep_common_init, length_of, limited, plan, prepare, stacks
from pewe.tuning.room import parts
from pewe.tuning.runs import (
    COLUMNS,
    Run,
    clear,
    other_rows,
    place_best,
    renew,
    stored_failure,
    stored_result,
    tables_print,
    write_results,
    write_run,
)
from pewe.tuning.session import fit
from pewe.tuning.work import Work, pairs_of, work_of

__all__ = ["COLUMNS", "FailedRuns", "Run", "TuneAllConfig", "TuneConfig", "tune", "tune_all"]


class FailedRuns(UserError):
    """Some runs diverged, the others are finished. `causes`: folder -> cause; `tasks`: those without any finished run.

    `table` holds the results of the others.
    """

    def __init__(self, causes: dict[Path, str], tasks: dict[str, str], table: pd.DataFrame):
        listed = "; ".join(f"{folder}: {cause}" for folder, cause in causes.items())
        super().__init__(f"{len(causes)} runs failed, all others are finished: {listed}")
        self.causes, self.tasks, self.table = causes, tasks, table


def tune(
    config: TuneConfig,
    finished: Callable[[int], None] = lambda runs: None,
    again: bool = True,
    init: DeltaState | None = None,
) -> pd.DataFrame:
    """All runs that are not finished yet, `config.largest_stack` at a time; returns and writes the table of results.

    `finished` is told how many runs have a result now that had none, or none known, before. Without `again`, runs that
    failed are not tried again. `init` is where all of them begin, instead of the ensembles of `config.train_checkpoint`.
    """
    return execute(work_of(config, init), finished, again)


def execute(work: Work, finished: Callable[[int], None], again: bool = True) -> pd.DataFrame:
    """Plan the runs of every task from each of its inits, carry out those without a result.

    No other process may write into the folder meanwhile. Raises FailedRuns at the end where some diverged.
    """
    config = limited(work.config)
    check(config)
    out = Path(config.output_dir)
    with hold(out, flag="--output_dir"):
        log_to(out / "log.txt", config.quiet)
        log_settings(config)
        write_config(out, config)
        backbone, delta = attached(config, config.largest_stack)
        runs = list(plan(config, backbone, delta, work.inits, cells(config, work.sources)))
        keep_common_init(config, runs)
        return carry_out(config, backbone, delta, runs, finished, again)


def carry_out(
    config: TuneConfig,
    backbone: Backbone,
    delta: Tunable,
    runs: Sequence[Run],
    finished: Callable[[int], None],
    again: bool = True,
) -> pd.DataFrame:
    """Those of the runs that have no result yet, stack by stack; the table is written after each."""
    out = Path(config.output_dir)
    causes = {} if again else {run.folder: cause for run in runs if (cause := stored_failure(run))}
    results = stored(runs, config)
    others = list(other_rows(out, runs))
    finished(len(results))
    place_best(runs, results, causes)
    for stack in stacks(runs, length_of, config):
        for pairs in in_lockstep([run for run in stack if run.folder not in (results | causes)]):
            ended, failed = tune_stack(backbone, delta, pairs, config)
            results |= ended
            causes |= failed
            touched = {run.of_task for run, _ in pairs}
            place_best([run for run in runs if run.of_task in touched], results, causes)
            write_results(out, runs, results, others)
            finished(len(ended))
    table = write_results(out, runs, results, others)
    if not config.quiet:
        print(table.to_string(index=False))
    if causes:
        good = {run.task for run in runs if run.folder in results}
        tasks = {run.task: causes[run.folder] for run in runs if run.folder in causes and run.task not in good}
        raise FailedRuns(causes, tasks, table)
    return table


def stored(runs: Sequence[Run], config: TuneConfig) -> dict[Path, dict]:
    """The results that are there, by folder."""
    results = {run.folder: result for run in runs if (result := stored_result(run, config.do_predict)) is not None}
    if results:
        log.info("%d of %d runs are finished already", len(results), len(runs))
    return results


def begin(run: Run, member: Member, config: TuneConfig) -> None:
    """Go on from the resume file, or from nothing: the best checkpoint on the disk is that of the resume file.

    Where nothing is tuned, what another command has tuned in the folder stays, only the record is replaced.
    """
    saved = read_resume(member.resume_file, run.settings) if member.resumes else None
    if saved:
        member.saved, member.best = saved, saved["best"]
    elif config.do_train:
        clear(run)
    renew(run)
    if member.best:
        write_best(member)


Ended = tuple[dict[Path, dict], dict[Path, str]]  # by folder, results of runs and the causes of those that failed


def tune_stack(backbone: Backbone, delta: Tunable, pairs: Sequence[tuple[Run, Member]], config: TuneConfig) -> Ended:
    """`tune_together`, in as many parts as memory asks for; on a GPU a part that does not fit after all is halved."""
    results, failed = {}, {}
    waiting = parts(backbone, delta, pairs, config)
    while waiting:
        part = waiting.pop(0)
        try:
            ended, causes = tune_together(backbone, delta, part, config)
        except torch.cuda.OutOfMemoryError:
            if len(part) == 1:
                raise UserError(
                    "one run does not fit on the GPU; lower --micro_batch_size or --predict_batch_size"
                ) from None
            log.warning("out of GPU memory with %d runs in a stack; they go on in halves", len(part))
            torch.cuda.empty_cache()
            again = [(run, prepare(run)) for run, _ in part]
            half = len(again) // 2
            waiting[:0] = [again[:half], again[half:]]
            continue
        results |= ended
        failed |= causes
    return results, failed


def tune_together(backbone: Backbone, delta: Tunable, pairs: Sequence[tuple[Run, Member]], config: TuneConfig) -> Ended:
    """Tune, test and record one stack."""
    first, head = pairs[0]
    delta.for_task(config, first.task, backbone.tokenizer)
    for run, member in pairs:
        begin(run, member, config)
    if config.do_train and not head.progress.finished:
        micro = min(first.batch_size, config.micro_batch_size)
        choices = ORIGINAL if config.as_original and KINDS[config.tune_method].papers else OURS
        fit(
            backbone,
            delta,
            [member for _, member in pairs],
            for_run(config, first),
            first.batch_size // micro,
            micro,
            delta.generation_length(config),
            choices,
            config.quiet,
        )
    failed = {run.folder: member.failed for run, member in pairs if member.failed}
    for run, member in pairs:
        if member.failed:
            write_run(run, failed=member.failed)
            log.error("%s: %s", run.folder, member.failed)
    sound = [(run, member) for run, member in pairs if not member.failed]
    return (score_and_record(backbone, delta, sound, config) if sound else {}), failed


def score_and_record(
    backbone: Backbone, delta: Tunable, pairs: Sequence[tuple[Run, Member]], config: TuneConfig
) -> dict[Path, dict]:
    """Test the best checkpoints of a stack, or what is not tuned, and record the results, which are returned by folder."""
    runs = [run for run, _ in pairs]
    before = so_far()
    if config.do_train:
        delta.load([read_checkpoint(run.folder / BEST, config.tune_method) for run in runs])
    else:
        delta.load([run.init for run in runs])
        for (_, member), score in zip(pairs, scores_on(backbone, delta, runs, "dev", config), strict=True):
            member.progress.best = score
    tested = so_far()
    tests = test_best(backbone, delta, pairs, config)
    end = so_far()
    results = {}
    for (run, member), test in zip(pairs, tests, strict=True):
        score, block = test.get("test"), {}
        if config.do_predict:
            epochs = member.progress.updates * run.batch_size / len(member.train.inputs)
            seen = Tested(run.folder, run.splits["test"], score, epochs, (end - tested).seconds)
            block = delta.result_block(backbone, seen, config)
        measured = member.progress.measured(end - before, len(runs))
        measured |= {name: block.pop(name) for name in MEASURED if name in block}
        result = {**_result(run, member, score), "block": block, **tables_print(config.tune_method, run.folder)}
        if config.trace_test:
            last = {"point": "best", "updates": member.progress.best_updates, **test}
            result["trace"] = [*member.progress.trace, last]
        result["checkpoint"] = checksum(run.folder / BEST) if config.do_train else ""
        write_run(run, measured, result=result)
        results[run.folder] = {**result, "measured": measured}
    return results


def for_run(config: TuneConfig, run: Run) -> TuneConfig:
    """--train_epochs as updates of this run, with a validation after each epoch; no original knows the starting delta."""
    config = replace(config, start_is_candidate=config.start_is_candidate and not config.as_original)
    if not config.train_epochs:
        return config
    updates = math.ceil(len(run.splits["train"].inputs) / run.batch_size)
    return replace(config, train_iters=config.train_epochs * updates, valid_interval=updates)


def _result(run: Run, member: Member, test: float | None) -> dict:
    progress = member.progress
    result = {
        "task": run.task,
        **({"source": run.source} if run.source else {}),
        "prefix": run.prefix,
        "learning_rate": run.learning_rate,
        "batch_size": run.batch_size,
        "seed": run.settings["seed"],
        "metric": run.metric,
        "dev": progress.best,
        "test": test,
        "updates": progress.updates,
        "best_updates": progress.best_updates,
        "history": progress.history,
    }
    log.info("%s: dev %.4f%s", run.folder, progress.best, "" if test is None else f", test {test:.4f}")
    for split, score in (("dev", progress.best), ("test", test)):
        if score is not None and math.isnan(score):
            log.warning("%s: %s is not defined on %s for what the best step predicts", run.folder, run.metric, split)
    return result


def tune_all(
    config: TuneAllConfig, finished: Callable[[int], None] = lambda runs: None, again: bool = True
) -> pd.DataFrame:
    """Tune (`--do_train`) or only score every source delta on every target; rows (target, source, ..., dev, test).

    The tuned delta of a pair is copied to `<output_dir>/<target>/<source>/checkpoint-best.pt`.
    """
    return execute(pairs_of(config), finished, again)
