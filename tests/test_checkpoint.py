"""Delta states on disk."""

import argparse
import os

import pytest
import torch

from pewe.checkpoint import convert, read_checkpoint, shapes_of_state, write_checkpoint
from pewe.cli import UserError

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
    ],
)
def test_wrong_states_are_named(tmp_path, content, message):
    path = tmp_path / "x.pt"
    torch.save(content, path)
    with pytest.raises(UserError, match=message) as error:
        read_checkpoint(path, "adapter", shapes_of_state(STATE))
    assert str(path) in str(error.value)


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
    with pytest.raises(UserError, match=r"convert it first: python -m pewe\.checkpoint"):
        read_checkpoint(tmp_path / "original.pt", "adapter")
    assert convert(tmp_path / "original.pt", tmp_path / "new.pt") == "adapter"
    new = torch.load("new.pt", weights_only=True)
    assert new["args"] == {"seed": 42, "model": "t5", "learning_rate": 5e-4}
    assert new["current_state"] == {"epoch": 3, "num_updates": 70}
    assert all(torch.equal(new["adapter"][name], STATE[name]) for name in STATE)
