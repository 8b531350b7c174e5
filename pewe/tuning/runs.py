"""Runs on disk: where they lie, what decides them, which stored ones still hold, and the table of a folder of runs.

<output_dir>/<task>[/<source>]/<prefix>/lr_<lr>_bsz_<bsz>_seed_<seed>/
    run.json               settings, provenance and, once it has ended, the result or the cause of its failure; sealed
    ...                    files of the kind of delta; `run.json` holds the fingerprints of its tables
    checkpoint-best.pt     its best step; `run.json` holds the checksum
    resume.pt              what it goes on from; holds the best step too
<output_dir>/<task>[/<source>]/checkpoint-best.pt      that of the task's best run by dev score
<output_dir>/result.tsv    a row for every run below the folder that has a result
"""

import math
import shutil
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import pandas as pd

from pewe import identity
from pewe.cli import log
from pewe.data import Encoded, split_digest
from pewe.deltas.checkpoint import BACKBONE, BEST, MODEL, NOTHING, checksum, delta_identity, experts_of, sound_content
from pewe.deltas.config import unread_flags
from pewe.deltas.kinds import KINDS
from pewe.deltas.tunable import Tunable
from pewe.files import provenance, read_record, replacing, write_record, write_table
from pewe.reporting.stats import OUTCOMES
from pewe.scores import RECORD
from pewe.state import DeltaState
from pewe.tuning.config import TuneConfig
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
    settings: dict  # what decides its result
    model: str  # name of the backbone

    @property
    def metric(self) -> str:
        """Name of the task's metric."""
        return METRICS[self.task]

    @property
    def of_task(self) -> Path:
        """Where the best checkpoint of the task (and source) lies."""
        return self.folder.parents[1] / BEST

    @property
    def args(self) -> dict:
        """What its checkpoints say about themselves."""
        return {**self.settings, MODEL: self.model}


def folder_of(out: Path, row: Mapping) -> Path:
    """The folder of the run with this task, source (where it has one), prefix, learning_rate, batch_size and seed."""
    name = f"lr_{row['learning_rate']:g}_bsz_{row['batch_size']}_seed_{row['seed']}"
    return out / row["task"] / row.get("source", "") / row["prefix"] / name


def run_settings(
    config: TuneConfig,
    delta: Tunable,
    task: str,
    prefix: str,
    batch_size: int,
    learning_rate: float,
    splits: Mapping[str, Encoded],
    init: DeltaState,
) -> dict:
    """What decides the result of a run: it is made again when any of this changes.

    Flags that name several runs are narrowed to this one; a run that was not tested yet is the same run.
    """
    own = identity.deciding(
        config,
        tasks=[task],
        learning_rate_list=[learning_rate],
        bsz_list=[batch_size],
        one_prefix=True,
        do_predict=True,
    )
    ignored = {"source_tasks", "common_init", *unread_flags(config.tune_method)}  # both are told by the init
    return {
        "task": task,
        "prefix": prefix,
        **{name: value for name, value in own.items() if name not in ignored},
        "metric": METRICS[task],
        "data": {split: split_digest(encoded) for split, encoded in splits.items()},
        "init": identity.state_digest(init),
        **({"built_on": experts_of(delta.built_on)} if delta.built_on else {}),
        BACKBONE: delta_identity(config)[BACKBONE],
    }


def renew(run: Run) -> None:
    """A record without result takes the place of the stored one, and nothing stays of what an earlier test has reported."""
    write_run(run)
    for kind in KINDS.values():
        for name in (*kind.tables.values(), *kind.shown):
            (run.folder / name).unlink(missing_ok=True)


def write_run(run: Run, measured: Mapping[str, float] = NOTHING, **ending: dict | str) -> None:
    """Write its `run.json`, with the result and the times measured, or the cause of its failure, where it has ended."""
    about = {**provenance(), "measured": dict(measured)}
    write_record(run.folder / RECORD, {"settings": run.settings, **ending, identity.PROVENANCE: about})


def stored_result(run: Run, tested: bool) -> dict | None:
    """The result of a run with exactly these settings whose best checkpoint is there; else None, with the reason in the log.

    `tested`: it must have a test score.
    """
    if not (run.folder / RECORD).is_file():
        return None
    record = read_record(run.folder / RECORD) or {}
    reason, result = identity.difference(record.get("settings"), run.settings), _result_in(record)
    if not reason and result is None:
        reason = f"it failed, {record['failed']}" if "failed" in record else "it was interrupted"
    if not reason and tested and result["test"] is None:
        reason = "it was not tested"
    reason = reason or lost_table(run, result)
    if not reason and not _keep_best(run, result["checkpoint"]):
        reason = f"{run.folder / BEST} is damaged or missing, and {run.of_task} is not a copy of it"
    if reason:
        log.info("%s is made again or continued: %s", run.folder, reason)
    return None if reason else result


