"""The grid and a ranking with sources that were made elsewhere: LoRAs of PEFT whose names are none of the targets."""

import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
from conftest import MINI_TASKS, ROOT, load_backbone
from test_peft import change, make_peft
from test_steps import SUITE, World, without_pictures

import rank_sources
from pewe.backbone import BackboneConfig
from pewe.deltas.checkpoint import ensemble_checkpoint, read_checkpoint
from pewe.deltas.peft_folder import CONFIG, read_peft
from pewe.errors import UserError
from pewe.grid import run as reproduce
from pewe.grid.config import Config
from pewe.grid.own_sources import needs_tasks
from pewe.identity import state_digest

MINI_T5 = str(ROOT / "checkpoints/mini_t5")
INITS = ["Random", "Average", "Loss"]
TASKS = list(MINI_TASKS[:2])
GIVEN = "own/poems,dear=own/prices"


@pytest.fixture(scope="module")
def finished(tiny_data, tmp_path_factory) -> Path:
    """Two LoRAs of unequal ranks, and an experiment with them."""
    folder = tmp_path_factory.mktemp("own_sources")
    for seed, (name, r) in enumerate({"poems": 2, "prices": 1}.items()):
        model = load_backbone(BackboneConfig(model=MINI_T5, device="cpu")).model
        made = make_peft(folder / "plain" / name, seed, model, r=r, lora_alpha=4)
        change(made, folder / "own" / name, base_model_name_or_path=MINI_T5)
    (folder / "steps.toml").write_text(SUITE.format(model=MINI_T5, data=tiny_data))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        without_pictures(patch)
        reproduce.run(config())
    return folder


@pytest.fixture
def own(finished, tmp_path, monkeypatch) -> World:
    """A copy of it to spoil."""
    folder = tmp_path / "copy"
    shutil.copytree(finished, folder)
    monkeypatch.chdir(folder)
    without_pictures(monkeypatch)
    world = World(folder)
    world.base, world.results = folder / "checkpoints/steps_own/lora/seed_1", folder / "results/steps_own"
    return world


def config(**flags) -> Config:
    given = {"suite": "steps.toml", "delta": ["lora"], "seeds": [1], "init": INITS, "tasks": TASKS}
    given |= {"source_ckpt_path": GIVEN}
    return Config(**{**given, **flags})


def planned(capsys, **flags) -> tuple[dict[str, str], list[str]]:
    """Step -> "done" or "to do", and what is missing, as a plan says it."""
    reproduce.run(config(dry_run=True, **flags))
    lines = capsys.readouterr().out.splitlines()
    steps = [line for line in lines if line.startswith(("done", "to do"))]
    states = {line[8:].split()[0].partition("seed_1/")[2]: line[:8].strip() for line in steps}
    return states, [line.removeprefix("missing: ") for line in lines if line.startswith("missing: ")]


def weights(world: World, init: str) -> pd.DataFrame:
    return pd.read_csv(world.base / "weights" / init / "final_weight.tsv", sep="\t")


def test_an_experiment_of_own_sources_tunes_none(own):
    assert not (own.base / "sources").exists() and not (own.folder / "checkpoints/steps").exists()
    cells = pd.read_csv(own.results / "cells.tsv", sep="\t")
    assert set(cells["init"]) == set(INITS) and set(cells["task"]) == set(TASKS)
    for init in ("Average", "Loss"):
        table = weights(own, init)
        assert set(table["source"]) == {"poems", "dear"} and set(table["target"]) == set(TASKS)
        assert table.groupby("target")["weight"].sum().round(6).eq(1).all()
    similar = pd.read_csv(own.results / "similarities.tsv", sep="\t")
    assert set(similar["source"]) == {"poems", "dear"} and similar["value"].nunique() == 4


def test_the_runs_begin_with_the_mean_of_the_sources(own):
    path = ensemble_checkpoint(own.base / "weights/Average", TASKS[0])
    merged = read_checkpoint(path, "lora")
    first, second = (read_peft(own.folder / "own" / name)[0] for name in ("poems", "prices"))
    for name, tensor in first.items():
        other = torch.zeros_like(tensor)  # of rank 1 and scale 4, here of rank 2 and scale 2
        part = second[name] * (2 if name.endswith("lora_B") else 1)
        other[tuple(map(slice, part.shape))] = part
        assert torch.allclose(merged[name], (tensor + other) / 2, atol=1e-6)
    assert own.settings("from_Average")["init"] == state_digest(merged)


def test_what_a_source_is_decides_all_that_comes_after_it(own, capsys):
    states, missing = planned(capsys)
    assert set(states.values()) == {"done"} and len(states) == 6 and not missing
    renamed, _ = planned(capsys, source_ckpt_path="own/poems,own/prices")
    assert {step for step, state in renamed.items() if state == "done"} == {"from_Random"}
    model = load_backbone(BackboneConfig(model=MINI_T5, device="cpu")).model
    made = make_peft(own.folder / "other", 5, model, r=1, lora_alpha=4)
    shutil.rmtree(own.folder / "own/prices")
    change(made, own.folder / "own/prices", base_model_name_or_path=MINI_T5)
    states, _ = planned(capsys)
    assert {step for step, state in states.items() if state == "done"} == {"from_Random"}
    before = own.settings("from_Loss")["init"]
    reproduce.run(config(init=["Loss"]))
    assert own.settings("from_Loss")["init"] != before


