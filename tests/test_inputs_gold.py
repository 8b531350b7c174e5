"""Answers that a metric cannot read are refused by tuning and by the checking command in the same words; scores are numbers."""

import logging
import math
import shutil

import pytest
from conftest import MINI_TASKS

from data.build.check import check_task
from pewe.backbone import BackboneConfig, load_backbone
from pewe.data import DataConfig, load_split
from pewe.deltas.attach import attach_delta
from pewe.deltas.config import DeltaConfig
from pewe.errors import UserError
from pewe.metrics import METRICS, MetricError, check_gold, rouge_l, score
from pewe.metrics import evaluate as original
from pewe.tuning.config import TuneConfig
from pewe.tuning.evaluate import evaluate
from pewe.tuning.tune import tune
from task_list import METRICS as METRIC_OF_TASK

GOOD = {"Pearson-Correlation": "1.5", "Pearson-Spearman": "-2", "Matthew-Correlation": "acceptable", "MultiRC": "True"}
UNREADABLE = [  # metric, split, what stands behind the input, what is said
    *(
        (metric, split, text, f"{metric} needs a number, not {text!r}")
        for metric in ("Pearson-Correlation", "Pearson-Spearman")
        for split in ("train", "dev", "test")
        for text in ("n/a", "nan", "inf", "1,5")
    ),
    ("Matthew-Correlation", "dev", "1", "Matthew-Correlation needs acceptable or unacceptable, not '1'"),
    ("MultiRC", "train", "true", "MultiRC needs True or False, not 'true'"),
    ("MultiRC", "test", "yes\t3", "MultiRC needs True or False, not 'yes'"),
    ("MultiRC", "dev", "True", "MultiRC: a line of dev and test must have the name of its question behind the answer"),
    ("MultiRC", "train", "True\t3", "MultiRC: a line of train has one output, the answer"),
    ("Rouge-L", "dev", "fine\t...", "Rouge-L is not defined for an output of dots only"),
]


def task_folder(folder, metric, monkeypatch, **spoiled):
    """A task with this metric; in a spoiled split, the second line ends with the given cells."""
    monkeypatch.setitem(METRIC_OF_TASK, "my_task", metric)
    (folder / "my_task").mkdir()
    for split in ("train", "dev", "test"):
        good = GOOD.get(metric, "fine") + ("\t7" if metric == "MultiRC" and split != "train" else "")
        lines = [f"{split} {number}\t{good}" for number in range(8)]
        if split in spoiled:
            lines[1] = f"{split} spoiled\t{spoiled[split]}"
        (folder / "my_task" / f"my_task_16_42_{split}.tsv").write_text("\n".join(lines) + "\n")
    return folder / "my_task"


class Letters:
    """One token for each character."""

    def __call__(self, texts, truncation, max_length):
        return {"input_ids": [[*map(ord, text[: max_length - 1]), 1] for text in texts]}

    def get_vocab(self):
        return {}


@pytest.mark.parametrize(("metric", "split", "cells", "message"), UNREADABLE)
def test_tuning_and_checking_say_the_same(metric, split, cells, message, tmp_path, monkeypatch):
    folder = task_folder(tmp_path, metric, monkeypatch, **{split: cells})
    wanted = f"{folder}/my_task_16_42_{split}.tsv, line 2: {message}"
    with pytest.raises(UserError) as error:
        load_split(Letters(), DataConfig(task_dir=str(tmp_path)), "my_task", "my_task_16_42", split)
    assert str(error.value) == wanted
    assert [str(finding) for finding in check_task(folder)[0] if finding.fault] == [wanted]


@pytest.mark.parametrize("metric", METRICS)
def test_good_answers_pass_both(metric, tmp_path, monkeypatch):
    folder = task_folder(tmp_path, metric, monkeypatch)
    for split in ("train", "dev", "test"):
        load_split(Letters(), DataConfig(task_dir=str(tmp_path)), "my_task", "my_task_16_42", split)
    assert not [finding for finding in check_task(folder)[0] if finding.fault and "same input" not in finding.text]


def test_what_is_checked_can_be_scored():
    """No answer that passes makes a metric raise, whatever is predicted."""
    for metric in METRICS:
        answers = [GOOD.get(metric, "fine"), "q"]
        check_gold(metric, answers)
        for prediction in ("", "...", "nan", "\u2028", "fine", "1.5", "False"):
            original(metric, [prediction, prediction], [answers, answers])


# ---- scores


