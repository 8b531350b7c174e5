"""What fusion has stored is used again only for what it was made from, byte by byte; two processes share a zoo."""

import dataclasses
import itertools
import random
import shutil
import threading
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from small_fusion import small_domains, small_encoder, small_experiment
from transformers import BertForSequenceClassification

from pewe.cli import log_to
from pewe.errors import UserError
from pewe.files import hold, read_record, write_record
from pewe.fusion import experiment, zoo
from pewe.fusion.cells import Cell, Config, ScoringConfig
from pewe.fusion.training import TrainingConfig
from pewe.fusion.zoo import Zoo
from pewe.identity import deciding, files_digests, part
from pewe.merging import collect
from pewe.merging.collect import StatisticsConfig
from pewe.merging.models import MergeRules
from pewe.merging.statistics import Statistics
from pewe.merging.store import made, read_tensors, stale, write_tensors


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return small_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return small_domains(tmp_path_factory.mktemp("domains"))


@pytest.fixture(scope="module")
def finished(encoder, data, tmp_path_factory):
    """The zoo of a finished experiment, and its scores."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("finished"))
        config = small_experiment(encoder, data, Path("zoo"), **FEW)
        experiment.run(config)
        yield Path("zoo").resolve(), table()


FEW = {"seeds": [1], "methods": ["individual", "regmean", "multitask"], "quiet": False}


@pytest.fixture
def config(encoder, data, finished, tmp_path, monkeypatch):
    """The same experiment with a copy of that zoo."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(finished[0], tmp_path / "zoo")
    return small_experiment(encoder, data, tmp_path / "zoo", **FEW)


@pytest.fixture
def said(capsys):
    """What was logged so far, as one text."""
    texts = []
    return lambda: texts.append(capsys.readouterr().err) or "".join(texts)


def table() -> pd.DataFrame:
    return pd.read_csv("results/tiny/scores.tsv", sep="\t")


def one_model(config: Config) -> Path:
    return Zoo(config, ["a", "b", "c"]).trained(("a",), 1, 1)


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place % len(content)] ^= 1 << place % 8
    path.write_bytes(content)


TENSORS = {
    "gram.x": torch.arange(6.0, dtype=torch.float64).view(2, 3),
    "n": torch.tensor([1, 2]),
    "b": torch.ones(3).half(),
}


def test_every_flipped_byte_of_a_file_of_tensors_is_noticed(tmp_path):
    path = tmp_path / "statistics.safetensors"
    write_tensors(path, TENSORS, {"model": "m", "rate": 1e-4}, {"labels": [0, 2]})
    found = read_tensors(path)
    assert {name: tensor.dtype for name, tensor in found.tensors.items()} == {n: t.dtype for n, t in TENSORS.items()}
    assert found.info["labels"] == [0, 2] and not stale(path, {"rate": 1e-4})
    written = path.read_bytes()
    for place in range(len(written)):
        path.write_bytes(written[:place] + bytes([written[place] ^ 1 << place % 8]) + written[place + 1 :])
        try:
            again = read_tensors(path)
        except UserError as error:
            assert str(path) in str(error) and len(str(error).splitlines()) == 1
            continue
        assert again.info == found.info  # a blank of the header, or another spelling of the same
        assert all(torch.equal(again.tensors[name], tensor) for name, tensor in TENSORS.items())
    path.write_bytes(written[:-1])
    with pytest.raises(UserError, match="damaged"):
        read_tensors(path)


def test_a_file_of_tensors_is_made_again_for_another_identity(tmp_path, said):
    path, calls = tmp_path / "x.safetensors", []
    log_to(None)

    def make() -> Statistics:
        calls.append(1)
        return Statistics({"x": torch.ones(2)}, {"number": len(calls)})

    for identity, number in (
        ({"model": "a"}, 1),
        ({"model": "a"}, 1),
        ({"model": "b"}, 2),
        ({"model": "b", "k": 1}, 3),
    ):
        assert made(path, identity, make).info["number"] == number
    assert "'model' was a, is b; it is made again" in said()
    save_file({"x": torch.ones(2)}, path)
    assert "has no record of what it was made from" in stale(path, {})
    with pytest.raises(UserError, match=r"is not written: tensor x has values that are not finite"):
        write_tensors(path, {"x": torch.tensor([1.0, float("nan")])}, {})


PARTS = ("model.safetensors", "config.json", "recipe.json", "statistics/*", "logits/*", "../scores/*")
DAMAGES = [*itertools.product(PARTS, ["flip", "cut"]), ("model.safetensors", "gone"), ("recipe.json", "gone")]


