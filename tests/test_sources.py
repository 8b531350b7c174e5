"""Sources of one's own: where they lie, what they are called, and what commands make of them."""

import contextlib

import pandas as pd
import pytest
import torch
from conftest import MINI_TASKS, load_backbone
from test_peft import change, make_peft

from get_similarity import get_KL_divergence, get_Loss
from pewe.backbone import BackboneConfig
from pewe.deltas.checkpoint import ensemble_checkpoint, open_checkpoint, task_checkpoint, write_checkpoint
from pewe.deltas.convert import ConvertConfig, convert_peft
from pewe.deltas.peft_folder import CONFIG, read_peft
from pewe.deltas.sources import listed_sources, source_files, source_names
from pewe.errors import UserError
from pewe.similarity.config import SimilarityConfig
from pewe.similarity.loop import run as similarity
from unit_model import unit_model_average, unit_model_others


@pytest.fixture(scope="module")
def places(tmp_path_factory, tiny_backbone):
    """Two folders of PEFT in one, and a checkpoint of ours, on the tiny backbone."""
    out = tmp_path_factory.mktemp("own")
    for seed, name in enumerate(("poems", "prices")):
        model = load_backbone(BackboneConfig(model=str(tiny_backbone), device="cpu")).model
        folder = make_peft(out / f"plain_{name}", seed, model)
        change(folder, out / "hub" / name, base_model_name_or_path=str(tiny_backbone))
    config = ConvertConfig(peft=str(out / "plain_poems"), out=str(out / "mine.pt"), model=str(tiny_backbone))
    convert_peft(config)
    return out


def test_a_list_names_its_sources(places):
    hub = str(places / "hub")
    assert listed_sources(f"{hub}") == {}  # a folder of sources by name, as ever
    assert source_files(hub, ["poems"]) == {"poems": places / "hub" / "poems"}
    assert list(listed_sources(f"{hub},{places}/mine.pt")) == ["poems", "prices", "mine"]
    assert listed_sources(f"cheap={hub}/prices") == {"cheap": places / "hub" / "prices"}
    assert list(listed_sources(f"{hub}/prices")) == ["prices"]
    assert source_names(f"{hub}/poems,{hub}/prices", [], ["a task"]) == ["poems", "prices"]
    assert source_names(hub, [], ["a task", "prices"]) == ["a task", "prices"]  # one of which is missing
    assert source_names(hub, [], ["a task"]) == ["poems", "prices"]
    assert source_names(f"{places}", [], ["a task"]) == ["plain_poems", "plain_prices"]
    with contextlib.chdir(hub):  # no folder is given
        assert source_names("", [], ["a task"]) == ["a task"]
    assert list(listed_sources(f"{hub},")) == ["poems", "prices"]
    assert source_names(f"{places}/nowhere", [], ["a task"]) == ["a task"]
    write_checkpoint(task_checkpoint(places / "tuned", "mini"), "lora", {"a": torch.ones(1)}, {})
    assert list(listed_sources(f"{places}/tuned,{hub}")) == ["mini", "poems", "prices"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("{0}/hub/poems,{0}/hub", "two sources are called 'poems'"),
        ("{0}/hub,{0}/nowhere", "nowhere' is no delta"),
        ("{0}/hub,{0}/hub/poems/adapter_config.json", "is no delta"),
        ("a/b=../../{0}/hub/poems", "must be a plain name|is no delta"),
    ],
)
def test_what_is_no_source_is_named(places, given, message):
    with pytest.raises(UserError, match=message):
        listed_sources(given.format(places))


def test_a_name_that_a_list_has_not(places):
    with pytest.raises(UserError, match=r"has no source 'poem'; did you mean 'poems'"):
        source_files(f"{places}/hub/poems,{places}/hub/prices", ["poem"])


def test_hub_ids_are_fetched(places, monkeypatch):
    """By huggingface_hub's snapshot of the two files, here without a network."""
    asked = []

    def snapshot(name, allow_patterns):
        asked.append((name, CONFIG in allow_patterns))
        if name == "who/gone":
            raise OSError("404 not found\nmore")
        return str(places / "hub" / name.split("/")[1])

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    assert listed_sources("lorahub/poems") == {"poems": places / "hub" / "poems"}
    assert asked == [("lorahub/poems", True)]
    with pytest.raises(UserError, match=r"cannot fetch who/gone from the hub: 404 not found$"):
        listed_sources("who/gone")
    with pytest.raises(UserError, match=r"who/nothing on the hub has no adapter_config\.json"):
        listed_sources("who/nothing")


