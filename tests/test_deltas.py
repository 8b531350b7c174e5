"""The deltas against the original's numbers, against slow formulas, and against themselves one at a time."""

import math

import pytest
import torch
from conftest import (
    METHODS,
    SMALL,
    VERSIONS,
    draws,
    filled,
    golden_backbone,
    golden_npz,
    golden_state,
    random_batch,
    small,
    tiny_t5,
)

from pewe.batches import Batch
from pewe.deltas.attach import attach_delta
from pewe.deltas.config import DeltaConfig
from pewe.errors import UserError
from pewe.losses import member_losses


def greedy(model, batch: dict, **options) -> torch.Tensor:
    inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
    return model.generate(**inputs, max_length=12, num_beams=1, do_sample=False, **options)


@pytest.fixture(scope="module", params=[(method, stack) for method in METHODS for stack in (1, 3)], ids=str)
def reference(request, golden):
    """Method, stack, backbone with the original's delta (K = 3: others around it), its batch, its numbers, our rows."""
    method, stack = request.param
    backbone = golden_backbone()
    delta = attach_delta(backbone.model, small(method), stack)
    state, other = golden_state(method, "web_questions"), golden_state(method, "boolq")
    delta.load([state] if stack == 1 else [other, state, other])
    batch = {key: torch.tensor(value) for key, value in golden_npz("model_ref/batch.npz").items()}
    rows = slice(0, 8) if stack == 1 else slice(8, 16)
    repeated = {key: value.repeat(stack, 1) for key, value in batch.items()}
    return method, stack, backbone, delta, repeated, golden_npz(f"model_ref/ref_{method}.npz"), rows


def test_logits_and_loss_of_the_original(reference):
    _, stack, backbone, delta, batch, expected, rows = reference
    with torch.no_grad():
        logits = backbone.model(**batch, use_cache=False).logits[rows].numpy()
        losses = member_losses(delta, Batch(batch["input_ids"], batch["attention_mask"], batch["labels"]))
    assert abs(logits - expected["logits"]).max() <= 1e-5 * abs(expected["logits"]).max()
    assert losses[0 if stack == 1 else 1].item() == pytest.approx(float(expected["loss"]), rel=1e-5)


def test_greedy_ids_of_the_original_with_and_without_cache(reference):
    _, _, backbone, _, batch, expected, rows = reference
    cached, uncached = greedy(backbone.model, batch), greedy(backbone.model, batch, use_cache=False)
    assert torch.equal(cached, uncached)
    ids = cached[rows].numpy()
    assert (ids == expected["generated_ids"][:, : ids.shape[1]]).all()


def test_gradients_of_the_original(reference):
    method, stack, backbone, delta, batch, _, _ = reference
    backbone.model.train()
    losses = member_losses(delta, Batch(batch["input_ids"], batch["attention_mask"], batch["labels"]))
    losses.sum().backward()
    expected = golden_npz(f"model_ref/grad_{method}.npz")
    ours = {name: parameter.grad[0 if stack == 1 else 1] for name, parameter in delta.named.items()}
    assert ours.keys() == expected.keys()
    for name, gradient in expected.items():
        assert abs(ours[name].numpy() - gradient).max() <= 1e-4 * max(abs(gradient).max(), 1e-6), name
    deltas = {id(parameter) for parameter in delta.named.values()}
    assert all(p.grad is None for p in backbone.model.parameters() if id(p) not in deltas)
    for parameter in delta.named.values():
        parameter.grad = None
    backbone.model.eval()


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("stack", [1, 3])
def test_a_stack_equals_its_members_one_by_one(name, version, stack):
    batch, model = random_batch(4), tiny_t5(**VERSIONS[version])
    _, states = filled(model, name, stack)
    repeated = {key: value.repeat(stack, 1) for key, value in batch.items()}
    with torch.no_grad():
        together = model(**repeated).logits.chunk(stack)
        ids = greedy(model, repeated)
        assert torch.equal(ids, greedy(model, repeated, use_cache=False))
    for state, logits, generated in zip(states, together, ids.chunk(stack), strict=True):
        alone = tiny_t5(**VERSIONS[version])
        attach_delta(alone, small(name)).load([state])
        with torch.no_grad():
            torch.testing.assert_close(alone(**batch).logits, logits, rtol=1e-5, atol=1e-5)
        one = greedy(alone, batch)
        assert torch.equal(one, generated[:, : one.shape[1]])


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("version", VERSIONS)
def test_gradients_of_a_stack_are_those_of_its_members_one_by_one(name, version):
    """From the library's own loss; nothing but the delta gets a gradient."""
    batch, model = random_batch(6), tiny_t5(**VERSIONS[version])
    delta, states = filled(model, name, 3)
    model.train()
    member_losses(delta, Batch(**batch)).sum().backward()  # two rows a member
    assert {id(p) for p in model.parameters() if p.grad is not None} <= {id(p) for p in delta.named.values()}
    for member, state in enumerate(states):
        alone = tiny_t5(**VERSIONS[version])
        one = attach_delta(alone, small(name))
        one.load([state])
        alone(**{key: value[2 * member : 2 * member + 2] for key, value in batch.items()}).loss.backward()
        for key, parameter in one.named.items():
            torch.testing.assert_close(delta.named[key].grad[member], parameter.grad[0], rtol=1e-3, atol=1e-5)