def test_a_plan_says_what_is_missing_and_a_run_begins_nothing(own, capsys, monkeypatch):
    def nowhere(name, allow_patterns, local_files_only=False):
        raise OSError("there is no network")

    monkeypatch.setattr("huggingface_hub.snapshot_download", nowhere)
    states, (line,) = planned(capsys, source_ckpt_path="own/poems,who/knows")
    assert "there is no checkpoint who/knows (1 of 2 sources are missing)" in line and states["from_Loss"] == "to do"
    with pytest.raises(UserError, match=r"cannot fetch who/knows from the hub: there is no network"):
        reproduce.run(config(source_ckpt_path="own/poems,who/knows"))
    (own.folder / "own/poems/adapter_model.safetensors").unlink()
    _, (line,) = planned(capsys)
    assert "own/poems has no adapter_model.safetensors" in line
    with pytest.raises(UserError, match=r"own/poems has no adapter_model\.safetensors") as error:
        reproduce.run(config(name="new"))
    assert "\n" not in str(error.value) and not (own.folder / "checkpoints/new_own").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"delta": ["adapter"]}, "is a LoRA of PEFT; expected one of --tune_method adapter"),
        ({"source_ckpt_path": "own/none,own/poems"}, "'own/none' is no delta"),
        ({"source_tasks": ["poem"]}, "has no source 'poem'; did you mean 'poems'"),
        ({"source_ckpt_path": "", "source_tasks": ["poems"]}, "give --source_ckpt_path"),
    ],
)
def test_what_cannot_be_a_source_is_told_before_any_step(own, flags, message):
    with pytest.raises(UserError, match=message):
        reproduce.run(config(**flags))


def test_a_source_of_another_backbone_is_told_before_any_step(own):
    text = (own.folder / "own/prices" / CONFIG).read_text()
    (own.folder / "own/prices" / CONFIG).write_text(text.replace(MINI_T5, "who/knows"))
    with pytest.raises(UserError, match=r"prices was tuned on another backbone \(who/knows\)"):
        reproduce.run(config())


def test_only_a_source_of_the_targets_name_is_left_out(own):
    reproduce.run(config(source_ckpt_path=f"own/poems,dear=own/prices,{TASKS[1]}=own/poems", init=["Average"]))
    table = weights(own, "Average").pivot(index="target", columns="source", values="weight")
    assert table.loc[TASKS[1], TASKS[1]] == 0 and (table.loc[TASKS[1], ["poems", "dear"]] == 0.5).all()
    assert (table.loc[TASKS[0]].round(6) == round(1 / 3, 6)).all()


def test_rows_of_tasks_are_left_out(own, capsys):
    reproduce.run(config(init=["Random", "Manual", "TextEmb", "Fisher", "Loss+regmean"]))
    said = capsys.readouterr().err
    assert "without Manual, TextEmb, Fisher, Loss+regmean: rows of sources that are tasks" in said
    found = [init for init in ("Loss", "Best_source", "GraNd_block", "RegMean", "LogME", "Union") if needs_tasks(init)]
    assert found == ["RegMean", "Union"]


@pytest.mark.slow
def test_rows_of_pairs_and_of_few_shot_lines_take_them_too(own):
    inits = ["Performance", "Euclidean", "Cosine", "Soup", "LoraHub", "Gradient", "TaskArithmetic"]
    reproduce.run(config(init=inits))
    assert set(pd.read_csv(own.results / "cells.tsv", sep="\t")["init"]) == {*INITS, *inits}
    pairs = pd.read_csv(own.base / "pairs/result.tsv", sep="\t")
    assert set(pairs["source"]) == {"poems", "dear"} and len(pairs) == 4


def test_a_suite_may_name_them_and_its_folder_is_its_own(own):
    own.change("lora_r = 2", 'lora_r = 2\nsource_ckpt_path = "own"')
    reproduce.run(config(source_ckpt_path="", init=["Average"]))
    table = pd.read_csv("checkpoints/steps/lora/seed_1/weights/Average/final_weight.tsv", sep="\t")
    assert set(table["source"]) == {"poems", "prices"}
    own.change("[weights]", '[weights]\nsource_ckpt_path = "own"')
    with pytest.raises(UserError, match=r"\[weights\]: source_ckpt_path cannot be set"):
        reproduce.run(config(source_ckpt_path=""))


def test_sources_of_the_tasks_in_one_folder_have_all_rows(own, capsys):
    for number, task in enumerate(TASKS):
        shutil.copytree(own.folder / "own" / ("poems", "prices")[number % 2], own.folder / "tasks" / task)
    reproduce.run(config(source_ckpt_path="tasks", init=["TextEmb", "Fisher"]))
    assert "without" not in capsys.readouterr().err
    assert {"TextEmb", "Fisher"} <= set(pd.read_csv(own.results / "cells.tsv", sep="\t")["init"])
    shutil.rmtree(own.folder / "tasks" / TASKS[1])
    assert f"tasks/{TASKS[1]}/checkpoint-best.pt (1 of 2" in planned(capsys, source_ckpt_path="tasks")[1][0]


@pytest.mark.parametrize("given", ["own", GIVEN])
def test_a_ranking_of_loras_of_peft(own, given, tiny_data, capsys):
    about = {"model": MINI_T5, "device": "cpu", "max_input_length": 32, "max_output_length": 6}
    target = str(tiny_data / TASKS[0])
    table = rank_sources.run(
        rank_sources.Config(**about, source_ckpt_path=given, target=target, measures=["Loss"], output_dir="ranked")
    )
    names = {"poems", "prices" if given == "own" else "dear"}
    assert set(table["source"]) == names and table["weight"].sum() == pytest.approx(1)
    S = pd.read_csv(own.base / "similarity/Loss/result.tsv", sep="\t").query("target == @TASKS[0]")
    assert sorted(table["value"]) == pytest.approx(sorted(S["value"]), rel=1e-5)
    assert "--lora_r 2 --lora_alpha 4.0" in capsys.readouterr().err
    assert ensemble_checkpoint(Path("ranked/Loss"), TASKS[0]).is_file()
