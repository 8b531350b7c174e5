"""PEMT on its own: batch of one, gated T5, save and reload, ablations, uniform start, slow formulas, errors."""

import math
import shutil
from dataclasses import replace

import pandas as pd
import pytest
import torch
from conftest import MINI_TASKS, ROOT, draws, random_batch, tiny_config, tiny_t5, tuning_config
from transformers import T5ForConditionalGeneration

from pewe.backbone import Backbone
from pewe.batches import Batch, collate
from pewe.cli import log
from pewe.data import Encoded, Example
from pewe.deltas import pemt_task as pemt
from pewe.deltas.attach import attach_delta
from pewe.deltas.checkpoint import read_checkpoint, task_checkpoint, write_checkpoint
from pewe.deltas.config import DeltaConfig
from pewe.deltas.kinds import GATES, KINDS
from pewe.deltas.pemt import Pemt
from pewe.deltas.pemt_task import block_text, descriptions
from pewe.errors import UserError
from pewe.files import read_record, read_table, write_record
from pewe.losses import member_losses
from pewe.state import shapes_of
from pewe.tuning import gates as gates_command
from pewe.tuning.config import OPTIMIZERS, TrainConfig, TuneConfig
from pewe.tuning.gates import GatesConfig
from pewe.tuning.optimizers import make_optimizer, rate_factor
from pewe.tuning.session import Session
from pewe.tuning.tune import tune
from task_list import METRICS, mini_task_list, pemt_task_list, quan_task

SIZES = {"expert_rank": 5, "target_adapter_size": 3}
RELU = {"feed_forward_proj": "relu", "tie_word_embeddings": True}
PARTS = {"gate": {"pemt_gate": False}, "prompt": {"pemt_prompt": False}, "adapter": {"pemt_adapter": False}}


def source_states(count: int, **changes) -> dict:
    """States of stage 1 with prompts of 3, 4, ... positions."""
    delta = attach_delta(tiny_t5(**changes), DeltaConfig(tune_method="pemt_source", **SIZES))
    states = {}
    for number in range(count):
        delta.describe(range(5, 8 + number))
        delta.initialise([f"0/source{number}"])
        states[f"source{number}"] = delta.states()[0]
    return states


def target(sources: int = 3, random: float = 0.3, t5: dict | None = None, **flags):
    """A tiny T5 with stage 2 on it, its tensors moved away from their start by N(0, random^2)."""
    model = tiny_t5(**(t5 or {}))
    delta = attach_delta(model, DeltaConfig(tune_method="pemt", **SIZES, **flags))
    delta.describe([7, 9, 7, 11])
    delta.set_experts(source_states(sources, **(t5 or {})))
    delta.initialise(["0/target"])
    generator = torch.Generator().manual_seed(3)
    (state,) = delta.states()
    delta.load([{name: t + random * torch.randn(t.shape, generator=generator) for name, t in state.items()}])
    return model, delta


def losses(model, delta, batch) -> tuple[float, float]:
    """Cross-entropy, and what the delta adds."""
    ce = member_losses(delta, Batch(**batch))
    return float(ce.detach()), float(torch.as_tensor(delta.extra_loss()).detach())


def logits(model, batch) -> torch.Tensor:
    with torch.no_grad():
        return model(**batch, use_cache=False).logits


def greedy(model, batch, **options) -> torch.Tensor:
    inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
    return model.generate(**inputs, max_length=8, num_beams=1, do_sample=False, **options)


@pytest.mark.parametrize("t5", [{}, RELU], ids=["gated", "relu"])
@pytest.mark.parametrize("ablation", [{}, *PARTS.values()], ids=["whole", *PARTS])
def test_a_batch_of_one_equals_its_row(t5, ablation):
    model, _ = target(t5=t5, **ablation)
    batch = random_batch(3)
    together = logits(model, batch)
    for row in range(3):
        alone = {key: value[row : row + 1] for key, value in batch.items()}
        torch.testing.assert_close(logits(model, alone)[0], together[row], rtol=1e-4, atol=1e-4)
    assert torch.equal(greedy(model, batch), greedy(model, batch, use_cache=False))


