"""Cosine, Euclidean and Performance weights: the original's numbers; tune_all and dev_all on tiny data."""

from dataclasses import replace

import pandas as pd
import pytest
import torch
from conftest import MINI_TASKS, golden_state
from safetensors.torch import load_file
from test_weights import compare_checkpoints, compare_weights

import dev_all_ckpt
import tune_all_ckpt
from pewe.checkpoint import read_checkpoint, task_checkpoint, write_checkpoint
from pewe.cli import UserError
from pewe.results import read_table
from pewe.tune import TuneConfig, tune
from unit_model import unit_model_cos, unit_model_Euclidean, unit_model_Performance


@pytest.mark.parametrize("tem", [0.001, 0.1])
def test_cosine_of_the_original(golden, golden_checkpoints, tmp_path, tem):
    unit_model_cos.run(unit_model_cos.Config(
        temperature=tem, save_ckpt_path=str(tmp_path), source_ckpt_path=str(golden_checkpoints / "adapter" / "source"),
        tuned_64shot_ckpt_path=str(golden_checkpoints / "adapter" / "random"),
    ))  # fmt: skip
    folder = golden / "adapter" / "unit" / f"cos_tem{tem}"
    compare_weights(tmp_path / "final_weight.tsv", folder / "weights.csv")
    compare_checkpoints(tmp_path, folder, "adapter")


@pytest.fixture(scope="module")
def tuned(golden, tmp_path_factory):
    """The original's tuned pairs as our folders, with its scores in tables read by name."""
    out = tmp_path_factory.mktemp("tuned")
    for number, tasks in (
        ("3", ["adversarialqa", "boolq", "web_questions"]),
        ("4", ["adversarialqa", "boolq", "eli5-eli5", "web_questions"]),
    ):
        folder, rows = golden / "adapter" / "unit" / f"tuned_{number}tasks", []
        for target in tasks:
            for source in tasks:
                state = load_file(folder / target / f"{source}.safetensors")
                write_checkpoint(task_checkpoint(out / number / target, source), "adapter", state, {})
            for line in (folder / f"{target}__result.tsv").read_text().split()[1:]:
                source, dev, _ = line.split(",")
                rows.append((target, source, dev))
        pd.DataFrame(rows, columns=["target", "source", "dev"]).to_csv(
            out / number / "result.tsv", sep="\t", index=False
        )
        pd.read_csv(folder / "zero_result_dev.csv").to_csv(out / number / "zero.tsv", sep="\t", index=False)
    return out


@pytest.mark.parametrize("tem", ["0.1", "1.0", "10"])
def test_euclidean_of_the_original(golden, golden_checkpoints, tuned, tmp_path, tem):
    unit_model_Euclidean.run(unit_model_Euclidean.Config(
        tem=float(tem), tasks=["adversarialqa", "boolq", "eli5-eli5", "web_questions"], save_ckpt_path=str(tmp_path),
        tuned_ckpt_path=str(tuned / "4"), source_ckpt_path=str(golden_checkpoints / "adapter" / "source"),
    ))  # fmt: skip
    folder = golden / "adapter" / "unit" / f"Euclidean_tem{tem}"
    compare_weights(tmp_path / "final_weight.tsv", folder / "weights.csv")
    if any(folder.glob("without_*")):
        compare_checkpoints(tmp_path, folder, "adapter")


@pytest.mark.parametrize("tem", ["0.001", "0.1"])
def test_performance_of_the_original(golden, tuned, tmp_path, tem):
    config = unit_model_Performance.Config(
        tem=float(tem), tasks=["adversarialqa", "boolq", "web_questions"], save_ckpt_path=str(tmp_path),
        tuned_ckpt_path=str(tuned / "3"), zero_result_path=str(tuned / "3" / "zero.tsv"),
    )  # fmt: skip
    unit_model_Performance.run(config)
    folder = golden / "adapter" / "unit" / f"Performance_tem{tem}"
    compare_weights(tmp_path / "final_weight.tsv", folder / "weights.csv")
    if any(folder.glob("without_*")):
        compare_checkpoints(tmp_path, folder, "adapter")
    with pytest.raises(UserError, match="has no dev score of target 'adversarialqa', source 'codah'"):
        unit_model_Performance.run(replace(config, tasks=["adversarialqa", "boolq", "codah"]))


def test_cosine_and_distance_by_hand():
    a, b = (
        {"x": torch.tensor([1.0, 0.0]), "y": torch.tensor([2.0])},
        {"x": torch.tensor([1.0, 1.0]), "y": torch.tensor([-1.0])},
    )
    assert unit_model_cos.cosines([a], [b]).item() == pytest.approx((2**-0.5 - 1) / 2)
    assert unit_model_Euclidean.distance(a, b) == pytest.approx(1 + 3)  # the sum of the norms, not the norm of all


def test_a_delta_is_nearest_to_itself(golden):
    states = [golden_state("lora", task) for task in ("boolq", "sciq", "dream")]
    assert unit_model_cos.cosines(states, states).argmax(1).tolist() == [0, 1, 2]


def test_tune_all_and_dev_all(tiny_backbone, tiny_data, tmp_path):
    common = {
        "model": str(tiny_backbone), "task_dir": str(tiny_data), "tasks": list(MINI_TASKS), "device": "cpu", "quiet": True,
        "bsz_list": [4], "learning_rate_list": [1e-2], "max_input_length": 32, "max_output_length": 6, "adapter_size": 4,
        "train_iters": 4, "valid_interval": 2,
    }  # fmt: skip
    sources, tuned = tmp_path / "sources", tmp_path / "tuned"
    tune(TuneConfig(**common, do_train=True, output_dir=str(sources), full_train=True, stack=3))
    config = tune_all_ckpt.Config(
        **common, do_predict=True, source_ckpt_path=str(sources), output_dir=str(tuned), stack=9
    )
    table = tune_all_ckpt.tune_all(config)
    assert len(table) == 9 and set(table.columns) >= {"target", "source", "dev", "test"} and table["test"].notna().all()
    alone = tune_all_ckpt.tune_all(replace(config, output_dir=str(tmp_path / "alone"), stack=1))
    assert alone[["target", "source", "dev", "test"]].equals(table[["target", "source", "dev", "test"]])
    for target in MINI_TASKS:
        for source in MINI_TASKS:
            before = read_checkpoint(task_checkpoint(sources, source), "adapter")
            after = read_checkpoint(task_checkpoint(tuned / target, source), "adapter")
            assert unit_model_Euclidean.distance(before, after) > 0  # never the untouched source
    zero = dev_all_ckpt.run(
        dev_all_ckpt.Config(**common, source_ckpt_path=str(sources), output_dir=str(tmp_path / "zero"), stack=4)
    )
    assert len(zero) == 9 and zero["dev"].notna().all() and zero["test"].isna().all()
    read_table(tmp_path / "zero" / "result.tsv", ["target", "source", "dev"])
