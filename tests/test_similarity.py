"""The target x source loop and the Loss measure."""

from dataclasses import replace

import pandas as pd
import pytest
from conftest import golden_backbone

import pewe.similarity
from get_similarity import get_Loss
from pewe.data import DataConfig, load_split
from pewe.results import read_json, read_table
from pewe.similarity import SimilarityConfig, run
from pewe.weights import COLUMNS

SHIFTED = 12  # tasks with a dev line of two answers, where the original takes labels from the wrong line


@pytest.fixture(scope="module")
def config(golden, golden_checkpoints, tmp_path_factory):
    return SimilarityConfig(
        model=str(golden / "backbone"), task_dir=str(golden / "data"), device="cpu", adapter_size=4, quiet=True,
        max_input_length=32, max_output_length=12, predict_batch_size=5,
        source_ckpt_path=str(golden_checkpoints / "adapter" / "source"), output_dir=str(tmp_path_factory.mktemp("loss")),
    )  # fmt: skip


@pytest.fixture(scope="module")
def expected(golden):
    return pd.read_csv(golden / "adapter/similarity/Loss.csv")


def worst(table, expected):
    both = table.merge(expected, on=["target", "source"])
    assert len(both) == len(table)
    return ((both["value_x"] - both["value_y"]).abs() / both["value_y"].abs()).groupby(both["target"]).max()


def test_loss_matrix_of_the_original(config, expected, tmp_path):
    table = run(get_Loss.MEASURE, replace(config, as_original=True, output_dir=str(tmp_path)))
    assert len(table) == 32 * 32
    assert worst(table, expected).max() < 1e-4


def test_loss_matrix_with_the_right_labels(config, expected):
    """Equal where every dev line has one answer; different where the original mixes up the lines of its first batch."""
    differences = worst(run(get_Loss.MEASURE, config), expected)
    tokenizer, data = golden_backbone().tokenizer, DataConfig(task_dir=config.task_dir)
    several = [
        task for task in differences.index
        if any(len(e.outputs) > 1 for e in load_split(tokenizer, data, task, f"{task}_64_42", "dev").examples)
    ]  # fmt: skip
    assert len(several) == SHIFTED
    assert differences.drop(several).max() < 1e-4
    assert (differences[several] > 1e-2).sum() == 10  # two show it only after the first batch of five


def test_stacks_of_any_size_agree(config, tmp_path):
    some = replace(config, tasks=["boolq", "codah", "dream", "qasc", "sciq"])
    tables = [
        run(get_Loss.MEASURE, replace(some, stack=stack, output_dir=str(tmp_path / str(stack)))) for stack in (1, 2, 5)
    ]
    for table in tables[1:]:
        assert table[COLUMNS[:3]].equals(tables[0][COLUMNS[:3]])
        assert table["value"].to_numpy() == pytest.approx(tables[0]["value"].to_numpy(), rel=1e-5)


def test_killed_after_any_target_and_started_again_is_the_same(config, tmp_path, monkeypatch):
    some = replace(config, tasks=["boolq", "codah", "dream"], stack=2)
    clean = run(get_Loss.MEASURE, replace(some, output_dir=str(tmp_path / "clean")))
    broken = replace(some, output_dir=str(tmp_path / "broken"))
    monkeypatch.setattr(pewe.similarity.time, "monotonic", iter(range(0, 10_000, 10)).__next__)  # write every time
    score, deaths = pewe.similarity.score_target, 0
    for _ in range(10):
        calls = 0

        def dying(*args):
            nonlocal calls
            calls += 1
            if calls == 2:
                raise KeyboardInterrupt
            return score(*args)

        monkeypatch.setattr(pewe.similarity, "score_target", dying)
        try:
            table = run(get_Loss.MEASURE, broken)
        except KeyboardInterrupt:
            deaths += 1
    assert deaths == 5  # six pairs of chunk and target, one more at each start
    assert table.equals(clean)
    assert (tmp_path / "clean/result.tsv").read_bytes() == (tmp_path / "broken/result.tsv").read_bytes()


def test_other_settings_set_the_old_matrix_aside(config, tmp_path):
    some = replace(config, tasks=["boolq", "codah"], output_dir=str(tmp_path))
    first = run(get_Loss.MEASURE, some)
    assert run(get_Loss.MEASURE, replace(some, sparsity=0.5, lora_r=2))["value"].tolist() == first["value"].tolist()
    assert not (tmp_path / "result.previous.tsv").exists()  # a flag of other kinds of delta does not count
    second = run(get_Loss.MEASURE, replace(some, predict_batch_size=3))
    assert not first["value"].equals(second["value"])
    assert read_table(tmp_path / "result.previous.tsv", COLUMNS)["value"].tolist() == first["value"].tolist()


def test_output_names_its_measure_and_orientation(config):
    run(get_Loss.MEASURE, config)
    stored = read_json(pewe.similarity.Path(config.output_dir) / "config.json")
    assert stored["measure"] == "Loss" and stored["higher_is_more_similar"] is False
    assert {"torch", "transformers", "opendelta"} <= stored["provenance"]["versions"].keys()


def test_budget_and_reduction(config, tmp_path):
    """All batches, summed, is the number of batches times their mean."""
    some = replace(config, tasks=["boolq", "sciq"], max_batches=-1)
    total = run(get_Loss.MEASURE, replace(some, output_dir=str(tmp_path / "sum")))["value"]
    mean = run(get_Loss.MEASURE, replace(some, reduction="mean", output_dir=str(tmp_path / "mean")))["value"]
    assert total.to_numpy() == pytest.approx(3 * mean.to_numpy())  # 12 dev lines, 5 a batch
