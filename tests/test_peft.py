"""LoRA of the library PEFT in and out: the same function, the same numbers."""

import json
import pickle
import warnings
from contextlib import nullcontext

import pytest
import torch
import transformers
from conftest import random_batch, tiny_config, tiny_t5
from safetensors.torch import load_file, save_file
from torch.nn import functional
from transformers import AutoModelForSeq2SeqLM

from pewe.batches import Batch
from pewe.deltas.attach import attach_delta
from pewe.deltas.checkpoint import Checkpoints, open_checkpoint, read_checkpoint, write_checkpoint
from pewe.deltas.config import DeltaConfig
from pewe.deltas.convert import ConvertConfig, _run, convert_peft
from pewe.deltas.export import ExportConfig, export
from pewe.deltas.peft_folder import CONFIG, WEIGHTS, fitted, read_peft
from pewe.deltas.projections import targets_of
from pewe.errors import UserError
from pewe.forward import T5, pack
from pewe.merging.average import merge

peft = pytest.importorskip("peft")

SHAPES = {
    "q and v": {},
    "rsLoRA": {"use_rslora": True},
    "all layers": {"target_modules": ["q", "k", "v", "o", "wi_0", "wi_1", "wo"], "r": 2},
    "mixed ranks": {"rank_pattern": {"encoder.*v": 5}, "alpha_pattern": {"decoder.*q": 1, "v": 3}},
    "a pattern": {"target_modules": r".*(SelfAttention|EncDecAttention)\.[qv]"},
}


def make_peft(out, seed=0, model=None, **changes):
    """A folder of PEFT with a random LoRA on the tiny T5."""
    settings = {"task_type": "SEQ_2_SEQ_LM", "r": 3, "lora_alpha": 5, "target_modules": ["q", "v"], **changes}
    made = peft.get_peft_model(model or tiny_t5(), peft.LoraConfig(**settings))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if "lora_" in name:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    made.peft_config["default"].base_model_name_or_path = None
    made.save_pretrained(out)
    return out


def logits_of_peft(folder):
    """PEFT's own."""
    model = peft.PeftModel.from_pretrained(tiny_t5(), folder).eval()
    with torch.no_grad():
        return model(**random_batch(4)).logits


