"""What the page shows as pictures, drawn from stored tables."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from pewe.files import write_text
from pewe.reporting import stats
from pewe.reporting.plots import grouped_bars, heat_map, lines, score_bars
from pewe.reporting.stored import BASELINES, SOURCES, Stored, deviation_text, plain_rows, score_table, seed_scores
from pewe.reporting.tables import markdown

SCORES, CURVES, WEIGHTS, SIMILARITIES = "Mean scores", "Learning curves", "Weights", "Similarities"
LEADERS = 3  # rows of the learning curves beside the baselines


@dataclass(frozen=True)
class Picture:
    """A picture of a section; those that are not `first` are folded."""

    section: str
    alternative: str
    path: Path
    first: bool = True


def pictures(stored: Stored, folder: Path) -> Iterator[Picture]:
    """Draw all pictures; scores and learning curves are over all seeds, the heat maps of the first seed."""
    for delta in plain_rows(stored.cells)["delta"].unique():
        yield scores(stored, delta, folder)
    if len(stored.curves):
        for delta, part in plain_rows(stored.curves[stored.curves["init"] != SOURCES]).groupby("delta", sort=False):
            yield curves(part, leaders(stored, delta), folder / f"curves_{delta}.png", delta)
    for section, table, column in (
        (WEIGHTS, stored.weights, "weight"),
        (SIMILARITIES, stored.similarities, "value"),
    ):
        if len(table):
            yield from heat_maps(
                stored, section, plain_rows(table[table["seed"] == table["seed"].min()]), column, folder
            )


def scores(stored: Stored, delta: str, folder: Path) -> Picture:
    """Bars of the mean scores of a kind of delta, in the paper's order, with their deviation over the seeds."""
    cells, path = plain_rows(stored.cells), folder / f"scores_{delta}.png"
    means = score_table(cells, delta)[0]["mean"].dropna()
    rows = means.drop(SOURCES, errors="ignore")
    deviations = score_deviations(cells, delta).reindex(rows.index)
    score_bars(rows, deviations, path, delta, BASELINES, means.get(SOURCES), SOURCES)
    return Picture(
        SCORES, f"{delta}: mean test score of each init over tasks and seeds, ± sample deviation over seeds", path
    )


def score_deviations(cells: pd.DataFrame, delta: str) -> pd.Series:
    """Sample deviation over seeds of the mean score over tasks, by init; nan of one seed."""
    return seed_scores(cells, delta)["mean"].groupby(level="init", sort=False).std(ddof=1)


def leaders(stored: Stored, delta: str) -> list[str]:
    """The baselines, and the rows with the best mean test scores."""
    means = score_table(plain_rows(stored.cells), delta)[0]["mean"].drop([SOURCES, *BASELINES], errors="ignore")
    return [*BASELINES, *means.sort_values(ascending=False, kind="stable").index[:LEADERS]]


def curves(part: pd.DataFrame, chosen: list[str], path: Path, delta: str) -> Picture:
    """Dev score against updates of the chosen rows, mean over tasks and seeds, with a band of one deviation over seeds."""
    part = part[part["init"].isin(chosen)]
    by_seed = part.groupby(["updates", "init", "seed"], sort=False)["dev"].mean().unstack("init", sort=False)
    at = by_seed[[init for init in chosen if init in by_seed]].groupby(level="updates")
    title = f"{delta}: dev score while tuning"
    lines(at.mean(), path, title, "updates", "mean dev score", at.std(ddof=1).fillna(0.0))
    said = "baselines and the best rows, mean over tasks and seeds, band: ± sample deviation over seeds"
    return Picture(CURVES, f"{delta}: dev score against updates, {said}", path)


def heat_maps(stored: Stored, section: str, table: pd.DataFrame, column: str, folder: Path) -> Iterator[Picture]:
    """Targets down and sources across, for every delta and init; first those of the best row of each delta."""
    seed = table["seed"].iloc[0]
    for (delta, init), part in table.groupby(["delta", "init"], sort=False):
        path, higher = folder / f"{section.lower()}_{delta}_{init}.png", True
        frame = part.pivot(index="target", columns="source", values=column)
        frame = frame.loc[part["target"].unique(), part["source"].unique()]
        if section == WEIGHTS:
            what, scale, cut = f"weights from {init}", "weight", (0, 100)
        else:
            higher = higher_is_more_similar(stored, delta, init, seed)
            what, scale = f"similarity by {init}", f"value, {'higher' if higher else 'lower'} is more similar"
            cut = (5, 100) if higher else (0, 95)
        heat_map(frame, path, f"{delta}: {what}, seed {seed}", percentiles=cut, scale=scale, higher=higher)
        shown = init in [name for name in leaders(stored, delta) if name not in BASELINES][:1]
        yield Picture(section, f"{delta}: {what}, targets down, sources across; brighter is more", path, shown)


def higher_is_more_similar(stored: Stored, delta: str, init: str, seed: int) -> bool:
    """The orientation of a stored similarity: that in which its weights, which are a softmax of it, rise."""
    keys = ["delta", "init", "seed", "target", "source"]
    if stored.weights.empty:
        return True
    both = stored.similarities.merge(stored.weights, on=keys)
    both = both[
        (both["delta"] == delta) & (both["init"] == init) & (both["seed"] == seed) & (both["target"] != both["source"])
    ]
    varied = both.groupby("target").filter(lambda part: (part[["value", "weight"]].nunique() > 1).all())
    by_target = [part["value"].corr(part["weight"], "spearman") for _, part in varied.groupby("target")]
    return not pd.Series(by_target, dtype=float).mean() < 0


def own_group_table(stored: Stored, folder: Path) -> pd.DataFrame:
    """Measures down, deltas across: weight on the own group; also drawn."""
    found = stats.own_group(stored.weights[~stored.weights["init"].str.contains("/")])
    found = found[~found["init"].isin(("Average", "Manual"))]
    if found.empty:
        return pd.DataFrame()
    groups = found.groupby(["init", "delta"], sort=False)["own_group"]
    mean, deviation = groups.mean().unstack("delta", sort=False), groups.std(ddof=1).unstack("delta", sort=False)
    chance = found["chance"].mean()
    grouped_bars(mean, deviation, folder / "own_group.png", "weight on the target's own group", chance)
    text = (mean.map("{:.3f}".format) + " ± " + deviation.map(deviation_text)).where(mean.notna(), "")
    text.loc["above chance"] = [f"{(mean[delta] > chance).sum()} of {mean[delta].count()}" for delta in mean]
    note = f"Mean ± sample deviation (divisor n - 1) over at most {found['seed'].nunique()} seeds; chance is {chance:.3f}.\n"
    write_text(folder / "own_group.md", f"{markdown(text, 'weights from')}\n{note}")
    return text
