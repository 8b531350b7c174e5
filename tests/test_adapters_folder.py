"""Adapters for the library `adapters`: where it is installed, the same logits; else what can be said of the files."""

import json
import re

import pytest
import torch
from conftest import SMALL, VERSIONS, filled, random_batch, tiny_t5

from pewe.deltas.adapters_folder import CONFIG, WEIGHTS
from pewe.deltas.checkpoint import write_checkpoint
from pewe.deltas.export import ExportConfig, export
from pewe.errors import UserError

TYPES = {"adapter": "houlsby", "pfeiffer": "pfeiffer"}
NOT_HERE = "the library adapters is not installed (1.3, beside transformers 4.57)"


def exported(out, name, version="v1.1", **about):
    """The folder of a random adapter, and our logits with it."""
    model = tiny_t5(**VERSIONS[version])
    _, (state,) = filled(model, name, 1)
    args = {"adapter_type": TYPES[name], "adapter_size": SMALL[name]["adapter_size"], **about}
    write_checkpoint(out / "x.pt", "adapter", state, args)
    config = ExportConfig(to="adapters", checkpoint=str(out / "x.pt"), out=str(out / "out"))
    with torch.no_grad():
        return export(config), state, model(**random_batch(4)).logits


@pytest.mark.parametrize("name", TYPES)
def test_the_files_are_those_of_the_library(tmp_path, name):
    """Its names, shapes and settings, as its 1.3 writes them (`save_adapter`)."""
    folder, state, _ = exported(tmp_path, name, model="a/t5")
    tensors = torch.load(folder / WEIGHTS, weights_only=True)
    assert len(tensors) == 2 * len(state)
    key = "decoder.block.1.layer.2"
    down, up = (tensors[f"{key}.adapters.pewe.adapter_{which}.weight"] for which in ("down.0", "up"))
    assert torch.equal(down, state[f"{key}.adapter.adapter_A"].T) and torch.equal(
        up, state[f"{key}.adapter.adapter_B"].T
    )
    assert not any(tensor.any() for key, tensor in tensors.items() if key.endswith("bias"))
    saved = json.loads((folder / CONFIG).read_text())
    own, d = saved["config"], saved["hidden_size"]
    assert int(d // own["reduction_factor"]) == 4 and own["output_adapter"]
    assert (own["mh_adapter"], own["cross_adapter"]) == (name == "adapter",) * 2
    assert own["non_linearity"] == {"adapter": "silu", "pfeiffer": "relu"}[name]
    card = (folder / "README.md").read_text()
    assert "library_name: adapters" in card and "base_model: a/t5" in card and "adapters.init(model)" in card


def test_every_bottleneck_is_found_again():
    """The library takes floor(d / reduction_factor)."""
    from pewe.deltas.adapters_folder import adapter_config

    for d in (24, 512, 768, 1024):
        for r in range(1, 65):
            assert int(d // adapter_config("houlsby", d, r, None)["config"]["reduction_factor"]) == r


def test_what_is_not_exported_is_named(tmp_path):
    out = {"to": "adapters", "out": str(tmp_path / "out")}
    for name in ("prefix", "lora"):
        write_checkpoint(tmp_path / f"{name}.pt", name, {"a": torch.ones(2)}, {})
        with pytest.raises(
            UserError, match=rf"{name}.pt is a {name} checkpoint; expected one of --tune_method adapter"
        ):
            export(ExportConfig(checkpoint=str(tmp_path / f"{name}.pt"), **out))
    _, state, _ = exported(tmp_path, "adapter")
    path = str(tmp_path / "x.pt")
    write_checkpoint(tmp_path / "x.pt", "adapter", state, {})
    with pytest.raises(UserError, match="does not say its adapter_type; give --adapter_type"):
        export(ExportConfig(checkpoint=path, **out))
    with pytest.raises(
        UserError, match=r"has a tensor decoder\.block\.0\.layer\.0\S+, where a pfeiffer adapter has none"
    ):
        export(ExportConfig(checkpoint=path, **out, adapter_type="pfeiffer"))
    write_checkpoint(tmp_path / "x.pt", "adapter", {**state, "encoder.block.x": torch.ones(1)}, {})
    with pytest.raises(UserError, match=r"tensor encoder\.block\.x is none of an adapter's"):
        export(ExportConfig(checkpoint=path, **out, adapter_type="houlsby"))
    write_checkpoint(tmp_path / "x.pt", "adapter", {k: v for k, v in state.items() if "block.1.layer.0" not in k}, {})
    with pytest.raises(UserError, match=re.escape("no tensor decoder.block.1.layer.0.adapter.adapter_A")):
        export(ExportConfig(checkpoint=path, **out, adapter_type="houlsby"))


@pytest.mark.slow
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", TYPES)
def test_the_logits_are_those_of_the_library(tmp_path, name, version):
    adapters = pytest.importorskip("adapters", reason=NOT_HERE)
    folder, _, ours = exported(tmp_path, name, version)
    model = tiny_t5(**VERSIONS[version])
    with torch.no_grad():
        plain = model(**random_batch(4)).logits
    adapters.init(model)
    model.load_adapter(str(folder), set_active=True)
    with torch.no_grad():
        theirs = model.eval()(**random_batch(4)).logits
    assert torch.allclose(theirs, ours, rtol=0, atol=1e-5) and not torch.allclose(plain, ours, rtol=0, atol=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("bias", [True, False], ids=["with a relative bias", "without"])
def test_its_prefix_is_another_function_by_the_relative_bias_alone(bias):
    """Why no prefix is exported: with the same keys and values it is ours only where positions mean nothing."""
    adapters = pytest.importorskip("adapters", reason=NOT_HERE)
    models = [tiny_t5(), tiny_t5()]
    for model in models:
        for name, parameter in model.named_parameters():
            if "relative" in name and not bias:
                parameter.data.zero_()
    delta, _ = filled(models[0], "prefix", 1)
    adapters.init(models[1])
    flat = adapters.PrefixTuningConfig(flat=True, prefix_length=5, dropout=0.0, cross_prefix=False)
    models[1].add_adapter("p", config=flat, set_active=True)
    with torch.no_grad():
        for name, parameter in models[1].named_parameters():
            if "prefix_tunings" in name:
                network = delta.networks["encoder" if "encoder_prefix" in name else "decoder"]
                rows = torch.stack(
                    [torch.cat(network(layer)) for layer in range(network.shape[0])]
                )  # (L, 2, heads, P, d_kv)
                parameter.copy_(rows.flatten(0, 1).permute(2, 0, 1, 3).flatten())
        ours, theirs = (model.eval()(**random_batch(4)).logits for model in models)
    assert torch.allclose(theirs, ours, rtol=0, atol=1e-5) != bias