def stored_failure(run: Run) -> str:
    """The cause of the failure of a run with exactly these settings; empty where it has not failed."""
    record = read_record(run.folder / RECORD) or {}
    return "" if identity.difference(record.get("settings"), run.settings) else record.get("failed", "")


def _result_in(record: Mapping) -> dict | None:
    """The result in a sound record, with the times that were measured."""
    return {**record["result"], **record[identity.PROVENANCE]} if "result" in record else None


def tables_print(kind: str, folder: Path) -> dict[str, str]:
    """Fingerprints of the tables that a kind of delta has left beside a run's record; empty where one is not there."""
    paths = {entry: folder / name for entry, name in KINDS[kind].tables.items()}
    return {entry: identity.file_digest(path) if path.is_file() else "" for entry, path in paths.items()}


def lost_table(run: Run, result: Mapping) -> str:
    """What is wrong with the tables beside the record of a tested run, in words; empty where they are those of its result."""
    kind = run.settings["tune_method"]
    for entry, found in tables_print(kind, run.folder).items() if result["test"] is not None else ():
        name = KINDS[kind].tables[entry]
        if entry not in result:
            return f"its record has no fingerprint of {name} (an earlier version)"
        if found != result[entry]:
            return f"{run.folder / name} is missing, or was changed after it was written"
    return ""


def _keep_best(run: Run, expected: str) -> bool:
    """Whether the best checkpoint of a finished run is there, restored from that of its task where it was lost or damaged."""
    if not expected or checksum(run.folder / BEST) == expected:
        return True
    if checksum(run.of_task) != expected:
        return False
    _copy(run.of_task, run.folder / BEST)
    log.warning("%s was damaged or missing; restored from %s", run.folder / BEST, run.of_task)
    return True


def clear(run: Run) -> None:
    """Remove what a run left; if its settings were others, its checkpoint as the best of its task, too."""
    best = sound_content(run.of_task)
    if best and best[identity.SEAL] == checksum(run.folder / BEST) and identity.difference(best["args"], run.settings):
        run.of_task.unlink()
    if run.folder.exists():
        shutil.rmtree(run.folder)


def place_best(runs: Sequence[Run], results: Mapping[Path, dict], failed: Container[Path]) -> None:
    """Copy the best checkpoint by dev score of each task (and source) to where the ensembles look for it.

    `results` are those of the finished runs by their folder, `failed` the folders of those that failed; while others of
    its runs wait, a task keeps the checkpoint that it has. A score that is not defined is the worst.
    """
    for of_task, group in groupby(sorted(runs, key=lambda run: run.of_task), key=lambda run: run.of_task):
        ended = [run for run in group if run.folder not in failed]
        if not ended or any(run.folder not in results for run in ended):
            continue
        best = max(ended, key=lambda run: _ranked(results[run.folder]["dev"]))
        wanted = results[best.folder]["checkpoint"]
        if wanted and checksum(of_task) != wanted:
            _copy(best.folder / BEST, of_task)


def _ranked(score: float) -> float:
    return -math.inf if math.isnan(score) else score


def _copy(source: Path, target: Path) -> None:
    with replacing(target) as temporary:
        shutil.copyfile(source, temporary)


def other_rows(out: Path, runs: Sequence[Run]) -> Iterator[dict]:
    """The rows of the runs below a folder that are none of these, from their records, as far as they are sound."""
    own, depth = {run.folder for run in runs}, "*/*/*/*" if any(run.source for run in runs) else "*/*/*"
    for path in sorted(out.glob(f"{depth}/{RECORD}")):
        if path.parent in own:
            continue
        result = _result_in(read_record(path) or {})
        if result and folder_of(out, result) == path.parent:
            yield row_of(result, path.parent, out)


def row_of(result: Mapping, folder: Path, out: Path) -> dict:
    """A row of `result.tsv`."""
    block = {**result["block"], **traced(result)}
    own = {**result, **block, **result["measured"], "block": block}
    return {"target": result["task"], **own, "run": str(folder.relative_to(out))}


def traced(result: Mapping) -> dict[str, float]:
    """Columns of what --trace_test noted: of each point, test score and log-likelihood."""
    points = result.get("trace", [])
    return {f"{what}_{point['point']}": point[what] for point in points for what in OUTCOMES}


def write_results(out: Path, runs: Sequence[Run], results: Mapping[Path, dict], others: Sequence[dict]) -> pd.DataFrame:
    """Write `result.tsv`: the rows of others in the folder, then those of these runs; returns the table of these alone."""
    columns = ["target", "source", *COLUMNS[1:]] if any(run.source for run in runs) else list(COLUMNS)
    rows = [row_of(results[run.folder], run.folder, out) for run in runs if run.folder in results]
    names = dict.fromkeys(name for row in (*others, *rows) for name in (*row["block"], *row["measured"]))
    columns[-1:-1] = [name for name in names if name not in (*columns, "lines")]  # a cost, which stays in the record
    write_table(out / "result.tsv", pd.DataFrame([*others, *rows], columns=columns))
    return pd.DataFrame(rows, columns=columns)