def test_a_delta_changes_the_output():
    batch, plain = random_batch(2), tiny_t5()
    with torch.no_grad():
        before = plain(**batch).logits
    for name in SMALL:
        model = tiny_t5()
        filled(model, name, 1)
        with torch.no_grad():
            assert not torch.allclose(model(**batch).logits, before, atol=1e-3), name


def test_adapter_formula_on_one_feed_forward():
    """x + swish(x A) B, one token at a time."""
    model = tiny_t5()
    _, (state,) = filled(model, "adapter", 1)
    plain = tiny_t5()
    hidden = draws("hidden", 1, 4, 24)
    with torch.no_grad():
        before = plain.encoder.block[1].layer[1].DenseReluDense(hidden)[0]
        after = model.encoder.block[1].layer[1].DenseReluDense(hidden)[0]
    A, B = state["encoder.block.1.layer.1.adapter.adapter_A"], state["encoder.block.1.layer.1.adapter.adapter_B"]
    for x, y in zip(before, after, strict=True):
        down = torch.tensor([sum(x[i] * A[i, r] for i in range(24)) for r in range(4)])
        swish = [v / (1 + math.exp(-v)) for v in down.tolist()]
        expected = [x[i] + sum(swish[r] * B[r, i] for r in range(4)) for i in range(24)]
        torch.testing.assert_close(y, torch.stack(expected), rtol=1e-5, atol=1e-5)


def test_lora_formula_on_one_query():
    """x W + (alpha / r) x A B."""
    model = tiny_t5()
    _, (state,) = filled(model, "lora", 1)
    linear = model.decoder.block[1].layer[1].EncDecAttention.q
    name = "decoder.block.1.layer.1.EncDecAttention.q"
    x = draws("x", 5, 24)
    with torch.no_grad():
        ours = linear(x[None])[0]
    expected = x @ linear.weight.T + 6.0 / 3 * x @ state[f"{name}.lora_A"] @ state[f"{name}.lora_B"]
    torch.testing.assert_close(ours, expected.detach(), rtol=1e-5, atol=1e-5)


