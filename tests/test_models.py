"""Which backbones are T5s to this suite: ByT5, mT5 and umT5 beside T5 and Flan-T5. Tiny random ones; the deltas are the same."""

import json

import pytest
import torch
from conftest import MINI_TASKS, SMALL, VERSIONS, fill, filled, new_t5, small, tiny_config, tiny_t5, tuning_config
from safetensors.torch import load_file, save_file
from test_forward import assert_equal_losses_and_gradients, uneven_batch
from transformers import ByT5Tokenizer, MT5Config, T5Config, UMT5Config

from pewe.backbone import HEAD, MODELS, BackboneConfig, as_stored, is_5, load_backbone, own_head
from pewe.deltas.attach import attach_delta
from pewe.errors import UserError
from pewe.grid.forecast import state_bytes
from pewe.losses import member_losses
from pewe.tuning.evaluate import greedy
from pewe.tuning.tune import tune
from pewe.whole_model import load_model

CONFIGS = {"mt5": MT5Config, "umt5": UMT5Config}


def tiny(kind: str, **changes):
    """A random tiny model of this kind; its tensors are those of the tiny T5, and of an umT5 a position bias more a layer."""
    settings = {name: value for name, value in tiny_config(**changes).to_dict().items() if name != "model_type"}
    config = {"t5": T5Config, **CONFIGS}[kind](**{**settings, "attn_implementation": "eager"})
    return fill(own_head(MODELS[kind](config).eval()))


@pytest.mark.parametrize(
    ("name", "kind"), [(name, kind) for name in SMALL for kind in CONFIGS if (name, kind) != ("prefix", "umt5")]
)
def test_packed_equals_transformers(name, kind):
    assert_equal_losses_and_gradients(filled(tiny(kind), name, 3)[0], uneven_batch(3))


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("name", SMALL)
def test_a_delta_of_a_t5_has_the_same_tensors(name, kind):
    own = attach_delta(tiny(kind), small(name)).named
    of_t5 = attach_delta(tiny_t5(), small(name)).named
    assert {key: p.shape for key, p in own.items()} == {key: p.shape for key, p in of_t5.items()}


@pytest.mark.parametrize("kind", CONFIGS)
def test_generation_equals_transformers(kind):
    model = tiny(kind)
    delta, _ = filled(model, "adapter", 1)
    inputs = torch.tensor([[5, 9, 17, 30, 1], [8, 60, 7, 44, 1]])
    stock = model.generate(input_ids=inputs, max_length=8, do_sample=False)
    ours = greedy(delta, [inputs.tolist()], 8)
    assert ours[:, : stock.shape[1]].tolist() == stock.tolist()


def test_every_layer_of_an_umt5_has_its_own_bias():
    """A table of the second layer that is changed changes the outcome; of a T5 there is none."""
    model = tiny("umt5")
    assert all(block.layer[0].SelfAttention.has_relative_attention_bias for block in model.encoder.block)
    delta, batch = filled(model, "adapter", 1)[0], uneven_batch(1)
    before = member_losses(delta, batch)
    with torch.no_grad():
        model.encoder.block[1].layer[0].SelfAttention.relative_attention_bias.weight.neg_()
    assert not torch.allclose(before, member_losses(delta, batch), rtol=1e-4)


def test_an_umt5_with_equal_tables_is_a_t5_with_a_prefix_too():
    """opendelta's site of a prefix does not fit umT5's own attention, so that the stock model is no witness here."""
    umt5, t5 = tiny("umt5"), tiny_t5()
    for own, its in ((umt5.encoder, t5.encoder), (umt5.decoder, t5.decoder)):
        table = its.block[0].layer[0].SelfAttention.relative_attention_bias.weight.data
        for block in own.block:
            block.layer[0].SelfAttention.relative_attention_bias.weight.data = table
    batch = uneven_batch(3)
    ours, expected = (member_losses(filled(model, "prefix", 3)[0], batch) for model in (umt5, t5))
    torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-6)


# ---- the head, as transformers 4 and 5 write it


def written(folder, model, version: str, head: bool, scaled: bool = False):
    """The model's folder as this version writes it, with or without a head in it."""
    model.save_pretrained(folder)
    about = json.loads((folder / "config.json").read_text())
    about |= {"transformers_version": version, "tie_word_embeddings": scaled or version[0] == "5"}
    about.pop("scale_decoder_outputs", None)
    if version[0] == "5" and about["model_type"] != "mt5":
        about["scale_decoder_outputs"] = scaled
    (folder / "config.json").write_text(json.dumps(about))
    if not head:
        tensors = load_file(folder / "model.safetensors")
        tensors.pop(HEAD, None)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return str(folder)


