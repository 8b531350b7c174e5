"""Delta states on disk."""

import argparse
import dataclasses
import os
from pathlib import Path

import pytest
import torch

from pewe.deltas import checkpoint
from pewe.deltas import convert as conversion
from pewe.deltas.checkpoint import Checkpoints, delta_identity, read_checkpoint, write_checkpoint
from pewe.deltas.convert import convert
from pewe.errors import UserError
from pewe.state import shapes_of_state
from pewe.tuning.config import TuneConfig

STATE = {"encoder.a": torch.ones(2, 3), "decoder.b": torch.zeros(4)}


def test_round_trip_and_format(tmp_path):
    path = tmp_path / "x" / "checkpoint-best.pt"
    write_checkpoint(path, "adapter", STATE, {"seed": 42}, updates=30, epoch=2)
    content = torch.load(path, weights_only=True)
    assert content["args"] == {"seed": 42} and content["current_state"] == {"epoch": 2, "num_updates": 30}
    state = read_checkpoint(path, "adapter", shapes_of_state(STATE))
    assert all(torch.equal(state[name], STATE[name]) for name in STATE)
    assert [p.name for p in path.parent.iterdir()] == ["checkpoint-best.pt"]  # no temporary file is left


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"lora": STATE}, "is a lora checkpoint; expected one of --tune_method adapter"),
        ({"something": 1}, "is no delta checkpoint"),
        ({"adapter": {"encoder.a": STATE["encoder.a"]}}, "1 tensors are missing, e.g. decoder.b"),
        ({"adapter": {**STATE, "c": torch.ones(1)}}, "1 unexpected tensors, e.g. c"),
        ({"adapter": {**STATE, "decoder.b": torch.ones(5)}}, r"decoder.b has shape \(5,\), expected \(4,\)"),
        (
            {"adapter": {**STATE, "decoder.b": torch.full((4,), float("nan"))}},
            "decoder.b has values that are not finite",
        ),
        ({"adapter": {**STATE, "decoder.b": 3}}, "decoder.b is a int, not a tensor"),
        ({"adapter": {}}, "holds no tensors"),
        ({"adapter": {**STATE, 1: torch.ones(1)}}, "tensor 1 is named by a int"),
        ({"adapter": [1]}, "its entry adapter is a list, not names with values"),
        ({"adapter": STATE, "args": [1]}, "its entry args is a list, not names with values"),
        ({"adapter": STATE, "current_state": 5}, "its entry current_state is a int, not names with values"),
        ([STATE], "is no delta checkpoint"),
    ],
)
def test_wrong_states_are_named(tmp_path, content, message):
    path = tmp_path / "x.pt"
    torch.save(content, path)
    with pytest.raises(UserError, match=message) as error:
        read_checkpoint(path, "adapter", shapes_of_state(STATE))
    assert str(path) in str(error.value)


B = torch.arange(4.0)
TAKEN = {
    "parameter": torch.nn.Parameter(B),
    "requires grad": B.clone().requires_grad_(),
    "float64": B.double(),
    "float16": B.half(),
    "bfloat16": B.bfloat16(),
    "view": torch.arange(8.0)[:4],
    "not contiguous": torch.stack([B, B], 1)[:, 0],
}
REFUSED = {
    "int64": (B.long(), "of torch.int64"),
    "bool": (B.bool(), "of torch.bool"),
    "complex": (B.to(torch.complex64), "of torch.complex64"),
    "float8": (B.to(torch.float8_e4m3fn), "of torch.float8_e4m3fn"),
    "quantised": (torch.quantize_per_tensor(B, 0.1, 0, torch.qint8), "of torch.qint8"),
    "sparse": (B.to_sparse(), "torch.sparse_coo"),
    "meta": (B.to("meta"), "without values"),
    "empty": (torch.ones(0), "empty"),
    "expanded": (torch.ones(1).expand(10**7, 10**6), "than its file"),
    "beyond float32": (B.double() * 1e300, "not finite"),
    "infinity in float16": (B.half() * 60000, "not finite"),
}


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("name", TAKEN)
def test_tensors_of_floats_are_taken_as_float32(tmp_path, name, mapped):
    torch.save({"adapter": {"decoder.b": TAKEN[name]}, "args": {}}, tmp_path / "x.pt")
    tensor = read_checkpoint(tmp_path / "x.pt", "adapter", mapped=mapped)["decoder.b"]
    assert tensor.equal(B) and tensor.dtype == torch.float32 and not tensor.requires_grad