@pytest.mark.parametrize("ablation", [{}, *PARTS.values()], ids=["whole", *PARTS])
def test_padding_contributes_nothing(ablation):
    model, delta = target(**ablation)
    batch = random_batch(3)
    wide = {
        "input_ids": torch.nn.functional.pad(batch["input_ids"], (0, 6)),
        "attention_mask": torch.nn.functional.pad(batch["attention_mask"], (0, 6)),
        "labels": torch.nn.functional.pad(batch["labels"], (0, 3), value=-100),
    }
    assert losses(model, delta, wide) == pytest.approx(losses(model, delta, batch), rel=1e-4)


def test_padding_counts_as_original():
    model, delta = target(as_original=True)
    batch = random_batch(3)
    wide = {
        **batch,
        "input_ids": torch.nn.functional.pad(batch["input_ids"], (0, 6)),
        "attention_mask": torch.nn.functional.pad(batch["attention_mask"], (0, 6)),
    }
    short, long = losses(model, delta, batch), losses(model, delta, wide)
    assert long[0] == pytest.approx(short[0], rel=1e-4) and abs(long[1] - short[1]) > 1e-4


@pytest.mark.parametrize("t5", [{}, RELU], ids=["gated", "relu"])
def test_mixture_and_sparsity_formulas_on_one_layer(t5):
    """One sequence, one position, one expert at a time."""
    model, delta = target(t5=t5)
    experts, key = list(source_states(3, **t5).values()), "encoder.block.1.layer.1.DenseReluDense.wo"
    linear, seen = model.get_submodule(key), {}
    original = delta.at[key].project
    delta.at[key].project = lambda a, *rest: (seen.update(a=a.detach()), original(a, *rest))[1]
    batch = random_batch(2)
    ours = losses(model, delta, batch)[1]
    gate, state = delta.gates()[1], delta.states()[0]
    _, _, hidden, layout = delta.at[key].last
    a, hidden = (line.split(layout.lengths.tolist()) for line in (seen["a"], hidden))  # row by row
    name, total, counted = "encoder.block.1.layer.1.adapter", torch.zeros(3), 0
    for b in range(2):
        u = a[b][:4].mean(0) @ state[f"{key}.w_gate"]
        torch.testing.assert_close(gate[b], torch.softmax(u, 0), rtol=1e-4, atol=1e-5)
        assert len(a[b]) == 4 + batch["attention_mask"][b].sum()
        for n in range(len(a[b])):
            e = [s[f"{key}.lora_B"] @ (s[f"{key}.lora_A"] @ a[b][n]) for s in experts]
            h = linear.weight.detach() @ a[b][n] + sum(g * x for g, x in zip(gate[b], e, strict=True))
            inner = state[f"{name}.down_sampler.weight"] @ h + state[f"{name}.down_sampler.bias"]
            inner = torch.nn.functional.gelu(inner, approximate="tanh")
            h = h + state[f"{name}.up_sampler.weight"] @ inner + state[f"{name}.up_sampler.bias"]
            torch.testing.assert_close(hidden[b][n].detach(), h, rtol=1e-4, atol=1e-4)
            total += torch.stack([torch.cosine_similarity(h, x, dim=0) for x in e])
            counted += 1
    expected = (gate.mean(0) * (1 - total / counted)).sum()
    assert delta.imbalances()[1].item() == pytest.approx(expected.item(), rel=1e-3)
    assert ours == pytest.approx(0.1 * delta.imbalances().mean().item(), rel=1e-5)


def test_prompt_attends_to_the_prompts_of_the_sources():
    _, delta = target()
    P, sources = delta.states()[0]["task_shared"], source_states(3).values()
    expected = P + sum(torch.softmax(P @ s["task_shared"].T, 1) @ s["task_shared"] for s in sources)
    delta.prompt_site.eval()
    torch.testing.assert_close(delta.prompt_site.value().detach(), expected)
    delta.prompt_site.train()
    assert not torch.allclose(delta.prompt_site.value().detach(), expected)  # dropout


