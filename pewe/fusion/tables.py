"""From the scores of an experiment to its tables and its plot. No model is run."""

import itertools
from pathlib import Path

import pandas as pd

from pewe.files import write_table, write_text
from pewe.reporting import plots
from pewe.reporting.stats import by_task, contrasts
from pewe.reporting.tables import markdown

FILES = ("scores.tsv", "groups.tsv", "table.md", "paired.tsv", "models.png")
KEYS = ["models", "group", "heads", "seed", "method"]
BASELINE = "simple"
SCOPES = {"in_domain": "in domain", "out_of_domain": "out of domain"}


def by_group(scores: pd.DataFrame) -> pd.DataFrame:
    """The mean over the tested domains of each cell: those of its models, the other ones, and all; nan where there are none."""
    part = scores.assign(
        in_=scores["score"].where(scores["in_domain"]), out=scores["score"].where(~scores["in_domain"])
    )
    means = part.groupby(KEYS, sort=False).agg(
        in_domain=("in_", "mean"),
        out_of_domain=("out", "mean"),
        all=("score", lambda values: values.mean(skipna=False)),
    )
    return means.reset_index()


def mean_and_deviation(found: pd.DataFrame, scope: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Mean and standard deviation over seeds, groups down and methods across; the last row is of the mean of all groups."""
    values = found.pivot_table(index=["group", "seed"], columns="method", values=scope, sort=False, dropna=False)
    values = values[list(dict.fromkeys(found["method"]))].dropna(how="all")
    average = values.groupby(level="seed").mean()  # a method that some groups lack has no mean over all of them
    average = average.where(values.notna().groupby(level="seed").all())
    means = values.groupby(level="group", sort=False).mean()
    spreads = values.groupby(level="group", sort=False).std()
    means.loc["mean"], spreads.loc["mean"] = average.mean(), average.std()
    return means, spreads


def text_of(found: pd.DataFrame, scope: str) -> str:
    """The Markdown table of one scope, the best of each group in bold."""
    means, spreads = mean_and_deviation(found, scope)
    cells = means.astype(object)
    for group in means.index:
        for method in means.columns:
            value, spread = means.loc[group, method], spreads.loc[group, method]
            shown = f"**{value:.1f}**" if value == means.loc[group].max() else f"{value:.1f}"
            cells.loc[group, method] = "" if pd.isna(value) else shown + ("" if pd.isna(spread) else f" ± {spread:.1f}")
    return markdown(cells[means.columns[means.notna().any()]], "models")


def significance(found: pd.DataFrame, protocols: dict[str, list[str]]) -> pd.DataFrame:
    """Each method against simple averaging (`stats.contrasts`) in each protocol; Holm is over the methods.

    The units are the groups of models, seeds averaged first, which share models and so are not independent of each other;
    and (`unit` seed) the seeds, the mean of all groups taken first.
    """
    parts = []
    for protocol, groups in protocols.items():
        own = found[found["group"].isin(groups)]
        units = ("group", "seed") if own["seed"].nunique() > 1 else ("group",)
        for (heads, scope), unit in itertools.product(_scopes(own), units):
            chosen = own[own["heads"] == heads].rename(columns={"method": "init", "group": "task"})
            values = chosen.dropna(subset=scope).set_index(["init", "task", "seed"])[scope]
            if unit == "seed":
                values = _by_seed(values)
            others = [method for method in values.index.unique("init") if method != BASELINE]
            if pairs := [(method, BASELINE) for method in others if len(by_task(values, (method, BASELINE)))]:
                named = contrasts(values, pairs).rename(columns={"first": "method", "second": "baseline"})
                parts.append(named.assign(protocol=protocol, heads=heads, scope=scope, unit=unit))
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def _by_seed(values: pd.Series) -> pd.Series:
    """The mean over all groups of the methods that have a score for every group, each seed as if it were a task."""
    groups = values.groupby(level="init").transform(lambda one: one.index.get_level_values("task").nunique())
    whole = values[groups == values.index.get_level_values("task").nunique()]
    means = whole.groupby(level=["init", "seed"], sort=False).mean()
    return means.rename_axis(["init", "task"]).to_frame().assign(seed=0).set_index("seed", append=True).iloc[:, 0]


def _scopes(found: pd.DataFrame) -> list[tuple[str, str]]:
    return [(heads, scope) for heads in dict.fromkeys(found["heads"]) for scope in SCOPES]


def write(scores: pd.DataFrame, protocols: dict[str, list[str]], out: Path) -> str:
    """Write all tables and the plot of an experiment (`pewe.fusion.experiment`); returns the text of table.md.

    Nothing stays of an earlier experiment of this name, its record first, so that no table stands beside those of another.
    """
    found = by_group(scores)
    for name in ("config.json", *FILES):
        (out / name).unlink(missing_ok=True)
    write_table(out / "scores.tsv", scores.round(3))
    write_table(out / "groups.tsv", found.round(3))
    parts = []
    for protocol, groups in protocols.items():
        own = found[found["group"].isin(groups)]
        for heads, scope in _scopes(own):
            chosen = own[own["heads"] == heads]
            if chosen[scope].notna().any():
                parts.append(f"{protocol}, {heads} heads, {SCOPES[scope]}\n\n{text_of(chosen, scope)}")
    compared = significance(found, protocols)
    if len(compared):
        first = ["protocol", "heads", "scope", "unit"]
        numbers = compared.select_dtypes("float").columns
        compared[numbers] = compared[numbers].map(lambda value: float(f"{value:.4g}"))
        write_table(out / "paired.tsv", compared.set_index(first).reset_index())
    text = "\n".join(parts)
    write_text(out / "table.md", text)
    if "incremental" in protocols:
        curve = found[found["group"].isin(protocols["incremental"]) & (found["heads"] == found["heads"].iloc[0])]
        frame = curve.pivot_table(index="models", columns="method", values="all", sort=False)
        frame = frame[[method for method in dict.fromkeys(curve["method"]) if method in frame]].sort_index()
        frame.index = frame.index.astype(str)
        plots.lines(frame, out / "models.png", "all tested domains", "models merged", "score, percent")
    return text
