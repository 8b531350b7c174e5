"""Tables and one self-contained page from the stored results of an experiment; no model is run.

Reads <folder>/{cells,weights,similarities,curves,trace}.tsv and provenance.json, as pewe.grid.run gathers them, and writes

    table.md, table.csv, table.tex, table.txt     test scores: inits down, tasks by group across
    summary.md                                    their means: inits down, deltas across
    trace.md                                      test score and log-likelihood at each point of --trace_test
    comparisons.tsv                               every init against Random and Average, paired over tasks and seeds
    modules.md                                    test score from the weights of each block or layer, and their spread
    own_group.md, own_group.png                   weight on the sources of the target's own group
    pictures/                                     learning curves; heat maps of weights and similarities of the first seed
    report.html                                   all of it on one page

`python -m pewe.reporting.page --folder results/mini` writes them anew.
"""

import base64
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pewe.command import main

import numpy as np
import pandas as pd

from pewe.deltas.kinds import KINDS
from pewe.errors import UserError
from pewe.files import numeric, read_json, read_table, replacing, within, write_table, write_text
from pewe.flags import flag, suggest
from pewe.own_tasks import declare
from pewe.reporting import stats
from pewe.reporting.plots import grouped_bars, heat_map, lines
from pewe.reporting.stats import OUTCOMES
from pewe.reporting.tables import best_in_bold, markdown
from task_list import GROUP_OF, METRICS
from unit_model import ENSEMBLES

SOURCES = "Full data"  # the row of the source deltas themselves
INITS = ("Random", *ENSEMBLES, *(init for kind in KINDS.values() for init in kind.inits))
BASELINES = ("Random", "Average")
COLUMNS = {  # of the tables: names and numbers
    "cells": (["delta", "init", "task", "prefix"], ["seed", "dev", "test", "seconds"]),
    "weights": (["delta", "init", "target", "source"], ["seed", "weight"]),
    "similarities": (["delta", "init", "target", "source"], ["seed", "value"]),
    "curves": (["delta", "init", "task"], ["seed", "updates", "dev"]),
    "trace": (["delta", "init", "task", "prefix", "point"], ["seed", "dev", "updates", *OUTCOMES]),
}
PAPER = "The paper reports improvements of 5 to 8 % over its baselines."


@dataclass
class Stored:
    """What an experiment left in its folder."""

    folder: Path
    cells: pd.DataFrame
    weights: pd.DataFrame
    similarities: pd.DataFrame
    curves: pd.DataFrame
    trace: pd.DataFrame
    about: dict


def read_stored(folder: Path) -> Stored:
    """The tables of a folder. Raises UserError where the cells are missing."""
    if not (folder / "cells.tsv").is_file():
        raise UserError(f"there is no {folder / 'cells.tsv'}; make it with scripts/reproduce.sh")
    declare(folder)
    tables = (_in_order(folder / f"{name}.tsv", *columns) for name, columns in COLUMNS.items())
    return Stored(folder, *tables, read_json(folder / "provenance.json") or {})


def _in_order(path: Path, names: list[str], numbers: list[str]) -> pd.DataFrame:
    """A table with its rows in the order of the paper's inits; empty where there is none.

    Raises UserError for a table without rows or with a column missing, a cell that is no number, or an unknown init or task.
    """
    if not path.is_file():
        return pd.DataFrame()
    table, order = read_table(path, [*names, *numbers]), (*INITS, SOURCES)
    if table.empty:
        raise UserError(f"{path} has no rows")
    checked = {column: numeric(table, column, path) for column in numbers}
    table = table.assign(**{column: values for column, values in checked.items() if column != "seed"})
    known = {"init": order, **dict.fromkeys(("task", "target", "source"), METRICS)}
    for column in known.keys() & set(table):
        for line, name in enumerate(table[column].fillna(""), start=2):
            if (name.split("/")[0] if column == "init" else name) not in known[column]:
                raise UserError(f"{path}, line {line}: {column} cannot be {suggest(name, known[column])}")
    return table.sort_values("init", key=lambda names: names.str.split("/").str[0].map(order.index), kind="stable")


def score_table(cells: pd.DataFrame, delta: str) -> tuple[pd.DataFrame, pd.Series]:
    """Mean over seeds of the test score, inits down, the mean and the tasks by group across; and by init "deviation (seeds)"."""
    scored = stats.scores(cells[cells["delta"] == delta])
    tasks = [task for task in METRICS if task in set(scored["task"])]
    frame = scored.pivot_table(index=["init", "seed"], columns="task", values="test", sort=False)[tasks]
    frame.insert(0, "mean", frame.mean(axis=1, skipna=False))
    groups, inits = frame.groupby(level="init"), cells["init"].unique()
    spread = groups["mean"].agg(lambda scores: f"{scores.std(ddof=0):.3f} ({len(scores)})")
    return groups.mean().reindex(inits).dropna(how="all"), spread.reindex(inits)


