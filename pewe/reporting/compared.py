"""Every row of an experiment against the references of its run, with tasks as units; and in words."""

from collections.abc import Iterator

import numpy as np
import pandas as pd

from pewe.reporting import stats
from pewe.reporting.stored import BASELINES, REFERENCES, SOURCES, Stored, plain_rows

LEVEL = 0.05  # of Holm's method over the rows against one reference
POINTS = 100  # a test score of 1 is 100 points


def comparisons(stored: Stored) -> pd.DataFrame:
    """`stats.contrasts` of all rows with each reference that the run has (Random, Average, Best_source, Manual), by delta.

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
    """What this experiment shows, in plain words, for every delta and reference."""
    said = []
    for (delta, baseline), part in table.groupby(["delta", "baseline"], sort=False):
        others = part[~part["init"].isin(BASELINES)]
        if others.empty:
            continue
        best, sure = others.loc[others["difference"].idxmax()], others["p_holm"] < LEVEL
        above, below = others["difference"] > 0, others["difference"] < 0
        said.append(
            f"{delta}: {int(above.sum())} of {len(others)} rows end above {baseline} over {best['units']} tasks, "
            f"{int((above & sure).sum())} of them shown (p below {LEVEL:g} by Holm's method over the rows), "
            f"{int((below & sure).sum())} shown to end below; the highest, {best['init']}, by {in_points(best, ' points')}"
            f"{in_percent(best)}{p_text(best['p_holm'], ', p = ')}."
        )
    return said


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