def logits_of(state, args):
    """Ours, on the stock model."""
    model = tiny_t5()
    targets = targets_of(state)
    config = DeltaConfig(tune_method="lora", lora_r=args["lora_r"], lora_alpha=args["lora_alpha"], lora_targets=targets)
    delta = attach_delta(model, config)
    delta.load([state])
    with torch.no_grad():
        return model(**random_batch(4)).logits


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A folder for each of the shapes."""
    out = tmp_path_factory.mktemp("peft")
    return {name: make_peft(out / name, **changes) for name, changes in SHAPES.items()}


@pytest.mark.parametrize("shape", SHAPES)
def test_the_function_is_that_of_peft(folders, shape):
    state, args = read_peft(folders[shape])
    assert torch.allclose(logits_of(state, args), logits_of_peft(folders[shape]), rtol=0, atol=1e-5)


def test_every_linear_layer_in_our_own_forward(folders):
    """What tuning and similarities run is the packed forward, here with a delta on all layers of two members."""
    state, args = read_peft(folders["all layers"])
    config = DeltaConfig(tune_method="lora", lora_targets=targets_of(state), lora_r=2, lora_alpha=args["lora_alpha"])
    model = tiny_t5()
    delta = attach_delta(model, config, 2)
    other = {name: -0.5 * tensor for name, tensor in state.items()}
    delta.load([state, other])
    batch = random_batch(4)
    doubled = Batch(**{name: tensor.repeat(2, 1) for name, tensor in batch.items()})
    packed = pack(model, doubled, 2)
    with torch.no_grad():
        found = functional.linear(T5(delta).states(packed), model.lm_head.weight)
    wanted = [logits_of(one, args)[batch["labels"] != -100] for one in (state, other)]
    assert torch.allclose(found, torch.cat(wanted), rtol=0, atol=1e-5)


SOME = {
    "one block": {"layers_to_transform": [1], "layers_pattern": "block"},
    "the first block": {"layers_to_transform": [0]},
    "the last, as a number": {"layers_to_transform": 1, "layers_pattern": []},
    "a block by a group": {"layers_to_transform": [1], "layers_pattern": "(block)"},
    "a block of the encoder": {"layers_to_transform": [0], "layers_pattern": "encoder.block"},
    "the first of both, by a pattern": {"target_modules": r".*coder\.block\.0.*\.q"},
    "the decoder": {"target_modules": r"decoder.*\.(q|wo)"},
    "not the cross-attention": {"exclude_modules": r".*EncDecAttention.*"},
}


@pytest.mark.parametrize("shape", SOME)
def test_a_projection_without_lora_gets_zeros(tmp_path, shape):
    """Where the backbone is here, which says how many blocks there are; a number of its layers has LoRA."""
    tiny_config().save_pretrained(tmp_path / "base")
    plain = make_peft(tmp_path / "plain", **SOME[shape])
    must = (
        shape != "the first of both, by a pattern"
    )  # all that there is, where it is not known how many blocks there are
    with (
        pytest.raises(UserError, match="the backbone None, which says how many there are, is not here")
        if must
        else nullcontext()
    ):
        read_peft(plain)
    folder = change(plain, tmp_path / "named", base_model_name_or_path=str(tmp_path / "base"))
    (state, args), (again, _) = read_peft(folder), read_peft(plain, str(tmp_path / "base"))
    assert torch.allclose(logits_of(state, args), logits_of_peft(folder), rtol=0, atol=1e-5)
    assert all(torch.equal(tensor, again[name]) for name, tensor in state.items())
    stored = len(load_file(folder / WEIGHTS[0]))
    assert stored < len(state) and sum(bool(tensor.any()) for tensor in state.values()) == stored
    sources = Checkpoints([folder, make_peft(tmp_path / "full", target_modules=targets_of(state))], "lora")
    (merged,) = merge(sources, torch.tensor([[1.0, 0.0]]))
    assert torch.allclose(logits_of(merged, sources.made_for), logits_of_peft(folder), rtol=0, atol=1e-5)


def test_a_lora_on_layers_that_the_t5_has_not_is_refused():
    with pytest.raises(UserError, match="--lora_targets wi: this T5 has no such layer"):
        attach_delta(tiny_t5(), DeltaConfig(tune_method="lora", lora_targets=["q", "wi"]))


def test_another_rank_and_scale_is_the_same_function(folders):
    folder = folders["q and v"]
    state, args = read_peft(folder)
    made, told = fitted(state, args, 5, 16.0, folder)
    assert (told["lora_r"], told["lora_alpha"]) == (5, 16.0)
    assert torch.allclose(logits_of(made, told), logits_of(state, args), rtol=0, atol=1e-5)
    with pytest.raises(UserError, match=r"has rank 3, more than 2; give --lora_r 3"):
        fitted(state, args, 2, 16.0, folder)


def test_round_trip_is_exact(folders, tmp_path):
    """PEFT, ours, merged with weight 1, PEFT."""
    names = ["q and v", "a pattern"]
    sources = Checkpoints([folders[name] for name in names], "lora")
    (merged,) = merge(sources, torch.tensor([[1.0, 0.0]]), names=names)
    path = tmp_path / "merged.pt"
    args = {**sources.made_for, "weights": [1.0, 0.0], "sources": dict.fromkeys(names, "0123")}
    write_checkpoint(path, "lora", merged, args)
    out = export(ExportConfig(checkpoint=str(path), out=str(tmp_path / "out"), model="a/t5", license="mit"))
    first, again = (load_file(folder / WEIGHTS[0]) for folder in (folders["q and v"], out))
    assert first.keys() == again.keys() and all(torch.equal(first[name], again[name]) for name in first)
    card = (out / "README.md").read_text()
    assert "| q and v | 1 | `0123` |" in card and "license: mit" in card and "base_model: a/t5" in card
    assert torch.equal(logits_of_peft(out), logits_of_peft(folders["q and v"]))


@pytest.mark.parametrize("shape", ["rsLoRA", "all layers", "mixed ranks"])
def test_what_is_exported_is_the_function(folders, shape, tmp_path):
    state, args = read_peft(folders[shape])
    write_checkpoint(tmp_path / "x.pt", "lora", state, args)
    out = export(ExportConfig(checkpoint=str(tmp_path / "x.pt"), out=str(tmp_path / "out")))
    assert torch.allclose(logits_of_peft(out), logits_of_peft(folders[shape]), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["T5Config", "MT5Config", "UMT5Config"])
def test_the_card_of_a_folder_loads_the_class_of_its_backbone(folders, tmp_path, kind):
    """The lines of the card as they stand, on a backbone of each kind."""
    settings = {**tiny_config().to_dict(), "tie_word_embeddings": False}
    for name in ("model_type", "architectures", "transformers_version", "dtype"):
        settings.pop(name, None)
    backbone = AutoModelForSeq2SeqLM.from_config(getattr(transformers, kind)(**settings)).eval()
    backbone.save_pretrained(tmp_path / "base")
    folder = make_peft(tmp_path / "lora", model=backbone)
    wanted = peft.PeftModel.from_pretrained(type(backbone).from_pretrained(tmp_path / "base"), folder).eval()
    state, args = read_peft(folder)
    write_checkpoint(tmp_path / "x.pt", "lora", state, {**args, "model": str(tmp_path / "base")})
    out = export(ExportConfig(checkpoint=str(tmp_path / "x.pt"), out=str(tmp_path / "out")))
    code = (out / "README.md").read_text().split("```python\n")[1].split("```")[0].replace("THIS_FOLDER", str(out))
    made: dict = {}
    exec(code, made)
    with torch.no_grad():
        assert torch.equal(made["model"].eval()(**random_batch(4)).logits, wanted(**random_batch(4)).logits)


def test_a_source_is_never_written_over(folders, tmp_path):
    folder = change(folders["q and v"], tmp_path / "x")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(UserError, match="is in the --peft folder, whose files would be lost"):
        convert_peft(ConvertConfig(peft=str(folder), out=str(folder / WEIGHTS[0])))
    for checkpoint in (folder, folder / WEIGHTS[0]):
        with pytest.raises(UserError, match="holds the --checkpoint"):
            export(ExportConfig(checkpoint=str(checkpoint), out=str(folder)))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_what_is_no_lora_of_ours_is_not_exported(folders, tmp_path):
    with pytest.raises(UserError, match=r"is a file of PEFT .*; give its folder"):
        export(ExportConfig(checkpoint=str(folders["q and v"] / WEIGHTS[0]), lora_alpha=8.0, out=str(tmp_path / "out")))
    state, args = read_peft(folders["q and v"])
    write_checkpoint(tmp_path / "x.pt", "lora", {**state, "encoder.final.bias": torch.ones(3)}, args)
    with pytest.raises(UserError, match=r"encoder.final.bias, shape \(3,\), is no matrix A or B"):
        export(ExportConfig(checkpoint=str(tmp_path / "x.pt"), out=str(tmp_path / "out")))
    assert not (tmp_path / "out").exists()


def test_the_flags_that_are_printed_are_those_of_the_checkpoint(folders, tmp_path, capsys):
    _run(ConvertConfig(peft=str(folders["rsLoRA"]), out=str(tmp_path / "x.pt")))
    said = float(capsys.readouterr().out.split("--lora_alpha ")[1].split()[0])
    assert said == open_checkpoint(tmp_path / "x.pt", "lora")[1]["lora_alpha"]


def test_mean_of_two_against_peft(tmp_path):
    """PEFT's linear combination puts the root of w on A and on B, so that w_1 + w_2 = 1 is no mean: it takes w^2 for w.

    The mean of a LoRA with itself is itself here; there it is twice as large.
    """
    paths = [make_peft(tmp_path / str(seed), seed) for seed in (1, 2)]
    states, weights = Checkpoints(paths, "lora"), torch.tensor([[0.25, 0.75], [0.25, 0.75]])

    def combined(places, weights):
        model = peft.PeftModel.from_pretrained(tiny_t5(), places[0], adapter_name="a")
        model.load_adapter(places[1], adapter_name="b")
        model.add_weighted_adapter(["a", "b"], weights, "both", combination_type="linear")
        model.set_adapter("both")
        with torch.no_grad():
            return model.eval()(**random_batch(4)).logits

    ours = logits_of(next(merge(states, weights[:1])), states.made_for)
    assert torch.allclose(combined(paths, [0.25**2, 0.75**2]), ours, rtol=0, atol=1e-5)
    assert not torch.allclose(combined(paths, [0.25, 0.75]), ours, rtol=0, atol=1e-2)
    itself, one = [paths[0], paths[0]], logits_of_peft(paths[0])
    mean = next(merge(Checkpoints(itself, "lora"), torch.tensor([[0.5, 0.5]])))
    assert torch.allclose(logits_of(mean, states.made_for), one, rtol=0, atol=1e-5)
    assert not torch.allclose(combined(itself, [0.5, 0.5]), one, rtol=0, atol=1e-2)


def test_sources_of_mixed_ranks_are_padded(folders):
    names = ["q and v", "mixed ranks", "rsLoRA"]
    sources = Checkpoints([folders[name] for name in names], "lora")
    assert sources.made_for["lora_r"] == 5
    for name, state in zip(names, sources, strict=True):
        wanted = logits_of_peft(folders[name])
        assert torch.allclose(logits_of(state, sources.made_for), wanted, rtol=0, atol=1e-5)


def test_ours_among_those_of_peft_is_padded_too(folders, tmp_path):
    """By no flag could it be used, where PEFT's are of a larger rank."""
    state, args = read_peft(folders["q and v"])
    write_checkpoint(tmp_path / "ours.pt", "lora", state, args)
    paths = [tmp_path / "ours.pt", folders["mixed ranks"]]
    sources = Checkpoints(paths, "lora")
    assert sources.made_for["lora_r"] == 5
    use = {name: sources.made_for[name] for name in ("lora_r", "lora_alpha")}
    wanted = logits_of(state, args)
    for ours in (sources[0], read_checkpoint(paths[0], "lora", made_for=use, among=paths)):
        assert torch.allclose(logits_of(ours, use), wanted, rtol=0, atol=1e-5)
    with pytest.raises(UserError, match="was tuned with --lora_r 3, not 5"):
        read_checkpoint(paths[0], "lora", made_for=use)
    equal = Checkpoints([paths[0], folders["rsLoRA"]], "lora")  # of one rank: ours stays as it is
    assert equal.made_for["lora_alpha"] == args["lora_alpha"] and torch.equal(
        next(iter(equal[0].values())), next(iter(state.values()))
    )


