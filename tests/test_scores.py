"""Tables of scores: what stands in them is what the runs' records say, or the line is named."""

import math

import pytest

from pewe.errors import UserError
from pewe.files import write_record
from pewe.scores import RECORD, read_scores

HEADER = "task\tdev\ttest\trun\n"


@pytest.fixture
def table(tmp_path):
    """A table of two runs, the second of them without a record."""
    write_record(tmp_path / "a" / RECORD, {"settings": {"init": "f00d"}, "result": {"dev": 0.1, "test": 0.25}})
    path = tmp_path / "result.tsv"
    path.write_text(f"{HEADER}a\t0.1\t0.25\ta\nb\t0.3\t0.5\tb\n")
    return path


def read(path):
    return read_scores(path, ["task"], ["dev", "test"])


def test_rows_with_the_start_of_their_runs(table):
    rows = read(table)
    assert list(rows["dev"]) == [0.1, 0.3] and list(rows["init"]) == ["f00d", None] and list(rows["run"]) == ["a", "b"]


@pytest.mark.parametrize("changed", ["0.26", "0.35", "-0.25"])
def test_a_score_that_was_changed_is_named(changed, table):
    table.write_text(table.read_text().replace("0.25", changed))
    with pytest.raises(UserError, match=rf"result.tsv, line 2: test is {changed}, but 0.25 in a/run.json"):
        read(table)


def test_a_score_that_the_run_does_not_have(table):
    write_record(table.parent / "a" / RECORD, {"settings": {}, "result": {"dev": 0.1, "test": None}})
    with pytest.raises(UserError, match=r"line 2: test is 0.25, but None in a/run.json"):
        read(table)


@pytest.mark.parametrize("record", [None, {"settings": {}}, {"settings": [], "result": 5}])
def test_a_table_without_results_beside_it_is_taken_as_it_is(record, table):
    (table.parent / "a" / RECORD).unlink()
    if record is not None:
        write_record(table.parent / "a" / RECORD, record)
    rows = read(table)
    assert list(rows["test"]) == [0.25, 0.5] and list(rows["init"]) == [None, None]


def test_not_defined_is_not_zero(table):
    table.write_text(f"{HEADER}b\tnan\t0.5\tb\n")
    assert math.isnan(read(table)["dev"].iloc[0])
    write_record(table.parent / "b" / RECORD, {"settings": {}, "result": {"dev": 0.0, "test": 0.5}})
    with pytest.raises(UserError, match=r"line 2: dev is nan, but 0.0"):
        read(table)