def test_dropout_of_the_prompt_by_its_formula(monkeypatch):
    """It takes whole entries of the attention away and scales the others by 1 / 0.9."""
    _, delta = target()
    P, sources, masks = delta.states()[0]["task_shared"], list(source_states(3).values()), []
    expected = P.clone()
    for number, source in enumerate(sources):
        attention = torch.softmax(P @ source["task_shared"].T, 1)
        masks.append((draws(f"mask {number}", *attention.shape) > -1).float())
        expected += (attention * masks[-1] / 0.9) @ source["task_shared"]

    def dropout(x, p, training):
        assert (p, training) == (0.1, True)
        return x * masks.pop(0) / (1 - p)

    delta.prompt_site.train()
    monkeypatch.setattr(torch.nn.functional, "dropout", dropout)
    torch.testing.assert_close(delta.prompt_site.value().detach(), expected)
    assert not masks


@pytest.mark.parametrize("as_original", [False, True])
def test_loss_and_gates_of_a_split_by_a_slow_loop(as_original):
    """Seven lines in batches of three: a mean over the lines, of the gates as the original over the batches."""
    model, delta = target(as_original=as_original)
    rows = [random_batch(1, seed=seed) for seed in range(7)]
    inputs = tuple(tuple(row["input_ids"][row["attention_mask"] == 1].tolist()) for row in rows)
    outputs = tuple((tuple(row["labels"][row["labels"] != -100].tolist()),) for row in rows)
    encoded = Encoded("task", tuple(Example("x", ("y",)) for _ in rows), inputs, outputs)
    loss, gates = pemt.measure(Backbone(model, None, torch.device("cpu")), delta, encoded, 3, as_original)
    batches, each = [range(3), range(3, 6), range(6, 7)], []
    for lines in batches:
        batch = collate([(inputs[i], outputs[i][0]) for i in lines], 0)
        each.append((sum(losses(model, delta, vars(batch))), delta.gates().detach()))
    assert loss == pytest.approx(sum(value * len(lines) for (value, _), lines in zip(each, batches, strict=True)) / 7)
    of_lines = torch.cat([gate for _, gate in each], 1).mean(1)
    of_batches = torch.stack([gate.mean(1) for _, gate in each]).mean(0)
    torch.testing.assert_close(gates, of_batches if as_original else of_lines)
    assert not torch.allclose(of_batches, of_lines, atol=1e-3)


def test_gates_start_uniform_and_differ_when_moved():
    model, delta = target(random=0.0)
    logits(model, random_batch(2))
    torch.testing.assert_close(delta.gates(), torch.full((5, 2, 3), 1 / 3))
    model, delta = target()
    logits(model, random_batch(2))
    assert delta.gates().std(-1).min() > 1e-3


def test_ablations_take_away_what_they_name():
    batch = random_batch(3)
    whole, delta = target()
    names, before = set(delta.named), logits(whole, batch)
    gone = {"gate": ".w_gate", "prompt": "task_shared", "adapter": ".adapter."}
    for part, flags in PARTS.items():
        model, less = target(**flags)
        assert names - set(less.named) == {name for name in names if gone[part] in name}, part
        assert not torch.allclose(logits(model, batch), before, atol=1e-3), part
    model, less = target(pemt_gate=False)
    logits(model, batch)
    torch.testing.assert_close(less.gates(), torch.full((5, 3, 3), 1 / 3))
    model, less = target(sparsity=0.0)
    assert torch.equal(logits(model, batch), before) and losses(model, less, batch)[1] == 0.0
    assert losses(whole, delta, batch)[1] > 0


def test_one_expert_has_no_sparsity_term():
    model, delta = target(sources=1)
    assert losses(model, delta, random_batch(2))[1] == 0.0


def test_only_the_right_tensors_learn():
    model, delta = target()
    model.train()
    ce = member_losses(delta, Batch(**random_batch(3)))
    (ce + delta.extra_loss()).sum().backward()
    trained = {id(parameter) for parameter in delta.named.values()}
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in delta.named.values())
    assert all(p.grad is None and not p.requires_grad for p in model.parameters() if id(p) not in trained)
    # 3 encoder and 2 decoder layers: gate, adapter; 2 norms per encoder layer, 3 per decoder layer, 2 final; prompt
    assert len(delta.named) == 5 * (1 + 4) + 2 * 3 + 3 * 2 + 2 + 1