@pytest.mark.parametrize("name", ["a" * 5000, "a\0b", "a\nb", "../.."])
def test_a_backbone_of_an_odd_name_is_one_that_is_not_here(folders, tmp_path, name):
    folder = change(folders["q and v"], tmp_path / "x", base_model_name_or_path=name)
    assert read_peft(folder)[1]["model"] == name
    with pytest.raises(UserError, match="on another backbone"):
        read_checkpoint(folder, "lora", made_for={"lora_r": 3, "lora_alpha": 5.0, "backbone": "of --model"})


def test_a_source_gets_the_flags_rank_and_names_another_backbone(folders, tmp_path):
    use = {"lora_r": 4, "lora_alpha": 8.0}
    state = read_checkpoint(folders["q and v"], "lora", made_for=use)
    assert torch.allclose(logits_of(state, use), logits_of_peft(folders["q and v"]), rtol=0, atol=1e-5)
    folder = change(folders["q and v"], tmp_path / "x", base_model_name_or_path="who/knows")
    with pytest.raises(UserError, match=r"on another backbone \(who/knows\); give that .* pewe convert --peft"):
        read_checkpoint(folder, "lora", made_for={**use, "backbone": "of --model"})
    with pytest.raises(UserError, match="is a LoRA of PEFT; expected one of --tune_method adapter"):
        open_checkpoint(folder, "adapter")