@pytest.mark.parametrize(("pattern", "damage"), DAMAGES)
def test_what_is_damaged_is_made_again(config, finished, pattern, damage, said):
    folder = one_model(config)
    contents = {path: path.read_bytes() for path in folder.rglob("*.safetensors")}
    rng = random.Random(pattern + damage)
    for path in folder.glob(pattern):
        if damage == "flip":
            flip(path, rng.randrange(10**6))
        elif damage == "cut":
            path.write_bytes(path.read_bytes()[:-5])
        else:
            path.unlink()
    if pattern != "../scores/*":
        shutil.rmtree(folder.parent / "scores")
    experiment.run(config)
    assert table().equals(finished[1])
    assert {path: path.read_bytes() for path in folder.rglob("*.safetensors")} == contents
    if damage != "gone":
        words = ("damaged", "is not a safetensors file", "has no record")
        assert any(word in said() for word in words)


def test_a_replaced_model_is_trained_again_and_nothing_of_it_is_used(config, finished, monkeypatch):
    made_zoo = Zoo(config, ["a", "b", "c"])
    first, other = made_zoo.trained(("a",), 1, 1), made_zoo.trained(("b",), 1, 1)
    shutil.copy(other / "model.safetensors", first / "model.safetensors")
    trained = []
    monkeypatch.setattr(zoo, "train", lambda *args, train=zoo.train: trained.append(args[-1]) or train(*args))
    experiment.run(config)
    assert trained == [first] and table().equals(finished[1])


def test_another_model_in_a_folder_has_other_statistics_logits_and_scores(config, finished):
    """A model that was trained on another machine, say: same recipe, other weights, a record that fits them."""
    before, made_zoo = finished[1], Zoo(config, ["a", "b", "c"])
    first, other = made_zoo.trained(("a",), 1, 1), made_zoo.trained(("b",), 1, 1)
    record = read_record(first / "recipe.json")
    shutil.copy(other / "model.safetensors", first / "model.safetensors")
    write_record(first / "recipe.json", {**record, "files": files_digests(first / name for name in zoo.FILES)})
    experiment.run(config)
    found = table()
    changed = found["method"] != "multitask"
    assert found[~changed].equals(before[~changed])
    logits = [made_zoo.stored_logits(folder, made_zoo.domains["c"]) for folder in (first, other)]
    assert torch.equal(*logits)
    grams = [made_zoo.statistics(first, name).tensors["gram.classifier"] for name in "ab"]
    assert not torch.equal(*grams)  # of one model on the data of two domains: made anew for the second


@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "vocab.txt", "tokenizer.json"])
def test_the_content_of_the_start_counts(config, encoder, tmp_path, file):
    before = Zoo(config, ["a", "b", "c"])
    moved = shutil.copytree(encoder, tmp_path / "moved")
    config = replace(config, model=str(moved))
    assert Zoo(config, ["a", "b", "c"]).folder(("a",), 1, 1) == before.folder(("a",), 1, 1)
    if file == "model.safetensors":
        weights = load_file(moved / file)
        save_file({name: tensor * 1.001 for name, tensor in weights.items()}, moved / file, {"format": "pt"})
    else:  # the same to whoever reads it
        (moved / file).write_text((moved / file).read_text() + "\n")
    assert Zoo(config, ["a", "b", "c"]).folder(("a",), 1, 1) != before.folder(("a",), 1, 1)


def test_every_flag_that_decides_has_its_class():
    """A new flag of the experiment must say whether models, statistics, merges or scores depend on it, or the data do."""
    classes = (TrainingConfig, StatisticsConfig, MergeRules, ScoringConfig)
    known = {field.name for kind in classes for field in dataclasses.fields(kind)}
    of_data = {"rename", "train_limit", "test_limit"}
    of_cells = {"domains", "held_out", "filter_model", "protocols", "methods", "heads", "seeds", "multitask_groups"}
    assert deciding(Config()).keys() == known | of_data | of_cells


OTHER = {
    "alpha": 0.7,
    "ridge": 1e-2,
    "smoothing": 1e-3,
    "normalise": "param",
    "exclude": ["classifier"],
    "head_rule": False,
    "regmean_exclude": [".*query"],
    "fisher": "hard",
    "examples": 5,
    "batch_size": 3,
    "as_original": True,
    "layers": 1,
    "max_length": 4,
    "updates": 3,
    "learning_rate": 1e-3,
    "own_heads": True,
    "accuracy": True,
    "kind": "multi",
}


