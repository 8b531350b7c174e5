"""Every row that the registry knows, in one reduced grid: its cells, weights and cost, and what is made again."""

from collections.abc import Iterator

import pandas as pd
import pytest
import torch
from conftest import write_tiny_data
from test_steps import SUITE, World, calls, without_pictures  # noqa: F401, a fixture among them

from pewe.deltas.checkpoint import ensemble_checkpoint, read_checkpoint, task_checkpoint
from pewe.files import read_record
from pewe.grid import run as reproduce
from pewe.grid.config import Config
from pewe.grid.experiment import resolve
from pewe.grid.step import STAMP
from pewe.grid.suite import Suite
from pewe.merging.rules import RULES
from pewe.reporting.page import write as report
from pewe.reporting.stored import INIT, INITS, SOURCES, TUNING
from task_list import GROUPS
from unit_model import ENSEMBLES, MODULES, listed, of_group

# three groups of at least two: more sources for a target than the largest effective number of a row
TASKS = [task for group in ("mini_reading", "mini_choice", "mini_yesno") for task in GROUPS[group]][:8]
FREE = ("LoraHub",)  # rows whose weights need not sum to 1
SEED = 1


def rows_of(delta: str) -> list[str]:
    """The rows of a kind of delta, and the weights of Loss with every other rule."""
    (grid,) = resolve(Config(suite="steps.toml", delta=[delta], seeds=[SEED])).todo
    return [row for row in (*INITS, *(f"Loss+{rule}" for rule in RULES)) if grid.has(row)]