def change(folder, out, tensors=None, **entries):
    """A copy of a folder of PEFT with other entries, and tensors."""
    out.mkdir(parents=True)
    config = json.loads((folder / CONFIG).read_text())
    (out / CONFIG).write_text(json.dumps({**config, **entries}))
    save_file(tensors or load_file(folder / WEIGHTS[0]), out / WEIGHTS[0])
    return out


Q, V = (f"base_model.model.encoder.block.0.layer.0.SelfAttention.{name}.lora_" for name in "qv")
ENTRIES = [
    ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
    ({"task_type": "SEQ_CLS"}, "task_type is 'SEQ_CLS'"),
    ({"bias": "all"}, "bias is 'all'"),
    ({"modules_to_save": ["lm_head"]}, "modules_to_save is "),
    ({"use_dora": True}, "use_dora is 'True'"),
    ({"fan_in_fan_out": True}, "fan_in_fan_out is 'True'"),
    ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa'"),
    ({"lora_bias": True}, "lora_bias is 'True'"),
    ({"layer_replication": [[0, 2]]}, "layer_replication is "),
    ({"of_tomorrow": 1}, "of_tomorrow is '1'"),
    ({"r": 4}, r"lora_A has shape \(3, 24\), expected rank 4"),
    ({"r": "3"}, "r is '3'"),
    ({"lora_alpha": -1}, "lora_alpha is -1"),
    ({"rank_pattern": [1]}, r"rank_pattern is \[1\]"),
    ({"rank_pattern": {"(": 1}}, "rank_pattern has a name that is no pattern"),
    ({"base_model_name_or_path": 5}, "base_model_name_or_path is 5"),
    ({"lora_alpha": 10**400}, "lora_alpha is 1000"),
    ({"lora_alpha": 1e39}, "lora_alpha is 1e\\+39"),
    ({"target_modules": 5}, "target_modules is 5"),
    ({"target_modules": "("}, "target_modules, exclude_modules or layers_to_transform"),
    ({"target_modules": ["q"]}, r"has LoRA on .*Attention.v, which target_modules"),
    ({"target_modules": ".*q"}, r"has LoRA on .*Attention.v, which target_modules"),
    ({"exclude_modules": ["v"]}, r"has LoRA on .*Attention.v, which target_modules"),
    ({"layers_to_transform": [0], "layers_pattern": "block"}, "has LoRA on .*coder.block.1"),
    ({"layers_to_transform": "zzz", "layers_pattern": "block"}, "has LoRA on .*coder.block.0"),
    ({"target_modules": "(" * 3000 + "q" + ")" * 3000}, "target_modules, exclude_modules or layers_to_transform"),
    ({"rank_pattern": {"q{99999999999999999999}": 1}}, "rank_pattern has a name that is no pattern"),
    ({"lora_dropout": "x"}, "lora_dropout is 'x'; expected int"),
    ({"rank_pattern": False}, "rank_pattern is False; expected dict"),
    ({"kasa_config": {}}, "kasa_config is '{}'"),
    ({"target_modules": ["q", "v", "wo"]}, "has no LoRA on 'wo', which target_modules"),
]
TENSORS = [
    (lambda t: t | {"base_model.model.lm_head.weight": t[f"{Q}A.weight"]}, "is none of LoRA's"),
    (lambda t: t | {Q.replace(".q.", ".x.") + "A.weight": t[f"{Q}A.weight"]}, "is of no projection of a T5"),
    (
        lambda t: t | {name.replace("layer.0", "layer.1"): one for name, one in t.items() if Q in name},
        "which no T5 has",
    ),
    (lambda t: {name: one for name, one in t.items() if name != f"{Q}B.weight"}, "q has no lora_B"),
    (lambda t: {name: one for name, one in t.items() if not name.startswith(Q)}, "has no LoRA on encoder.block.0"),
    (lambda t: t | {f"{Q}A.weight": t[f"{Q}A.weight"].flatten()}, "expected a matrix"),
    (lambda t: t | {f"{Q}A.weight": t[f"{Q}A.weight"][:, :5]}, r"SelfAttention.q is from .* features; expected"),
    (lambda t: t | {f"{Q}A.weight": t[f"{Q}A.weight"] * float("nan")}, "not finite"),
    (lambda t: t | {f"{Q}A.weight": t[f"{Q}A.weight"].long()}, "of torch.int64"),
]