def test_sizes_on_t5_base():
    """6 sources: 2.11 M and 768 per prompt position are trained; stage 1: 5.90 M and 768 per position."""
    sizes = {"d_model": 768, "d_kv": 64, "d_ff": 3072, "num_heads": 12, "num_layers": 12, "num_decoder_layers": 12}
    with torch.device("meta"):
        source, model = (T5ForConditionalGeneration(tiny_config(vocab_size=8, **sizes, **RELU)) for _ in range(2))
    delta = attach_delta(source, DeltaConfig(tune_method="pemt_source"))
    assert sum(p.numel() for p in delta.named.values()) == 24 * 64 * (3072 + 768) + 768
    delta = attach_delta(model, DeltaConfig(tune_method="pemt"))
    norms, adapters = (12 * 2 + 12 * 3 + 2) * 768, 24 * (2 * 48 * 768 + 48 + 768)
    gates = 24 * 1  # a placeholder column until the experts are known
    assert sum(p.numel() for p in delta.named.values()) == norms + adapters + gates + 768


@pytest.mark.parametrize("as_original", [False, True])
def test_a_prompt_starts_as_the_description(as_original):
    model = tiny_t5()
    delta = attach_delta(model, DeltaConfig(tune_method="pemt_source", as_original=as_original, **SIZES))
    delta.describe([5, 17, 5])
    delta.initialise(["0/x"])
    prompt = delta.states()[0]["task_shared"]
    assert torch.equal(prompt[0], prompt[2]) and not torch.equal(prompt[0], prompt[1])
    assert torch.equal(prompt, model.shared.weight[[5, 17, 5]]) != as_original


def test_bfloat16_backbone():
    model, delta = target()
    exact = losses(model, delta, random_batch(2))
    rounded = tiny_t5().to(torch.bfloat16)
    other = attach_delta(rounded, DeltaConfig(tune_method="pemt", **SIZES))
    other.describe([7, 9, 7, 11])
    other.set_experts(source_states(3))
    other.load(delta.states())
    assert losses(rounded, other, random_batch(2)) == pytest.approx(exact, rel=0.05)
    assert greedy(rounded, random_batch(2)).shape[0] == 2


def test_linear_decay_with_warm_up():
    config = TrainConfig(train_iters=10, warmup_steps=4, lr_decay_style="linear")
    factors = [rate_factor(config, update) for update in range(1, 11)]
    assert factors == pytest.approx([0, 0.25, 0.5, 0.75, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6])


def test_adamw_is_adam_for_every_member():
    """Against torch's, whose eps is bias-corrected: equal where gradients are far above eps."""
    torch.manual_seed(1)  # no gradient is near eps
    delta = attach_delta(tiny_t5(), DeltaConfig(adapter_size=3), 2)
    delta.initialise(["1/a", "1/b"])
    rates = [1e-2, 3e-3]
    optimizer = make_optimizer(delta, rates, "adamw")
    singles = [[torch.nn.Parameter(p.detach()[k].clone()) for p in delta.named.values()] for k in range(2)]
    adams = [torch.optim.Adam(ps, lr=rate) for ps, rate in zip(singles, rates, strict=True)]
    for _ in range(3):
        for index, parameter in enumerate(delta.named.values()):
            parameter.grad = torch.randn_like(parameter)
            for k in range(2):
                singles[k][index].grad = parameter.grad[k].clone()
        for each in (optimizer, *adams):
            each.step()
    for index, parameter in enumerate(delta.named.values()):
        for k in range(2):
            torch.testing.assert_close(parameter[k], singles[k][index], rtol=1e-3, atol=3e-5)


# Whole runs


def settings(backbone, data, out, **changes) -> TuneConfig:
    own = dict(
        tasks=list(MINI_TASKS),
        train_epochs=2,
        early_stop=10,
        optimizer="adamw",
        lr_decay_style="linear",
        warmup_steps=0,
        start_is_candidate=False,
        **SIZES,
    )
    return tuning_config(backbone, data, out, **{**own, **changes})


