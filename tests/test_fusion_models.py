"""Starts and models of fusion: damaged folders, and texts that are longer than an encoder reads."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from conftest import tiny_t5
from safetensors.torch import load_file, save_file
from small_fusion import WORDS, small_domains, small_encoder, small_experiment
from transformers import (
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertModel,
    MPNetConfig,
    MPNetModel,
    RobertaConfig,
    RobertaModel,
)

from pewe.errors import UserError
from pewe.fusion import experiment
from pewe.fusion.cells import Cell
from pewe.fusion.zoo import Zoo
from pewe.merging import collect
from pewe.merging.store import read_tensors
from pewe.whole_model import positions


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return small_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Domains with a text of 40 words in each file."""
    folder = small_domains(tmp_path_factory.mktemp("domains"))
    for path in folder.glob("*/*.tsv"):
        label = path.read_text().split()[-1]
        path.write_text(path.read_text() + " ".join([label] * 3 + WORDS[:2] * 20) + f"\t{label}\n")
    return folder


@pytest.fixture
def config(encoder, data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return small_experiment(encoder, data, tmp_path / "zoo", quiet=False)


SMALL = {"vocab_size": 30, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8, "hidden_size": 8}


def test_positions_that_an_encoder_can_read():
    bert = BertForSequenceClassification.config_class(**SMALL, max_position_embeddings=16)
    models = {
        16: BertForSequenceClassification(bert),
        18: RobertaModel(RobertaConfig(**SMALL, max_position_embeddings=20, pad_token_id=1)),
        14: MPNetModel(MPNetConfig(**SMALL, max_position_embeddings=16)),
        9: DistilBertModel(
            DistilBertConfig(vocab_size=30, dim=8, n_layers=1, n_heads=2, hidden_dim=8, max_position_embeddings=9)
        ),
        None: tiny_t5(),
    }
    assert {found: positions(model) for found, model in models.items()} == {found: found for found in models}
    for length, model in models.items():
        if length and hasattr(model, "eval"):
            model.eval()(input_ids=torch.full((1, length), 5))  # so many it reads, one more it does not
            with pytest.raises((IndexError, RuntimeError)):
                model(input_ids=torch.full((1, length + 1), 5))


def test_texts_are_cut_to_what_the_encoder_reads(config, capsys):
    long, exact, short = (Zoo(replace(config, max_length=length), ["a", "b", "c"]) for length in (128, 16, 8))
    assert long.folder(("a",), 1, 1) == exact.folder(("a",), 1, 1) != short.folder(("a",), 1, 1)
    assert max(len(ids) for ids, _ in long.domains["a"].train) == 16
    experiment.log_to(None)
    Zoo(config, ["a", "b", "c"])
    said = capsys.readouterr().err
    assert "texts are cut to 16 tokens, as many as the model has positions for (--max_length 128)" in said
    assert "domain a: 1 of 17 training texts fill --max_length 16, what is beyond is cut" in said
    found = experiment.scores(long, config, Cell(("a", "b"), "same", 1, "simple"))
    assert found == experiment.scores(exact, config, Cell(("a", "b"), "same", 1, "simple"))
    for length in (2, 1, 0):
        with pytest.raises(UserError, match=f"--max_length must be at least 3, not {length}"):
            Zoo(replace(config, max_length=length), ["a", "b"])


def test_collecting_cuts_alike(config, encoder, data, tmp_path):
    folder = shutil.copytree(encoder, tmp_path / "model")
    labels = {"id2label": {0: "glad", 1: "sad"}, "label2id": {"glad": 0, "sad": 1}}
    BertForSequenceClassification.from_pretrained(folder, **labels).save_pretrained(folder)
    found = []
    for length in (128, 16):
        settings = collect.Config(
            model=str(folder),
            data=str(data / "a" / "a_train.tsv"),
            max_length=length,
            output=str(tmp_path / f"{length}.safetensors"),
        )
        collect.run(settings)
        found.append(read_tensors(tmp_path / f"{length}.safetensors"))
    assert found[0].info == found[1].info and found[0].info["identity"]["max_length"] == 16


def edited(file: str, change):
    def edit(folder):
        content = json.loads((folder / file).read_text())
        change(content)
        (folder / file).write_text(json.dumps(content))

    return edit


def weights(change):
    def edit(folder):
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})

    return edit


QUERY = "encoder.layer.0.attention.self.query.weight"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n"
DAMAGED = {
    "no config": (lambda folder: (folder / "config.json").unlink(), "is no model folder"),
    "config": (lambda folder: (folder / "config.json").write_text("{"), "config.json"),
    "list": (lambda folder: (folder / "config.json").write_text("[]"), "expected a JSON object"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "cannot load"),
    "cut": (lambda folder: (folder / "model.safetensors").write_bytes(b"x" * 99), "cannot load"),
    "pointer": (lambda folder: (folder / "model.safetensors").write_bytes(POINTER), "is a pointer of Git LFS"),
    "nan": (weights(lambda tensors: tensors[QUERY].fill_(float("nan"))), f"{QUERY} is not finite"),
    "missing": (weights(lambda tensors: tensors.pop(QUERY)), f"do not fit config.json, e.g. bert.{QUERY}"),
    "shape": (weights(lambda tensors: tensors.update({QUERY: torch.zeros(3, 3)})), "cannot load"),
    "fewer layers": (edited("config.json", lambda c: c.update(num_hidden_layers=1)), "do not fit config.json, e.g. "),
    "more layers": (edited("config.json", lambda c: c.update(num_hidden_layers=9)), "do not fit config.json, e.g. "),
    "code": (
        edited("config.json", lambda c: c.update(auto_map={"AutoConfig": "evil.X"})),
        "no code of a model is ever run",
    ),
    "tokens": (edited("tokenizer.json", lambda c: c["model"]["vocab"].update(far=77)), "its tokenizer 1 more: far"),
    "tokenizer": (lambda folder: [path.unlink() for path in folder.glob("*[ov][kc]*")], "cannot load a tokenizer"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_start(config, encoder, tmp_path, name):
    edit, message = DAMAGED[name]
    folder = shutil.copytree(encoder, tmp_path / "start")
    edit(folder)
    with pytest.raises(UserError) as caught:
        experiment.run(replace(config, model=str(folder)))
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_layers_of_the_encoder(config):
    assert len(Zoo(replace(config, layers=1), ["a", "b"]).new_model(1).bert.encoder.layer) == 1
    for layers in (3, 99, -1):
        with pytest.raises(UserError, match=f"--layers {layers}: .* has 2 layers"):
            Zoo(replace(config, layers=layers), ["a", "b"])


def test_training_that_diverges_is_named(config):
    made = Zoo(replace(config, learning_rate=1e30), ["a", "b"])
    folder = made.folder(("a",), 1, 1)
    with pytest.raises(UserError) as caught:
        made.trained(("a",), 1, 1)
    assert str(folder) in str(caught.value) and "a lower --learning_rate" in str(caught.value)
    assert made.missing(("a",), 1, 1) == "it is not finished"


def test_a_domain_whose_test_set_has_labels_of_its_own(config, data, tmp_path):
    own = shutil.copytree(data, tmp_path / "data")
    (own / "c" / "c_test.tsv").write_text("we saw\tcalm\n")
    with pytest.raises(UserError, match="domain 'c': no label of its test set is in its training data"):
        experiment.run(replace(config, data_dir=str(own)))
