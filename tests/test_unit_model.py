"""Cosine, Euclidean and Performance weights: the original's numbers; tune_all and dev_all on tiny data."""

from dataclasses import replace

import pandas as pd
import pytest
import torch
from conftest import METHODS, MINI_TASKS, write_tuned_pairs
from safetensors.torch import load_file
from test_weights import check_ensemble, compare_checkpoints, compare_weights, slow_weights

import dev_all_ckpt
import tune_all_ckpt
from pewe.deltas.checkpoint import read_checkpoint, task_checkpoint, write_checkpoint
from pewe.errors import UserError
from pewe.files import read_table
from pewe.tuning.config import TuneConfig
from pewe.tuning.tune import tune
from unit_model import unit_model_cos, unit_model_Euclidean, unit_model_Performance


@pytest.mark.parametrize("tem", [0.001, 0.1])
def test_cosine_of_the_original(golden, golden_checkpoints, tmp_path, tem):
    unit_model_cos.run(
        unit_model_cos.Config(
            task_list="QA_task_list",
            temperature=tem,
            save_ckpt_path=str(tmp_path),
            source_ckpt_path=str(golden_checkpoints / "adapter" / "source"),
            tuned_64shot_ckpt_path=str(golden_checkpoints / "adapter" / "random"),
        )
    )
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
    unit_model_Euclidean.run(
        unit_model_Euclidean.Config(
            tem=float(tem),
            tasks=["adversarialqa", "boolq", "eli5-eli5", "web_questions"],
            save_ckpt_path=str(tmp_path),
            tuned_ckpt_path=str(tuned / "4"),
            source_ckpt_path=str(golden_checkpoints / "adapter" / "source"),
        )
    )
    folder = golden / "adapter" / "unit" / f"Euclidean_tem{tem}"
    compare_weights(tmp_path / "final_weight.tsv", folder / "weights.csv")
    if any(folder.glob("without_*")):
        compare_checkpoints(tmp_path, folder, "adapter")


@pytest.mark.parametrize("tem", ["0.001", "0.1"])
def test_performance_of_the_original(golden, tuned, tmp_path, tem):
    config = unit_model_Performance.Config(
        tem=float(tem),
        tasks=["adversarialqa", "boolq", "web_questions"],
        save_ckpt_path=str(tmp_path),
        tuned_ckpt_path=str(tuned / "3"),
        zero_result_path=str(tuned / "3" / "zero.tsv"),
    )
    unit_model_Performance.run(config)
    folder = golden / "adapter" / "unit" / f"Performance_tem{tem}"
    compare_weights(tmp_path / "final_weight.tsv", folder / "weights.csv")
    if any(folder.glob("without_*")):
        compare_checkpoints(tmp_path, folder, "adapter")


def test_cosine_and_distance_by_hand():
    a, b = (
        {"x": torch.tensor([1.0, 0.0]), "y": torch.tensor([2.0])},
        {"x": torch.tensor([1.0, 1.0]), "y": torch.tensor([-1.0])},
    )
    assert unit_model_cos.cosines([a], [b]).item() == pytest.approx((2**-0.5 - 1) / 2)
    assert unit_model_Euclidean.distance(a, b) == pytest.approx(1 + 3)  # the sum of the norms, not the norm of all


FOUR = ["adversarialqa", "boolq", "codah", "dream"]


def states_of(folder, method) -> dict[str, dict[str, torch.Tensor]]:
    states = {task: read_checkpoint(task_checkpoint(folder, task), method) for task in FOUR}
    return {task: {name: tensor.double() for name, tensor in state.items()} for task, state in states.items()}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("tem", [0.01, 1.0])
