"""Which dtype is taken, and numbers too small to be worth their time."""

import logging

import pytest
import torch
from conftest import METHODS, small, tiny_config
from transformers import T5ForConditionalGeneration

import pewe.hardware
from pewe.backbone import load_backbone
from pewe.cli import parse
from pewe.deltas.attach import attach_delta
from pewe.errors import UserError
from pewe.grid.suite import read_suite
from pewe.hardware import bfloat16_gain, product_rate
from pewe.model_files import BackboneConfig
from pewe.tuning.config import TuneConfig
from pewe.tuning.optimizers import make_optimizer


@pytest.mark.parametrize(("gain", "dtype"), [(3.0, "bfloat16"), (1.1, "float32"), (0.01, "float32")])
def test_auto_is_what_is_faster_here(gain, dtype, monkeypatch, tmp_path):
    monkeypatch.setattr(pewe.hardware, "bfloat16_gain", lambda kind: gain)
    assert parse(TuneConfig, ["--dtype", "auto"]).dtype == dtype
    path = tmp_path / "own.toml"
    path.write_text('[all]\ndtype = "auto"\n[delta.lora]\n')
    assert read_suite(str(path)).config(TuneConfig, "lora").dtype == dtype  # the identity of a step and of its runs
    assert parse(TuneConfig, ["--dtype", "bfloat16"]).dtype == "bfloat16"


def test_nothing_is_measured_for_an_explicit_dtype(monkeypatch):
    monkeypatch.delattr(pewe.hardware, "bfloat16_gain")
    assert parse(TuneConfig, []).dtype == "float32"


def test_a_backbone_is_never_loaded_as_auto(tiny_backbone):
    with pytest.raises(UserError, match="dtype auto"):
        load_backbone(BackboneConfig(model=str(tiny_backbone), dtype="auto"))


def test_a_slow_bfloat16_is_warned_of(tiny_backbone, monkeypatch, caplog):
    def loaded(gain: float) -> str:
        caplog.clear()
        monkeypatch.setattr("pewe.backbone.bfloat16_gain", lambda kind: gain)
        with caplog.at_level(logging.WARNING, logger="pewe"):
            load_backbone(BackboneConfig(model=str(tiny_backbone), dtype="bfloat16", device="cpu"))
        return caplog.text

    monkeypatch.setattr(logging.getLogger("pewe"), "propagate", True)
    assert "take 100.0 times as long as those of float32" in loaded(0.01)
    assert "times as long" not in loaded(2.0)


def test_the_measurement(monkeypatch):
    rate = product_rate(torch.float32, torch.device("cpu"), 64)
    assert 1e6 < rate < 1e15
    rates = {torch.float32: 2.0, torch.bfloat16: 8.0}
    monkeypatch.setattr(pewe.hardware, "product_rate", lambda dtype, device, size: rates[dtype])
    assert bfloat16_gain.__wrapped__("cpu") == 4.0


def test_numbers_below_the_normal_ones_are_0_in_all_threads():
    tiny = torch.full((2**20,), 1e-39)
    assert not (tiny * 0.5).any() and not (tiny.view(1024, -1) @ torch.ones(1024, 16)).any()
    assert (torch.tensor([1e-37]) * 0.5).all()


@pytest.mark.parametrize("name", METHODS)
def test_a_delta_stands_where_its_backbone_stands(name):
    with torch.device("meta"):
        model = T5ForConditionalGeneration(tiny_config())
    delta = attach_delta(model, small(name), 3)
    delta.load([{key: torch.zeros(p.shape[1:]) for key, p in delta.named.items()}] * 2)
    delta.keep(torch.tensor([1], device="meta"))
    assert {p.device.type for p in delta.named.values()} == {"meta"} and delta.stack == 1
    optimizer = make_optimizer(delta, [1e-3])
    assert optimizer.param_groups[0]["lr"].device.type == "meta"
