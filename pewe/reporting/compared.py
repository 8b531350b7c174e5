"""Every row of an experiment against the references of its run, with tasks as units; and in words."""

from collections.abc import Iterator

import numpy as np
import pandas as pd

from pewe.reporting import stats
from pewe.reporting.stored import BASELINES, REFERENCES, SOURCES, Stored, plain_rows
from unit_model import PAPER, of_group

LEVEL = 0.05  # of Holm's method over the rows against one reference
TO_BEAT = {"Best_source": "a copy of the single best source", "TextEmb": "sources found by their texts alone"}
POINTS = 100  # a test score of 1 is 100 points


def comparisons(stored: Stored) -> pd.DataFrame:
    """`stats.contrasts` of all rows with each reference that the run has (Random, Average, Best_source, TextEmb, Manual), by delta.

    Columns init and baseline are the two rows, every two of them once; Holm is over the rows against one reference. PEMT, which
    has no other start, is compared with the baselines of the adapter.
    """
    scored = stats.scores(plain_rows(stored.cells[stored.cells["init"] != SOURCES]))
    if "pemt" in set(scored["delta"]):
        borrowed = scored[(scored["delta"] == "adapter") & scored["init"].isin(BASELINES)]
        scored = pd.concat([scored, borrowed.assign(delta="pemt")], ignore_index=True)
    parts = []
    for delta, part in scored.groupby("delta", sort=False):
        values, inits = part.set_index(["init", "task", "seed"])["test"], list(part["init"].unique())
        for pairs in pairs_of(inits):
            if shared := [pair for pair in pairs if len(stats.by_task(values, pair))]:
                parts.append(stats.contrasts(values, shared).assign(delta=delta))
    if not parts:
        return pd.DataFrame()
    table = pd.concat(parts, ignore_index=True).rename(columns={"first": "init", "second": "baseline"})
    return table[["delta", *table.columns.drop("delta")]]


def pairs_of(inits: list[str]) -> Iterator[list[tuple[str, str]]]:
    """For each reference the other rows with it, without the references that it has been compared with already."""
    for number, reference in enumerate(REFERENCES):
        if reference in inits:
            yield [(init, reference) for init in inits if init not in REFERENCES[: number + 1]]


def headline(table: pd.DataFrame) -> list[str]:
    """What this experiment shows, in plain words, for every delta.

    First the paper's rows against those that any claim has to beat, or that this was not measured; then all rows against
    each other reference.
    """
    said = []
    for delta, of_delta in table.groupby("delta", sort=False):
        parts = dict(list(of_delta.groupby("baseline", sort=False)))
        for rival, what in TO_BEAT.items():
            part = parts.pop(rival, of_delta[:0])
            own = part[part["init"].isin(of_group(PAPER)) & ~part["init"].isin(REFERENCES)]
            missing = f"{delta}: the paper's rows against {what} ({rival}) were not measured together."
            said.append(
                _sentence(delta, own, f"of the paper's rows end above {rival}, {what},") if len(own) else missing
            )
        for baseline, part in parts.items():
            others = part[~part["init"].isin(BASELINES)]
            if len(others):
                said.append(_sentence(delta, others, f"rows end above {baseline}"))
    return said


def _sentence(delta: str, rows: pd.DataFrame, above: str) -> str:
    """How these rows end against one reference."""
    best, sure = rows.loc[rows["difference"].idxmax()], rows["p_holm"] < LEVEL
    higher, lower = rows["difference"] > 0, rows["difference"] < 0
    units = " to ".join(map(str, sorted({rows["units"].min(), rows["units"].max()})))
    return (
        f"{delta}: {int(higher.sum())} of {len(rows)} {above} over {units} tasks, "
        f"{int((higher & sure).sum())} of them shown (p below {LEVEL:g} by Holm's method over the rows), "
        f"{int((lower & sure).sum())} shown to end below; the highest, {best['init']}, by {in_points(best, ' points')}"
        f"{in_percent(best)}{p_text(best['p_holm'], ', p = ')}."
    )


def in_points(row: pd.Series, unit: str = "") -> str:
    """A difference, its unit, and its interval, in points."""
    return f"{POINTS * row['difference']:+.1f}{unit}" + _between(POINTS * row["low"], POINTS * row["high"])


def in_percent(row: pd.Series) -> str:
    """The same in percent of the reference, with a comma before; empty where there is none."""
    if np.isnan(row["difference_percent"]):
        return ""
    return f", {row['difference_percent']:+.1f} %" + _between(row["low_percent"], row["high_percent"])


def _between(low: float, high: float) -> str:
    return "" if np.isnan(low) else f" ({low:+.1f} to {high:+.1f})"


def p_text(p: float, before: str = "") -> str:
    """A p value as it is written, after `before`, whose "= " gives way to "< "; a dash alone where there is none."""
    if np.isnan(p):
        return "" if before else "–"
    return f"{before.replace('= ', '')}< 0.001" if p < 0.001 else f"{before}{p:.3f}"


def compared_table(compared: pd.DataFrame) -> pd.DataFrame:
    """The comparisons as the page shows them: points, percent, intervals and p as text."""
    if compared.empty:
        return compared
    points = compared.apply(in_points, axis=1)
    percent = compared.apply(in_percent, axis=1).str.removeprefix(", ").replace("", "–")
    return pd.DataFrame(
        {
            "delta": compared["delta"],
            "init": compared["init"],
            "against": compared["baseline"],
            "points (95 % interval)": points,
            "percent (95 % interval)": percent,
            "p, Holm": compared["p_holm"].map(p_text),
            "p": compared["p"].map(p_text),
            "better": compared["better"],
            "worse": compared["worse"],
            "tasks": compared["units"],
        }
    )
