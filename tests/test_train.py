"""Tuning: the original's traces, a slow loop, stacked against alone, killed against uninterrupted, rules of the best step."""

import math
from dataclasses import fields, replace
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import (
    METHODS,
    MINI_TASKS,
    SMALL,
    golden_backbone,
    golden_npz,
    golden_state,
    small,
    tiny_t5,
    tuning_config,
)
from safetensors.torch import load_file
from transformers import Adafactor

import pewe.tuning.runs
import pewe.tuning.session
from pewe.backbone import load_backbone
from pewe.batches import Batch, training_updates
from pewe.data import load_split
from pewe.deltas.attach import attach_delta
from pewe.deltas.config import DeltaConfig
from pewe.deltas.kinds import KINDS
from pewe.errors import UserError
from pewe.files import read_record, read_table, write_record
from pewe.losses import member_losses
from pewe.tuning.choices import ORIGINAL, OURS
from pewe.tuning.config import TuneConfig
from pewe.tuning.member import Member
from pewe.tuning.optimizers import StackedAdafactor, clip_gradients, make_optimizer
from pewe.tuning.session import Session
from pewe.tuning.tune import COLUMNS, for_run, tune

TRACES = [
    (method, trace, 1)
    for method in METHODS
    for trace in (
        "source__boolq",
        "source__web_questions",
        "source__eli5-eli5",
        "source__adversarialqa",
        "random__boolq",
    )
] + [("adapter", "ensemble__codah", 1), ("adapter", "accum__adversarialqa", 2)]


def stock_losses(delta, batch) -> torch.Tensor:
    """`member_losses` of a single delta by transformers' own forward."""
    mask = (batch.labels != -100).long()
    return delta.backbone_model(**vars(batch), decoder_attention_mask=mask).loss[None]


def replay(
    arrays, method: str, accumulate: int, dtype: torch.dtype, losses_of=member_losses
) -> dict[str, torch.Tensor]:
    """Loss of every step, gradient norms and final tensors of the batches that the original saw, with our clip and optimiser."""
    backbone = golden_backbone()
    backbone.model.to(dtype)
    delta = attach_delta(backbone.model, small(method), 1)
    delta.load(
        [{name.removeprefix("init/"): torch.tensor(a) for name, a in arrays.items() if name.startswith("init/")}]
    )
    for parameter in delta.named.values():
        parameter.data = parameter.data.to(dtype)
    optimizer = make_optimizer(delta, [1e-2])
    backbone.model.train()
    steps_after, losses, norms = set(arrays["update_after_step"].tolist()), [], []
    for step in range(len(arrays["loss"])):
        batch = Batch(
            *(torch.tensor(arrays[f"step{step:03d}/{key}"]).long() for key in ("input_ids", "attention_mask", "labels"))
        )
        loss = losses_of(delta, batch)
        losses.append(loss.item())
        (loss.sum() / accumulate).backward()
        if step + 1 in steps_after:
            norms.append(clip_gradients(delta, 0.1).item())
            optimizer.step()
            optimizer.zero_grad()
        if accumulate > 1 and step % 3 == 2:  # the original drops what is left at the end of an epoch
            optimizer.zero_grad()
    final = {f"final/{name}": tensor.double() for name, tensor in delta.states()[0].items()}
    return {"loss": torch.tensor(losses).double(), "grad_norm_before_clip": torch.tensor(norms).double(), **final}


@pytest.mark.parametrize(("method", "trace", "accumulate"), TRACES, ids=str)
def test_per_step_losses_of_the_original(golden, method, trace, accumulate):
    """Equal to 1e-3, or to six times what rounding alone makes of the same steps on this machine, one operation at a time.

    Some traces amplify rounding ten thousand times in twenty steps: the original's float32 is then itself further than 1e-3
    from the same steps in float64, and ours may be nearer to them. Each of the two is off by up to three such roundings.
    """
    arrays = golden_npz(f"{method}/trace/{trace}.npz")
    expected = {
        name: torch.tensor(arrays[name]).double() for name in arrays if name.startswith(("loss", "grad", "final/"))
    }
    ours = replay(arrays, method, accumulate, torch.float32)

    def beyond(allowed: dict) -> list[str]:
        return [name for name, values in ours.items() if not ((values - expected[name]).abs() <= allowed[name]).all()]

    allowed = {
        name: 1e-3 * values.abs() + (1e-4 if name.startswith("final/") else 1e-5) for name, values in expected.items()
    }
    if beyond(allowed):
        stock, exact = (
            replay(arrays, method, accumulate, dtype, stock_losses) for dtype in (torch.float32, torch.float64)
        )
        rounding = {name: (values - exact[name]).abs() for name, values in stock.items()}
        final = max(values.max() for name, values in rounding.items() if name.startswith("final/"))
        for name, values in rounding.items():
            allowed[name] += 6 * (final if name.startswith("final/") else values.cummax(0).values)
    assert not beyond(allowed)