def test_scores_depend_on_every_flag_of_these_classes(config):
    classes = (TrainingConfig, StatisticsConfig, MergeRules, ScoringConfig)
    assert OTHER.keys() == {field.name for kind in classes for field in dataclasses.fields(kind)}
    cell = Cell(("a", "b"), "same", 1, "regmean")

    def about(config: Config) -> str:
        made_zoo = Zoo(config, ["a", "b", "c"])
        folders = [made_zoo.folder(*member) for member in experiment.members(config, cell)]
        return experiment.settings(made_zoo, config, cell, folders)

    found = [about(replace(config, **{name: value})) for name, value in OTHER.items()]
    assert all(one != about(config) for one in found)


def test_the_flags_of_a_kind():
    config = Config(alpha=0.3, updates=7, batch_size=5)
    assert part(config, MergeRules) == MergeRules(alpha=0.3)
    assert deciding(part(config, TrainingConfig))["updates"] == 7
    assert deciding(part(config, StatisticsConfig)) == {
        "batch_size": 5,
        "fisher": "empirical",
        "examples": 1000,
        "as_original": False,
    }


def test_two_that_need_a_model_train_it_once(config, monkeypatch):
    """The second waits, then finds it."""
    shutil.rmtree(config.zoo)
    began, trained = threading.Event(), []

    def train(*args, train=zoo.train):
        trained.append(args[-1])
        began.set()
        threading.Event().wait(0.3)
        train(*args)

    monkeypatch.setattr(zoo, "train", train)
    zoos = [Zoo(config, ["a", "b", "c"]) for _ in range(2)]
    others = [threading.Thread(target=one.trained, args=(("a",), 1, 1)) for one in zoos]
    for thread in others:
        thread.start()
        began.wait(10)
    for thread in others:
        thread.join(30)
    assert len(trained) == 1 and not zoos[1].missing(("a",), 1, 1)


def test_an_experiment_holds_its_folder_of_results(config):
    with hold(Path("results/tiny")), pytest.raises(UserError, match="is in use by process"):
        experiment.run(config)


class Killed(BaseException):
    """Stands for SIGKILL between two writes."""


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.7, 0.95])
def test_killed_at_any_write_the_same_command_ends_as_a_clean_run(config, finished, monkeypatch, share):
    shutil.rmtree(config.zoo)
    left = [int(share * sum(path.is_file() and path.name != ".lock" for path in finished[0].rglob("*")))]

    def replace_or_die(self, to, replaced=Path.replace):
        left[0] -= 1
        if left[0] == 0:
            raise Killed
        return replaced(self, to)

    monkeypatch.setattr(Path, "replace", replace_or_die)
    with pytest.raises(Killed):
        experiment.run(config)
    experiment.run(config)
    assert table().equals(finished[1]) and not list(Path.cwd().rglob("*.tmp"))


def test_collect_is_of_this_model_and_these_data(encoder, tmp_path, said):
    folder, file = shutil.copytree(encoder, tmp_path / "model"), tmp_path / "train.tsv"
    BertForSequenceClassification.from_pretrained(folder, num_labels=2).save_pretrained(folder)
    file.write_text("we saw glad\t0\nthey lost sad\t1\n" * 4)
    config = collect.Config(model=str(folder), data=str(file), output=str(tmp_path / "s.safetensors"), batch_size=2)
    output = Path(config.output)
    collect.run(config)
    before = output.read_bytes()
    collect.run(config)
    assert output.read_bytes() == before and "made again" not in said()
    file.write_text("we saw glad\t1\nthey lost sad\t1\n" * 4)
    collect.run(config)
    assert "'data' was" in said() and output.read_bytes() != before
    weights = load_file(folder / "model.safetensors")
    save_file({name: 2 * tensor for name, tensor in weights.items()}, folder / "model.safetensors", {"format": "pt"})
    before = output.read_bytes()
    collect.run(config)
    assert "'model' was" in said() and output.read_bytes() != before
    with pytest.raises(UserError, match="lies in the folder of the model"):
        collect.run(replace(config, output=str(folder / "model.safetensors")))
    (folder / "model.safetensors").unlink()
    save_file(
        {name: tensor for name, tensor in weights.items() if name != "classifier.weight"},
        folder / "model.safetensors",
        {"format": "pt"},
    )
    with pytest.raises(UserError, match=r"the weights do not fit config\.json, e\.g\. classifier\.weight"):
        collect.run(config)