@pytest.fixture(scope="module")
def runs(tiny_backbone, tiny_data, tmp_path_factory):
    """Stage 1 on three tasks, then stage 2 on two targets."""
    out = tmp_path_factory.mktemp("pemt")
    tune(settings(tiny_backbone, tiny_data, out / "sources", tune_method="pemt_source"))
    config = settings(
        tiny_backbone,
        tiny_data,
        out / "targets",
        tune_method="pemt",
        expert_path=str(out / "sources"),
        tasks=list(MINI_TASKS[:2]),
        experts=list(MINI_TASKS),
    )
    tune(config)
    return out, config


def test_a_saved_stage_2_tests_the_same(runs, tmp_path):
    out, config = runs
    first = read_table(out / "targets" / "result.tsv", ["test", "test_loss", "test_moe_weight_0", "test_moe_weight_1"])
    again = tune(replace(config, do_train=False, test_checkpoint=str(out / "targets"), output_dir=str(tmp_path)))
    for column in ("test", "test_loss", "test_moe_weight_0", "test_moe_weight_1"):
        assert again[column].tolist() == pytest.approx(first[column].tolist(), abs=1e-12), column
    saved = torch.load(out / "targets" / MINI_TASKS[0] / "checkpoint-best.pt", weights_only=True)
    assert any("w_gate" in name for name in saved["pemt"]) and any("layer_norm" in name for name in saved["pemt"])
    assert [name for name, _ in saved["args"]["built_on"]] == list(MINI_TASKS[1:])  # never the target itself


@pytest.mark.parametrize("change", ["an expert replaced", "another order of experts"])
def test_a_run_is_of_its_experts(runs, tmp_path, change):
    out, config = runs
    shutil.copytree(out / "sources", tmp_path / "sources")
    shutil.copytree(out / "targets" / MINI_TASKS[0], tmp_path / "targets" / MINI_TASKS[0])
    config = replace(
        config, tasks=[MINI_TASKS[0]], expert_path=str(tmp_path / "sources"), output_dir=str(tmp_path / "targets")
    )
    before = tune(config)
    if change == "an expert replaced":
        path = task_checkpoint(tmp_path / "sources", MINI_TASKS[1])
        state = read_checkpoint(path, "pemt_source")
        write_checkpoint(path, "pemt_source", {name: tensor + 0.1 for name, tensor in state.items()}, {})
    else:
        config = replace(config, experts=list(reversed(MINI_TASKS)))
    testing = replace(config, do_train=False, test_checkpoint=str(out / "targets"), output_dir=str(tmp_path / "test"))
    with pytest.raises(UserError, match="was tuned on other experts"):
        tune(testing)
    after = tune(config)
    assert "is made again or continued: 'built_on' was" in (tmp_path / "targets" / "log.txt").read_text()
    assert before["test_loss"].tolist() != after["test_loss"].tolist()


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_killed_run_goes_on_as_if_it_had_not(runs, tmp_path, monkeypatch, optimizer):
    _, config = runs
    config = replace(config, tasks=[MINI_TASKS[0]], output_dir=str(tmp_path / "clean"), optimizer=optimizer)
    tune(config)
    config = replace(config, output_dir=str(tmp_path / "killed"))

    def dying(session, losses, validate=Session.validate):
        validate(session, losses)
        if session.members[0].progress.updates:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Session, "validate", dying)
        with pytest.raises(KeyboardInterrupt):
            tune(config)
    tune(config)
    name = f"{MINI_TASKS[0]}/checkpoint-best.pt"
    one, other = (torch.load(tmp_path / place / name, weights_only=True)["pemt"] for place in ("clean", "killed"))
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_result_block_gates_and_epochs(runs):
    out, _ = runs
    run = next((out / "targets" / MINI_TASKS[0]).glob("*/lr_*"))
    text = (run / "test_metrics.txt").read_text()
    assert text.startswith("***** test metrics *****\n  epoch                   =        2.0")
    for name in ("test_em", "test_average_metrics", "test_loss", "test_moe_weight_1", "test_runtime"):
        assert f"  {name} " in text
    gates = read_table(run / GATES, ["layer", "source", "weight"])
    assert set(gates["source"]) == set(MINI_TASKS[1:])
    assert gates.groupby("layer")["weight"].sum().to_numpy() == pytest.approx(1, abs=1e-5)
    table = read_table(out / "targets" / "result.tsv", ["updates", "test_em", "epoch"])
    assert table["updates"].tolist() == [6, 6]  # 12 lines, batches of 4, 2 epochs
    assert (run / "gates.png").stat().st_size > 1000


