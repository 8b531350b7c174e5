"""The memory of a stack: the prediction against what torch allocates, and stacks that are cut to what is free."""

import random

import pytest
import torch
from conftest import MINI_TASKS, small, tiny_t5
from test_train import assert_same, outcome, settings
from torch.profiler import ProfilerActivity, profile

import pewe.tuning.room
import pewe.tuning.tune
from pewe.batches import collate_stack
from pewe.cli import parse
from pewe.deltas.attach import attach_delta
from pewe.dropout import OwnStreams
from pewe.errors import UserError
from pewe.losses import member_losses
from pewe.tuning.config import TuneConfig
from pewe.tuning.evaluate import greedy
from pewe.tuning.memory import Shape, free_bytes, generation_bytes, update_bytes
from pewe.tuning.optimizers import clip_gradients, make_optimizer
from pewe.tuning.tune import tune

SIZE = {"d_model": 96, "d_kv": 24, "num_heads": 4, "d_ff": 192, "num_layers": 4, "num_decoder_layers": 4}


def peak(way) -> int:
    """Bytes that torch holds at most at once, beside what it held before."""
    way()  # what is made once is there
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        way()
    now = top = 0
    for event in sorted(seen.profiler.kineto_results.events(), key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            now += event.nbytes()
            top = max(top, now)
    return top


@pytest.mark.parametrize(
    ("name", "members", "rows", "longest", "answer", "changes"),
    [
        ("adapter", 4, 8, 40, 5, {}),
        ("adapter", 2, 4, 80, 5, {"dropout_rate": 0.1}),
        ("adapter", 3, 6, 20, 20, {"dropout_rate": 0.1}),
        ("lora", 4, 8, 40, 5, {"dropout_rate": 0.1}),
        ("prefix", 4, 8, 40, 5, {"dropout_rate": 0.1}),
        ("lora", 4, 8, 40, 5, {"feed_forward_proj": "relu"}),
        ("adapter", 4, 8, 40, 5, {"vocab_size": 8000}),
    ],
)
def test_a_peak_is_predicted_from_shapes_within_a_fifth(name, members, rows, longest, answer, changes):
    model, rng = tiny_t5(**{**SIZE, **changes}), random.Random(0)
    delta = attach_delta(model.train(), small(name), members)
    delta.initialise([str(k) for k in range(members)])

    def line(length: int) -> tuple[int, ...]:
        return tuple(rng.choices(range(2, 96), k=rng.randint(length // 4 + 1, length)))

    lines = [[(line(longest), line(answer)) for _ in range(rows)] for _ in range(members)]
    batch, optimizer = collate_stack(lines, 0), make_optimizer(delta, [1e-3] * members)

    def update() -> None:
        dropout = OwnStreams(model.config.dropout_rate, [str(k) for k in range(members)], model.device)
        member_losses(delta, batch, dropout).sum().backward()
        clip_gradients(delta, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    lengths = [[len(row[side]) for member in lines for row in member] for side in (0, 1)]
    shape = Shape.of(*lengths)
    assert 0.85 < update_bytes(delta, shape, members) / peak(update) < 1.2
    model.eval().config.eos_token_id = -1  # no answer ends early
    inputs = [[row[0] for row in member] for member in lines]
    assert 0.8 < generation_bytes(delta, shape, answer) / peak(lambda: greedy(delta, inputs, answer)) < 1.35


def test_a_stack_is_cut_to_what_is_free(tiny_backbone, tiny_data, tmp_path, monkeypatch):
    tune(settings(tiny_backbone, tiny_data, tmp_path / "whole", stack=0))
    members, together = [], pewe.tuning.tune.tune_together
    monkeypatch.setattr(
        pewe.tuning.tune, "tune_together", lambda *given: members.append(len(given[2])) or together(*given)
    )
    monkeypatch.setattr(pewe.tuning.room, "free_bytes", lambda device: 1)
    tune(settings(tiny_backbone, tiny_data, tmp_path / "cut", stack=len(MINI_TASKS)))
    assert_same(outcome(tmp_path / "cut"), outcome(tmp_path / "whole"), 1e-5)
    assert members == [1] * len(MINI_TASKS)


def test_a_stack_that_is_too_large_for_a_gpu_goes_on_in_halves(tiny_backbone, tiny_data, tmp_path, monkeypatch):
    members, together = [], pewe.tuning.tune.tune_together

    def as_on_a_small_gpu(backbone, delta, pairs, config):
        members.append(len(pairs))
        if len(pairs) > 1:
            raise torch.cuda.OutOfMemoryError("out of memory")
        return together(backbone, delta, pairs, config)

    monkeypatch.setattr(pewe.tuning.tune, "tune_together", as_on_a_small_gpu)
    table = tune(settings(tiny_backbone, tiny_data, tmp_path / "halves", stack=len(MINI_TASKS)))
    assert len(table) == len(MINI_TASKS) and members == [3, 1, 2, 1, 1]

    def on_none(*given):
        raise torch.cuda.OutOfMemoryError("out of memory")

    monkeypatch.setattr(pewe.tuning.tune, "tune_together", on_none)
    with pytest.raises(UserError, match="one run does not fit on the GPU; lower --micro_batch_size"):
        tune(settings(tiny_backbone, tiny_data, tmp_path / "none", stack=2))


def test_the_word_auto():
    assert parse(TuneConfig, ["--stack", "auto"]).largest_stack == 24
    assert parse(TuneConfig, ["--stack", "auto", "--tune_method", "pemt"]).largest_stack == 1
    assert parse(TuneConfig, ["--stack", "5"]).largest_stack == 5
    with pytest.raises(UserError, match="--stack"):
        parse(TuneConfig, ["--stack", "many"])


def test_free_memory_is_that_of_this_machine():
    assert 2**20 < free_bytes(torch.device("cpu")) < 2**50