@pytest.mark.parametrize("sealed", [False, True])
@pytest.mark.parametrize("name", REFUSED)
def test_other_tensors_are_refused(tmp_path, name, sealed):
    tensor, message = REFUSED[name]
    seal = {"sha256": "of another content"} if sealed else {}
    torch.save({"adapter": {**STATE, "decoder.b": tensor}, "args": {}, **seal}, tmp_path / "x.pt")
    for reads in (
        lambda path: read_checkpoint(path, "adapter"),
        lambda path: Checkpoints([path], "adapter"),
        lambda path: convert(path, tmp_path / "new.pt"),
    ):
        with pytest.raises(UserError, match=rf"x\.pt: tensor decoder\.b .*{message}"):
            reads(tmp_path / "x.pt")
    assert not (tmp_path / "new.pt").exists()


def test_every_flipped_byte_is_noticed_or_changes_nothing(tmp_path):
    path, args = tmp_path / "x.pt", {"seed": 42, "lora_alpha": 16.0}
    write_checkpoint(path, "adapter", STATE, args)
    written, noticed = path.read_bytes(), 0
    for place in range(0, len(written), 3):
        path.write_bytes(written[:place] + bytes([written[place] ^ 8]) + written[place + 1 :])
        try:
            state, found = checkpoint.open_checkpoint(path, "adapter")
        except UserError as error:
            noticed += str(path) in str(error)
        else:
            assert found == args and state.keys() == STATE.keys()
            assert all(torch.equal(state[name], STATE[name]) for name in STATE)
    assert noticed > 100


def test_a_changed_number_is_refused_by_the_checksum(tmp_path):
    path = tmp_path / "x.pt"
    write_checkpoint(path, "adapter", STATE, {"seed": 42})
    content = torch.load(path, weights_only=True)
    assert checkpoint.checksum(path) == content["sha256"] == checkpoint.sound_content(path)["sha256"]
    content["adapter"]["encoder.a"][0, 0] += 1e-6
    torch.save(content, path)
    assert checkpoint.checksum(path) == "" and checkpoint.sound_content(path) == {}
    for reads in (
        lambda path: read_checkpoint(path, "adapter"),
        lambda path: Checkpoints([path], "adapter"),
        lambda path: convert(path, tmp_path / "new.pt"),
    ):
        with pytest.raises(UserError, match=r"x\.pt.* is damaged"):
            reads(path)


CONFIG = TuneConfig(tune_method="lora", lora_r=4, lora_alpha=4.0, model="nowhere/a")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lora_alpha": 400.0}, "x.pt was tuned with --lora_alpha 4.0, not 400.0; give --lora_alpha 4.0"),
        ({"lora_r": 5}, "x.pt was tuned with --lora_r 4, not 5; give --lora_r 4"),
        ({"model": "nowhere/b"}, "x.pt was tuned on another backbone (nowhere/a); give that as --model"),
    ],
)
def test_a_delta_is_used_as_it_was_tuned(tmp_path, changes, message):
    path = tmp_path / "x.pt"
    write_checkpoint(path, "lora", STATE, {**delta_identity(CONFIG), "model": CONFIG.model})
    for config in (CONFIG, dataclasses.replace(CONFIG, adapter_size=99)):
        read_checkpoint(path, "lora", made_for=delta_identity(config))
    with pytest.raises(UserError) as error:
        read_checkpoint(path, "lora", made_for=delta_identity(dataclasses.replace(CONFIG, **changes)))
    assert message in str(error.value)