def test_accumulated_checkpoint_of_the_original(golden):
    assert golden_npz("adapter/trace/accum__adversarialqa.npz")["update_after_step"].tolist() == [
        1,
        3,
        4,
        6,
        7,
        9,
        10,
        12,
    ]
    best = load_file(golden / "adapter/trace/accum__adversarialqa_best.safetensors")
    assert best.keys() == golden_state("adapter", "boolq").keys()


@pytest.mark.parametrize("name", ["adapter", "lora", "prefix"])
def test_stacked_adafactor_is_the_library_adafactor_of_each_member(name):
    torch.manual_seed(0)
    rates, model = [1e-2, 3e-3], tiny_t5()
    delta = attach_delta(model, small(name), 2)
    delta.initialise(["1/a", "1/b"])
    options = {"scale_parameter": False, "relative_step": False, "warmup_init": False}
    alone = [[torch.nn.Parameter(p.detach()[k].clone()) for p in delta.named.values()] for k in range(2)]
    singles = [Adafactor(parameters, lr=rate, **options) for parameters, rate in zip(alone, rates, strict=True)]
    stacked = make_optimizer(delta, rates)
    for _ in range(3):
        for index, parameter in enumerate(delta.named.values()):
            parameter.grad = torch.randn_like(parameter) * torch.tensor([1.0, 30.0]).view(2, 1, 1)
            for k in range(2):
                alone[k][index].grad = parameter.grad[k].clone()
        for optimizer in (stacked, *singles):
            optimizer.step()
    for index, parameter in enumerate(delta.named.values()):
        for k in range(2):
            torch.testing.assert_close(parameter[k], alone[k][index], rtol=1e-5, atol=1e-7)


def test_clip_is_per_member():
    delta = attach_delta(tiny_t5(), small("adapter"), 2)
    delta.initialise(["1/a", "1/b"])
    for parameter in delta.named.values():
        parameter.grad = torch.stack([torch.full(parameter.shape[1:], 1e-6), torch.ones(parameter.shape[1:])])
    norms = clip_gradients(delta, 0.1)
    after = [math.sqrt(sum(p.grad[k].square().sum().item() for p in delta.named.values())) for k in range(2)]
    assert after == pytest.approx([norms[0].item(), 0.1], rel=1e-3)


def settings(backbone, data, out, **changes) -> TuneConfig:
    own = dict(
        tasks=list(MINI_TASKS), train_iters=6, valid_interval=2, log_interval=1, early_stop=10, **SMALL["adapter"]
    )
    return tuning_config(backbone, data, out, **{**own, **changes})