def tables(stored: Stored) -> None:
    """The score table as Markdown, CSV, LaTeX and text, one block per delta."""
    blocks, long, latex, text, summary = [], [], [], [], {}
    for delta in stored.cells["delta"].unique():
        mean, spread = score_table(plain_rows(stored.cells), delta)
        ours = mean.drop(index=SOURCES, errors="ignore")
        shown = pd.concat([best_in_bold(ours), mean.loc[mean.index.difference(ours.index)].map("{:.3f}".format)])
        summary[delta] = shown["mean"] + " ± " + spread
        shown.insert(1, "± (seeds)", spread)
        blocks.append(f"### {delta}\n\n{markdown(shown, 'init')}")
        long.append(mean.assign(delta=delta, deviation=spread))
        heads = pd.MultiIndex.from_tuples([(GROUP_OF.get(task, ""), task) for task in mean.columns])
        table = mean.set_axis(heads, axis=1).map("{:.3f}".format)
        latex.append(
            table.to_latex(caption=f"Test scores, {delta}".replace("_", r"\_"), multicolumn_format="c", escape=True)
        )
        text.append(f"{delta}\n{mean.round(3).to_string()}\n")
    write_text(stored.folder / "table.md", "\n".join(blocks))
    write_text(stored.folder / "summary.md", markdown(pd.DataFrame(summary).fillna(""), "init"))
    with replacing(stored.folder / "table.csv") as temporary:
        pd.concat(long).rename_axis("init").reset_index().to_csv(temporary, index=False)
    write_text(stored.folder / "table.tex", "\n".join(latex))
    write_text(stored.folder / "table.txt", "\n".join(text))


def trace_table(stored: Stored) -> str:
    """Mean over tasks and seeds of every outcome at every point (--trace_test), inits down; a block for each delta."""
    blocks = []
    for delta, part in stored.trace[stored.trace["init"] != SOURCES].groupby("delta", sort=False):
        points = [stats.outcome(part, what, point) for point in part["point"].unique() for what in OUTCOMES]
        frame = pd.DataFrame({one.name: one.groupby("init", sort=False).mean() for one in points})
        blocks.append(f"### {delta}\n\n{markdown(best_in_bold(frame), 'init')}")
    return "\n".join(blocks)


def plain_rows(cells: pd.DataFrame) -> pd.DataFrame:
    """The cells of the main table: without the rows by block or layer."""
    return cells[~cells["init"].str.contains("/")]


def module_table(stored: Stored) -> pd.DataFrame:
    """Mean test score from the weights of each block or layer, and the spread of these weights."""
    scoped = stored.cells[stored.cells["init"].str.contains("/")]
    if scoped.empty:
        return pd.DataFrame()
    mean = stats.scores(scoped).groupby(["delta", "init"], sort=False)["test"].mean().reset_index()
    return mean.merge(stats.importance(stored.weights), on=["delta", "init"])


def comparisons(stored: Stored) -> pd.DataFrame:
    """Paired comparison of the rows with each baseline; PEMT, which has no other start, with the baselines of the adapter."""
    scored = stats.scores(plain_rows(stored.cells[stored.cells["init"] != SOURCES]))
    if "pemt" in set(scored["delta"]):
        borrowed = scored[(scored["delta"] == "adapter") & scored["init"].isin(BASELINES)]
        scored = pd.concat([scored, borrowed.assign(delta="pemt")], ignore_index=True)
    parts = [found for baseline in BASELINES if len(found := stats.paired(scored, baseline))]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def headline(table: pd.DataFrame) -> list[str]:
    """The paper's claim and what this experiment shows, in plain words, for every delta and baseline."""
    said = []
    for (delta, baseline), part in table.groupby(["delta", "baseline"], sort=False):
        others = part[~part["init"].isin(BASELINES)].dropna(subset="improvement_percent")
        if others.empty:
            continue
        best = others.loc[others["improvement_percent"].idxmax()]
        helps = int((others["improvement_percent"] > 0).sum())
        sure = "" if np.isnan(best["wilcoxon_p"]) else f", Wilcoxon p = {best['wilcoxon_p']:.2g}"
        said.append(
            f"{delta}: {helps} of {len(others)} ensembles end above {baseline} on average; the best, {best['init']}, by "
            f"{best['improvement_percent']:+.1f} % ({best['difference']:+.3f} points{sure}, {best['pairs']} task-seed pairs)."
        )
    return said