def test_block_looks_like_the_original():
    """The layout of the original's own output (4 decimals, clock, sorted names)."""
    block = {
        "test_loss": 4.29701,
        "epoch": 2.0,
        "test_accuracy": 0.0,
        "test_runtime": 0.3,
        "test_moe_weight_0": 0.345678,
    }
    expected = [
        "***** test metrics *****",
        "  epoch             =        2.0",
        "  test_accuracy     =        0.0",
        "  test_loss         =      4.297",
        "  test_moe_weight_0 =     0.3457",
        "  test_runtime      = 0:00:00.30",
    ]
    assert block_text(block).splitlines() == expected


def test_gates_command(runs, tmp_path, capsys):
    out, _ = runs
    gates = gates_command.read_gates(out / "targets")
    mean = gates.groupby(["target", "source"], sort=False)["weight"].mean().reset_index()
    mean.to_csv(tmp_path / "same.tsv", sep="\t", index=False)
    mean.assign(weight=-mean["weight"]).to_csv(tmp_path / "opposite.tsv", sep="\t", index=False)
    weights = [f"same={tmp_path / 'same.tsv'}", f"opposite={tmp_path / 'opposite.tsv'}"]
    gates_command.run(GatesConfig(runs=[str(out / "targets")], weights=weights, out=str(tmp_path / "out")))
    ranks = read_table(tmp_path / "out" / "rank_correlation.tsv", ["layer", "measure", "spearman"])
    of_all = ranks[ranks["layer"] == "all"].set_index("measure")["spearman"]
    assert (of_all["same"] > 0.99).all() and (of_all["opposite"] < -0.99).all()
    assert (tmp_path / "out" / "gates_by_layer.png").is_file() and "layers" in capsys.readouterr().out
    gates_command.run(GatesConfig(runs=[str(out / "targets")], out=str(tmp_path / "out")))
    assert not (tmp_path / "out" / "rank_correlation.tsv").exists()
    flat = [row["spearman"] for row in gates_command.rank_correlations(gates, {"flat": mean.assign(weight=0.5)})]
    assert all(math.isnan(value) for value in flat)
    with pytest.raises(UserError, match="no weight of target"):
        list(gates_command.rank_correlations(gates, {"cut": mean.iloc[1:]}))


def test_own_group_share():
    rows = [
        ("mini_read_towns", "r", "encoder 0", source, weight)
        for source, weight in (("mini_read_people", 0.7), ("mini_yesno_towns", 0.1), ("mini_closed_towns", 0.2))
    ]
    own = gates_command.own_group(pd.DataFrame(rows, columns=["target", "run", "layer", "source", "weight"]))
    assert own.loc["encoder 0"].tolist() == pytest.approx([0.7, 1 / 3])


def test_measures_of_an_experiment(tmp_path):
    rows = [
        ("adapter", "Loss", 1, "t", "a", 0.4),
        ("adapter", "Loss", 2, "t", "a", 0.6),
        ("lora", "KL", 1, "t", "a", 1.0),
    ]
    table = pd.DataFrame(rows, columns=["delta", "init", "seed", "target", "source", "weight"])
    table.to_csv(tmp_path / "weights.tsv", sep="\t", index=False)
    measures = gates_command.read_measures([str(tmp_path / "weights.tsv")], "adapter")
    assert list(measures) == ["Loss"] and measures["Loss"]["weight"].tolist() == [0.4, 0.6]
    with pytest.raises(UserError, match=r"weights\.tsv has no row of --delta prefix"):
        gates_command.read_measures([str(tmp_path / "weights.tsv")], "prefix")
    with pytest.raises(UserError, match="two measures the name 'Loss'"):
        gates_command.read_measures([f"Loss={tmp_path / 'weights.tsv'}", str(tmp_path / "weights.tsv")], "adapter")
    with pytest.raises(UserError, match="'delta' is missing"):
        table.drop(columns="delta").to_csv(tmp_path / "plain.tsv", sep="\t", index=False)
        gates_command.read_measures([str(tmp_path / "plain.tsv")], "adapter")