def test_cosine_by_a_slow_loop(tiny_checkpoints, tmp_path, method, tem):
    folder = tiny_checkpoints / method
    unit_model_cos.run(
        unit_model_cos.Config(
            delta=method,
            temperature=tem,
            tasks=FOUR,
            save_ckpt_path=str(tmp_path),
            source_ckpt_path=str(folder / "source"),
            tuned_64shot_ckpt_path=str(folder / "random"),
        )
    )
    sources, tuned = states_of(folder / "source", method), states_of(folder / "random", method)
    for target in FOUR:
        S = {}
        for source in set(FOUR) - {target}:
            pairs = [(a.flatten(), sources[source][name].flatten()) for name, a in tuned[target].items()]
            S[source] = sum((a @ b / (a.norm() * b.norm())).item() for a, b in pairs) / len(pairs)
        check_ensemble(tmp_path, target, slow_weights(S, tem, 1), method, folder / "source")


@pytest.fixture(scope="module", params=METHODS)
def tuned_pairs(request, tiny_checkpoints, tmp_path_factory):
    """Delta, folder of the sources, folder of the pairs, and their scores."""
    method, out = request.param, tmp_path_factory.mktemp("pairs")
    sources = tiny_checkpoints / method / "source"
    return method, sources, out, write_tuned_pairs(out, sources, method, FOUR)


def test_euclidean_by_a_slow_loop(tuned_pairs, tmp_path):
    method, folder, pairs, _ = tuned_pairs
    unit_model_Euclidean.run(
        unit_model_Euclidean.Config(
            delta=method,
            tem=0.5,
            tasks=FOUR,
            save_ckpt_path=str(tmp_path),
            tuned_ckpt_path=str(pairs),
            source_ckpt_path=str(folder),
        )
    )
    sources = states_of(folder, method)
    for target in FOUR:
        tuned = states_of(pairs / target, method)
        S = {
            source: sum((tuned[source][name] - t).square().sum().item() ** 0.5 for name, t in sources[source].items())
            for source in set(FOUR) - {target}
        }
        check_ensemble(tmp_path, target, slow_weights(S, 0.5, -1), method, folder)


def test_performance_by_a_slow_loop(tuned_pairs, tmp_path):
    """The gain in the dev score is the similarity, and the tuned sources are averaged."""
    method, _, pairs, scores = tuned_pairs
    config = unit_model_Performance.Config(
        delta=method,
        tem=0.3,
        tasks=FOUR,
        save_ckpt_path=str(tmp_path),
        tuned_ckpt_path=str(pairs),
        zero_result_path=str(pairs / "zero.tsv"),
    )
    unit_model_Performance.run(config)
    for target in FOUR:
        S = {source: dev - zero for task, source, dev, zero in scores if task == target != source}
        check_ensemble(tmp_path, target, slow_weights(S, 0.3, 1), method, pairs / target)
    with pytest.raises(UserError, match="has no dev score of target 'boolq', source 'wiqa'"):
        unit_model_Performance.run(replace(config, tasks=["boolq", "codah", "wiqa"]))


@pytest.mark.parametrize("method", METHODS)
def test_a_delta_is_nearest_to_itself(tiny_checkpoints, method):
    states = list(states_of(tiny_checkpoints / method / "source", method).values())
    assert unit_model_cos.cosines(states, states).argmax(1).tolist() == [0, 1, 2, 3]


def test_tune_all_and_dev_all(tiny_backbone, tiny_data, tmp_path):
    common = {
        "model": str(tiny_backbone),
        "task_dir": str(tiny_data),
        "tasks": list(MINI_TASKS),
        "device": "cpu",
        "quiet": True,
        "bsz_list": [4],
        "learning_rate_list": [1e-2],
        "max_input_length": 32,
        "max_output_length": 6,
        "adapter_size": 4,
        "train_iters": 4,
        "valid_interval": 2,
    }
    sources, tuned = tmp_path / "sources", tmp_path / "tuned"
    tune(TuneConfig(**common, do_train=True, output_dir=str(sources), full_train=True, stack=3))
    config = tune_all_ckpt.Config(
        **common, do_predict=True, source_ckpt_path=str(sources), output_dir=str(tuned), stack=9
    )
    table = tune_all_ckpt.run(config)
    assert len(table) == 9 and set(table.columns) >= {"target", "source", "dev", "test"} and table["test"].notna().all()
    alone = tune_all_ckpt.run(replace(config, output_dir=str(tmp_path / "alone"), stack=1))
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
