"""Tasks of one's own: declared beside the data, checked by the same words as tuning uses, ranked without any declaration."""

import subprocess
import sys
from dataclasses import replace

import pandas as pd
import pytest
from conftest import ROOT, tuning_config, write_tiny_data

import rank_sources
from data.build.check import CheckConfig, check_task
from data.build.check import run as check
from get_similarity import MEASURES
from pewe.deltas.checkpoint import read_checkpoint, task_checkpoint, write_checkpoint
from pewe.errors import UserError
from pewe.files import read_table
from pewe.merging.save import EnsembleConfig, ensemble_tasks
from pewe.own_tasks import declare, write_declared
from pewe.tuning.tune import tune
from task_list import GROUP_OF, TASK_LISTS

THREE = """
[own_classes]
metric = "ACC"
group = "mine"

[own_texts]
metric = "Rouge-L"
group = "mine"

[own_few]
metric = "EM"
"""


@pytest.fixture
def folder(tmp_path, forgotten):
    """Classes; a text with two answers a line; one whose train file has 5 lines too few."""
    lines_of = {"own_classes": "mini_yesno_towns", "own_texts": "mini_read_people", "own_few": "mini_read_towns"}
    out = write_tiny_data(tmp_path / "data", lines_of)
    (out / "tasks.toml").write_text(THREE)
    for path in out.glob("own_texts/*.tsv"):
        lines = [line if line.count("\t") > 1 else f"{line}\tor so" for line in path.read_text().splitlines()]
        path.write_text("\n".join(lines) + "\n")
    few = out / "own_few" / "own_few_64_42_train.tsv"
    few.write_text("".join(few.read_text().splitlines(keepends=True)[:3]))
    return out


def test_a_declared_task_is_tuned_like_any_other(folder, tiny_backbone, tmp_path):
    config = tuning_config(tiny_backbone, folder, tmp_path / "out", task_list="mine", train_iters=1, adapter_size=4)
    table = tune(config)
    assert table["task"].tolist() == ["own_classes", "own_texts"] and table["metric"].tolist() == ["ACC", "Rouge-L"]
    assert GROUP_OF["own_few"] == "own_tasks" and TASK_LISTS["own_tasks"] == ["own_few"]
    assert ensemble_tasks(EnsembleConfig(task_dir=str(folder), task_list="mine"), []) == ["own_classes", "own_texts"]


def said_by(run) -> str:
    with pytest.raises(UserError) as error:
        run()
    return str(error.value)


def findings_of(folder) -> str:
    return "\n".join(map(str, check_task(folder)[0]))


def test_the_check_and_the_tuning_use_the_same_words(folder, tiny_backbone, tmp_path, capsys):
    config = tuning_config(tiny_backbone, folder, tmp_path / "out", tasks=["own_few"], bsz_list=[8], adapter_size=4)
    few = "3 training lines are fewer than one batch of 8; give --bsz_list 3 or less"
    assert few in said_by(lambda: tune(config)) and few in findings_of(folder / "own_few")
    unknown = folder / "own_clases"
    (folder / "own_classes").rename(unknown)
    for path in unknown.iterdir():
        path.rename(unknown / path.name.replace("classes", "clases"))
    text = f"unknown task 'own_clases'; did you mean 'own_classes' or 'own_texts'? A task of your own is declared in {folder}"
    assert text in said_by(lambda: tune(replace(config, tasks=["own_clases"]))) and text in findings_of(unknown)
    with pytest.raises(SystemExit, match="1"):
        check(CheckConfig([str(unknown)]))
    capsys.readouterr()