def slow_steps(config: TuneConfig, task: str, accumulate: int) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Losses and final tensors of tuning one row at a time with the library's own loss, clip and optimiser."""
    backbone = load_backbone(config)
    delta = attach_delta(backbone.model, config, 1)
    delta.initialise([f"{config.seed}/{task}"])
    split = load_split(backbone.tokenizer, config, task, f"{task}_64_42", "train")
    updates = training_updates(
        split, f"{config.seed}/{task}", config.bsz_list[0] // accumulate, accumulate, not config.as_original
    )
    parameters, losses = list(delta.named.values()), []
    optimizer = Adafactor(parameters, lr=config.learning_rate_list[0], scale_parameter=False, relative_step=False)
    for micro_batches in islice(updates, config.train_iters):
        losses.append(0.0)
        for rows in micro_batches:
            tokens = sum(len(label) for _, label in rows)
            for inputs, label in rows:
                loss = backbone.model(input_ids=torch.tensor([inputs]), labels=torch.tensor([label])).loss
                share = loss * len(label) / tokens
                (share / accumulate).backward()
                losses[-1] += share.item() / len(micro_batches)
        torch.nn.utils.clip_grad_norm_(parameters, config.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
    return losses, delta.states()[0]


@pytest.mark.parametrize(
    ("method", "accumulate", "as_original"),
    [*((method, 1, False) for method in METHODS), ("adapter", 2, False), ("adapter", 2, True)],
)
def test_per_step_losses_by_a_slow_loop(tiny_backbone, tiny_data, tmp_path, method, accumulate, as_original):
    """Accumulated over two micro-batches an update too; as the original, which drops the end of an epoch."""
    task = MINI_TASKS[1]
    config = settings(
        tiny_backbone,
        tiny_data,
        tmp_path,
        tasks=[task],
        bsz_list=[4 * accumulate],
        micro_batch_size=4,
        train_iters=5,
        valid_interval=1,
        do_predict=False,
        as_original=as_original,
        **SMALL[method],
    )
    tune(config)
    (run,) = (Path(path).parent for path in tmp_path.glob("*/*/*/run.json"))
    history = [row["loss"] for row in read_record(run / "run.json")["result"]["history"] if row["updates"]]
    last = torch.load(run / "resume.pt", weights_only=True)["delta"]
    losses, final = slow_steps(config, task, accumulate)
    assert history == pytest.approx(losses, rel=1e-4)
    for name, tensor in final.items():
        torch.testing.assert_close(last[name], tensor, rtol=1e-3, atol=1e-3 * tensor.abs().max().item())


def outcome(out):
    """Everything that must not depend on stacking or kills: scores, and all best and last tensors by run."""
    table = read_table(out / "result.tsv", COLUMNS).drop(columns="seconds")
    runs = sorted(path.parent for path in out.glob("*/*/*/run.json"))
    best = {
        str(run.relative_to(out)): torch.load(run / "checkpoint-best.pt", weights_only=True)["adapter"] for run in runs
    }
    last = {str(run.relative_to(out)): torch.load(run / "resume.pt", weights_only=True)["delta"] for run in runs}
    history = {str(run.relative_to(out)): read_record(run / "run.json")["result"]["history"] for run in runs}
    return table, best, last, history


def assert_same(first, second, tolerance):
    assert first[0].round(6).equals(second[0].round(6))
    for a, b in zip(first[1:3], second[1:3], strict=True):
        assert a.keys() == b.keys()
        for run in a:
            for name in a[run]:
                torch.testing.assert_close(a[run][name], b[run][name], rtol=tolerance, atol=tolerance)
    for run, history in first[3].items():
        for one, other in zip(history, second[3][run], strict=True):
            assert one == pytest.approx(other, rel=max(tolerance, 1e-12), nan_ok=True)


@pytest.fixture(scope="module")
def clean(tiny_backbone, tiny_data, tmp_path_factory):
    out = tmp_path_factory.mktemp("clean")
    tune(settings(tiny_backbone, tiny_data, out, learning_rate_list=[1e-2, 3e-3]))
    return out


def test_stacked_equals_alone(clean, tiny_backbone, tiny_data, tmp_path):
    tune(settings(tiny_backbone, tiny_data, tmp_path, learning_rate_list=[1e-2, 3e-3], stack=4))
    assert_same(outcome(clean), outcome(tmp_path), 1e-5)


@pytest.mark.parametrize("stack", [1, 3])
def test_killed_at_any_write_and_started_again_equals_uninterrupted(
    tiny_backbone, tiny_data, tmp_path, monkeypatch, stack
):
    """Every file is written through `replacing`: die at one of its next calls, start again, and so on."""
    config = settings(tiny_backbone, tiny_data, tmp_path / "clean", stack=stack, tasks=list(MINI_TASKS[:2]))
    tune(config)
    config = replace(config, output_dir=str(tmp_path / "killed"))
    original, deaths, calls, limit = pewe.files.replacing, 0, 0, 0

    class Killed(BaseException):
        pass

    def dying(path):
        nonlocal calls
        calls += 1
        if calls == limit:
            raise Killed
        return original(path)

    for module in (pewe.files, pewe.deltas.checkpoint, pewe.tuning.runs):
        monkeypatch.setattr(module, "replacing", dying)
    for next_limit in (2, 4, 3, 5, 2, 4, 6, 3, 5, 4, 6, 7):
        calls, limit = 0, next_limit
        try:
            tune(config)
        except Killed:
            deaths += 1
    calls, limit = 0, 10**9
    tune(config)
    assert deaths >= 5
    # alone to the last bit; a kill can split a stack, and a smaller stack rounds differently
    assert_same(outcome(tmp_path / "clean"), outcome(tmp_path / "killed"), 0.0 if stack == 1 else 1e-5)


def test_a_second_call_does_nothing_and_a_changed_setting_redoes(clean, tiny_backbone, tiny_data, monkeypatch):
    before = (clean / "result.tsv").read_text()
    config = settings(tiny_backbone, tiny_data, clean, learning_rate_list=[1e-2, 3e-3])
    monkeypatch.setattr(pewe.tuning.session.Session, "train", None)
    tune(config)
    assert (clean / "result.tsv").read_text() == before
    tune(replace(config, lora_r=3, expert_rank=7, sparsity=0.0))  # flags of other kinds of delta
    run_file = next(clean.glob("*/*/*/run.json"))
    stored = read_record(run_file)
    stored["settings"]["lora_r"] = 10  # an entry that is no longer one
    write_record(run_file, stored)
    tune(config)
    assert (clean / "result.tsv").read_text() == before
    with pytest.raises(TypeError):  # another seed is another run: it would train
        tune(replace(config, seed=7))


def test_every_flag_of_a_delta_decides_the_runs_of_its_kind():
    no_result = {"tune_method", "as_original", "apply_adapter", "apply_lora", "apply_prefix", "experts", "expert_path"}
    known = {flag for kind in KINDS.values() for flag in kind.deciding()}
    assert known == {field.name for field in fields(DeltaConfig)} - no_result
    assert all({*kind.describing, *kind.texts} <= kind.deciding() for kind in KINDS.values())


def test_best_checkpoint_of_a_task_is_its_best_run_by_dev(clean):
    table = read_table(clean / "result.tsv", COLUMNS)
    assert list(table.columns) == COLUMNS and len(table) == 6
    for task, rows in table.groupby("task"):
        best = rows.loc[rows["dev"].idxmax()]
        run = clean / task / best["prefix"] / f"lr_{best['learning_rate']:g}_bsz_4_seed_42"
        assert (clean / task / "checkpoint-best.pt").read_bytes() == (run / "checkpoint-best.pt").read_bytes()


def test_tensorboard_scalars_and_log_are_there(clean):
    assert list(clean.glob("*/*/*/tensorboard/events*")) and "best dev" in (clean / "log.txt").read_text()


class FakeSession(Session):
    """A session without a model: feeds dev scores to the rules of the best checkpoint."""

    def __init__(self, choices):
        self.choices, self.accumulate = choices, 1


def run_scores(tmp_path, scores, choices=OURS):
    member = Member("t", "EM", None, None, 4, 1e-2, tmp_path, {}, {}, {"tune_method": "adapter"})
    session = FakeSession(choices)
    for number, score in enumerate(scores):
        member.progress.updates = number * 10
        session._compare(member, score, {"x": torch.tensor(float(number))})
    return member.progress.best, member.best["x"].item(), member.progress.without_improvement


NAN = float("nan")


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([0.2, 0.5, 0.5, 0.4], (0.5, 1, 2)),  # a tie is no improvement
        ([0.6, 0.5, 0.5, 0.4], (0.6, 0, 3)),  # the starting delta is a candidate
        ([0.2, NAN, 0.3, NAN], (0.3, 2, 1)),  # NaN never is
    ],
)
def test_rules_of_the_best_step(tmp_path, scores, expected):
    assert run_scores(tmp_path, scores) == expected


