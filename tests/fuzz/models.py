"""Damaged backbone folders: configuration, weights, tokenizer, code."""

import json
from collections.abc import Callable
from pathlib import Path
from random import Random

import torch

from tests.fuzz.case import EITHER, REFUSE, Box, Case, Variant, spoiled
from tests.fuzz.edits import POINTER, State, box_of, entries, every, evil, one, tensors, text
from tests.fuzz.places import MINI_BERT, copy_tokenizer

Change = Callable[[Path, Random], object]  # of a folder
READ_T5 = ("tune", "Loss", "statistics", "pemt", "GraNd")


def below(name: str, edit: Callable) -> Change:
    """A file of the folder changed."""
    return lambda folder, rng: edit(folder / name, rng)


def config(**changes) -> Change:
    """Entries of config.json changed; of several names of one setting those that it has."""
    return below(
        "config.json",
        entries(
            lambda found, rng: found.update(
                {key: value for key, value in changes.items() if key in found or key not in ALIASES}
            )
        ),
    )


ALIASES = ("num_layers", "num_hidden_layers", "d_model", "hidden_size", "num_heads", "num_attention_heads")


def weights(change: Callable[[State, Random], State | None]) -> Change:
    """Tensors of model.safetensors changed."""
    return below("model.safetensors", tensors(change))


def with_code(where: str, **changes) -> Change:
    """A folder that brings code of its own."""

    def change(folder: Path, rng: Random) -> None:
        trace = box_of(folder / "x") / "executed"
        (folder / "evil.py").write_text(f"import os\nos.makedirs({str(trace)!r}, exist_ok=True)\nclass X: pass\n")
        entries(lambda found, rng: found.update(changes))(folder / where, rng)

    return change


def added_tokens(folder: Path, rng: Random) -> None:
    """A tokenizer with more tokens than the embedding has rows; the data have the last of them."""
    from pewe.tokenizer_files import load_tokenizer

    tokenizer = load_tokenizer(str(folder))
    rows = json.loads((folder / "config.json").read_text())["vocab_size"]
    words = ["the", "is", "in", "of", "a", "The", "Where", "does", "live", "work", "question", "context"]
    tokenizer.add_tokens([f"<filler {number}>" for number in range(max(0, rows - len(tokenizer)))] + words)
    tokenizer.save_pretrained(folder)


def other_tokenizer(folder: Path, rng: Random) -> None:
    """The tokenizer of a BERT."""
    for path in folder.iterdir():
        if "token" in path.name or path.name == "spiece.model":
            path.unlink()
    copy_tokenizer(MINI_BERT, folder)


def pickled(folder: Path, rng: Random) -> None:
    """Weights as a pickle with an object."""
    (folder / "model.safetensors").unlink()
    torch.save({"shared.weight": evil(folder / "x")}, folder / "pytorch_model.bin")


def with_head(state: State, rng: Random) -> State:
    """The weights of a fine-tuned classifier, with a head for other labels."""
    body = {f"bert.{name.removeprefix('bert.')}": tensor for name, tensor in state.items() if "classifier" not in name}
    return {**body, "classifier.weight": torch.ones(2, 8), "classifier.bias": torch.ones(2)}


def of_t5(change: Change, right: str = REFUSE) -> Variant:
    """The T5 of a command; a checkpoint that does not fit it, or a value that is not finite, may be named instead."""
    return spoiled(
        READ_T5,
        "t5",
        lambda folder, rng: (change(folder, rng), "t5", "--model", "another backbone", "not finite")[1:],
        right,
    )


def of_encoder(change: Change, right: str = REFUSE) -> Variant:
    """The encoder of a fusion experiment, or a model whose statistics are taken."""

    def make(box: Box) -> Case:
        if box.rng.random() < 0.5:
            change(box.take("bert"), box.rng)
            return Case(box.words("fusion", "--model", box.place("bert")), right, ("bert", "--model"), "fusion")
        change(box.take("local") / "a", box.rng)
        return Case(box.words("collect"), right, ("local/a", "--model"), "collect")

    return make


