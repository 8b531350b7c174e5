"""Tables and one self-contained page from the stored results of an experiment; no model is run.

Reads <folder>/{cells,weights,similarities,curves,trace}.tsv and provenance.json, as pewe.grid.run gathers them, and writes

    table.md, table.csv, table.tex, table.txt     test scores: inits down, tasks by group across
    summary.md                                    their means: inits down, deltas across
    trace.md                                      test score and log-likelihood at each point of --trace_test
    comparisons.tsv                               every init against Random, Average, Best_source, TextEmb, Manual
    costs.md                                      lines, updates and seconds of each row
    modules.md                                    test score from the weights of each block or layer, and their spread
    own_group.md, own_group.png                   weight on the sources of the target's own group
    pictures/                                     learning curves; heat maps of weights and similarities of the first seed
    report.html                                   all of it on one page

`python -m pewe.reporting.page --folder results/mini` writes them anew.
"""

import base64
import itertools
from dataclasses import dataclass
from pathlib import Path

from pewe.command import main

import pandas as pd

from pewe.files import replacing, within, write_table, write_text
from pewe.flags import flag
from pewe.reporting import stats
from pewe.reporting.compared import compared_table, comparisons, headline
from pewe.reporting.costs import cost_table
from pewe.reporting.pictures import SCORES, Picture, own_group_table, pictures
from pewe.reporting.stats import OUTCOMES
from pewe.reporting.stored import BASELINES, SOURCES, Stored, plain_rows, read_stored, score_table, varied
from pewe.reporting.tables import best_in_bold, markdown
from task_list import GROUP_OF, METRICS

COSTS = (
    "Mean over seeds of one pass over all targets: lines through the backbone (a line counts once for each delta that sees it), "
    "updates of a delta or of weights, seconds. init: all that the row's init is made from (similarity, statistics, other "
    "runs; what rows share counts in each), without the sources, whose own tuning is the row Full data; tuning: from that init."
)
PAPER = "The paper reports improvements of 5 to 8 % over its baselines."


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
    note = f"\n± is the sample deviation (divisor n - 1) of the mean over the seeds, whose number follows. {varied(stored.cells)}\n"
    write_text(stored.folder / "table.md", "\n".join(blocks) + note)
    means = pd.DataFrame(summary).reindex(plain_rows(stored.cells)["init"].unique()).dropna(how="all")
    write_text(stored.folder / "summary.md", markdown(means.fillna(""), "init") + note)
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


def module_table(stored: Stored) -> pd.DataFrame:
    """Mean test score from the weights of each block or layer, and the spread of these weights."""
    scoped = stored.cells[stored.cells["init"].str.contains("/")]
    if scoped.empty:
        return pd.DataFrame()
    mean = stats.scores(scoped).groupby(["delta", "init"], sort=False)["test"].mean().reset_index()
    return mean.merge(stats.importance(stored.weights), on=["delta", "init"])


def without_nan(frame: pd.DataFrame) -> pd.DataFrame:
    """A table without the rows and columns that have no number at all."""
    return frame.dropna(how="all").dropna(how="all", axis=1)


def by_group(tasks: list[str], group_of: dict[str, str]) -> list[tuple[str, list[str]]]:
    """Neighbouring tasks of one group together."""
    return [(group, list(members)) for group, members in itertools.groupby(tasks, lambda task: group_of.get(task, ""))]


def about_weights(stored: Stored, folder: Path) -> dict[str, pd.DataFrame]:
    """The tables of the page that are made from the weights; empty where no row has weights."""
    if stored.weights.empty:
        return dict.fromkeys(("own_group", "correlations", "effective"), pd.DataFrame())
    return {
        "own_group": own_group_table(stored, folder),
        "correlations": without_nan(stats.rank_correlations(plain_rows(stored.weights))),
        "effective": stats.effective(stored.weights),
    }


def write(folder: Path) -> None:
    """All tables, pictures and the page."""
    stored = read_stored(folder)
    tables(stored)
    compared, modules, costs = comparisons(stored), module_table(stored), cost_table(stored)
    write_table(folder / "comparisons.tsv", compared)
    found = {
        "trace.md": trace_table(stored) if len(stored.trace) else "",
        "costs.md": f"{markdown(costs, 'init')}\n{COSTS}\n" if len(costs) else "",
        "modules.md": markdown(modules.set_index("delta").round(3), "delta") if len(modules) else "",
    }
    for name in ("own_group.md", *found):
        (folder / name).unlink(missing_ok=True)  # of other rows
        if found.get(name):
            write_text(folder / name, found[name])
    main_table = {delta: score_table(plain_rows(stored.cells), delta) for delta in stored.cells["delta"].unique()}
    shown = list(pictures(stored, folder / "pictures"))
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("pewe.reporting", "."), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"groupby_group": by_group, "encoded": encoded}
    page = environment.get_template("page.html.jinja").render(
        title=within(stored.about, "title", kind=str) or folder.name,
        paper=PAPER,
        headline=headline(compared) if len(compared) else [],
        tables=main_table,
        group_of=GROUP_OF,
        metric_of=METRICS,
        comparisons=compared_table(compared),
        modules=modules,
        costs=costs,
        about_costs=COSTS,
        sources=SOURCES,
        pictures=shown,
        scores=SCORES,
        baselines=BASELINES,
        varied=varied(stored.cells),
        about=stored.about,
        **about_weights(stored, folder),
        seeds=sorted(stored.cells["seed"].unique()),
        hours=stored.cells["seconds"].sum() / 3600,
    )
    write_text(folder / "report.html", page)


def encoded(picture: Picture) -> str:
    """A picture as text, which the page holds."""
    return base64.b64encode(picture.path.read_bytes()).decode()


@dataclass(frozen=True)
class Config:
    """Which results."""

    folder: str = flag("results/mini", "folder with cells.tsv, weights.tsv, ...")


if __name__ == "__main__":
    main(lambda config: write(Path(config.folder)), Config, __doc__)