def losses_of(model):
    return member_losses(filled(model, "adapter", 1)[0], uneven_batch(1))


@pytest.mark.parametrize("version", ["4.57.6", "5.24.0"])
@pytest.mark.parametrize("kind", MODELS)
def test_a_head_of_its_own_whoever_saved_it(kind, version, tmp_path):
    """And what is saved again of it."""
    model = tiny(kind)
    folder = written(tmp_path / "once", model, version, head=True)
    again = load_model(MODELS[kind], folder)
    again.save_pretrained(tmp_path / "again")
    twice = load_model(MODELS[kind], str(tmp_path / "again"))
    expected = losses_of(model)
    for read in (again, twice):
        assert torch.equal(losses_of(read), expected) and not read.config.tie_word_embeddings


@pytest.mark.parametrize("kind", MODELS)
def test_a_head_that_was_left_out_is_the_embedding_or_missing(kind, tmp_path):
    """transformers 5 leaves out the head of a model whose output is not scaled, where it is the embedding; 4 never does."""
    model = tiny(kind)
    model.lm_head.weight.data.copy_(model.shared.weight)
    read = load_model(MODELS[kind], written(tmp_path / "5", model, "5.24.0", head=False))
    assert torch.equal(losses_of(read), losses_of(model))
    with pytest.raises(UserError, match=r"4: the weights do not fit config\.json, e\.g\. lm_head\.weight"):
        load_model(MODELS[kind], written(tmp_path / "4", model, "4.57.6", head=False))


@pytest.mark.parametrize("kind", MODELS)
def test_a_scaled_output_stays_so(kind, tmp_path):
    """Of a model that transformers 4 calls tied, saved again by either; in 5's own forward no mT5's is."""
    folder = written(tmp_path / "once", tiny(kind), "4.57.6", head=False, scaled=True)
    once, _ = as_stored(MODELS[kind], folder)
    once.save_pretrained(tmp_path / "again")
    twice, _ = as_stored(MODELS[kind], str(tmp_path / "again"))
    assert once.config.tie_word_embeddings and torch.equal(losses_of(once), losses_of(twice))
    assert once.lm_head.weight is once.shared.weight
    if kind == "mt5" and is_5():
        with pytest.raises(UserError, match="an mT5 with tie_word_embeddings, which transformers 5 does not scale"):
            load_model(MODELS[kind], folder)
    else:
        load_model(MODELS[kind], folder)


@pytest.mark.parametrize("version", VERSIONS)
def test_the_size_of_a_model_that_is_tuned_whole(version, tiny_backbones):
    folder = str(tiny_backbones[version])
    model = load_backbone(BackboneConfig(model=folder, device="cpu")).model
    size = 4 * sum(parameter.numel() for parameter in model.parameters())
    assert state_bytes(tuning_config(folder, "", "", tune_method="model", stack=1)) == size


def write_byt5(folder):
    """A tiny ByT5 as the hub has it: a T5 v1.1 over bytes, deeper encoder than decoder, one row more than the tokenizer."""
    tokenizer = ByT5Tokenizer()
    model = fill(new_t5(tiny_config(vocab_size=len(tokenizer), num_layers=3, num_decoder_layers=1)))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_byt5_is_tuned_like_any_t5(tiny_data, tmp_path):
    folder = write_byt5(tmp_path / "byt5")
    backbone = load_backbone(BackboneConfig(model=str(folder), device="cpu"))
    assert backbone.tokenizer("né").input_ids[:-1] == [byte + 3 for byte in "né".encode()]
    config = tuning_config(folder, tiny_data, tmp_path / "out", tasks=[MINI_TASKS[0]], train_iters=2, **SMALL["lora"])
    table = tune(config)
    assert table["updates"].tolist() == [2] and table["test"].notna().all()


def test_what_is_no_t5_is_named_with_what_is(tmp_path):
    folder = write_byt5(tmp_path / "other")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "bart"}))
    with pytest.raises(UserError, match=r"a T5 is needed \(t5, mt5, umt5\), this is a 'bart' model"):
        load_backbone(BackboneConfig(model=str(folder), device="cpu"))