def test_rules_of_the_original(tmp_path):
    assert run_scores(tmp_path, [0.2, 0.5, 0.5], ORIGINAL) == (0.5, 2, 0)
    best, step, waited = run_scores(tmp_path, [0.2, NAN, 0.1], ORIGINAL)
    assert (best, step, waited) == (0.1, 2, 0)


@pytest.mark.parametrize("asked", [False, True])
@pytest.mark.parametrize("as_original", [False, True])
def test_the_start_is_a_candidate_where_asked_but_never_as_original(asked, as_original):
    config = TuneConfig(start_is_candidate=asked, as_original=as_original, train_epochs=0)
    assert for_run(config, None) == replace(config, start_is_candidate=asked and not as_original)


def test_epochs_are_updates_of_the_run_and_each_is_validated():
    run = SimpleNamespace(batch_size=4, splits={"train": SimpleNamespace(inputs=range(10))})
    config = for_run(TuneConfig(train_epochs=2), run)
    assert (config.train_iters, config.valid_interval) == (6, 3)  # the last batch of an epoch is smaller


def test_early_stop_ends_a_member_alone(tiny_backbone, tiny_data, tmp_path):
    tune(settings(tiny_backbone, tiny_data, tmp_path, train_iters=40, early_stop=1, learning_rate_list=[1e-9], stack=3))
    table = read_table(tmp_path / "result.tsv", COLUMNS)
    assert (table["updates"] == 2).all()


def test_warm_up_scales_the_learning_rate(tiny_backbone, tiny_data, tmp_path, monkeypatch):
    seen = []
    step = StackedAdafactor.step
    monkeypatch.setattr(
        StackedAdafactor, "step", lambda self: (seen.append(self.param_groups[0]["lr"].item()), step(self))
    )
    config = settings(tiny_backbone, tiny_data, tmp_path, tasks=[MINI_TASKS[0]], warmup_steps=4)
    tune(replace(config, lr_decay_style="constant_with_warmup"))
    assert seen == pytest.approx([0.0025, 0.005, 0.0075, 0.01, 0.01, 0.01])


def test_full_fine_tuning_and_test_only(tiny_backbone, tiny_data, tmp_path):
    config = settings(
        tiny_backbone, tiny_data, tmp_path / "model", tune_method="model", tasks=[MINI_TASKS[0]], train_iters=4
    )
    first = tune(config)
    again = tune(
        replace(config, output_dir=str(tmp_path / "test"), do_train=False, test_checkpoint=str(tmp_path / "model"))
    )
    assert again["test"].tolist() == first["test"].tolist()
    with pytest.raises(UserError, match="--stack must be 1"):
        tune(replace(config, stack=2, output_dir=str(tmp_path / "stack")))