@pytest.fixture
def setting(tiny_backbone, tiny_data, tmp_path):
    """The flags of a similarity of LoRAs on the tiny T5, into S."""
    return {
        "model": str(tiny_backbone),
        "task_dir": str(tiny_data),
        "device": "cpu",
        "output_dir": str(tmp_path / "S"),
        "max_input_length": 32,
        "max_output_length": 6,
        "predict_batch_size": 4,
        "tune_method": "lora",
        "lora_alpha": 5.0,
        "pictures": False,
        "quiet": True,
    }


def test_similarity_ensemble_and_tables_of_own_sources(places, setting, tmp_path):
    """Targets and sources differ altogether; a PEFT folder, a checkpoint and both ways to name them."""
    given, targets = f"{places}/hub/poems,dear={places}/hub/prices,{places}/mine.pt", list(MINI_TASKS[:2])
    config = SimilarityConfig(**setting, tasks=targets, source_ckpt_path=given, lora_r=3)
    table = similarity(get_Loss.MEASURE, config)
    S = table.pivot_table(index="target", columns="source", values="value")
    assert set(S.columns) == {"poems", "dear", "mine"} and set(S.index) == set(targets)
    assert S["poems"].tolist() == S["mine"].tolist() != S["dear"].tolist()
    common = {"delta": "lora", "source_ckpt_path": given, "tasks": targets, "quiet": True}
    unit_model_others.run(
        unit_model_others.Config(**common, origin_data_path=str(tmp_path / "S"), save_ckpt_path=str(tmp_path / "Loss"))
    )
    W = pd.read_csv(tmp_path / "Loss" / "final_weight.tsv", sep="\t")
    assert set(W["source"]) == {"poems", "dear", "mine"} and W.groupby("target")["weight"].sum().round(6).eq(1).all()
    unit_model_average.run(unit_model_average.Config(**common, save_ckpt_path=str(tmp_path / "mean")))
    merged, args = open_checkpoint(ensemble_checkpoint(tmp_path / "mean", targets[0]), "lora")
    states = [read_peft(places / "hub" / name)[0] for name in ("poems", "prices", "poems")]
    for name, tensor in merged.items():
        assert torch.allclose(tensor, sum(state[name] for state in states) / 3, rtol=0, atol=1e-7)
    assert list(args["sources"]) == ["poems", "dear", "mine"] and args["lora_alpha"] == 5.0
    one = unit_model_others.Config(
        **common,
        origin_data_path=str(tmp_path / "S"),
        save_ckpt_path=str(tmp_path / "two"),
        source_tasks=["dear", "mine"],
    )
    unit_model_others.run(one)
    assert set(pd.read_csv(tmp_path / "two" / "final_weight.tsv", sep="\t")["source"]) == {"dear", "mine"}


def test_tuned_targets_are_padded_with_the_sources(places, tiny_backbone, setting, tmp_path):
    """Whose largest rank is that of a LoRA of PEFT; the targets' own deltas, of ours, are of a smaller one."""
    model = load_backbone(BackboneConfig(model=str(tiny_backbone), device="cpu")).model
    plain = make_peft(tmp_path / "plain", 5, model, r=5)
    folder = change(plain, tmp_path / "wide", base_model_name_or_path=str(tiny_backbone))
    state, args = open_checkpoint(places / "mine.pt", "lora")
    target = MINI_TASKS[0]
    write_checkpoint(task_checkpoint(tmp_path / "tuned", target), "lora", state, args)
    config = get_KL_divergence.MEASURE.config(
        **setting,
        tasks=[target],
        source_ckpt_path=f"{folder},{places}/mine.pt",
        random_tuned_ckpt_path=str(tmp_path / "tuned"),
        lora_r=5,
    )
    table = similarity(get_KL_divergence.MEASURE, config).set_index("source")["value"]
    assert table["mine"] == pytest.approx(0, abs=1e-5) and abs(table["wide"]) > 1e-4


def test_another_backbone_is_refused_and_may_be_named(places, tiny_backbone, tmp_path):
    folder = change(places / "plain_poems", tmp_path / "x", base_model_name_or_path="google/elsewhere")
    config = ConvertConfig(peft=str(folder), out=str(tmp_path / "x.pt"), model=str(tiny_backbone))
    args = convert_peft(config)
    assert args["model"] == str(tiny_backbone) and args["lora_targets"] == ["q", "v"]
    assert open_checkpoint(tmp_path / "x.pt", "lora")[1]["backbone"] == args["backbone"]
