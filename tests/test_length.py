"""Length: the distance of the mean lengths, by a slow loop; what decides a matrix."""

from dataclasses import replace
from pathlib import Path

import pytest
from conftest import MINI_TASKS, tasks_config

from get_similarity.get_Length import MEASURE, LengthConfig
from pewe.backbone import t5_tokenizer
from pewe.data import read_examples
from pewe.files import read_json
from pewe.similarity.loop import run
from pewe.similarity.table import similarity_frame


@pytest.fixture
def config(tiny_backbone, tiny_data, tmp_path) -> LengthConfig:
    return tasks_config(LengthConfig, tiny_backbone, tiny_data, tmp_path / "Length", max_input_length=28, text_lines=7)


def test_distances_by_a_slow_loop(config, tiny_data):
    tokenizer, means = t5_tokenizer(config), {}
    for split, stem in (("dev", "64_42_dev"), ("train", "full_train")):
        for task in MINI_TASKS:
            lines = read_examples(tiny_data / task / f"{task}_{stem}.tsv")[:7]
            lengths = [min(28, len(tokenizer(f" [{task}] {line.input}")["input_ids"])) for line in lines]
            means[split, task] = sum(lengths) / 7
    frame = similarity_frame(run(MEASURE, config))
    for target in MINI_TASKS:
        for source in MINI_TASKS:
            assert frame.loc[target, source] == pytest.approx(abs(means["dev", target] - means["train", source]))
    record = read_json(Path(config.output_dir) / "config.json")
    assert record["measure"] == "Length" and record["higher_is_more_similar"] is False


def test_what_decides_a_matrix(config):
    first = run(MEASURE, config)
    record = Path(config.output_dir) / "config.json"
    settings = read_json(record)["settings"]
    run(MEASURE, replace(config, dtype="bfloat16", max_output_length=4, seed=1))
    assert read_json(record)["settings"] == settings
    for change in ({"text_lines": 2}, {"max_input_length": 8}, {"full_train": False}):
        assert not run(MEASURE, replace(config, **change))["value"].equals(first["value"])
        assert read_json(record)["settings"] != settings
