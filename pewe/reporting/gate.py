"""Which sources have anything to give: each against the constant answer and a few-shot run from random init, on its own task.

    python -m pewe.reporting.gate --folder results/real --task_dir data/crossfit_seeds

reads cells.tsv and the data and writes gate.tsv and gate.md. No model is run.
"""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from pewe.command import main

import pandas as pd

from pewe import metrics
from pewe.data import find_prefixes, lines_digest, read_examples, split_path
from pewe.errors import UserError
from pewe.files import write_table, write_text
from pewe.flags import flag
from pewe.own_tasks import declare
from pewe.reporting import stats
from pewe.reporting.stored import SOURCES, read_stored
from pewe.reporting.tables import markdown
from task_list import METRICS

BASELINE = "Random"


@dataclass(frozen=True)
class Config:
    """Which results, and the data that they are of."""

    folder: str = flag("results/real", "folder with cells.tsv")
    task_dir: str = flag("data/crossfit_seeds", "folder with one sub-folder per task, in CrossFit format")


def constant_answer(task_dir: Path, task: str, prefix: str) -> tuple[str, float]:
    """The most frequent first answer of the full training file (of equals the first), and its score on the test lines."""
    train, test = (
        read_examples(split_path(task_dir, task, prefix, split, full_train=True)) for split in ("train", "test")
    )
    ((answer, _),) = Counter(example.outputs[0] for example in train).most_common(1)
    value, _ = metrics.score(METRICS[task], [answer] * len(test), [example.outputs for example in test])
    return answer, value


def check_data(cells: pd.DataFrame, task_dir: Path, task: str, prefix: str) -> None:
    """Raises UserError for a file with other lines than the runs had: the test lines, and of the sources the training lines.

    Cells that do not say so, as those of earlier versions, are taken as they are.
    """
    own = cells[(cells["task"] == task) & (cells["prefix"] == prefix)]
    for split, runs in (("train", own[own["init"] == SOURCES]), ("test", own)):
        path = split_path(task_dir, task, prefix, split, full_train=True)
        told = set(runs.get(f"{split}_lines", pd.Series(dtype=str)).dropna())
        if told and lines_digest(read_examples(path)) not in told:
            raise UserError(
                f"{path} does not have the {split} lines of the runs that the cells are of; name their data"
            )


def gate(cells: pd.DataFrame, task_dir: Path) -> pd.DataFrame:
    """A row per delta and task: scores of the constant answer, of few-shot runs and of the sources, and whether these are best.

    Few-shot runs and sources are means over the seeds that have both, the constant answer over the test files of their prefixes.
    """
    if missing := {BASELINE, SOURCES} - set(cells["init"]):
        raise UserError(f"cells.tsv has no row {min(missing)!r}, which the gate needs")
    cells = cells[cells["init"].isin([BASELINE, SOURCES])]
    scored = (
        stats.scores(cells).set_index(["delta", "task", "seed", "init"])["test"].unstack("init", sort=False).dropna()
    )
    rows = []
    for (delta, task), own in scored.groupby(["delta", "task"], sort=False):
        row, seeds = own.mean(), own.index.get_level_values("seed")
        runs = cells[(cells["delta"] == delta) & (cells["task"] == task) & cells["seed"].isin(seeds)]
        prefixes = sorted(set(runs["prefix"]))
        known = find_prefixes(task_dir, task)
        if unknown := [prefix for prefix in prefixes if prefix not in known]:
            raise UserError(f"{task_dir / task} has no {unknown[0]}_train.tsv, which the cells are of")
        for prefix in prefixes:
            check_data(cells, task_dir, task, prefix)
        found = [constant_answer(task_dir, task, prefix) for prefix in prefixes]
        constant = sum(value for _, value in found) / len(found)
        rows.append(
            {
                "delta": delta,
                "task": task,
                "metric": METRICS[task],
                "constant answer": found[0][0],
                "constant": constant,
                "few-shot": row[BASELINE],
                "source": row[SOURCES],
                "passes": row[SOURCES] > max(constant, row[BASELINE]),
            }
        )
    return pd.DataFrame(rows)


def run(config: Config) -> None:
    """Read, write, print."""
    folder = Path(config.folder)
    declare(config.task_dir)
    table = gate(read_stored(folder).cells, Path(config.task_dir))
    write_table(folder / "gate.tsv", table)
    shown = table.assign(passes=table["passes"].map({True: "yes", False: "no"})).round(3)
    write_text(folder / "gate.md", markdown(shown.set_index("task"), "task"))
    print(shown.to_string(index=False))
    print(f"{int(table['passes'].sum())} of {len(table)} sources pass")


if __name__ == "__main__":
    main(run, Config, __doc__)
