"""Folders of a backbone that neighbouring tools write or that are damaged: right, or one message that names what is wrong."""

import ast
import json
import logging
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from conftest import MINI_TASKS, ROOT, tiny_t5
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from pewe.backbone import BackboneConfig, load_backbone
from pewe.cli import main
from pewe.errors import UserError
from pewe.fusion.training import ZooConfig
from pewe.fusion.zoo import Zoo
from pewe.merging import collect
from pewe.tuning.config import TuneConfig
from pewe.tuning.tune import tune
from pewe.whole_model import load_model

EMBEDDED = ROOT / "checkpoints" / "mini_t5"
LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"
SENTENCES = [" [task] two words <extra_id_0> a third", "x", "Ünïcode\u2028and  spaces "]
WEIGHTS = "model.safetensors"


def loaded(folder, **flags):
    return load_backbone(BackboneConfig(model=str(folder), device="cpu", **flags))


def edit(folder: Path, name: str, **changes) -> None:
    """Change entries of a JSON file; None removes one."""
    path = folder / name
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def weights(folder: Path, change) -> None:
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})


def fill(value: float):
    return lambda tensors: tensors["encoder.block.1.layer.0.SelfAttention.q.weight"][0].fill_(value)


def add_tokens(folder: Path, *tokens: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(list(tokens))
    tokenizer.save_pretrained(folder)


def own_code(folder: Path, place: str) -> None:
    """Code that writes a file beside itself when it is run."""
    code = f"open({str(folder / 'RAN')!r}, 'w')\nclass X:\n    pass\ndef generate(model, *_, **__):\n    pass\n"
    (folder / "evil.py").write_text(code)
    if place == "custom_generate":
        (folder / place).mkdir()
        (folder / place / "generate.py").write_text(code)
    elif place == "tokenizer_config.json":
        edit(folder, place, tokenizer_class="XTok", auto_map={"AutoTokenizer": ["evil.X", "evil.X"]})
    else:
        changes = {"model_type": "evil"} if place == "unknown" else {}
        edit(
            folder,
            "config.json",
            trust_remote_code=True,
            auto_map={"AutoConfig": "evil.X", "AutoModelForSeq2SeqLM": "evil.X"},
            **changes,
        )


@pytest.fixture
def folder(tiny_backbone, tmp_path) -> Path:
    """A copy of a sound backbone, to be spoiled."""
    return Path(shutil.copytree(tiny_backbone, tmp_path / "model"))


SPOILED = {
    # configuration
    "config is a list": (
        lambda f: (f / "config.json").write_text("[]"),
        "config.json: expected a JSON object, not a list",
    ),
    "config is damaged": (
        lambda f: (f / "config.json").write_text('{"a": '),
        "config.json: Expecting value: line 1 column 7",
    ),
    "config is too deep": (
        lambda f: (f / "config.json").write_text("[" * 100_000),
        "cannot load .*config.json: maximum",
    ),
    "config is empty": (lambda f: (f / "config.json").write_text("{}"), "config.json has no model_type"),
    "a text for a number": (
        lambda f: edit(f, "config.json", d_model="x"),
        r"cannot load the model|says \(1300, 'x'\), shared.weight",
    ),
    "no heads": (lambda f: edit(f, "config.json", num_heads=0), "6 of which are mismatched|cannot load"),
    "another activation": (
        lambda f: edit(f, "config.json", feed_forward_proj="gated-evil", dense_act_fn=None),
        "cannot load the model",
    ),
    "tokenizer config is a list": (
        lambda f: (f / "tokenizer_config.json").write_text("[]"),
        "tokenizer_config.json: expected a JSON object",
    ),
    "no pad": (
        lambda f: (f / "config.json").write_text(
            (f / "config.json").read_text().replace('"pad_token_id": 0', '"pad_token_id": null')
        ),
        "pad_token_id is None in config.json, 0 in the tokenizer",
    ),
    "pad beyond the model": (
        lambda f: edit(f, "config.json", pad_token_id=10**7),
        "pad_token_id is 10000000 in config.json, 0",
    ),
    "another end": (
        lambda f: edit(f, "config.json", eos_token_id=5),
        "eos_token_id is 5 in config.json, 1 in the tokenizer",
    ),
    "start beyond the model": (
        lambda f: edit(f, "config.json", decoder_start_token_id=1300),
        "decoder_start_token_id 1300 is no token",
    ),
    # weights
    "fewer layers than the weights": (
        lambda f: edit(f, "config.json", num_layers=2),
        "9 of which are unexpected, e.g. encoder.block.2",
    ),
    "fewer decoder layers": (
        lambda f: edit(f, "config.json", num_decoder_layers=1),
        "unexpected, e.g. decoder.block.1",
    ),
    "more layers": (lambda f: edit(f, "config.json", num_layers=4), "missing, e.g. encoder.block.3"),
    "another vocabulary": (
        lambda f: edit(f, "config.json", vocab_size=10**4),
        r"says \(10000, 24\), shared.weight of .* is \(1300, 24\)",
    ),
    "a head that is tied away": (
        lambda f: edit(f, "config.json", tie_word_embeddings=None, scale_decoder_outputs=None),
        "lm_head.weight of its own, but config.json",
    ),
    "NaN": (
        lambda f: weights(f, fill(float("nan"))),
        r"weight encoder.block.1.layer.0.SelfAttention.q.weight is not finite",
    ),
    "infinite": (lambda f: weights(f, fill(float("-inf"))), "SelfAttention.q.weight is not finite"),
    "torn weights": (
        lambda f: (f / WEIGHTS).write_bytes((f / WEIGHTS).read_bytes()[:-1000]),
        "cannot load the model .*incomplete|invalid",
    ),
    "empty weights": (lambda f: (f / WEIGHTS).write_bytes(b""), "cannot load the model"),
    "no weights": (lambda f: (f / WEIGHTS).unlink(), "cannot load the model .*no file named"),
    "pickled weights": (
        lambda f: ((f / WEIGHTS).unlink(), (f / "pytorch_model.bin").write_bytes(pickle.dumps(Path("x")))),
        r"pytorch_model\.bin holds pickled objects, or is damaged; only tensors are read",
    ),
    # tokenizer
    "tokens beyond the model": (
        lambda f: add_tokens(f, "Wurov", "Rabury"),
        "embeddings of 1300 tokens, its tokenizer 2 more: Wurov, Rabury",
    ),
    "a smaller model": (
        lambda f: (
            weights(f, lambda t: t.update({k: t[k][:1250].clone() for k in ("shared.weight", "lm_head.weight")})),
            edit(f, "config.json", vocab_size=1250),
        ),
        "embeddings of 1250 tokens, its tokenizer 50 more: <extra_id_49>",
    ),
    "damaged pieces": (lambda f: (f / "spiece.model").write_bytes(b"\xff" * 1000), "cannot load a tokenizer"),
    "no pieces": (lambda f: (f / "spiece.model").write_bytes(b"\x00\xff" * 99), "cannot load a tokenizer"),
    "empty pieces": (lambda f: (f / "spiece.model").write_bytes(b""), r"spiece\.model holds no pieces"),
    "a number for a class": (
        lambda f: edit(f, "tokenizer_config.json", tokenizer_class=5),
        "cannot load a tokenizer .*: tokenizer_class is 5 in tokenizer_config.json, not a name",
    ),
    "no tokenizer": (
        lambda f: [p.unlink() for p in f.iterdir() if "token" in p.name or p.suffix == ".model"],
        "cannot load a tokenizer",
    ),
    # pointers of Git LFS, and code
    **{
        f"pointer {name}": (
            lambda f, name=name: (f / name).write_text(LFS),
            f"{name} is a pointer of Git LFS.*git lfs pull",
        )
        for name in (WEIGHTS, "spiece.model", "tokenizer.json", "config.json", "pytorch_model.bin")
    },
    **{
        f"code {place}": (lambda f, place=place: own_code(f, place), "no code of a model is ever run")
        for place in ("known", "unknown", "tokenizer_config.json", "custom_generate")
    },
}


@pytest.mark.parametrize("form", ["safetensors", "bin", "shards", "shards of bin"])
def test_a_head_that_is_tied_away_in_every_form_of_weights(form, folder):
    model = tiny_t5(vocab_size=1300)
    (folder / WEIGHTS).unlink()
    model.save_pretrained(
        folder, safe_serialization="bin" not in form, max_shard_size="100KB" if "shards" in form else "1GB"
    )
    assert len([path for path in folder.iterdir() if path.suffix in (".safetensors", ".bin")]) > 1 - (
        "shards" not in form
    )
    loaded(folder)
    edit(folder, "config.json", tie_word_embeddings=True, scale_decoder_outputs=None)
    with pytest.raises(UserError, match=r"lm_head.weight of its own, but config.json says"):
        loaded(folder)


@pytest.mark.parametrize("name", SPOILED)
def test_a_spoiled_folder_is_named(name, folder):
    spoil, message = SPOILED[name]
    spoil(folder)
    with pytest.raises(UserError, match=message) as error:
        loaded(folder)
    assert str(folder) in str(error.value) and "\n" not in str(error.value)
    assert not (folder / "RAN").exists()


@pytest.mark.parametrize("place", ["known", "unknown", "tokenizer_config.json", "custom_generate"])
def test_fusion_runs_no_code_either(place, folder, tmp_path):
    own_code(folder, place)
    table = tmp_path / "x.tsv"
    table.write_text("a\tb\n")
    with pytest.raises(UserError, match="no code of a model is ever run"):
        collect.run(collect.Config(model=str(folder), data=str(table), output=str(tmp_path / "s")))
    with pytest.raises(UserError, match="no code of a model is ever run"):
        Zoo(ZooConfig(model=str(folder), kind="yesno"), ["market"])
    assert not (folder / "RAN").exists()


def test_every_call_forbids_code():
    """Without the argument, transformers asks on the terminal, and takes a piped yes for an answer."""
    calls = []
    for path in [
        *ROOT.glob("*.py"),
        *(p for d in ("pewe", "data", "benchmarks", "checkpoints") for p in (ROOT / d).rglob("*.py")),
    ]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "from_pretrained":
                forbidden = {word.arg: ast.unparse(word.value) for word in node.keywords}.get("trust_remote_code")
                calls.append((str(path), node.lineno, forbidden))
    assert len(calls) >= 5 and [call for call in calls if call[2] != "False"] == []


def test_hidden_files_beside_the_weights_are_ignored(folder):
    (folder / f"._{WEIGHTS}").write_bytes(b"\0\5\x16\7")
    (folder / "._config.json").write_text(LFS)
    loaded(folder)


def test_a_folder_of_a_tokenizer_alone(folder, tmp_path):
    only = tmp_path / "tokenizer"
    only.mkdir()
    for path in folder.iterdir():
        if path.name not in ("config.json", "generation_config.json", WEIGHTS):
            path.rename(only / path.name)
    loaded(folder, tokenizer_path=str(only))
    with pytest.raises(UserError, match="not a folder"):
        loaded(folder, tokenizer_path=str(only / "spiece.model"))
    (only / "spiece.model").write_text(LFS)
    with pytest.raises(UserError, match=r"spiece\.model is a pointer of Git LFS"):
        loaded(folder, tokenizer_path=str(only))


def test_a_head_of_its_own_as_transformers_5_says_it(folder):
    """It writes of every T5 that the head is the embedding, and of one without that scale_decoder_outputs is false."""
    tokens = {"input_ids": torch.tensor([[5, 6, 1]]), "labels": torch.tensor([[7, 1]])}
    before = loaded(folder).model(**tokens).logits
    edit(folder, "config.json", tie_word_embeddings=True, scale_decoder_outputs=False)
    after = loaded(folder).model
    assert not after.config.tie_word_embeddings and torch.equal(after(**tokens).logits, before)
    whole = load_model(type(after), str(folder))
    assert not whole.config.tie_word_embeddings and torch.equal(whole.lm_head.weight, after.lm_head.weight)


# ---- tokenizers of transformers 5


def ids(folder) -> list[list[int]]:
    return loaded(folder).tokenizer(SENTENCES)["input_ids"]


def test_special_tokens_as_a_list(folder):
    """As transformers 5 writes them: the tokens are those of the same files as 4 writes them."""
    before = ids(folder)
    kept = json.loads((folder / "tokenizer_config.json").read_text())
    moved = {"extra_special_tokens": kept["additional_special_tokens"], "additional_special_tokens": None}
    other = Path(shutil.copytree(folder, folder.parent / "as_5"))
    edit(other, "tokenizer_config.json", **moved)
    (other / "special_tokens_map.json").unlink()
    (other / "added_tokens.json").unlink(missing_ok=True)
    assert ids(other) == before
    assert loaded(other).tokenizer.all_special_ids == loaded(folder).tokenizer.all_special_ids


@pytest.mark.parametrize("kind", ["T5Tokenizer", "TokenizersBackend"])
def test_a_tokenizer_without_pieces(kind, folder):
    """transformers 5 writes tokenizer.json alone, a list of special tokens, and often a setting that 4 cannot follow."""
    before = ids(folder)
    other = Path(shutil.copytree(folder, folder.parent / "as_5"))
    loaded(folder).tokenizer.backend_tokenizer.save(str(other / "tokenizer.json"))
    for name in ("spiece.model", "added_tokens.json", "special_tokens_map.json"):
        (other / name).unlink(missing_ok=True)
    tokens = [f"<extra_id_{number}>" for number in range(100)]
    about = {
        "backend": "tokenizers",
        "tokenizer_class": kind,
        "extra_ids": 100,
        "extra_special_tokens": tokens,
        "add_prefix_space": True,
        "eos_token": "</s>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
    }
    (other / "tokenizer_config.json").write_text(json.dumps(about))
    assert ids(other) == before


# ---- what T5 means where config.json says nothing


def test_decoding_starts_with_pad(folder, caplog):
    logger = logging.getLogger("pewe")
    logger.propagate = True
    before = loaded(folder)
    edit(folder, "config.json", decoder_start_token_id=None)
    with caplog.at_level(logging.WARNING, logger="pewe"):
        after = loaded(folder)
    assert "has no decoder_start_token_id; a T5 starts with pad (0)" in caplog.text
    batch = {"input_ids": torch.tensor([[5, 6, 1]]), "labels": torch.tensor([[7, 1]])}
    assert torch.equal(after.model(**batch).logits, before.model(**batch).logits)
    assert after.model.config.decoder_start_token_id == 0


def test_pad_and_end_of_a_t5_are_0_and_1(folder):
    edit(folder, "config.json", pad_token_id=None, eos_token_id=None)
    config = loaded(folder).model.config
    assert (config.pad_token_id, config.eos_token_id) == (0, 1)


def test_more_rows_than_tokens_are_fine(folder):
    """The embeddings of the public T5s are padded."""
    tiny_t5(vocab_size=1300 + 128).save_pretrained(folder)
    assert loaded(folder).model.get_input_embeddings().num_embeddings == 1428


@pytest.mark.slow
@pytest.mark.parametrize("place", ["unknown", "tokenizer_config.json"])
def test_no_code_is_run_by_a_command_that_is_told_yes(place, folder, tiny_data, tmp_path, monkeypatch, capsys):
    own_code(folder, place)
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    args = [
        "--do_train",
        "--model",
        folder,
        "--task_dir",
        tiny_data,
        "--tasks",
        MINI_TASKS[0],
        "--output_dir",
        tmp_path / "o",
    ]
    with pytest.raises(SystemExit) as stop:
        main(tune, TuneConfig, "", list(map(str, args)))
    assert stop.value.code == 2 and "no code of a model is ever run" in capsys.readouterr().err
    assert not (folder / "RAN").exists()