UNDEFINED = [
    ("Pearson-Correlation", ["3", "3", "3"], ["1", "2", "3"]),
    ("Pearson-Correlation", ["1", "x", "3"], ["1", "2", "3"]),
    ("Pearson-Correlation", ["1", "inf", "3"], ["1", "2", "3"]),
    ("Pearson-Correlation", ["1", "2", "3"], ["2", "2", "2"]),
    ("Pearson-Correlation", ["1"], ["1"]),
]
DEFINED = [
    ("Pearson-Correlation", ["1", "2", "4"], ["2", "4", "8"], 1.0),
    ("Pearson-Spearman", ["3", "3"], ["1", "2"], 0.0),
    ("Pearson-Spearman", ["x"], ["1"], 0.0),
    ("Matthews", ["a", "a"], ["a", "a"], 0.0),
    ("Matthews", ["b", "a"], ["a", "b"], -1.0),
    ("Matthew-Correlation", ["unacceptable", "acceptable"], ["acceptable", "unacceptable"], -1.0),
    ("Matthew-Correlation", ["?", "?"], ["acceptable", "acceptable"], 0.0),
    ("EM", [""], ["the"], 1.0),
    ("QA-F1", [""], ["the"], 0.0),
]


@pytest.mark.parametrize(("metric", "predictions", "golds"), UNDEFINED)
def test_what_is_not_defined_counts_as_0_and_is_said(metric, predictions, golds):
    value, reason = score(metric, predictions, [[gold] for gold in golds])
    assert value == 0.0 and reason.startswith(f"{metric} is not defined: ")
    try:
        assert math.isnan(original(metric, predictions, [[gold] for gold in golds]))  # the original's value stays
    except MetricError:
        assert len(golds) == 1


@pytest.mark.parametrize(("metric", "predictions", "golds", "value"), DEFINED)
def test_what_is_defined_is_not_touched(metric, predictions, golds, value):
    assert score(metric, predictions, [[gold] for gold in golds]) == (pytest.approx(value, abs=1e-12), "")


def test_rouge_of_long_answers():
    """The package recurses once a word: an answer of a page was too deep."""
    answer = [f"w{number}" for number in range(3000)]
    assert rouge_l(" ".join(answer[:60]), " ".join(answer)) == pytest.approx(2 * 60 / 3060, rel=1e-6)


@pytest.fixture
def correlated(tiny_data, tmp_path, monkeypatch):
    """Two tasks, one of numbers that an untrained model never writes."""
    shutil.copytree(tiny_data, tmp_path / "data")
    for path in (tmp_path / "data" / MINI_TASKS[0]).glob("*.tsv"):
        lines = path.read_text(encoding="utf-8").splitlines()
        path.write_text("".join(f"{line.split(chr(9))[0]}\t{number}\n" for number, line in enumerate(lines)))
    monkeypatch.setitem(METRIC_OF_TASK, MINI_TASKS[0], "Pearson-Correlation")
    return tmp_path / "data"


def test_one_task_without_a_score_does_not_stop_the_others(correlated, tiny_backbone, caplog):
    logger = logging.getLogger("pewe")
    logger.propagate = True
    backbone = load_backbone(BackboneConfig(model=str(tiny_backbone), device="cpu"))
    delta = attach_delta(backbone.model, DeltaConfig(), 2)
    config = DataConfig(task_dir=str(correlated), max_input_length=16)
    splits = [load_split(backbone.tokenizer, config, task, f"{task}_64_42", "dev") for task in MINI_TASKS[:2]]
    with caplog.at_level(logging.WARNING, logger="pewe"):
        first, second = evaluate(backbone, delta, splits, ["Pearson-Correlation", "QA-F1"], 4, 4)
    assert first == 0.0 and 0 <= second <= 1
    assert f"{MINI_TASKS[0]}: Pearson-Correlation is not defined" in caplog.text and "it counts as 0" in caplog.text


def test_a_run_without_a_score_ends_with_a_result(correlated, tiny_backbone, tmp_path):
    config = TuneConfig(
        do_train=True,
        do_predict=True,
        model=str(tiny_backbone),
        device="cpu",
        task_dir=str(correlated),
        stack=2,
        tasks=list(MINI_TASKS[:2]),
        output_dir=str(tmp_path / "out"),
        train_iters=1,
        valid_interval=1,
        bsz_list=[4],
        max_input_length=16,
        max_output_length=4,
        adapter_size=4,
        quiet=True,
    )
    table = tune(config).set_index("task")
    assert table.loc[MINI_TASKS[0], ["dev", "test"]].tolist() == [0.0, 0.0]
    assert table["test"].notna().all() and len(table) == 2