WRONG = {
    "metric": ('[a]\nmetric = "Rouge"', "[a]: the metric cannot be 'Rouge'; did you mean 'Rouge-L'"),
    "none": ('[a]\ngroup = "g"', "[a]: the metric cannot be ''"),
    "key": ('[a]\nmetrics = "ACC"', "[a]: unknown key 'metrics'; did you mean 'metric'"),
    "type": ('[a]\nmetric = "ACC"\ngroup = 3', "[a]: group must be a name, not 3"),
    "no section": ('a = "ACC"', "expected a section [a] with metric"),
    "a path": ('["../a"]\nmetric = "ACC"', "the task must be a plain name without slashes"),
    "the paper's": ('[boolq]\nmetric = "EM"', "'boolq' stands in task_list.py with the metric ACC"),
    "no TOML": ("[a", "tasks.toml: "),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_declaration_is_one_line_that_names_its_place(name, folder):
    content, said = WRONG[name]
    (folder / "tasks.toml").write_text(content)
    place = str(folder / "tasks.toml")
    assert said_by(lambda: declare(folder)).startswith(place) and said in said_by(lambda: declare(folder))
    assert said in findings_of(folder / "own_texts")


def test_results_keep_the_declarations_of_their_tasks(folder, tmp_path):
    declare(folder)
    (tmp_path / "results").mkdir()
    write_declared(tmp_path / "results", ["boolq", "own_texts"])
    text = (tmp_path / "results" / "tasks.toml").read_text()
    assert text == '[own_texts]\nmetric = "Rouge-L"\ngroup = "mine"\n'
    write_declared(tmp_path, ["boolq"])
    assert not (tmp_path / "tasks.toml").exists()


# ---- pewe rank


@pytest.fixture
def ranked(folder, tiny_backbone, tmp_path):
    """`ranked(**flags)`: the configuration of a ranking of four sources, one of which has the target's name."""
    sources = tmp_path / "sources"
    (folder / "tasks.toml").unlink()  # a ranking needs no metric
    from conftest import random_state, small

    from pewe.backbone import BackboneConfig, load_backbone
    from pewe.deltas.attach import attach_delta

    delta = attach_delta(load_backbone(BackboneConfig(model=str(tiny_backbone), device="cpu")).model, small("adapter"))
    for number, name in enumerate(("north", "south", "east", "own_texts")):
        state = random_state(delta, name, std=0.1 * (number + 1))
        write_checkpoint(
            task_checkpoint(sources, name), "adapter", state, {"adapter_type": "houlsby", "adapter_size": 4}
        )
    common = {"source_ckpt_path": str(sources), "model": str(tiny_backbone), "device": "cpu", "quiet": True}
    common |= {"max_input_length": 32, "max_output_length": 6, "output_dir": str(tmp_path / "rank")}

    def made(**flags):
        return rank_sources.Config(**{**common, "target": str(folder / "own_texts"), **flags})

    return made


def test_a_ranking_is_what_the_similarities_and_their_weights_say(ranked, tmp_path, capsys):
    table = rank_sources.run(ranked())
    printed = capsys.readouterr().out
    assert set(table["source"]) == {"north", "south", "east"} and printed.splitlines()[-1].split() == [
        "effective",
        "sources",
        *["2.0"] * 3,
    ]
    stored = read_table(tmp_path / "rank" / "rank.tsv", list(table.columns))
    pd.testing.assert_frame_equal(stored, table.reset_index(drop=True), check_dtype=False)
    assert (tmp_path / "rank" / "rank.png").stat().st_size > 1000
    for measure, own in table.groupby("measure"):
        higher = MEASURES[measure].higher_is_more_similar
        best = own.sort_values("value", ascending=not higher)
        assert best["rank"].tolist() == [1, 2, 3] and best["weight"].is_monotonic_decreasing
        alone = read_table(tmp_path / "rank" / "similarity" / measure / "result.tsv", ["source", "value"])
        assert dict(zip(own["source"], own["value"], strict=True)) == dict(
            zip(alone["source"], alone["value"], strict=True)
        )
        merged = read_checkpoint(tmp_path / "rank" / measure / "without_own_texts_checkpoint.pt", "adapter")
        sources = {
            name: read_checkpoint(task_checkpoint(tmp_path / "sources", name), "adapter") for name in own["source"]
        }
        for name, tensor in merged.items():
            expected = sum(row.weight * sources[row.source][name].double() for row in own.itertuples())
            assert tensor.double().allclose(expected, atol=1e-6)
    assert table["mean_rank"].is_monotonic_increasing


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"target": "no/task"}, "there is no folder 'no/task'"),
        ({"source_ckpt_path": "no"}, "--sources no: there is no such folder"),
        ({"source_tasks": ["north", "own_texts"]}, "at least two sources"),
        ({"source_tasks": ["north", "west"]}, "1 of 2 sources are missing"),
        ({"measures": ["KL"]}, "give --random_tuned_ckpt_path"),
    ],
)
def test_what_a_ranking_lacks_is_said(ranked, flags, said):
    assert said in said_by(lambda: rank_sources.run(ranked(**flags)))


def test_pewe_rank_knows_the_short_name_of_the_folder():
    done = subprocess.run(
        [sys.executable, "-m", "pewe", "rank", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "usage: pewe rank" in done.stdout and "--sources" in done.stdout and "--target" in done.stdout
