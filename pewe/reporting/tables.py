"""From stored results to the paper's table: rows are inits, columns are tasks and their mean. No model is run.

    python -m pewe.reporting.tables --rows Random=checkpoints/adapter/random Loss=checkpoints/adapter/from_Loss --out results/mine

reads `result.tsv` in each folder (written by tune_hps_singletask.py) and writes table.tsv and table.md.
"""

import html
from dataclasses import dataclass
from pathlib import Path

from pewe.command import main

import pandas as pd

from pewe.errors import UserError
from pewe.files import check_out, write_config, write_table, write_text
from pewe.flags import flag
from pewe.scores import check_lines, read_scores


@dataclass(frozen=True)
class TableConfig:
    """Which results become which rows."""

    rows: list[str] = flag([], "NAME=FOLDER, one per row; FOLDER has a result.tsv", unique=True)
    value: str = flag("test", "column of result.tsv to show: test or dev", choices=("test", "dev"))
    out: str = flag("results/table", "folder of table.tsv and table.md")
    title: str = flag("", "heading of table.md")


def init_table(rows: dict[str, Path], value: str = "test") -> pd.DataFrame:
    """Inits down, tasks across, the mean of the tasks last. A task with several runs shows its best by dev score.

    Raises UserError where a result is missing, the rows do not have the same tasks, or the runs not the same lines.
    """
    runs = pd.concat([_runs(name, folder, value) for name, folder in rows.items()], ignore_index=True)
    shown = best_by_dev(runs, ["row", "task"])
    check_lines(runs, "dev", ["task", "sample"])
    check_lines(runs, "train", ["task", "sample", "full_train"])
    if value == "test":
        check_lines(shown, value, ["task"])  # of any prefix: they stand side by side
    frame = shown.pivot(index="task", columns="row", values=value).rename_axis(columns=None)
    frame = frame.loc[shown["task"].unique(), list(rows)]
    incomplete = frame.isna().any(axis=1)
    if incomplete.any():
        task = frame.index[incomplete][0]
        raise UserError(f"task {task!r} has no {value} score for {frame.columns[frame.loc[task].isna()][0]!r}")
    transposed = frame.T
    transposed["mean"] = transposed.mean(axis=1)
    return transposed


def _runs(name: str, folder: Path, value: str) -> pd.DataFrame:
    """The runs of a row."""
    path = folder / "result.tsv"
    table = read_scores(path, ["task"], list(dict.fromkeys(["dev", value])))
    return table.assign(row=name, name=[f"{name} ({folder / run})" for run in table["run"]])


def best_by_dev(table: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """The row with the best dev score of every combination of the keys, in order of appearance; of equals the last.

    A dev score that is not defined (nan) is worse than any other.
    """
    ranked = table.reset_index(drop=True).sort_values("dev", kind="stable", na_position="first")
    return ranked.groupby(keys).tail(1).sort_index()


def markdown(cells: pd.DataFrame, corner: str) -> str:
    """A Markdown table of these cells, under the heading `corner` the row names, numbers to the right."""
    lines = [
        [corner, *cells.columns],
        ["---", *["---:"] * cells.shape[1]],
        *([n, *row] for n, *row in cells.itertuples()),
    ]
    return "".join(f"| {' | '.join(map(escaped, line))} |\n" for line in lines)


def escaped(cell) -> str:
    """A cell's text as Markdown shows it: in one line, without HTML, its bars no borders. What is **bold** stays so."""
    text = html.escape(" ".join(str(cell).split("\n")), quote=False)
    return text.replace("\\", "\\\\").replace("|", "\\|")


def best_in_bold(frame: pd.DataFrame) -> pd.DataFrame:
    """Three decimals, the best of each column in bold."""
    return frame.map("{:.3f}".format).where(frame.ne(frame.max()), frame.map("**{:.3f}**".format))


def run(config: TableConfig) -> None:
    """Read, print and write."""
    if not config.rows or any("=" not in row for row in config.rows):
        raise UserError("--rows needs NAME=FOLDER pairs, e.g. --rows Random=checkpoints/adapter/random")
    rows = {name: Path(folder) for name, folder in (row.split("=", 1) for row in config.rows)}
    if len(rows) < len(config.rows):
        raise UserError("--rows gives two rows the same name")
    out = Path(config.out)
    check_out(out, config)
    frame = init_table(rows, config.value)
    write_table(out / "table.tsv", frame.rename_axis("init").reset_index())
    write_text(
        out / "table.md", (f"{config.title}\n\n" if config.title else "") + markdown(best_in_bold(frame), "init")
    )
    write_config(out, config)
    print(frame.round(3).to_string())


if __name__ == "__main__":
    main(run, TableConfig, __doc__)