@pytest.mark.parametrize(("entries", "message"), ENTRIES)
def test_malformed_entries_are_named(folders, tmp_path, entries, message):
    with pytest.raises(UserError, match=message) as error:
        read_peft(change(folders["q and v"], tmp_path / "x", **entries))
    assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)


@pytest.mark.parametrize(("edit", "message"), TENSORS)
def test_malformed_tensors_are_named(folders, tmp_path, edit, message):
    tensors = {name: one.contiguous().clone() for name, one in edit(load_file(folders["q and v"] / WEIGHTS[0])).items()}
    with pytest.raises(UserError, match=message) as error:
        read_peft(change(folders["q and v"], tmp_path / "x", tensors))
    assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)


OF_A_BACKBONE = {  # which is here
    "a block without tensors": (
        "a pattern",
        lambda name: "encoder.block.1" in name,
        None,
        "gives encoder.block.1.* LoRA",
    ),
    "too few blocks": ("q and v", lambda name: "coder.block.1" in name, None, "has no LoRA on encoder.block.1"),
    "too wide": (
        "q and v",
        lambda name: False,
        lambda one: torch.cat([one, one], 1),
        "features; expected .*, as config.json",
    ),
}


@pytest.mark.parametrize("case", OF_A_BACKBONE)
def test_a_lora_that_does_not_fit_its_backbone_is_named(folders, tmp_path, case):
    shape, without, edit, message = OF_A_BACKBONE[case]
    tiny_config().save_pretrained(tmp_path / "base")
    tensors = {name: one for name, one in load_file(folders[shape] / WEIGHTS[0]).items() if not without(name)}
    if edit:
        tensors = {name: edit(one) if "lora_A" in name else one for name, one in tensors.items()}
    folder = change(folders[shape], tmp_path / "x", tensors, base_model_name_or_path=str(tmp_path / "base"))
    with pytest.raises(UserError, match=message) as error:
        read_peft(folder)
    assert str(folder) in str(error.value)


