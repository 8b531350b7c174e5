"""The model of what tuning costs, against seconds that were measured and stored."""

from dataclasses import replace

import pandas as pd
import pytest
from conftest import ROOT

from pewe.backbone import load_tokenizer
from pewe.data import SPLITS, task_names
from pewe.grid.config import Config
from pewe.grid.cost import Lines, Shapes, of_run, split_lines
from pewe.grid.experiment import grids
from pewe.grid.forecast import flop_of_lines
from pewe.grid.suite import read_suite
from pewe.tuning.config import TuneConfig

MINI = Shapes(d_model=128, d_ff=256, heads=4, inner=128, layers=4, decoder_layers=3, vocabulary=1300, matrices=3)
SMALL = Shapes(d_model=512, d_ff=1024, heads=6, inner=384, layers=8, decoder_layers=8, vocabulary=32128, matrices=3)
TUNED = {"do_train": True, "do_predict": True, "bsz_list": [8], "predict_batch_size": 200}
MINI_TARGETS = TuneConfig(**TUNED, train_iters=80, valid_interval=20)
MINI_PREFIX = replace(MINI_TARGETS, tune_method="prefix", prefix_num=120, prefix_r=24)
MINI_LINES = {"train": Lines(56, 21.2, 3), "dev": Lines(56, 21.2, 3), "test": Lines(200, 21.2, 3)}
REAL_SOURCES = TuneConfig(**{**TUNED, "predict_batch_size": 50}, train_iters=300, valid_interval=100)
REAL_LINES = {"train": Lines(2172, 39.9, 4.6), "dev": Lines(56, 41.3, 4.8), "test": Lines(150, 39.7, 4.6)}


# seconds of a member on one thread of a processor whose matrix product reached `peak` in the same minute
@pytest.mark.parametrize(
    ("shapes", "config", "splits", "members", "peak", "seconds"),
    [
        (MINI, MINI_TARGETS, MINI_LINES, 12, 119e9, (80 * 0.281 + 5 * 1.175 + 4.334) / 12),  # adapter
        (MINI, MINI_TARGETS, MINI_LINES, 12, 99e9, (80 * 0.317 + 5 * 1.398 + 4.416) / 12),  # lora
        (MINI, MINI_PREFIX, MINI_LINES, 12, 130e9, (80 * 0.326 + 5 * 1.352 + 5.285) / 12),
        (MINI, MINI_TARGETS, MINI_LINES, 1, 116e9, 80 * 0.0694 + 5 * 0.226 + 0.409),  # adapter
        (MINI, MINI_PREFIX, MINI_LINES, 1, 130e9, 80 * 0.0592 + 5 * 0.148 + 0.388),
        (SMALL, REAL_SOURCES, REAL_LINES, 8, 119e9, 156.73),  # eight sources of scripts/suites/real.toml, stored
    ],
)
def test_the_model_of_cost_is_near_what_was_measured(shapes, config, splits, members, peak, seconds):
    assert 1 / 1.5 < of_run(shapes, config, splits, 8).seconds(peak, members) / seconds < 1.5


def test_what_the_test_lines_cost_is_counted_as_often_as_they_are_looked_at():
    def flop(**flags) -> float:
        return of_run(SMALL, replace(REAL_SOURCES, **flags), REAL_LINES, 8).flop

    once = REAL_LINES["test"].count * SMALL.forward(REAL_LINES["test"])
    assert flop() - flop(do_predict=False) == pytest.approx(once)
    likelihoods = 3 * 150 * 4.6 * SMALL.of_output(39.7)
    assert flop(trace_test=[0, 20]) - flop() == pytest.approx(2 * once + likelihoods)


def test_what_rows_read_beside_tuning_is_counted(monkeypatch):
    """In passes over the few-shot lines of the targets; of the other measures over the first lines of every task."""
    monkeypatch.chdir(ROOT)
    (grid,) = grids(Config(suite="mini", delta=["lora"], seeds=[42]), read_suite("mini"))

    def flop(kind: str, row: str) -> float:
        return flop_of_lines(grid.step(kind, row).config)

    once = flop("weights", "Arrow")
    assert flop("weights", "LoraHub") == pytest.approx(40 * once) and once > 0 == flop("weights", "Average")
    lines = [lines_of("train", task) for task in grid.flags["tasks"]]
    updates = sum(2 * 50 * 16 * MINI.forward(one) for one in lines)
    assert flop("weights", "Gradient") == flop("weights", "Gradient_layer") == pytest.approx(updates)
    soup = flop("weights", "Soup")
    assert soup > 0 and flop("weights", "TaskArithmetic") == pytest.approx(
        soup
    )  # ten scales, and eleven sources less one
    assert flop("similarity", "Length") == 0
    text = flop("similarity", "TextEmb")
    assert text > 0 and flop("similarity", "TaskEmb") == pytest.approx(2 * text)
    assert flop_of_lines(grid.step("statistics").config) > 0


def lines_of(split: str, task: str) -> Lines:
    """Of the few-shot lines of a task of the mini gym."""
    config = read_suite("mini").config(TuneConfig, "lora", task_dir=str(ROOT / "data/mini_gym"))
    return split_lines(config, load_tokenizer(str(ROOT / "checkpoints/mini_t5")), task, split)


def test_the_model_of_cost_is_near_the_stored_seconds():
    """Of version 0.1.0, which padded: where little was padded, on processors whose product reached 145 GFLOP/s on two threads."""
    stored = pd.read_csv(ROOT / "results/reference/mini/cells.tsv", sep="\t")
    tokenizer, suite = load_tokenizer(str(ROOT / "checkpoints/mini_t5")), read_suite("mini")
    for delta in ("adapter", "lora"):
        own = stored[stored["delta"] == delta]
        for full, section, batch in ((True, "sources", 16), (False, "targets", 8)):
            seconds = own["seconds"][(own["init"] == "Full data") == full].median()
            flags = {"do_train": True, "do_predict": True, "full_train": full, "task_dir": str(ROOT / "data/mini_gym")}
            config = suite.config(TuneConfig, delta, "tuning", section, **flags, tune_method=delta)
            tasks = [{one: split_lines(config, tokenizer, task, one) for one in SPLITS} for task in task_names(config)]
            model = sum(of_run(MINI, config, splits, batch).seconds(145e9, 12) for splits in tasks) / len(tasks)
            assert 1 / 1.5 < model / seconds < 1.5
    flan = pd.read_csv(ROOT / "results/reference/flan_t5_small/cells.tsv", sep="\t")
    seconds = flan["seconds"][flan["init"] != "Full data"].median()  # on one thread
    splits = {"train": Lines(60, 32, 3.5), "dev": Lines(60, 32, 3.5), "test": Lines(400, 32, 3.5)}
    config = TuneConfig(**{**TUNED, "predict_batch_size": 100}, train_iters=24, valid_interval=12)
    assert 1 / 1.5 < of_run(SMALL, config, splits, 8).seconds(145e9 / 2) / seconds < 1.5