def test_a_checkpoint_that_does_not_say_is_taken_with_one_warning(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(checkpoint, "_told", set())
    monkeypatch.setattr(checkpoint.log, "warning", lambda *words: said.append(words[0] % words[1:]))
    for name in ("x.pt", "y.pt"):
        write_checkpoint(tmp_path / name, "lora", STATE, {"lora_alpha": 4})
        read_checkpoint(tmp_path / name, "lora", made_for=delta_identity(CONFIG))
    assert len(said) == 1 and "x.pt does not say its lora_r, backbone" in said[0]


def test_the_sources_of_an_ensemble_are_alike_and_it_says_what_they_were_made_for(tmp_path):
    made_for = {**delta_identity(CONFIG), "model": "nowhere/a"}
    paths = [tmp_path / name for name in ("x.pt", "y.pt", "z.pt")]
    for path, args in zip(paths, ({}, made_for, {**made_for, "model": "moved/a"}), strict=True):
        write_checkpoint(path, "lora", STATE, args)
    assert Checkpoints(paths, "lora").made_for == made_for
    write_checkpoint(paths[2], "lora", STATE, {**made_for, "lora_alpha": 400.0})
    with pytest.raises(UserError, match=r"z\.pt was tuned with --lora_alpha 400\.0, not 4\.0; unlike those before it"):
        Checkpoints(paths, "lora")


def test_damaged_and_missing_files(tmp_path):
    path = tmp_path / "x.pt"
    with pytest.raises(UserError, match="there is no checkpoint"):
        read_checkpoint(path, "adapter", None, "tune first")
    path.write_bytes(b"")
    with pytest.raises(UserError, match="cannot read the checkpoint"):
        read_checkpoint(path, "adapter")
    path.write_bytes(b"not a zip file at all")
    with pytest.raises(UserError, match=r"x\.pt"):
        read_checkpoint(path, "adapter")


class OriginalConfig:
    """Stands for the classes that the original pickles into its checkpoints."""

    def __init__(self):
        self.d_model = 768


class Malicious:
    """Would make a folder if any code of the pickle ran."""

    def __reduce__(self):
        return (os.mkdir, ("hacked",))


def test_no_code_of_a_pickle_is_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"adapter": STATE, "args": Malicious()}, "evil.pt")
    with pytest.raises(UserError, match="holds objects that cannot be read safely"):
        convert(tmp_path / "evil.pt", tmp_path / "new.pt")
    assert not (tmp_path / "hacked").exists()


def test_an_original_checkpoint_is_converted(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content = {
        "adapter": STATE,
        "args": argparse.Namespace(seed=42, model="t5", config=OriginalConfig(), learning_rate=5e-4),
        "current_state": {"epoch": 3, "num_updates": 70, "config": OriginalConfig()},
    }
    torch.save(content, "original.pt")
    with pytest.raises(UserError, match=r"convert it first: python -m pewe\.deltas\.convert"):
        read_checkpoint(tmp_path / "original.pt", "adapter")
    before = Path("original.pt").read_bytes()
    with pytest.raises(UserError, match=r"is the --original, which would be lost"):
        conversion._run(conversion.ConvertConfig("original.pt", str(tmp_path / "original.pt")))
    assert Path("original.pt").read_bytes() == before
    assert convert(tmp_path / "original.pt", tmp_path / "new.pt") == "adapter"
    new = torch.load("new.pt", weights_only=True)
    assert new["args"] == {"seed": 42, "model": "t5", "learning_rate": 5e-4}
    assert new["current_state"] == {"epoch": 3, "num_updates": 70}
    assert all(torch.equal(new["adapter"][name], STATE[name]) for name in STATE)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"args": [1]}, "its entry args is a list, not names with values"),
        ({"current_state": 5}, "its entry current_state is a int, not names with values"),
        (
            {"current_state": {"num_updates": "many"}},
            "num_updates of its entry current_state is 'many', not a whole number",
        ),
        ({"adapter": {}}, "holds no tensors"),
    ],
)
def test_an_original_of_another_shape_is_refused(tmp_path, changes, message):
    torch.save({"adapter": STATE, "args": {"seed": 1}, **changes}, tmp_path / "original.pt")
    with pytest.raises(UserError, match=rf"original\.pt.*{message}"):
        convert(tmp_path / "original.pt", tmp_path / "new.pt")
    assert not (tmp_path / "new.pt").exists()
