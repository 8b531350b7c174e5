"""The packed forward against transformers' own with opendelta's sites, generation likewise, and dropout that no stack changes."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from conftest import MINI_TASKS, SMALL, filled, random_batch, small, tiny_t5
from test_pemt import target
from test_train import assert_same, outcome, settings

import pewe.dropout
import pewe.tuning.evaluate
from benchmarks.packing import stock_losses
from pewe.attention import relative_bias, softmax_total
from pewe.batches import IGNORED, Batch
from pewe.deltas.attach import attach_delta
from pewe.deltas.config import DeltaConfig
from pewe.dropout import NoDropout, OwnStreams, _draw, _draw_on_device
from pewe.forward import T5, pack
from pewe.losses import member_losses
from pewe.packing import Layout, by_member, to_line, to_rectangle
from pewe.tuning.evaluate import greedy
from pewe.tuning.session import Session
from pewe.tuning.tune import tune

VERSIONS = {"v1.1": {}, "v1.0": {"feed_forward_proj": "relu", "tie_word_embeddings": True}}


def uneven_batch(stack: int) -> Batch:
    """Four rows a member; from three members on, one has a row less, of five one has none at all."""
    batch = Batch(**random_batch(4 * stack))
    if stack >= 3:
        batch.labels[-5] = IGNORED
    if stack == 5:
        batch.labels[-4:] = IGNORED
    return batch


def assert_equal_losses_and_gradients(delta, batch, kept=None):
    stock, ours = stock_losses(delta, batch), member_losses(delta, batch)
    torch.testing.assert_close(ours, stock, rtol=1e-6, atol=1e-6)
    parameters = list(delta.named.values())
    add = delta.extra_loss()
    for name, a, b in zip(
        delta.named,
        torch.autograd.grad((ours + add).sum(), parameters, allow_unused=True),
        torch.autograd.grad((stock_losses(delta, batch) + delta.extra_loss()).sum(), parameters, allow_unused=True),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=2e-5 * float(b.abs().max()), msg=name)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("stack", [1, 3, 5])
@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("depths", [(3, 2), (2, 4)], ids=str)
def test_packed_equals_transformers(name, stack, version, depths):
    model = tiny_t5(**VERSIONS[version], num_layers=depths[0], num_decoder_layers=depths[1])
    assert_equal_losses_and_gradients(filled(model, name, stack)[0], uneven_batch(stack))


@pytest.mark.parametrize("version", VERSIONS)
def test_the_whole_model_too(version):
    delta = attach_delta(tiny_t5(**VERSIONS[version]), DeltaConfig(tune_method="model"))
    assert_equal_losses_and_gradients(delta, uneven_batch(1))


@pytest.mark.parametrize(
    "flags", [{}, {"pemt_prompt": False}, {"as_original": True}], ids=["whole", "no prompt", "original"]
)
def test_pemt_too(flags):
    _, delta = target(**flags)
    assert_equal_losses_and_gradients(delta, uneven_batch(1))


@pytest.mark.parametrize("name", SMALL)
def test_bfloat16_loosely(name):
    delta, _ = filled(tiny_t5().to(torch.bfloat16), name, 3)
    batch = uneven_batch(3)
    with torch.no_grad():
        torch.testing.assert_close(member_losses(delta, batch), stock_losses(delta, batch), rtol=0.03, atol=0.03)


def test_padding_in_the_line_changes_no_loss():
    """As PEMT's `--as_original` has it: the tokens' own numbers stay."""
    delta, _ = filled(tiny_t5(), "adapter", 2)
    batch, model = uneven_batch(2), delta.backbone_model
    packed, padded = pack(model, batch, 2), pack(model, batch, 2, padding=True)
    assert len(padded.ids) == batch.input_ids.numel() and len(packed.ids) == batch.attention_mask.sum()
    with torch.no_grad():
        ours, same = T5(delta).states(packed), T5(delta).states(padded)[padded.scored]
    torch.testing.assert_close(ours, same, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("side", ["encoder", "decoder"])
def test_relative_bias_is_that_of_transformers(side):
    model = tiny_t5(relative_attention_num_buckets=32, relative_attention_max_distance=128)
    attention = getattr(model, side).block[0].layer[0].SelfAttention
    places = torch.arange(300)
    ours = relative_bias(model.config, attention.relative_attention_bias.weight, places, places, side)
    assert torch.equal(ours, attention.compute_bias(300, 300)[0])


def test_log_sum_exp_beside_the_softmax():
    scores = (30 * torch.randn(5, 7, dtype=torch.float64)).index_fill(1, torch.tensor(2), -torch.inf)
    scores[0] = torch.tensor([-1000.0, -1001.0, *[-torch.inf] * 5])
    torch.testing.assert_close(softmax_total(scores), (scores.softmax(-1), scores.logsumexp(-1, keepdim=True)))
    assert torch.autograd.gradcheck(softmax_total, torch.randn(3, 4, dtype=torch.float64, requires_grad=True))


def test_products_of_members_without_and_with_as_many_tokens():
    W = torch.randn(3, 4, 2, dtype=torch.float64, requires_grad=True)
    for counts in ([2, 0, 3], [2, 2, 2]):
        x = torch.randn(sum(counts), 4, dtype=torch.float64, requires_grad=True)
        base = torch.randn(sum(counts), 2, dtype=torch.float64, requires_grad=True)
        expected = base + 0.5 * torch.cat([own @ w for own, w in zip(x.split(counts), W, strict=True)])
        torch.testing.assert_close(by_member(x, W, counts, base, 0.5), expected)
        assert torch.autograd.gradcheck(lambda x, W, base, c=counts: by_member(x, W, c, base, 0.5), (x, W, base))


def test_a_line_goes_to_the_rectangle_and_back():
    layout = Layout(torch.tensor([3, 1, 4]), [2, 1])
    line = torch.randn(8, 6, dtype=torch.float64, requires_grad=True)
    assert torch.equal(to_line(to_rectangle(line, 2, layout), 2, layout), line)
    rectangle = to_rectangle(line, 2, layout).view(3, 2, 4, 3)
    assert torch.equal(rectangle[2].transpose(0, 1).flatten(1), line[4:])
    shape = torch.randn(6, 4, 3, dtype=torch.float64)
    (found,) = torch.autograd.grad((to_rectangle(line, 2, layout) * shape).sum(), line)
    assert torch.equal(found, to_line(shape, 2, layout))
    assert torch.autograd.gradcheck(lambda r: to_line(r, 2, layout), shape.requires_grad_())


# Generation


@pytest.mark.parametrize("alive", [0.75, 1.0])
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", SMALL)
def test_greedy_ids_of_transformers(name, version, alive, monkeypatch):
    """Members with unequally many rows, one with none; finished rows are dropped late or at once."""
    monkeypatch.setattr(pewe.tuning.evaluate, "ALIVE", alive)
    model = tiny_t5(**VERSIONS[version])
    delta, states = filled(model, name, 3)
    batch = random_batch(7)
    rows = [ids[mask.bool()].tolist() for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)]
    members = [rows[:4], [], rows[4:]]
    model.config.eos_token_id = -1
    endless = greedy(delta, members, 12)[:, 1:].tolist()
    eos = max(
        range(2, 96), key=lambda token: len({(*ids, token).index(token) for ids in endless})
    )  # ends at many lengths
    model.config.eos_token_id = eos
    ours, ends = iter(greedy(delta, members, 12)), set()
    for state, own in zip(states, members, strict=True):
        alone = tiny_t5(**VERSIONS[version])
        attach_delta(alone, small(name)).load([state])
        for ids in own:
            (stock,) = alone.generate(
                torch.tensor([ids]), max_length=12, do_sample=False, use_cache=False, eos_token_id=eos
            )
            found = next(ours)
            assert torch.equal(found[: len(stock)], stock) and not found[len(stock) :].any()
            ends.add(len(stock))
    assert len(ends) > 1


def test_generation_ends_with_the_longest_answer():
    delta, _ = filled(tiny_t5(), "adapter", 1)
    delta.backbone_model.lm_head.weight.data[:] = 0
    delta.backbone_model.config.eos_token_id = 0  # the first of equal logits
    assert greedy(delta, [[[5, 6], [7]]], 50).shape == (2, 2)


# Dropout


def train_mode(name: str, stack: int):
    delta, states = filled(tiny_t5(dropout_rate=0.2), name, stack)
    delta.backbone_model.train()
    return delta, states


def losses_and_gradients(delta, batch, seeds):
    losses = member_losses(delta, batch, OwnStreams(0.2, seeds, torch.device("cpu")))
    return losses.detach(), torch.autograd.grad(losses.sum(), list(delta.named.values()))


@pytest.mark.parametrize("threads", [False, True])
@pytest.mark.parametrize("name", SMALL)
def test_a_member_drops_out_the_same_in_any_stack(name, threads, monkeypatch):
    if threads:
        monkeypatch.setattr(pewe.dropout, "THREADS_FROM", 1)
        monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    seeds, batch = ["1/a/7", "1/b/7", "1/c/7"], uneven_batch(3)
    delta, states = train_mode(name, 3)
    together = losses_and_gradients(delta, batch, seeds)
    for k, seed in enumerate(seeds):
        alone, _ = train_mode(name, 1)
        alone.load([states[k]])
        own = Batch(*(t[4 * k : 4 * k + 4] for t in (batch.input_ids, batch.attention_mask, batch.labels)))
        loss, gradients = losses_and_gradients(alone, own, [seed])
        torch.testing.assert_close(loss[0], together[0][k], rtol=1e-5, atol=1e-6)
        for one, all_of_them in zip(gradients, together[1], strict=True):
            torch.testing.assert_close(one[0], all_of_them[k], rtol=1e-4, atol=2e-5 * float(one.abs().max()))
        assert losses_and_gradients(alone, own, [seed + "1"])[0] != loss  # another update, another dropout


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_share_of_what_is_kept(p):
    streams = OwnStreams(p, ["a"], torch.device("cpu"))
    layout = Layout(torch.tensor([1000]), [1])
    x = torch.ones(1000, 400)
    dropped = streams(x, layout)
    assert dropped.mean().item() == pytest.approx(1, abs=5e-3)
    assert dropped.unique().tolist() == pytest.approx([0.0, 1 / (1 - p)])
    assert (dropped == 0).float().mean().item() == pytest.approx(p, abs=5e-3)
    added = OwnStreams(p, ["a"], torch.device("cpu")).add(2 * x, x, layout)
    assert torch.equal(added, 2 * x + dropped)
    assert torch.equal(NoDropout().add(x, x, layout), 2 * x)
    part, other = torch.empty(2, 1000, 400, dtype=torch.bool)
    _draw(OwnStreams(p, ["b"], torch.device("cpu")).streams[0], part, streams.threshold)
    _draw_on_device(torch.Generator().manual_seed(1), other, streams.threshold)
    assert part.float().mean() == pytest.approx(1 - p, abs=5e-3) and other.float().mean() == pytest.approx(
        1 - p, abs=5e-3
    )


def test_gradient_of_dropout():
    layout = Layout(torch.tensor([3]), [1])
    x, base = (torch.randn(3, 4, dtype=torch.float64, requires_grad=True) for _ in range(2))

    def dropped(x, base):
        streams = OwnStreams(0.5, ["a"], torch.device("cpu"))
        return streams.add(base, streams(x, layout), layout)

    assert torch.autograd.gradcheck(dropped, (x, base))


@pytest.fixture(scope="module")
def dropping_backbone(tiny_backbone, tmp_path_factory):
    """The tiny backbone with dropout."""
    folder = tmp_path_factory.mktemp("dropping") / "model"
    shutil.copytree(tiny_backbone, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "dropout_rate": 0.1}))
    return folder


def test_a_run_is_the_same_alone_in_any_stack_and_resumed_in_another(
    dropping_backbone, tiny_data, tmp_path, monkeypatch
):
    config = settings(dropping_backbone, tiny_data, tmp_path / "alone", learning_rate_list=[1e-2, 3e-3], train_iters=4)
    tune(config)
    alone = outcome(tmp_path / "alone")
    for stack in (2, 5):
        tune(replace(config, output_dir=str(tmp_path / str(stack)), stack=stack))
        assert_same(alone, outcome(tmp_path / str(stack)), 1e-4)

    def dying(session, losses, validate=Session.validate):
        validate(session, losses)
        if session.members[0].progress.updates:
            raise KeyboardInterrupt

    resumed = replace(config, output_dir=str(tmp_path / "resumed"), stack=2)
    with monkeypatch.context() as patch:
        patch.setattr(Session, "validate", dying)
        with pytest.raises(KeyboardInterrupt):
            tune(resumed)
    tune(replace(resumed, stack=5))
    assert_same(alone, outcome(tmp_path / "resumed"), 1e-4)
    best = [run["best_updates"] for run in results(tmp_path / "alone")]
    assert best == [run["best_updates"] for run in results(tmp_path / "resumed")]
    other = replace(config, output_dir=str(tmp_path / "as_original"), as_original=True, tasks=[MINI_TASKS[0]])
    tune(other)  # torch's own stream: other losses from the same start
    assert outcome(tmp_path / "as_original")[3] != {k: v for k, v in alone[3].items() if k.startswith(MINI_TASKS[0])}


def results(folder) -> list[dict]:
    return [json.loads(path.read_text())["result"] for path in sorted(folder.glob("*/*/*/run.json"))]
