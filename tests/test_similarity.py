"""The target x source loop: labels, stacks, kills, settings, budgets."""

from dataclasses import replace
from pathlib import Path

import pytest
from conftest import LINES_OF, similarity_config

import pewe.similarity.loop
import pewe.similarity.matrix
from get_similarity import get_Loss
from pewe.data import read_examples
from pewe.files import read_json, read_table
from pewe.similarity.loop import run
from pewe.similarity.table import COLUMNS
from task_list import QA_task_list


@pytest.fixture(scope="module")
def config(tiny_backbone, paper_data, tiny_checkpoints, tmp_path_factory):
    return similarity_config(tiny_backbone, paper_data, tiny_checkpoints, tmp_path_factory.mktemp("loss"))


def test_labels_are_the_originals_where_every_line_has_one_answer(config, tmp_path):
    """Where lines have several, the original takes those of other lines."""
    ours, originals = (
        run(get_Loss.MEASURE, replace(config, as_original=flag, output_dir=str(tmp_path / str(flag))))
        for flag in (False, True)
    )
    off = (ours["value"] / originals["value"] - 1).abs().groupby(ours["target"]).max()
    dev = {task: f"{config.task_dir}/{task}/{task}_64_42_dev.tsv" for task in LINES_OF}
    several = {task for task, path in dev.items() if any(len(e.outputs) > 1 for e in read_examples(Path(path)))}
    assert len(several) == 3 and set(off[off > 1e-3].index) == several and (off[off <= 1e-3] == 0).all()


def test_stacks_of_any_size_agree(config, tmp_path):
    some = replace(config, tasks=["boolq", "codah"], source_tasks=QA_task_list[:5])
    tables = [
        run(get_Loss.MEASURE, replace(some, stack=stack, output_dir=str(tmp_path / str(stack)))) for stack in (1, 2, 5)
    ]
    for table in tables[1:]:
        assert table[COLUMNS[:3]].equals(tables[0][COLUMNS[:3]])
        assert table["value"].to_numpy() == pytest.approx(tables[0]["value"].to_numpy(), rel=1e-5)


def test_killed_after_any_target_and_started_again_is_the_same(config, tmp_path, monkeypatch):
    some = replace(config, tasks=["boolq", "codah", "ai2_arc"], stack=2)
    clean = run(get_Loss.MEASURE, replace(some, output_dir=str(tmp_path / "clean")))
    broken = replace(some, output_dir=str(tmp_path / "broken"))
    monkeypatch.setattr(
        pewe.similarity.matrix.time, "monotonic", iter(range(0, 10_000, 10)).__next__
    )  # write every time
    score, deaths = pewe.similarity.loop.score_target, 0
    for _ in range(10):
        calls = 0

        def dying(*args):
            nonlocal calls
            calls += 1
            if calls == 2:
                raise KeyboardInterrupt
            return score(*args)

        monkeypatch.setattr(pewe.similarity.loop, "score_target", dying)
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
    assert run(get_Loss.MEASURE, replace(some, prefix_r=3, lora_r=2))["value"].tolist() == first["value"].tolist()
    assert not (tmp_path / "result.previous.tsv").exists()  # a flag of other kinds of delta does not count
    second = run(get_Loss.MEASURE, replace(some, predict_batch_size=3))
    assert not first["value"].equals(second["value"])
    assert read_table(tmp_path / "result.previous.tsv", COLUMNS)["value"].tolist() == first["value"].tolist()


def test_output_names_its_measure_and_orientation(config):
    run(get_Loss.MEASURE, replace(config, pictures=True))
    assert (Path(config.output_dir) / "similarity.png").read_bytes().startswith(b"\x89PNG")
    stored = read_json(Path(config.output_dir) / "config.json")
    assert stored["measure"] == "Loss" and stored["higher_is_more_similar"] is False
    assert {"torch", "transformers", "opendelta"} <= stored["provenance"]["versions"].keys()


def test_budget_and_reduction(config, tmp_path):
    """All batches, summed, is the number of batches times their mean."""
    some = replace(config, tasks=["boolq", "codah"], max_batches=-1)
    total = run(get_Loss.MEASURE, replace(some, output_dir=str(tmp_path / "sum")))["value"]
    mean = run(get_Loss.MEASURE, replace(some, reduction="mean", output_dir=str(tmp_path / "mean")))["value"]
    assert total.to_numpy() == pytest.approx(3 * mean.to_numpy())  # 12 dev lines, 5 a batch