def test_a_lora_of_more_blocks_than_its_backbone(folders, tmp_path):
    config = tiny_config()
    config.num_layers = 1
    config.save_pretrained(tmp_path / "base")
    folder = change(folders["q and v"], tmp_path / "x", base_model_name_or_path=str(tmp_path / "base"))
    with pytest.raises(UserError, match=r"LoRA on encoder.block.1.*, but the encoder of its backbone has 1 blocks"):
        read_peft(folder)


def test_entries_that_change_nothing_are_taken(folders, tmp_path):
    folder = change(folders["q and v"], tmp_path / "x", megatron_config={}, loftq_config={}, use_rslora=0)
    assert torch.equal(logits_of(*read_peft(folder)), logits_of(*read_peft(folders["q and v"])))


def test_a_backbone_whose_name_is_that_of_another_model_here(folders, tmp_path):
    """Who uses the LoRA says which backbone it is for; as a name alone it says nothing."""
    (tmp_path / "config.json").write_text('{"model_type": "bert", "hidden_size": 32}')
    folder = change(folders["q and v"], tmp_path / "x", base_model_name_or_path=str(tmp_path))
    assert len(Checkpoints([folder], "lora")) == 1
    config = {**tiny_config().to_dict(), "num_decoder_layers": "2"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="num_decoder_layers is '2', not a number as a T5 has it"):
        convert_peft(ConvertConfig(peft=str(folder), out=str(tmp_path / "y.pt"), model=str(tmp_path)))


def test_convert_and_export_to_a_backbone_that_does_not_fit(folders, tmp_path):
    config = tiny_config()
    config.d_model = 32
    config.save_pretrained(tmp_path / "wide")
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text('{"model_type": "bert", "hidden_size": 32}')
    state, args = read_peft(folders["q and v"])
    write_checkpoint(tmp_path / "x.pt", "lora", state, args)
    for name, message in (("wide", "features; expected"), ("bert", "d_model is None, not a number as a T5 has it")):
        model = str(tmp_path / name)
        with pytest.raises(UserError, match=message):
            convert_peft(ConvertConfig(peft=str(folders["q and v"]), out=str(tmp_path / "y.pt"), model=model))
        with pytest.raises(UserError, match=message):
            export(ExportConfig(checkpoint=str(tmp_path / "x.pt"), out=str(tmp_path / "out"), model=model))
    with pytest.raises(UserError, match=r"torch's format, NAME.pt"):
        _run(ConvertConfig(peft=str(folders["q and v"]), out=str(tmp_path / "y.safetensors")))
    assert not (tmp_path / "y.pt").exists() and not (tmp_path / "out").exists()


class Mark:
    """A pickled object that would leave a file behind if it were made again."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("name", WEIGHTS)
def test_nothing_is_unpickled_but_tensors(folders, tmp_path, name):
    folder, mark = change(folders["q and v"], tmp_path / "x"), tmp_path / "mark"
    (folder / WEIGHTS[0]).unlink()
    for content in (pickle.dumps(Mark(mark)), None):
        if content is None:
            torch.save({f"{Q}A.weight": Mark(mark)}, folder / name)
        else:
            (folder / name).write_bytes(content)
        with pytest.raises(UserError, match=name) as error, warnings.catch_warnings(action="error"):
            read_peft(folder)
        assert not mark.exists() and "\n" not in str(error.value)
    tensors = load_file(folders["q and v"] / WEIGHTS[0])
    if name.endswith(".bin"):  # what PEFT wrote before it had safetensors
        torch.save(tensors, folder / name)
        state, args = read_peft(folder)
        assert torch.equal(logits_of(state, args), logits_of_peft(folders["q and v"]))


def test_broken_files_are_named(folders, tmp_path):
    folder = change(folders["q and v"], tmp_path / "x")
    for name, content in ((WEIGHTS[0], b"{"), (CONFIG, b"{"), (CONFIG, b"[]"), (WEIGHTS[0], None)):
        kept = (folder / name).read_bytes()
        if content is None:
            (folder / name).unlink()
        else:
            (folder / name).write_bytes(content)
        with pytest.raises(UserError, match=str(folder)) as error:
            read_peft(folder)
        assert "\n" not in str(error.value)
        (folder / name).write_bytes(kept)