def test_every_task_has_a_description():
    described = descriptions(ROOT / "data" / "task_descriptions.tsv").keys()
    assert {*quan_task, *pemt_task_list, *mini_task_list} <= described <= METRICS.keys()


def test_errors_name_what_is_wrong(runs, tmp_path):
    out, config = runs
    one = replace(config, tasks=[MINI_TASKS[0]], output_dir=str(tmp_path / "x"))
    (tmp_path / "few.tsv").write_text("boolq\tAnswer yes or no.\n", encoding="utf-8")
    (tmp_path / "bad.tsv").write_text("boolq\tAnswer yes or no.\nno tab\n", encoding="utf-8")
    cases = [
        ({"stack": 2, "train_epochs": 0}, "--stack must be 1"),
        ({"stack": 2}, "--train_epochs"),
        ({"experts": [MINI_TASKS[0]]}, "no expert for target"),
        ({"experts": []}, "no expert for target"),
        ({"experts": ["mini_reading"]}, "mini_read_animals"),  # a list's tasks, the first of which was not tuned
        ({"expert_path": str(tmp_path)}, "tune the sources first"),
        ({"expert_path": str(out / "targets"), "tasks": [MINI_TASKS[2]], "experts": [MINI_TASKS[0]]}, "pemt_source"),
        ({"task_descriptions": str(tmp_path / "few.tsv")}, "no description of task 'mini_read_towns'"),
        ({"task_descriptions": str(tmp_path / "bad.tsv")}, "bad.tsv, line 2"),
        ({"optimizer": "adam"}, "did you mean 'adamw'"),
        (
            {"do_train": False, "test_checkpoint": str(out / "targets"), "experts": list(MINI_TASKS[::-1])},
            "other experts",
        ),
    ]
    for changes, message in cases:
        with pytest.raises(UserError, match=message):
            tune(replace(one, **changes))


def test_experts_of_another_backbone_are_refused():
    delta = attach_delta(tiny_t5(), DeltaConfig(tune_method="pemt", **SIZES))
    with pytest.raises(UserError, match=r"another backbone"):
        delta.set_experts(source_states(2, d_ff=48))
    states = source_states(2)
    states["source1"].pop("decoder.block.1.layer.2.DenseReluDense.wo.lora_B")
    with pytest.raises(UserError, match=r"source 'source1': tensor decoder.block.1.*lora_B is missing"):
        delta.set_experts(states)


def test_shapes_follow_description_and_experts():
    _, delta = target(sources=2)
    shapes = shapes_of(delta)
    assert shapes["task_shared"] == (4, 24)
    assert shapes["encoder.block.0.layer.1.DenseReluDense.wo.w_gate"] == (40, 2)
    assert shapes["decoder.block.0.layer.2.DenseReluDense.wo.w_gate"] == (24, 2)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("task_shared", torch.ones(3, 3), "tensor task_shared has shape (3, 3), expected (3, 24)"),
        ("lora_A", torch.ones(3, 3), "lora_A has shape (3, 3), expected"),
        ("lora_B", torch.tensor(1.0), "lora_B has shape (), expected"),
        ("lora_A", torch.tensor(1.0), "lora_A has shape (), expected"),
        ("lora_B", None, "1 tensors are missing, e.g."),
    ],
)
def test_a_spoiled_expert_is_named_by_its_file(runs, tmp_path, name, value, message):
    out, config = runs
    shutil.copytree(out / "sources", tmp_path / "sources")
    path = task_checkpoint(tmp_path / "sources", MINI_TASKS[2])
    state = read_checkpoint(path, "pemt_source")
    spoiled = [key for key in state if key.endswith(name)][-1]
    state = {key: tensor for key, tensor in {**state, spoiled: value}.items() if tensor is not None}
    write_checkpoint(path, "pemt_source", state, {})
    with pytest.raises(UserError) as error:
        tune(replace(config, expert_path=str(tmp_path / "sources"), output_dir=str(tmp_path / "out")))
    assert message in str(error.value) and str(path) in str(error.value)


def run_folder(place, task: str = MINI_TASKS[0]):
    """The folder of the one run of a task."""
    return next((place / task).glob("*/lr_*"))


