"""The similarity matrices that the original code computed on a tiny T5 v1.1 of its own, with its own deltas."""

import pandas as pd
import pytest
from conftest import golden_backbone, golden_npz, similarity_config
from test_measures import ALL_NAMES, compute

from pewe.data import DataConfig, load_split
from task_list import QA_task_list

SOME = ["adversarialqa", "ai2_arc", "boolq", "codah", "eli5-eli5", "web_questions"]  # three with lines of two answers
SHIFTED = 12  # tasks with a dev line of two answers, where the original takes labels from the wrong line
TOLERANCE = {"KL_divergence": 1e-3}


@pytest.fixture
def config(golden, golden_checkpoints, tmp_path):
    return similarity_config(golden / "backbone", golden / "data", golden_checkpoints, tmp_path, tasks=SOME)


def reference(golden, name: str) -> dict[str, pd.DataFrame]:
    """Scope -> matrix (targets down, sources across) that the original computed."""
    folder = golden / "adapter" / "similarity"
    if (folder / f"{name}.csv").is_file():
        table = pd.read_csv(folder / f"{name}.csv")
        return {"all": table.pivot(index="target", columns="source", values="value")}
    arrays = golden_npz(f"adapter/similarity/{name}.npz")
    return {
        module.replace("_", "."): pd.DataFrame(values, index=arrays["tasks"], columns=arrays["tasks"])
        for module, values in zip(arrays["modules"], arrays["values"], strict=True)
    }


def differences(table, expected) -> pd.DataFrame:
    """The largest relative difference of each target (rows) and scope (columns)."""
    assert set(table["scope"]) == expected.keys()
    worst = {}
    for scope, rows in table.groupby("scope"):
        ours = rows.pivot(index="target", columns="source", values="value")
        theirs = expected[scope].loc[ours.index, ours.columns]
        worst[scope] = ((ours - theirs).abs() / theirs.abs()).max(axis=1)
    return pd.DataFrame(worst)


@pytest.mark.parametrize("name", ALL_NAMES[1:])  # Loss: of 32 tasks, below
def test_matrices_of_the_original_on_six_tasks(golden, config, name):
    table = compute(name, config, as_original=True)
    assert differences(table, reference(golden, name)).max(axis=None) < TOLERANCE.get(name, 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL_NAMES[1:])
def test_matrices_of_the_original_32_by_32(golden, config, name):
    table = compute(name, config, as_original=True, tasks=QA_task_list)
    assert len(table) % 1024 == 0
    assert differences(table, reference(golden, name)).max(axis=None) < TOLERANCE.get(name, 1e-4)


@pytest.mark.parametrize("name", ["GraNd_dev", "GraNd_block"])
def test_gradient_norms_of_the_original_one_line_a_batch(golden, config, name):
    """Here the original's caps on the number of batches act."""
    tasks = ["adversarialqa", "boolq", "eli5-eli5"]
    table = compute(name, config, as_original=True, predict_batch_size=1, tasks=tasks)
    assert differences(table, reference(golden, f"{name}_bs1")).max(axis=None) < 1e-4


def test_loss_matrix_of_the_original(golden, config):
    table = compute("Loss", config, as_original=True, tasks=QA_task_list)
    assert len(table) == 32 * 32
    assert differences(table, reference(golden, "Loss")).max(axis=None) < 1e-4


def test_loss_matrix_with_the_right_labels(golden, config):
    """Equal where every dev line has one answer; different where the original mixes up the lines of its first batch."""
    off = differences(compute("Loss", config, tasks=QA_task_list), reference(golden, "Loss"))["all"]
    tokenizer, data = golden_backbone().tokenizer, DataConfig(task_dir=config.task_dir)
    several = [
        task
        for task in off.index
        if any(len(e.outputs) > 1 for e in load_split(tokenizer, data, task, f"{task}_64_42", "dev").examples)
    ]
    assert len(several) == SHIFTED
    assert off.drop(several).max() < 1e-4
    assert (off[several] > 1e-2).sum() == 10  # two show it only after the first batch of five