def own_group_table(stored: Stored, folder: Path) -> pd.DataFrame:
    """Measures down, deltas across: weight on the own group; also drawn."""
    found = stats.own_group(stored.weights[~stored.weights["init"].str.contains("/")])
    found = found[~found["init"].isin(("Average", "Manual"))]
    if found.empty:
        return pd.DataFrame()
    groups = found.groupby(["init", "delta"], sort=False)["own_group"]
    mean, deviation = groups.mean().unstack("delta", sort=False), groups.std(ddof=0).unstack("delta", sort=False)
    chance = found["chance"].mean()
    grouped_bars(mean, deviation, folder / "own_group.png", "weight on the target's own group", chance)
    text = (mean.map("{:.3f}".format) + " ± " + deviation.map("{:.3f}".format)).where(mean.notna(), "")
    text.loc["above chance"] = [f"{(mean[delta] > chance).sum()} of {mean[delta].count()}" for delta in mean]
    note = f"Mean ± standard deviation over at most {found['seed'].nunique()} seeds; chance is {chance:.3f}.\n"
    write_text(folder / "own_group.md", f"{markdown(text, 'weights from')}\n{note}")
    return text


def pictures(stored: Stored, folder: Path) -> Iterator[tuple[str, str, Path]]:
    """(section, text alternative, file) of every picture of the first seed; learning curves are over all seeds."""
    if len(stored.curves):
        for delta, part in plain_rows(stored.curves[stored.curves["init"] != SOURCES]).groupby("delta", sort=False):
            path = folder / f"curves_{delta}.png"
            frame = part.pivot_table(index="updates", columns="init", values="dev", sort=False).sort_index()
            lines(frame, path, f"{delta}: dev score by updates", "updates", "mean dev score")
            yield (
                "Learning curves",
                f"{delta}: dev score against updates, one line per init, mean over tasks and seeds",
                path,
            )
    for section, table, column in (
        ("Weights", stored.weights, "weight"),
        ("Similarities", stored.similarities, "value"),
    ):
        if table.empty:
            continue
        first = plain_rows(table[table["seed"] == table["seed"].min()])
        for (delta, init), part in first.groupby(["delta", "init"], sort=False):
            path = folder / f"{section.lower()}_{delta}_{init}.png"
            frame = part.pivot(index="target", columns="source", values=column)
            frame = frame.loc[part["target"].unique(), part["source"].unique()]
            heat_map(frame, path, f"{delta}, {init}", percentiles=(0, 100 if section == "Weights" else 95))
            yield section, f"{section.lower()} of {delta} deltas, {init}: targets down, sources across", path


def by_group(tasks: list[str], group_of: dict[str, str]) -> list[tuple[str, list[str]]]:
    """Neighbouring tasks of one group together."""
    return [(group, list(members)) for group, members in itertools.groupby(tasks, lambda task: group_of.get(task, ""))]


def about_weights(stored: Stored, folder: Path) -> dict[str, pd.DataFrame]:
    """The tables of the page that are made from the weights; empty where no row has weights."""
    if stored.weights.empty:
        return dict.fromkeys(("own_group", "correlations", "effective"), pd.DataFrame())
    return {
        "own_group": own_group_table(stored, folder),
        "correlations": stats.rank_correlations(stored.weights),
        "effective": stats.effective(stored.weights),
    }


def write(folder: Path) -> None:
    """All tables, pictures and the page."""
    stored = read_stored(folder)
    tables(stored)
    compared, modules = comparisons(stored), module_table(stored)
    write_table(folder / "comparisons.tsv", compared)
    if len(stored.trace):
        write_text(folder / "trace.md", trace_table(stored))
    if len(modules):
        write_text(folder / "modules.md", markdown(modules.set_index("delta").round(3), "delta"))
    main_table = {delta: score_table(plain_rows(stored.cells), delta) for delta in stored.cells["delta"].unique()}
    shown = [
        (section, alternative, base64.b64encode(path.read_bytes()).decode())
        for section, alternative, path in pictures(stored, folder / "pictures")
    ]
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("pewe.reporting", "."), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["groupby_group"] = by_group
    page = environment.get_template("page.html.jinja").render(
        title=within(stored.about, "title", kind=str) or folder.name,
        paper=PAPER,
        headline=headline(compared) if len(compared) else [],
        tables=main_table,
        group_of=GROUP_OF,
        metric_of=METRICS,
        comparisons=compared,
        modules=modules,
        sources=SOURCES,
        pictures=shown,
        about=stored.about,
        **about_weights(stored, folder),
        seeds=sorted(stored.cells["seed"].unique()),
        hours=stored.cells["seconds"].sum() / 3600,
    )
    write_text(folder / "report.html", page)


@dataclass(frozen=True)
class Config:
    """Which results."""

    folder: str = flag("results/mini", "folder with cells.tsv, weights.tsv, ...")


if __name__ == "__main__":
    main(lambda config: write(Path(config.folder)), Config, __doc__)