@pytest.fixture
def copied(runs, tmp_path):
    """A copy of the runs of stage 2, and their settings."""
    out, config = runs
    shutil.copytree(out / "targets", tmp_path / "targets")
    return tmp_path / "targets", replace(config, output_dir=str(tmp_path / "targets"))


def first_gates(folder, content: str) -> None:
    (folder / GATES).write_text(content)


def without_result(folder, content: str) -> None:
    """As a kill between the gates and the record leaves it."""
    write_record(folder / "run.json", {"settings": read_record(folder / "run.json")["settings"]})


def of_earlier_version(folder, content: str) -> None:
    record = read_record(folder / "run.json")
    del record["result"]["gates"]
    write_record(folder / "run.json", record)


@pytest.mark.parametrize(
    "change",
    [
        first_gates,
        lambda folder, content: (folder / GATES).write_text((folder / GATES).read_text().replace("0.", "0.0", 1)),
        lambda folder, content: (folder / GATES).unlink(),
        lambda folder, content: (folder / "run.json").unlink(),
        without_result,
        of_earlier_version,
    ],
)
def test_gates_that_are_not_of_the_stored_result_are_refused_and_made_again(runs, copied, change):
    place, config = copied
    folder, before = run_folder(place), gates_command.read_gates(runs[0] / "targets")
    change(folder, (run_folder(place, MINI_TASKS[1]) / GATES).read_text())
    with pytest.raises(UserError, match=r"gates\.tsv is not of a result in run\.json beside it") as error:
        gates_command.read_gates(place)
    assert str(folder) in str(error.value)
    tune(config)
    assert gates_command.read_gates(place)["weight"].tolist() == before["weight"].tolist()


def test_a_run_without_a_tested_result_has_no_gates(copied, monkeypatch, caplog):
    """Killed while it is tested again by other settings: what the earlier test has reported is gone."""
    place, config = copied
    folder = run_folder(place)
    monkeypatch.setattr(log, "propagate", True)

    def killed(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Pemt, "result_block", killed)
        with pytest.raises(KeyboardInterrupt):
            tune(replace(config, do_train=False, test_checkpoint=str(place), tasks=[MINI_TASKS[0]], max_input_length=7))
    assert not [name for name in (GATES, *KINDS["pemt"].shown) if (folder / name).exists()]
    monkeypatch.setattr(log, "propagate", True)
    assert set(gates_command.read_gates(place)["target"]) == {MINI_TASKS[1]}
    assert f"{folder} has no gates and is left out" in caplog.text


def test_another_kind_of_delta_in_the_folder_of_a_run_has_no_gates(copied, tmp_path):
    place, config = copied
    adapter = replace(config, tune_method="adapter", experts=[], tasks=[MINI_TASKS[0]], adapter_size=2)
    tune(replace(adapter, output_dir=str(tmp_path / "adapter")))
    tune(replace(adapter, do_train=False, test_checkpoint=str(tmp_path / "adapter")))
    assert set(gates_command.read_gates(place)["target"]) == {MINI_TASKS[1]}


def test_a_run_counts_once_and_in_its_own_folder(copied, tmp_path, monkeypatch, caplog):
    place, config = copied
    folder = run_folder(place)
    twice = GatesConfig(runs=[str(place), str(place / MINI_TASKS[0])], out=str(tmp_path / "out"))
    with pytest.raises(UserError, match=f"--runs names {folder} twice"):
        gates_command.run(twice)
    shutil.copytree(folder, folder.with_name("lr_0.01_bsz_4_seed_9"))
    with pytest.raises(UserError, match="which has its own folder"):
        gates_command.read_gates(place)
    shutil.rmtree(folder.with_name("lr_0.01_bsz_4_seed_9"))
    tune(replace(config, tasks=[MINI_TASKS[0]], learning_rate_list=[1e-3], train_epochs=1))
    monkeypatch.setattr(log, "propagate", True)
    assert len(set(gates_command.read_gates(place)["run"])) == 3
    assert "is of other settings than an earlier run of this target: 'train_epochs' was 1, is 2" in caplog.text
    assert gates_command.mean_gates(gates_command.gates_of([])).empty
