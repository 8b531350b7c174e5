"""The cost of each row: what the meter counts, where it is stored, and that no call loses or doubles any of it."""

import dataclasses
import math
import shutil

import pandas as pd
import pytest
from conftest import MINI_TASKS
from test_reproduce import here  # noqa: F401, a fixture
from test_steps import without_pictures

from pewe.files import read_record, write_record
from pewe.grid.config import Config
from pewe.grid.experiment import grids
from pewe.grid.suite import read_suite
from pewe.grid.work import needed, work_of
from pewe.identity import PROVENANCE
from pewe.meter import Work, count, metered
from pewe.reporting.costs import cost_table
from pewe.reporting.stored import read_stored
from pewe.similarity.matrix import Matrix, spent_on

TARGETS = ["a", "b"]


def test_the_meter_counts_what_is_done_inside():
    count(lines=5)
    with metered() as outer:
        count(lines=2, updates=1)
        with metered() as inner:
            count(lines=3)
    assert (inner.lines, inner.updates) == (3, 0) and (outer.lines, outer.updates) == (5, 1)
    assert outer.seconds >= inner.seconds > 0


def costs(folder) -> pd.DataFrame:
    return pd.read_csv(folder / "results/tiny/costs.tsv", sep="\t").set_index(["init", "part"])


def test_every_row_has_its_cost_and_a_second_call_changes_none(here, monkeypatch):  # noqa: F811
    """Three targets, two rates, four updates of four lines, three validations (the start is one); Loss scores 3 x 3 pairs."""
    without_pictures(monkeypatch)
    flags = {"init": ["Random", "Loss", "Fisher"]}
    here(**flags)
    found = costs(here.folder)
    lengths = {split: sum(lines_in(here.folder, task, split) for task in MINI_TASKS) for split in ("dev", "test")}
    per_rate = 3 * 4 * 4 + 3 * lengths["dev"] + lengths["test"]
    for init in flags["init"]:
        assert found.loc[(init, "tuning"), ["lines", "updates"]].tolist() == [2 * per_rate, 2 * 3 * 4]
    assert found.loc[("Full data", "tuning"), "updates"] == 3 * 4 and ("Full data", "init") not in found.index
    assert found.loc[("Random", "init"), ["lines", "seconds"]].tolist() == [0, 0]
    assert found.loc[("Loss", "init"), ["lines", "updates"]].tolist() == [3 * lengths["dev"], 0]
    assert found.loc[("Fisher", "init"), "lines"] == sum(lines_in(here.folder, t, "full_train") for t in MINI_TASKS)
    assert (found["seconds"] >= 0).all() and found.loc[("Loss", "tuning"), "seconds"] > 0
    before = (here.folder / "results/tiny/costs.tsv").read_bytes()
    here(**flags)
    assert (here.folder / "results/tiny/costs.tsv").read_bytes() == before
    shutil.rmtree(here.folder / "checkpoints/tiny/adapter/seed_1/from_Loss" / MINI_TASKS[0])
    (here.folder / "checkpoints/tiny/adapter/seed_1/similarity/Loss/step.json").unlink()
    here(**flags)
    again = costs(here.folder)
    columns = ["lines", "updates"]
    pd.testing.assert_frame_equal(again[columns], found[columns])  # what is redone replaces, what is found is kept
    table = cost_table(read_stored(here.folder / "results/tiny"))
    assert table.loc["Loss", "init: lines"] == str(3 * lengths["dev"]) and table.loc["Full data", "init: lines"] == "–"
    _the_cost_is_in_no_identity()


def _the_cost_is_in_no_identity():
    """Another cost in a stamp, or none, as of an earlier version: the step holds, and its cost is unknown in the latter."""
    grid = grids(Config(suite="tiny.toml", seeds=[1]), read_suite("tiny.toml"))[0]
    similarity, tuned = grid.step("similarity", "Loss"), grid.step("tuned", "Loss")
    path = similarity.folder / "step.json"
    stamp = read_record(path)
    stamp[PROVENANCE]["work"]["lines"] += 1
    write_record(path, stamp)
    assert not tuned.missing() and work_of(similarity).lines == stamp[PROVENANCE]["work"]["lines"]
    del stamp[PROVENANCE]
    write_record(path, stamp)
    assert not tuned.missing() and math.isnan(work_of(similarity).lines)


def lines_in(folder, task: str, split: str) -> int:
    (path,) = (folder / "data" / task).glob(f"*_{split}.tsv")
    return len(path.read_text().splitlines())


def test_what_a_row_is_made_from_counts_once(here):  # noqa: F811
    grid = grids(Config(suite="tiny.toml", seeds=[1]), read_suite("tiny.toml"))[0]
    names = [step.folder.name for step in needed(grid.step("tuned", "Performance"))]
    assert sorted(names) == ["Performance", "pairs", "zero_shot"]
    compared = [step.folder for step in needed(grid.step("tuned", "KL"))]
    assert grid.step("tuned", "Random").folder in compared  # KL compares with deltas tuned on the targets


def matrix(folder, targets=TARGETS) -> Matrix:
    record = {"settings": {"dev": dict.fromkeys(targets), "tuned": {}}, "measure": "x", "higher_is_more_similar": True}
    return Matrix(folder, {**record, "provenance": {}}, targets, ["s"])


def test_a_matrix_that_goes_on_adds_to_the_cost_of_its_rows(tmp_path):
    """Killed after its first target, continued, then adopted twice as a part of a whole."""
    part = tmp_path / "parts" / "0"
    first = matrix(part)
    count(lines=7)
    first.add("a", ["s"], {"all": [1.0]})
    first.write(first.table())
    count(lines=100)  # lost: no row is of it
    second = matrix(part)
    count(lines=2)
    second.add("b", ["s"], {"all": [2.0]})
    second.finish(pictures=False)
    assert spent_on(part).lines == 9
    whole = matrix(tmp_path / "whole", [*TARGETS, "c"])
    whole.adopt(tmp_path / "parts")
    count(lines=4)
    whole.add("c", ["s"], {"all": [3.0]})
    whole.finish(pictures=False)
    again = matrix(tmp_path / "whole", [*TARGETS, "c"])
    again.adopt(tmp_path / "parts")
    again.finish(pictures=False)
    assert spent_on(tmp_path / "whole").lines == 13


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Work)])
def test_work_adds_and_subtracts_field_by_field(field):
    one, other = Work(**{field: 3.0}), Work(**{field: 1.0})
    assert getattr(one + other, field) == 4.0 and getattr(one - other, field) == 2.0
    assert dataclasses.astuple(one + Work()) == dataclasses.astuple(one)