@pytest.fixture(scope="module")
def everything(tiny_backbone, tmp_path_factory) -> Iterator[World]:
    """A grid of all rows of LoRA, which has the most."""
    folder = tmp_path_factory.mktemp("rows")
    data = write_tiny_data(folder / "data", {task: task for task in TASKS})
    text = SUITE.format(model=tiny_backbone, data=data)
    (folder / "steps.toml").write_text(text.replace("stack = 2", f"stack = {len(TASKS)}"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        without_pictures(patch)
        patch.setattr(Suite, "tasks", lambda self: TASKS)
        world = World(folder)
        world.base = folder / f"checkpoints/steps_iters2/lora/seed_{SEED}"
        world.results = folder / "results/steps_iters2"
        run(rows_of("lora"))
        yield world


def run(rows: list[str]) -> None:
    reproduce.run(Config(suite="steps.toml", delta=["lora"], seeds=[SEED], init=rows, limit_train_iters=2))


def table(world: World, name: str) -> pd.DataFrame:
    return pd.read_csv(world.results / f"{name}.tsv", sep="\t")


@pytest.mark.slow
def test_every_row_has_a_cell_for_every_task(everything):
    cells, rows = table(everything, "cells"), rows_of("lora")
    assert {"Random", *ENSEMBLES} <= set(rows)
    assert {listed(row) for row in cells["init"]} == {*map(listed, rows), SOURCES}
    assert {row.split("/")[0] for row in cells["init"]} == {*rows, SOURCES}
    for row, part in cells.groupby("init"):
        assert sorted(part["task"]) == sorted(TASKS) and (part["seed"] == SEED).all(), row
        assert part[["dev", "test"]].notna().all(axis=None) and (part["updates"] == 2).all(), row


@pytest.mark.slow
def test_no_target_has_its_own_source_in_any_row(everything):
    weights = table(everything, "weights")
    assert {row.split("/")[0] for row in weights["init"]} == set(rows_of("lora")) - {"Random"}
    own = weights["target"] == weights["source"]
    assert own.sum() == len(TASKS) * weights["init"].nunique() and (weights.loc[own, "weight"] == 0).all()
    sums = weights[~weights["init"].map(listed).isin(FREE)].groupby(["init", "target"])["weight"].sum()
    assert ((sums - 1).abs() < 1e-4).all()
    by_layer = sorted(everything.base.glob("weights/*/layer_weight.tsv"))
    assert {path.parent.name for path in by_layer} == {"Arrow", "Gradient_layer"}
    for path in by_layer:
        found = pd.read_csv(path, sep="\t")
        assert (found.loc[found["target"] == found["source"], "weight"] == 0).all()
        assert ((found.groupby(["target", "layer"])["weight"].sum() - 1).abs() < 1e-4).all()


@pytest.mark.slow
def test_a_start_is_the_weighted_sum_of_the_other_sources(everything):
    """Of every row whose weights say all of it, from the files: for the first target and the last."""
    others = ("Performance", "Fisher", "RegMean", "TaskArithmetic", "Union", "Arrow", "Gradient_layer")
    rows = [row for row in rows_of("lora") if listed(row) == row and row not in ("Random", *others)]
    states = {task: read_checkpoint(task_checkpoint(everything.base / "sources", task), "lora") for task in TASKS}
    for row in [row for row in rows if (everything.base / "weights" / row / "final_weight.tsv").is_file()]:
        folder = everything.base / "weights" / row
        weights = pd.read_csv(folder / "final_weight.tsv", sep="\t").set_index(["target", "source"])["weight"]
        for target in (TASKS[0], TASKS[-1]):
            merged = read_checkpoint(ensemble_checkpoint(folder, target), "lora")
            for name, tensor in merged.items():
                expected = sum(weights[target, task] * states[task][name] for task in TASKS if task != target)
                assert torch.allclose(tensor, expected, atol=1e-5), (row, target, name)


@pytest.mark.slow
def test_every_row_has_a_cost(everything):
    """Of its tuning the same lines and updates, of the start what its kind must have."""
    found = table(everything, "costs").set_index(["init", "part"])[["lines", "updates", "seconds"]]
    tuning, init = (found.xs(part, level="part") for part in (TUNING, INIT))
    assert set(tuning.index) == {*rows_of("lora"), SOURCES} and set(init.index) == set(rows_of("lora"))
    assert (tuning > 0).all(axis=None) and (init.drop("Random")["seconds"] > 0).all()
    plain = [row for row in rows_of("lora") if listed(row) == row and row not in of_group(MODULES)]
    assert (tuning.loc[plain, "updates"] == 2 * len(TASKS)).all() and tuning.loc[plain, "lines"].nunique() == 1
    assert init.loc["Union", "updates"] == 2 * len(TASKS) and init.loc["Union", "lines"] == 2 * 4 * len(TASKS)
    assert init.loc["Gradient", "updates"] == init.loc["Gradient_layer", "updates"] == 50 * len(TASKS)
    read = [row for row in rows_of("lora") if row not in ("Random", "Average", "Manual", "Length")]
    assert (init.loc[read, "lines"] > 0).all()
    assert (init.loc[["Average", "Manual", "Length"], ["lines", "updates"]] == 0).all(axis=None)


@pytest.mark.slow
def test_the_tables_of_the_report_have_every_row(everything):
    report(everything.results)
    for name, left_out in {"table": of_group(MODULES), "summary": of_group(MODULES), "costs": []}.items():
        shown = (everything.results / f"{name}.md").read_text()
        assert [row for row in rows_of("lora") if f"| {row} |" not in shown] == left_out, name
    page = (everything.results / "report.html").read_text()
    assert "end above Best_source, a copy" in page and "end above TextEmb, sources found" in page


def made(world: World) -> dict[tuple[str, str], str]:
    """Step and file -> fingerprint of every delta and weight that the steps have made."""
    stamps = {path.parent: read_record(path)["files"] for path in world.base.rglob(STAMP)}
    kept = [(str(folder), name, saved[0]) for folder, files in stamps.items() for name, saved in files.items()]
    return {(folder, name): saved for folder, name, saved in kept if name.endswith((".pt", "weight.tsv"))}


@pytest.mark.slow
def test_a_second_call_makes_nothing_and_a_flag_of_one_row_makes_that_row_alone(everything, calls):  # noqa: F811
    before = made(everything)
    assert len(before) > 500
    run(rows_of("lora"))
    assert not calls and made(everything) == before
    suite = everything.suite.read_text()
    for row, flags in {"Union": "union_lines = 3", "LoraHub": "evaluations = 4"}.items():
        everything.suite.write_text(f"{suite}\n[row.{row}]\n{flags}\n")
        calls.clear()
        run(rows_of("lora"))
        assert calls == [f"weights/{row}", f"from_{row}"]
        changed = {folder for (folder, name), saved in made(everything).items() if before[folder, name] != saved}
        assert changed == {str(everything.base / call) for call in calls}
        everything.suite.write_text(suite)
        calls.clear()
        run(rows_of("lora"))
        assert calls == [f"weights/{row}", f"from_{row}"] and made(everything) == before
