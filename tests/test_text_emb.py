"""TextEmb: by a slow loop over transformers' own encoder; what decides a matrix, and what does not."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import MINI_TASKS, tasks_config

from get_similarity.get_TextEmb import MEASURE
from pewe.backbone import load_backbone
from pewe.cli import parse
from pewe.data import load_split
from pewe.files import read_json
from pewe.merging.save import read_similarity
from pewe.similarity.loop import run
from pewe.similarity.table import similarity_frame
from pewe.similarity.tasks import TasksConfig


@pytest.fixture
def config(tiny_backbone, tiny_data, tmp_path) -> TasksConfig:
    flags = {"max_input_length": 20, "text_lines": 7, "predict_batch_size": 3}
    return tasks_config(TasksConfig, tiny_backbone, tiny_data, tmp_path / "TextEmb", **flags)


def test_cosines_by_a_slow_loop(config):
    """One line at a time; a target by its dev lines, a source by its full training lines."""
    backbone = load_backbone(config)
    backbone.model.eval()
    means = {}
    for split in ("dev", "train"):
        for task in MINI_TASKS:
            inputs = load_split(backbone.tokenizer, config, task, f"{task}_64_42", split).inputs[:7]
            with torch.no_grad():
                lines = [backbone.model.encoder(torch.tensor([line])).last_hidden_state[0].mean(0) for line in inputs]
            means[split, task] = torch.stack(lines).mean(0)
    frame = similarity_frame(run(MEASURE, config))
    for target in MINI_TASKS:
        for source in MINI_TASKS:
            expected = torch.cosine_similarity(means["dev", target], means["train", source], dim=0).item()
            assert frame.loc[target, source] == pytest.approx(expected, rel=1e-5)
    table, higher = read_similarity(Path(config.output_dir) / "result.tsv")
    assert higher is True and len(table) == 9


def test_what_decides_a_matrix(config):
    first = run(MEASURE, config)
    record = Path(config.output_dir) / "config.json"
    settings = read_json(record)["settings"]
    assert run(MEASURE, replace(config, predict_batch_size=50))["value"].to_numpy() == pytest.approx(
        first["value"].to_numpy()
    )
    assert read_json(record)["settings"] == settings
    for change in ({"text_lines": 2}, {"max_input_length": 5}, {"full_train": False}):
        assert not run(MEASURE, replace(config, **change))["value"].equals(first["value"])
        assert read_json(record)["settings"] != settings


def test_flags_of_the_other_measures_are_accepted(capsys):
    config = parse(TasksConfig, ["--tune_method", "lora", "--source_ckpt_path", "x", "--full_train"])
    assert config.full_train and "--source_ckpt_path, --tune_method" in capsys.readouterr().err