def test_prefix_network_reads_memory_as_the_original():
    """Layer by layer equals the whole (P, 2 L h) result viewed as (L, 2, heads, P, d_kv)."""
    model = tiny_t5()
    delta, (state,) = filled(model, "prefix", 1)
    for stack, layers in (("encoder", 3), ("decoder", 2)):
        hidden = torch.tanh(state[f"{stack}.prefix.prefix"] @ state[f"{stack}.prefix.prefix_project.0.weight"].T)
        whole = (hidden @ state[f"{stack}.prefix.prefix_project.2.weight"].T).reshape(layers, 2, 3, 5, 6)
        for layer in range(layers):
            keys, values = delta.networks[stack](layer)
            torch.testing.assert_close(keys[0], whole[layer, 0], rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(values[0], whole[layer, 1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("stack", ["encoder", "decoder"])
def test_prefix_formula_on_one_self_attention(version, stack):
    """One head and one query at a time: prefix first, then the tokens, the relative bias by distance, decoders looking back."""
    model, number = tiny_t5(**VERSIONS[version]), 1
    delta, _ = filled(model, "prefix", 1)
    keys, values = (both[0] for both in delta.networks[stack](number))
    attention, seen = getattr(model, stack).block[number].layer[0].SelfAttention, []
    hooks = [
        attention.q.register_forward_pre_hook(lambda module, args: seen.append(args[0][0])),
        attention.o.register_forward_hook(lambda module, args, output: seen.append(output[0])),
    ]
    with torch.no_grad():
        model(input_ids=torch.arange(5, 11)[None], decoder_input_ids=torch.arange(20, 26)[None], use_cache=False)
    for hook in hooks:
        hook.remove()
    x, y = seen
    first = getattr(model, stack).block[0].layer[0].SelfAttention  # owns the bias of all blocks
    split = lambda linear: linear(x).view(6, 3, 6).transpose(0, 1)  # noqa: E731 (heads, tokens, d_kv)
    with torch.no_grad():
        q, k, v = (split(linear) for linear in (attention.q, attention.k, attention.v))
        k, v = torch.cat([keys, k], 1), torch.cat([values, v], 1)
        heads = torch.zeros(3, 6, 6)
        for head in range(3):
            for t in range(6):
                visible = range(5 + t + 1 if stack == "decoder" else 5 + 6)
                distances = torch.tensor([[key - (5 + t) for key in visible]])
                bucket = first._relative_position_bucket(distances, stack == "encoder", 8, 20)[0]
                bias = first.relative_attention_bias(bucket)[:, head]
                scores = torch.stack([q[head, t] @ k[head, key] for key in visible]) + bias
                heads[head, t] = sum(w * v[head, key] for w, key in zip(torch.softmax(scores, 0), visible, strict=True))
        expected = attention.o(heads.transpose(0, 1).reshape(6, 18))
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", SMALL)
def test_padding_contributes_nothing(name):
    batch, model = random_batch(3), tiny_t5()
    delta, _ = filled(model, name, 1)
    wide = {
        "input_ids": torch.nn.functional.pad(batch["input_ids"], (0, 7)),
        "attention_mask": torch.nn.functional.pad(batch["attention_mask"], (0, 7)),
        "labels": torch.nn.functional.pad(batch["labels"], (0, 4), value=-100),
    }
    with torch.no_grad():
        short, long = (member_losses(delta, Batch(**b)) for b in (batch, wide))
    torch.testing.assert_close(short, long, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", SMALL)
def test_only_the_delta_is_trainable_and_counts_are_exact(name):
    model = tiny_t5()
    delta = attach_delta(model, small(name), 2)
    delta.initialise(["42/a", "42/b"])
    trainable = {id(p) for p in model.parameters() if p.requires_grad}
    assert trainable <= {id(p) for p in delta.named.values()}
    assert all(p.requires_grad and p.shape[0] == 2 for p in delta.named.values())
    # three encoder and two decoder blocks
    assert (
        len(delta.named)
        == {"adapter": 2 * (2 * 3 + 3 * 2), "pfeiffer": 2 * 5, "lora": 4 * (3 + 2 * 2), "prefix": 6}[name]
    )


def test_paper_sizes_on_t5_base():
    """1,105,920 parameters for each of the paper's deltas on T5-base."""
    from conftest import tiny_config
    from transformers import T5ForConditionalGeneration

    base = tiny_config(d_model=768, d_kv=64, d_ff=8, num_heads=12, num_layers=12, num_decoder_layers=12, vocab_size=8)
    with torch.device("meta"):
        model = T5ForConditionalGeneration(base)
    for method in METHODS:
        delta = attach_delta(model, DeltaConfig(tune_method=method))
        assert sum(p.numel() for p in delta.named.values()) == 1_105_920
        delta.detach(reset_state_dict=False)


def test_initialisation_depends_on_the_seed_text_only():
    first, second = attach_delta(tiny_t5(), small("prefix"), 2), attach_delta(tiny_t5(), small("prefix"), 1)
    first.initialise(["42/a", "42/b"])
    second.initialise(["42/b"])
    together, alone = first.states(), second.states()[0]
    assert all(torch.equal(together[1][name], alone[name]) for name in alone)
    assert not any(torch.equal(together[0][name], alone[name]) for name in alone)


def test_initial_distributions():
    model = tiny_t5(d_model=240)
    adapter = attach_delta(tiny_t5(d_model=240), DeltaConfig(adapter_size=50), 1)
    adapter.initialise(["0/x"])
    stacked = torch.cat([p.flatten() for p in adapter.named.values()])
    assert stacked.std().item() == pytest.approx(0.02, rel=0.02)
    lora = attach_delta(model, DeltaConfig(tune_method="lora", lora_r=4), 1)
    lora.initialise(["0/x"])
    A = torch.cat([p.flatten() for name, p in lora.named.items() if name.endswith("lora_A")])
    assert A.abs().max().item() == pytest.approx(0.5, rel=0.01)  # 1 / sqrt(r)
    assert A.std().item() == pytest.approx(0.5 / math.sqrt(3), rel=0.02)
    assert all(not p.any() for name, p in lora.named.items() if name.endswith("lora_B"))


@pytest.mark.parametrize("name", SMALL)
def test_keep_and_load_change_the_stack(name):
    model = tiny_t5()
    delta, states = filled(model, name, 3)
    delta.keep(torch.tensor([2, 0]))
    assert delta.stack == 2
    for kept, expected in zip(delta.states(), [states[2], states[0]], strict=True):
        assert all(torch.equal(kept[key], expected[key]) for key in expected)
    delta.load(states + states)
    assert delta.stack == 6


@pytest.mark.parametrize("name", SMALL)
def test_bfloat16_backbone(name):
    batch = random_batch(4)
    exact, rounded = tiny_t5(), tiny_t5().to(torch.bfloat16)
    reference, _ = filled(exact, name, 1)
    delta, _ = filled(rounded, name, 1)
    with torch.no_grad():
        a, b = (member_losses(d, Batch(**batch)).item() for d in (reference, delta))
    assert b == pytest.approx(a, rel=0.03)
    member_losses(delta, Batch(**batch)).sum().backward()
    assert all(p.dtype == torch.float32 and torch.isfinite(p.grad).all() for p in delta.named.values())
    assert greedy(rounded, batch).shape[0] == 4


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", SMALL)
def test_cuda_agrees_with_the_cpu(name):
    batch, cpu = random_batch(4), tiny_t5()
    delta = filled(cpu, name, 1)[0]
    with torch.no_grad():
        expected = member_losses(delta, Batch(**batch)).item()
    for dtype, tolerance in ((torch.float32, 1e-4), (torch.bfloat16, 0.03)):
        cuda = tiny_t5().to("cuda", dtype)
        delta = filled(cuda, name, 1)[0]
        with torch.no_grad():
            found = member_losses(delta, Batch(**batch)).item()
        assert found == pytest.approx(expected, rel=tolerance), dtype


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tune_method": "lorra"}, "did you mean 'lora'"),
        ({"adapter_type": "houlsbi"}, "did you mean 'houlsby'"),
        ({"adapter_size": 0}, "--adapter_size must be at least 1"),
        ({"apply_lora": True}, "--apply_lora contradicts --tune_method adapter"),
    ],
)
def test_bad_settings(change, message):
    with pytest.raises(UserError, match=message):
        attach_delta(tiny_t5(), DeltaConfig(**change))
