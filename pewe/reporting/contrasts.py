"""Contrasts of two inits with tasks as units, and the power of a planned experiment, from a stored trace. No model is run.

    python -m pewe.reporting.contrasts --folder results/real --pairs Loss:Random Loss:Average Loss:Best_source
    python -m pewe.reporting.contrasts --folder results/real_pilot --pairs Loss:Random --planned_tasks 16 --planned_seeds 5

reads `trace.tsv` (runs with --trace_test), or where there is none the test scores in `cells.tsv`, and writes contrasts.tsv, the
outcomes at every point, over tasks and over groups, and power.tsv, what the variances between tasks and between seeds mean for
an experiment of the planned size.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pewe.command import main

import pandas as pd

from pewe.cli import log
from pewe.errors import UserError
from pewe.files import write_table
from pewe.flags import flag, suggest
from pewe.reporting import stats
from pewe.reporting.stats import OUTCOMES
from pewe.reporting.stored import SOURCES, read_stored
from task_list import METRICS


@dataclass(frozen=True)
class Config:
    """Which results, and which contrasts."""

    folder: str = flag("results/real", "folder with cells.tsv, and trace.tsv where there is one")
    pairs: list[str] = flag(
        ["Loss:Random", "Loss:Average", "Loss:Best_source"],
        "FIRST:SECOND, inits to compare; Holm is over them",
        unique=True,
    )
    without: list[str] = flag([], "tasks to leave out", unique=True)
    out: str = flag("", "folder of contrasts.tsv and power.tsv (default: the folder that is read)")
    planned_tasks: int = flag(16, "tasks of the planned experiment", low=2)
    planned_seeds: int = flag(5, "its seeds", low=1)
    alpha: float = flag(0.05, "level of all pairs together", above=0, high=1)
    power: float = flag(0.8, "how likely a difference is to be shown", above=0, high=0.999)


def run(config: Config) -> None:
    """Read, write, print."""
    stored = read_stored(Path(config.folder))
    trace = stored.cells.assign(point=BEST) if stored.trace.empty else stored.trace
    left_out = rows_of(stored.cells[stored.cells["init"] != SOURCES]) - rows_of(trace)
    if left_out:
        log.warning("trace.tsv has nothing of %s, which are in no contrast", ", ".join(sorted(left_out)))
    for task in config.without:
        if task not in METRICS:
            raise UserError(f"--without {suggest(task, METRICS)}")
    trace, pairs = trace[~trace["task"].isin(config.without)], distinct_pairs(config.pairs, trace)
    if config.power <= config.alpha / len(pairs) / 2:
        raise UserError(f"--power {config.power:g}: chance alone shows that; expected more than half of --alpha a pair")
    compared, powers = [], []
    for point in trace["point"].unique():
        for what in (what for what in OUTCOMES if what in trace):
            for delta, values in stats.outcome(trace, what, point).groupby(level="delta", sort=False):
                key, own = {"delta": delta, "outcome": what, "point": point}, values.droplevel("delta")
                here = [pair for pair in pairs if len(stats.by_task(own, pair))]  # not every delta has every init
                parts = [stats.contrasts(own, here, unit) for unit in ("task", "group") if here]
                compared += [part.assign(**key) for part in parts]
                powers += [{**key, **_power(own, pair, config)} for pair in here]
    if not compared:
        raise UserError(f"--pairs {' '.join(config.pairs)}: no task (--without) and seed has both inits of one")
    out = Path(config.out or config.folder)
    for name, table in (("contrasts", pd.concat(compared, ignore_index=True)), ("power", pd.DataFrame(powers))):
        write_table(
            out / f"{name}.tsv", table[["delta", "outcome", "point", *table.columns.difference(KEYS, sort=False)]]
        )
        print(f"{name}\n{table.round(4).to_string(index=False)}\n")


KEYS = ["delta", "outcome", "point"]
BEST = "best"  # the point of the checkpoint that is tested


def rows_of(table: pd.DataFrame) -> set[str]:
    """Its rows and seeds, in words."""
    return set(table[["delta", "init", "seed"]].drop_duplicates().astype(str).agg(" ".join, axis=1))


def distinct_pairs(given: Sequence[str], trace: pd.DataFrame) -> list[tuple[str, str]]:
    """The pairs of inits. Raises UserError for an unknown init, two equal ones, and a contrast that stands there twice."""
    pairs = [_pair(one, trace) for one in given]
    for number, pair in enumerate(pairs):
        if len(set(pair)) < 2 or set(pair) in map(set, pairs[:number]):
            raise UserError(f"--pairs {given[number]}: expected two inits that no other pair has")
    return pairs


def _pair(given: str, trace: pd.DataFrame) -> tuple[str, str]:
    first, _, second = given.partition(":")
    known = list(trace["init"].unique())
    for init in (first, second):
        if init not in known:
            raise UserError(f"--pairs {given}: an init cannot be {suggest(init, known)}")
    return first, second


def _power(values: pd.Series, pair: tuple[str, str], config: Config) -> dict:
    between, within = stats.variances(values, pair)
    deviation = (between + within / config.planned_seeds) ** 0.5
    alpha = config.alpha / len(config.pairs)
    return {
        "first": pair[0],
        "second": pair[1],
        "variance_tasks": between,
        "variance_seeds": within,
        "detectable": stats.detectable(deviation, config.planned_tasks, alpha, config.power),
    }


if __name__ == "__main__":
    main(run, Config, __doc__)
