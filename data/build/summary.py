"""The table and the picture of a folder of built tasks, and the report of sources and licences."""

from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from data.build.entry import Entry
from data.build.task import read_built
from pewe.files import replacing, write_table
from pewe.reporting.plots import drawing
from pewe.reporting.tables import escaped
from task_list import GROUP_OF, pemt_task_list, quan_task

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def records(out: Path) -> dict[str, dict]:
    """The records of the built tasks, in the order of task_list.py."""
    found = {task: read_built(out / task) for task in (*quan_task, *pemt_task_list)}
    return {task: record for task, record in found.items() if record}


def row(task: str, record: dict) -> dict:
    """One line of the table: the first seed's files, what was left out, and the balance of the labels."""
    splits = {split: _first_file(task, record, split) for split in ("train", "dev", "test")}
    full = record["files"].get(f"{task}_full_train.tsv", {})
    labels = _test_labels(task, record)
    total = sum(labels.values())
    return {
        "task": task,
        "group": GROUP_OF[task],
        "kind": record["kind"],
        "metric": record["metric"],
        "seeds": len(record["settings"]["seeds"]),
        **{split: about["lines"] for split, about in splits.items()},
        "full_train": full.get("lines", 0),
        "input_words": splits["test"]["input_words"],
        "output_words": splits["test"]["output_words"],
        "no_answer": record["counts"]["no_answer"],
        "empty": record["counts"]["empty"],
        "repeated": record["counts"]["repeated"],
        "across_splits": record["counts"]["across"],
        "test_labels": ", ".join(f"{label} {100 * count / total:.0f}%" for label, count in labels.items()),
    }


def _first_file(task: str, record: dict, split: str) -> dict:
    settings = record["settings"]
    return record["files"][f"{task}_{settings['shots']}_{settings['seeds'][0]}_{split}.tsv"]


def _test_labels(task: str, record: dict) -> dict[str, int]:
    return _first_file(task, record, "test")["labels"] if record["kind"] == "classification" else {}


def write(out: Path) -> pd.DataFrame | None:
    """Write summary.tsv and overview.png; returns the table, or None where nothing is built."""
    built = records(out)
    if not built:
        return None
    table = pd.DataFrame([row(task, record) for task, record in built.items()])
    write_table(out / "summary.tsv", table)
    overview(table, built, out / "overview.png")
    return table


def as_text(table: pd.DataFrame) -> str:
    """The table for a terminal."""
    return table.drop(columns=["group", "metric"]).to_string(index=False)


def overview(table: pd.DataFrame, built: dict[str, dict], path: Path) -> None:
    """Draw a line for each task: its sizes, the mean length of a test input and output, and the labels of the test set."""
    plt, _ = drawing()
    figure, (sizes, lengths, balance) = plt.subplots(
        1, 3, sharey=True, figsize=(13, 1.8 + 0.24 * len(table)), layout="constrained"
    )
    _points(sizes, table, {"train": "|", "test": "o", "full_train": "s"}, "lines")
    _points(lengths, table, {"input_words": "o", "output_words": "x"}, "mean words of a test line")
    for place, task in enumerate(table["task"]):
        if built[task]["kind"] == "classification":
            _label_bar(balance, place, _test_labels(task, built[task]))
    balance.set(xlim=(0, 1), xlabel="share of each label in test (classification)")
    sizes.set_yticks(range(len(table)), table["task"], fontsize=8)
    sizes.set_ylim(len(table) - 0.4, -0.6)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
    plt.close(figure)


def _points(axes: "Axes", table: pd.DataFrame, markers: dict[str, str], label: str) -> None:
    for column, marker in markers.items():
        shown = table[column].where(table[column] > 0)
        axes.plot(shown, range(len(table)), marker, label=column.replace("_", " "), markersize=5)
    axes.set(xscale="log", xlabel=label)
    axes.xaxis.set_minor_formatter(drawing()[0].NullFormatter())
    axes.grid(alpha=0.3)
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=len(markers), fontsize=7, frameon=False)


def _label_bar(axes: "Axes", place: int, labels: dict[str, int]) -> None:
    left, total = 0.0, sum(labels.values())
    for number, (label, count) in enumerate(labels.items()):
        axes.barh(place, count / total, left=left, height=0.8, color=drawing()[0].cm.Pastel1(number))
        room = int(60 * count / total)
        axes.text(left + count / total / 2, place, label[:room], fontsize=6, ha="center", va="center")
        left += count / total


def report(entries: list[Entry]) -> str:
    """Source, licence and notes of each task, as a Markdown table."""
    commercial = {True: "yes", False: "no", None: "not stated"}
    lines = [
        "| task | kind | metric | source on the hub | splits | licence | non-commercial | note |",
        "|---" * 8 + "|",
    ]
    for entry in entries:
        source = f"{entry.hub} {entry.config}".strip() or "none known"
        splits = ", ".join(entry.splits()) if entry.test else f"{entry.train}, dealt 80/20"
        note = "; ".join(filter(None, ["Parquet conversion of a script" if entry.scripted else "", entry.note]))
        cells = (
            entry.task,
            entry.kind,
            entry.metric,
            source,
            splits,
            entry.licence,
            commercial[entry.non_commercial],
            note,
        )
        lines.append("| " + " | ".join(map(escaped, cells)) + " |")
    return "\n".join(lines)
