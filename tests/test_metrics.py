"""The metrics against the original's values, and on cases that can be done by hand."""

import json
import math

import pytest
from conftest import GOLDEN

from pewe.errors import UserError
from pewe.metrics import METRICS, evaluate, normalize_answer
from task_list import METRICS as METRIC_OF_TASK
from task_list import QA_task_list, mini_task_list, quan_task


@pytest.fixture(scope="module")
def cases(golden):
    return json.loads((GOLDEN / "metrics.json").read_text(encoding="utf-8"))


def agrees(metric: str, expected: dict, predictions: list[str], golds: list[list[str]]) -> bool:
    try:
        value = evaluate(metric, predictions, golds)
    except ValueError:
        return "raises" in expected
    if "raises" in expected:
        return False
    wanted = float(expected["value"])
    return math.isclose(value, wanted, rel_tol=1e-12, abs_tol=1e-12) or (math.isnan(value) and math.isnan(wanted))


@pytest.mark.parametrize("metric", list(METRICS)[:7])  # the others are PEMT's: test_build_pemt.py
def test_values_of_the_original(cases, metric):
    single = cases[metric]["cases"]
    wrong = [case for case in single if not agrees(metric, case, [case["prediction"]], [case["golds"]])]
    for batch in cases[metric]["batches"]:
        chosen = [single[i] for i in batch["indices"]]
        if not agrees(metric, batch, [case["prediction"] for case in chosen], [case["golds"] for case in chosen]):
            wrong.append(batch)
    if not agrees(metric, cases["empty_batch"][metric], [], []):
        wrong.append("empty batch")
    assert not wrong


def test_rouge_extras_and_normalisation_of_the_original(cases):
    assert all(agrees("Rouge-L", case, [case["prediction"]], [case["golds"]]) for case in cases["Rouge-L_extra"])
    assert all(normalize_answer(case["text"]) == case["normalized"] for case in cases["normalize_answer"])


def test_metric_of_each_task_of_the_original(cases):
    differing = {task for task in quan_task if METRIC_OF_TASK[task] != cases["METRICS"][task]}
    missing = {"tweet_eval-offensive"} - cases["METRICS"].keys()
    assert differing <= missing


def test_lists_of_tasks():
    assert (len(QA_task_list), len(quan_task), len(set(quan_task))) == (32, 51, 51)
    assert len(mini_task_list) >= 12 and not set(mini_task_list) & set(quan_task)
    assert set(METRIC_OF_TASK.values()) <= METRICS.keys()


@pytest.mark.parametrize(
    ("metric", "predictions", "golds", "value"),
    [
        ("EM", ["The Park!", "x"], [["a park", "garden"], ["y"]], 0.5),
        ("ACC", ["YES", "yes."], [["yes"], ["yes"]], 0.5),
        ("QA-F1", ["red big house"], [["the big red barn", "no"]], 2 / 3),
        ("Rouge-L", ["a b c"], [["a c d"]], 2 / 3),
        ("Classification-F1", ["a", "a", "b", "c"], [["a"], ["b"], ["b"], ["b"]], (2 / 3 + 1 / 2) / 2),
        ("Matthew-Correlation", ["acceptable", "unacceptable"], [["acceptable"], ["unacceptable"]], 1.0),
        ("Pearson-Correlation", ["1", "2", "4"], [["2"], ["4"], ["8"]], 1.0),
    ],
)
def test_by_hand(metric, predictions, golds, value):
    assert evaluate(metric, predictions, golds) == pytest.approx(value, abs=1e-6)


def test_unknown_metric_is_named():
    with pytest.raises(UserError, match="did you mean 'EM'"):
        evaluate("EMM", ["a"], [["a"]])
