"""The embedded default: the committed files are what the generator writes, splits are disjoint, the backbone is small."""

import json
import subprocess
import sys

import pytest
from conftest import ROOT

from pewe.backbone import BackboneConfig, load_backbone
from pewe.data import read_examples
from task_list import METRICS, mini_overlap_task_list, mini_task_list

GYM = ROOT / "data" / "mini_gym"
BACKBONE = ROOT / "checkpoints" / "mini_t5"


@pytest.fixture(scope="module")
def generated(tmp_path_factory):
    out = tmp_path_factory.mktemp("gym")
    done = subprocess.run(
        [sys.executable, GYM / "generate.py", "--out", out], capture_output=True, text=True, check=True
    )
    return out, done.stdout


def test_the_generator_writes_the_committed_bytes(generated):
    out, _ = generated
    written = {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*.tsv")}
    committed = {str(path.relative_to(GYM)): path.read_bytes() for path in GYM.rglob("*.tsv")}
    assert len(written) == 4 * len(mini_overlap_task_list)
    assert written == committed


def test_names_and_metrics_are_those_of_the_task_list(generated):
    rows = [line.split() for line in generated[1].splitlines()]
    assert {name: metric for name, _, metric, *_ in rows} == {task: METRICS[task] for task in mini_overlap_task_list}


@pytest.mark.parametrize("task", mini_overlap_task_list)
def test_sizes_and_disjoint_splits(task):
    splits = {
        name: read_examples(GYM / task / f"{task}_{name}.tsv")
        for name in ("64_42_train", "64_42_dev", "64_42_test", "full_train")
    }
    few = 32 if "yesno" in task else 64
    assert {name: len(lines) for name, lines in splits.items()} == {
        "64_42_train": few,
        "64_42_dev": few,
        "64_42_test": 200,
        "full_train": 2000,
    }
    inputs = [example.input for lines in splits.values() for example in lines]
    assert len(inputs) == len(set(inputs))
    if "yesno" in task:
        assert [example.outputs[0] for example in splits["64_42_train"]].count("yes") == 16


def test_some_tasks_list_several_answers():
    several = [
        t
        for t in mini_overlap_task_list
        if any(len(e.outputs) > 1 for e in read_examples(GYM / t / f"{t}_64_42_dev.tsv"))
    ]
    assert len(several) >= 2


def test_the_backbone():
    assert (BACKBONE / "model.safetensors").stat().st_size < 12e6
    config = json.loads((BACKBONE / "config.json").read_text())
    assert config["num_layers"] != config["num_decoder_layers"] and config["tie_word_embeddings"] is False
    backbone = load_backbone(BackboneConfig(model=str(BACKBONE), device="cpu"))
    assert 1e6 < sum(p.numel() for p in backbone.model.parameters()) < 5e6
    known = backbone.tokenizer(" [mini_read_towns] what does Karov sell ?")["input_ids"]
    assert backbone.tokenizer.unk_token_id not in known


def test_tasks_of_two_skills_are_not_in_the_default_list():
    """Each has the answers of one group and the questions of another; the lists of the default world are as they were."""
    two = [task for task in mini_overlap_task_list if task not in mini_task_list]
    assert len(mini_task_list) == 12 and len(two) == 3
    lines = {task: read_examples(GYM / task / f"{task}_64_42_test.tsv") for task in two}
    for example in lines["mini_read_choice_animals"]:
        assert (
            " ? (A) " in example.input and f") {example.outputs[0]} " in example.input and example.input.endswith(" .")
        )
    for example in lines["mini_closed_choice_people"]:
        assert " ? (A) " in example.input and example.outputs[0] in example.input.split("(A)")[1]
    yes = [example.outputs[0] == "yes" for example in lines["mini_closed_yesno_towns"]]
    assert 80 <= sum(yes) <= 120 and all("is it true that" in e.input for e in lines["mini_closed_yesno_towns"])