CODE = {"AutoConfig": "evil.X", "AutoModelForSeq2SeqLM": "evil.X", "AutoModelForSequenceClassification": "evil.X"}
BROKEN: dict[str, Change] = {
    "weights are a pointer": below("model.safetensors", text(POINTER)),
    "weights are empty": below("model.safetensors", text("")),
    "weights are junk": below("model.safetensors", text("junk" * 99)),
    "no weights": lambda folder, rng: (folder / "model.safetensors").unlink(),
    "no config": lambda folder, rng: (folder / "config.json").unlink(),
    "config is a pointer": below("config.json", text(POINTER)),
    "config is no JSON": below("config.json", text("{")),
    "config is a list": below("config.json", text("[]")),
    "config is empty": below("config.json", text("{}")),
    "config is not UTF-8": below("config.json", text(b'{"model_type": "\xff"}')),
    "config is deep": below("config.json", text("[" * 100_000)),
    "no layers": config(num_layers=0, num_hidden_layers=0),
    "more layers": config(num_layers=5, num_hidden_layers=5),
    "text for a size": config(d_model="x", hidden_size="x"),
    "other size": config(d_model=32, hidden_size=32),
    "no heads": config(num_heads=0, num_attention_heads=0),
    "small vocabulary": config(vocab_size=50),
    "large vocabulary": config(vocab_size=10**6),
    "negative vocabulary": config(vocab_size=-1),
    "other model": config(model_type="gpt2"),
    "unknown model": config(model_type="evil"),
    "NaN weight": weights(one(lambda tensor: tensor * float("nan"))),
    "infinite weight": weights(one(lambda tensor: tensor + float("inf"))),
    "weights renamed": weights(lambda state, rng: {f"model.{name}": tensor for name, tensor in state.items()}),
    "weights are missing": weights(
        lambda state, rng: {
            name: tensor for name, tensor in state.items() if "layer.0" not in name or "ttention" not in name
        }
    ),
    "weight of other shape": weights(one(lambda tensor: tensor[:1].clone())),
    "code instead of a model": with_code("config.json", model_type="evil", auto_map=CODE),
    "code instead of a tokenizer": with_code(
        "tokenizer_config.json", tokenizer_class="XTokenizer", auto_map={"AutoTokenizer": ["evil.X", "evil.X"]}
    ),
    "tokenizer config is a list": below("tokenizer_config.json", text("[]")),
    "tokenizer config is no JSON": below("tokenizer_config.json", text("{")),
}
TOKENIZERS: dict[str, Change] = {
    "tokenizer is a pointer": below("tokenizer.json", text(POINTER)),
    "tokenizer is no JSON": below("tokenizer.json", text("{")),
    "tokenizer is random bytes": below("tokenizer.json", text(b"\x00\xff" * 99)),
    "tokenizer is a list": below("tokenizer.json", text("[]")),
}
BROKEN_T5: dict[str, Change] = {
    "pieces are a pointer": below("spiece.model", text(POINTER)),
    "pieces are random bytes": below("spiece.model", text(b"\x00\xff" * 99)),
    "fewer layers": config(num_layers=1),
    "other tokenizer": other_tokenizer,
    "tokens beyond the embedding": added_tokens,
    "no bucket": config(relative_attention_num_buckets=0),
    "multilingual": config(model_type="umt5"),
    "pickled weights": pickled,
}
ODD_T5: dict[str, Change] = {
    "code beside a known model": with_code("config.json", auto_map=CODE),
    "no start of the decoder": below("config.json", entries(lambda found, rng: found.pop("decoder_start_token_id"))),
    "start of the decoder is none": config(decoder_start_token_id=None),
    "end is none": config(eos_token_id=None),
    "padding is none": config(pad_token_id=None),
    "padding is beyond": config(pad_token_id=10**7),
    "feed-forward is unknown": config(feed_forward_proj="gated-evil"),
    "generation settings are no JSON": below("generation_config.json", text("{")),
    "generation settings sample": below(
        "generation_config.json", text('{"do_sample": true, "temperature": 9.0, "num_beams": 3}')
    ),
    "tokenizer of version 5": below(
        "tokenizer_config.json",
        entries(
            lambda found, rng: found.update(extra_special_tokens=[f"<extra_id_{number}>" for number in range(100)])
        ),
    ),
    "a file more": below("notes.md", text(b"\xff")),
    "a hidden file": below("._config.json", text(b"\x00\x05\x16\x07")),
    "weights are double": weights(every(lambda tensor: tensor.double())),
}
GROUPS: dict[str, dict[str, Variant]] = {
    "models": {
        **{name: of_t5(change) for name, change in {**BROKEN, **BROKEN_T5}.items()},
        **{name: of_t5(change, EITHER) for name, change in {**TOKENIZERS, **ODD_T5}.items()},
    },
    "encoders": {
        **{name: of_encoder(change) for name, change in {**BROKEN, **TOKENIZERS}.items()},
        "head of another size": of_encoder(weights(with_head)),
        "a file more": of_encoder(ODD_T5["a file more"], EITHER),
    },
}
