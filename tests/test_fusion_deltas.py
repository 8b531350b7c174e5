"""Fisher and RegMean of deltas: identities of the product form, statistics against slow formulas, the scripts."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import METHODS, MINI_TASKS, SMALL, filled, fusion_npz, random_batch, small, tiny_t5
from rules import merge_maps
from safetensors.torch import load_file, save_file

from pewe.batches import Batch
from pewe.deltas.attach import attach_delta
from pewe.deltas.checkpoint import (
    delta_identity,
    ensemble_checkpoint,
    read_checkpoint,
    task_checkpoint,
    write_checkpoint,
)
from pewe.errors import UserError
from pewe.files import read_table
from pewe.merging import collect_deltas
from pewe.merging.collect import Sums
from pewe.merging.collect_deltas import collect_delta, differentiable, loss_and_leaves, statistics_file
from pewe.merging.deltas import DeltaMergeConfig, merge_deltas, source_maps, truncated
from pewe.merging.rules.regmean import shrunk
from pewe.merging.statistics import FISHER, GRAM, Statistics
from pewe.tuning.config import TuneConfig
from pewe.tuning.tune import tune
from unit_model import unit_model_Fisher, unit_model_RegMean

d, r, h, SCALE = 12, 3, 10, 1.7


def random_loras(count: int, seed: int = 5) -> tuple[list[dict], list[Statistics], torch.Tensor]:
    """States of one projection `q` in float64, their Grams, and the frozen weight (d, h)."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    states = [{"q.lora_A": draw(d, r), "q.lora_B": draw(r, h)} for _ in range(count)]
    inputs = [draw(40, d) @ draw(d, d) for _ in range(count)]
    statistics = [
        Statistics({GRAM + "q": x.T @ x / 40, FISHER + "q": draw(d, h).square()}, {"shapes": {}}) for x in inputs
    ]
    return states, statistics, draw(d, h)


def product(state: dict, name: str = "q") -> torch.Tensor:
    return state[f"{name}.lora_A"] @ state[f"{name}.lora_B"]


@pytest.mark.parametrize("alpha", [0.1, 0.9, 1.0])
def test_lora_regmean_is_regmean_of_the_full_weight(alpha):
    states, statistics, frozen = random_loras(3)
    W = torch.tensor([[0.5, 0.3, 0.2]], dtype=torch.float64)
    (merged,) = merge_deltas(
        "lora", "regmean", states, statistics, W, DeltaMergeConfig(alpha=alpha, ridge=0.0, rank=-1)
    )
    assert merged["q.lora_A"].shape == (d, 3 * r)
    own_scale = SCALE * r / (3 * r)  # alpha / r of the larger rank
    weights, grams = (
        [frozen + SCALE * product(state) for state in states],
        [one.tensors[GRAM + "q"] for one in statistics],
    )
    full = merge_maps("regmean", weights, grams, W[0], alpha=alpha, ridge=0.0)
    assert (frozen + own_scale * product(merged) - full).abs().max() < 1e-10


@pytest.mark.parametrize("method", ["fisher", "regmean"])
@pytest.mark.parametrize("rank", [0, -1])
def test_lora_does_not_depend_on_the_scale_of_its_factors(method, rank):
    states, statistics, _ = random_loras(2)
    S = torch.randn(r, r, dtype=torch.float64, generator=torch.Generator().manual_seed(8))
    moved = [
        {"q.lora_A": states[0]["q.lora_A"] @ S, "q.lora_B": torch.linalg.inv(S) @ states[0]["q.lora_B"]},
        states[1],
    ]
    W, config = torch.tensor([[0.5, 0.5]]), DeltaMergeConfig(rank=rank)
    (one,), (other,) = (merge_deltas("lora", method, each, statistics, W, config) for each in (states, moved))
    assert (product(one) - product(other)).abs().max() < 1e-10


@pytest.mark.parametrize("alpha", ["1.0", "0.9", "0.1"])
@pytest.mark.parametrize("coefficients", ["none", "c70"])
def test_lora_identities_of_the_release(golden_fusion, alpha, coefficients):
    golden = fusion_npz("extras/delta_identities.npz")
    s, name = float(golden["scaling"]), f"a{alpha}_{coefficients}"
    states = [{"q.lora_A": golden[f"A{i}"].T, "q.lora_B": golden[f"B{i}"].T} for i in (0, 1)]
    statistics = [Statistics({GRAM + "q": golden[f"gram_x{i}"]}, {"shapes": {}}) for i in (0, 1)]
    W = torch.tensor([[0.7, 0.3] if coefficients == "c70" else [0.5, 0.5]], dtype=torch.float64)
    for rank, larger, expected in ((-1, 2, golden[f"{name}.delta"]), (0, 1, golden[f"{name}.delta_rank_r"])):
        config = DeltaMergeConfig(alpha=float(alpha), ridge=0.0, rank=rank)
        (merged,) = merge_deltas("lora", "regmean", states, statistics, W, config)
        assert (s / larger * product(merged).T - expected).abs().max() < 1e-10
    cat = s * golden[f"{name}.B_cat"] @ golden[f"{name}.A_cat"]
    assert (cat - golden[f"{name}.delta"]).abs().max() < 1e-10


def test_adapter_and_prefix_identities_of_the_release(golden_fusion):
    golden = fusion_npz("extras/delta_identities.npz")
    for alpha in ("0.9", "0.1"):
        for which, gram in (("A", "gram_x"), ("B", "adapter.gram_z")):
            maps, grams = [golden[f"adapter.{which}{i}"] for i in (0, 1)], [golden[f"{gram}{i}"] for i in (0, 1)]
            found = merge_maps("regmean", maps, grams, [0.5, 0.5], alpha=float(alpha), ridge=0.0)
            assert (found - golden[f"adapter.a{alpha}.{which}"]).abs().max() < 1e-10
    for which, gram in (("K", "gram_q"), ("V", "gram_a")):
        maps, grams = [golden[f"prefix.{which}{i}"] for i in (0, 1)], [golden[f"prefix.{gram}{i}"] for i in (0, 1)]
        maps = [one.T for one in maps] if which == "K" else maps
        found = merge_maps("regmean", maps, grams, [0.5, 0.5], alpha=0.9, ridge=0.0)
        assert ((found.T if which == "K" else found) - golden[f"prefix.a0.9.{which}"]).abs().max() < 1e-10


def test_all_targets_at_once_are_the_merges_one_by_one():
    generator = torch.Generator().manual_seed(4)
    maps, fishers = torch.randn(3, d, h, generator=generator), torch.rand(3, d, h, generator=generator)
    maps, fishers = maps.double(), fishers.double()
    grams = [x.T @ x for x in torch.randn(3, 30, d, generator=generator, dtype=torch.float64)]
    W = torch.tensor([[0.5, 0.3, 0.2], [0.0, 0.5, 0.5]], dtype=torch.float64)
    many = merge_maps("regmean", maps, grams, W, alpha=1.0, ridge=0.0)
    weighted = merge_maps("fisher", maps, fishers, W, smoothing=1e-3)
    for row, merged, mean in zip(W, many, weighted, strict=True):
        alone = merge_maps("regmean", maps, grams, row, alpha=1.0, ridge=0.0)
        assert torch.allclose(merged, alone, atol=1e-10)
        weight = [c * (F + 1e-3 * (row @ fishers.mean((1, 2)))) for c, F in zip(row, fishers, strict=True)]
        slow = sum(w * M for w, M in zip(weight, maps, strict=True)) / sum(weight)
        for one in (mean, merge_maps("fisher", maps, fishers, row, smoothing=1e-3)):
            assert torch.allclose(one, slow, atol=1e-10)
    assert torch.allclose(merge_maps("fisher", maps, 0 * fishers, W)[1], maps[1:].mean(0))


@pytest.mark.parametrize(("method", "flags"), [("regmean", {"alpha": 0.9, "ridge": 1e-6}), ("fisher", {})])
def test_rules_with_statistics_pass_the_invariants_of_all_rules(method, flags):
    """One source and equal sources give that source, whatever their statistics; the order changes nothing."""
    generator = torch.Generator().manual_seed(5)
    maps = list(torch.randn(3, d, h, generator=generator, dtype=torch.float64))
    inputs = torch.randn(3, 30, d, generator=generator, dtype=torch.float64)
    of = {"regmean": [x.T @ x for x in inputs], "fisher": list(torch.rand(3, d, h, generator=generator).double())}[
        method
    ]
    weights = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    alone = merge_maps(method, maps[:1], of[:1], torch.ones(1, dtype=torch.float64), **flags)
    assert torch.allclose(alone, maps[0], atol=1e-8)
    assert torch.allclose(merge_maps(method, maps[:1] * 3, of, weights, **flags), maps[0], atol=1e-8)
    order = [2, 0, 1]
    other = merge_maps(method, [maps[i] for i in order], [of[i] for i in order], weights[order], **flags)
    assert torch.allclose(other, merge_maps(method, maps, of, weights, **flags), atol=1e-10)


def test_truncation_is_the_best_in_the_metric_of_the_inputs():
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(50, d, generator=generator, dtype=torch.float64) @ torch.randn(
        d, d, generator=generator, dtype=torch.float64
    )
    M = torch.randn(d, h, generator=generator, dtype=torch.float64)
    A, B, error = truncated(M, r, x.T @ x)
    own = (x @ (M - A @ B)).norm()
    assert own / (x @ M).norm() == pytest.approx(error)
    plain, other, _ = truncated(M, r)
    assert own < (x @ (M - plain @ other)).norm()
    A, B, error = truncated(M, d + 2)
    assert A.shape == (d, d + 2) and error == 0 and torch.allclose(A @ B, M)


def statistics_of(name: str, seed: int = 1, **settings):
    """A tiny T5 with a random delta, and its statistics on random batches."""
    model = tiny_t5()
    delta, (state,) = filled(model, name, 1, seed)
    batches = [Batch(**random_batch(4, seed=10 * seed + number)) for number in range(3)]
    return model, delta, state, collect_delta(model, delta, SMALL[name]["tune_method"], batches, **settings)


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("method", ["fisher", "regmean"])
def test_one_delta_alone_returns_itself(name, method):
    model, delta, state, statistics = statistics_of(name)
    kind, batch = SMALL[name]["tune_method"], random_batch(4)
    (merged,) = merge_deltas(kind, method, [state], [statistics], torch.ones(1, 1), DeltaMergeConfig())
    assert {key: t.shape for key, t in merged.items()} == {key: t.shape for key, t in state.items()}
    with torch.no_grad():
        before = model(**batch).logits
        delta.load([merged])
        assert (model(**batch).logits - before).abs().max() < 1e-4 * before.abs().max()
        delta.load([{key: 0 * tensor for key, tensor in state.items()}])
        assert (model(**batch).logits - before).abs().max() > 1e-2 * before.abs().max()


@pytest.mark.parametrize("name", SMALL)
def test_the_order_of_deltas_does_not_matter_and_padding_does_not_count(name):
    kind = SMALL[name]["tune_method"]
    parts = [statistics_of(name, seed) for seed in (1, 2, 3)]
    states, statistics = [part[2] for part in parts], [part[3] for part in parts]
    W, config = torch.tensor([[0.5, 0.3, 0.2], [0.0, 1.0, 0.0]]), DeltaMergeConfig()
    for method in ("fisher", "regmean"):
        there = merge_deltas(kind, method, states, statistics, W, config)
        back = merge_deltas(kind, method, states[::-1], statistics[::-1], W.flip(1), config)
        shapes = statistics[0].info["shapes"]
        for one, other in zip(there, back, strict=True):
            assert all((a - b).abs().max() < 1e-4 for _, (a, b) in source_maps(kind, [one, other], shapes))
    model, delta, _, padded = statistics_of(name)
    batch = random_batch(4, seed=10)
    rows = [
        {
            "input_ids": batch["input_ids"][i : i + 1, : batch["attention_mask"][i].sum()],
            "attention_mask": batch["attention_mask"][i : i + 1, : batch["attention_mask"][i].sum()],
            "labels": batch["labels"][i : i + 1, : (batch["labels"][i] != -100).sum()],
        }
        for i in range(4)
    ]
    alone, together, counted = (
        collect_delta(model, delta, kind, [Batch(**one) for one in data], padding=flag).tensors
        for data, flag in ((rows, False), ([batch], False), ([batch], True))
    )
    grams = [key for key in together if key.startswith(GRAM)]
    assert max((alone[key] - together[key]).abs().max() / together[key].abs().max() for key in grams) < 1e-5
    assert max((counted[key] - together[key]).abs().max() / together[key].abs().max() for key in grams) > 1e-2
    assert set(padded.tensors) == set(together) and len(grams) == len(together) / 2


def test_fisher_of_an_adapter_is_that_of_its_parameters():
    model, delta, _, _ = statistics_of("adapter")
    batches = [random_batch(4, seed=seed) for seed in (4, 5)]
    found = collect_delta(model, delta, "adapter", [Batch(**batch) for batch in batches]).tensors
    expected = dict.fromkeys(delta.named, 0)
    for batch in batches:
        model.zero_grad()
        model(**batch).loss.backward()
        expected = {name: total + delta.named[name].grad[0] ** 2 / 2 for name, total in expected.items()}
    for name, tensor in expected.items():
        assert torch.allclose(found[FISHER + name], tensor, rtol=1e-4, atol=float(1e-5 * tensor.max()))


@pytest.mark.parametrize("name", ["lora", "prefix"])
def test_gradients_of_the_maps_give_those_of_the_parameters(name):
    """The chain rule from d loss / d map to the parameters of the delta, whose gradients autograd knows."""
    model, delta, state, _ = statistics_of(name)
    maps = {}
    with differentiable(model, delta, name):
        loss, leaves = loss_and_leaves(delta, name, Batch(**random_batch(4)), Sums(), False)
        wanted = list(delta.named.values())
        gradients = torch.autograd.grad(loss, [*leaves.values(), *wanted])
    maps = dict(zip(leaves, gradients, strict=False))
    expected = dict(zip(delta.named, gradients[len(leaves) :], strict=True))
    assert not any(parameter.requires_grad for parameter in model.parameters() if parameter.dim() == 2)
    if name == "lora":
        scale = delta.delta_config.lora_alpha / delta.delta_config.lora_r
        for key, gradient in maps.items():
            assert torch.allclose(
                scale * gradient.T @ state[f"{key}.lora_B"].T, expected[f"{key}.lora_A"][0], atol=1e-5
            )
        return
    for stack, network in delta.networks.items():
        layers = [
            torch.stack([maps[f"{stack}.{layer}.{what}"][0] for what in ("keys", "values")])
            for layer in range(network.shape[0])
        ]
        rows = torch.stack(layers).reshape(network.shape[3], -1)
        hidden = torch.tanh(state[f"{stack}.prefix.prefix"] @ state[f"{stack}.prefix.prefix_project.0.weight"].T)
        assert torch.allclose(rows.T @ hidden, expected[f"{stack}.prefix.prefix_project.2.weight"][0], atol=1e-5)


def test_regmean_of_adapters_fits_the_outputs_better_than_their_mean():
    parts = [statistics_of("adapter", seed) for seed in (1, 2)]
    states, statistics = [part[2] for part in parts], [part[3] for part in parts]
    config = DeltaMergeConfig(alpha=1.0)
    (found,) = merge_deltas("adapter", "regmean", states, statistics, torch.tensor([[0.5, 0.5]]), config)

    def misfit(state: dict) -> float:
        total = 0.0
        for own, one in zip(states, statistics, strict=True):
            for name in own:
                off = (state[name] - own[name]).double()
                total += torch.trace(off.T @ shrunk(one.tensors[GRAM + name], 1.0) @ off).item()
        return total

    assert misfit(found) < 0.99 * misfit({name: (states[0][name] + states[1][name]) / 2 for name in found})


def test_errors_of_deltas_name_what_is_wrong():
    _, delta, state, statistics = statistics_of("lora")
    W, config = torch.ones(1, 1), DeltaMergeConfig()
    for kind, changes, message in (
        ("lora", {"rank": 99}, "--rank 99: a merged lora of rank 99 is not possible, expected 1 to 18"),
        ("adapter", {"rank": 4}, "an adapter keeps its bottleneck"),
        ("lora", {"alpha": 2.0}, "--alpha must be at most 1"),
    ):
        with pytest.raises(UserError, match=message):
            merge_deltas(kind, "regmean", [state], [statistics], W, replace(config, **changes))
    with pytest.raises(UserError, match=r"statistics 0 have no fisher\."):
        merge_deltas("lora", "fisher", [state], [Statistics({}, {"shapes": {}})], W, config)
    with pytest.raises(UserError, match="one adapter, lora or prefix at a time"):
        collect_delta(tiny_t5(), attach_delta(tiny_t5(), small("lora"), 2), "lora", [])
    with pytest.raises(UserError, match="no batches"):
        collect_delta(delta.backbone_model, delta, "lora", [])


@pytest.mark.parametrize("kind", METHODS)
def test_scripts_write_an_ensemble_for_every_target(tiny_backbone, tiny_data, tmp_path, kind):
    data = {
        "model": str(tiny_backbone),
        "task_dir": str(tiny_data),
        "tasks": list(MINI_TASKS),
        "device": "cpu",
        "quiet": True,
    }
    shape = {**SMALL[kind], "max_input_length": 32, "max_output_length": 6, "full_train": True}
    sources = str(tmp_path / "sources")
    tune(
        TuneConfig(
            **data,
            **shape,
            do_train=True,
            output_dir=sources,
            bsz_list=[4],
            learning_rate_list=[1e-2],
            train_iters=4,
            valid_interval=2,
            stack=3,
        )
    )
    settings = {"delta": kind, "tasks": list(MINI_TASKS), "source_ckpt_path": sources, "quiet": True}
    with pytest.raises(
        UserError,
        match=rf"there is no file .*statistics\.safetensors; run python -m pewe\.merging\.collect_deltas --tune_method {kind}",
    ):
        unit_model_RegMean.run(unit_model_RegMean.Config(**settings, save_ckpt_path=str(tmp_path / "none")))
    collect_deltas.run(collect_deltas.Config(**data, **shape, source_ckpt_path=sources, batch_size=8))
    for script in (unit_model_Fisher, unit_model_RegMean):
        out = tmp_path / script.__name__
        script.run(script.Config(**settings, save_ckpt_path=str(out)))
        table = read_table(out / "final_weight.tsv", ["target", "source", "weight"])
        assert sorted(set(table["weight"])) == [0, 0.5]
        states = [read_checkpoint(ensemble_checkpoint(out, task), kind) for task in MINI_TASKS]
        assert all(torch.isfinite(tensor).all() for state in states for tensor in state.values())
    tuned = TuneConfig(
        **data,
        **{**shape, "full_train": False},
        do_train=True,
        output_dir=str(tmp_path / "tuned"),
        bsz_list=[4],
        learning_rate_list=[1e-2],
        train_iters=2,
        valid_interval=2,
        stack=3,
        train_checkpoint=str(out),
    )
    assert len(tune(tuned)) == 3


@pytest.fixture
def sources(tiny_backbone, tiny_data, tmp_path):
    """Three adapters as tuning would leave them, with their statistics, and the settings of that."""
    shutil.copytree(tiny_data, tmp_path / "data")
    config = collect_deltas.Config(
        model=str(tiny_backbone),
        task_dir=str(tmp_path / "data"),
        tasks=list(MINI_TASKS),
        device="cpu",
        batch_size=8,
        max_input_length=32,
        max_output_length=6,
        source_ckpt_path=str(tmp_path / "sources"),
        **SMALL["adapter"],
    )
    for seed, task in enumerate(MINI_TASKS):
        _, (state,) = filled(tiny_t5(), "adapter", 1, seed)
        write_checkpoint(task_checkpoint(tmp_path / "sources", task), "adapter", state, delta_identity(config))
    collect_deltas.run(config)
    return config


def files_of(config) -> dict[str, bytes]:
    return {task: statistics_file(Path(config.source_ckpt_path), task).read_bytes() for task in MINI_TASKS}


def merge(config, script=unit_model_RegMean) -> None:
    script.run(
        script.Config(
            tasks=list(MINI_TASKS),
            source_ckpt_path=config.source_ckpt_path,
            quiet=True,
            save_ckpt_path=str(Path(config.source_ckpt_path).parent / script.__name__),
        )
    )


def test_statistics_of_a_replaced_delta_are_refused_and_made_again(sources, capsys):
    first, second, _ = MINI_TASKS
    before = files_of(sources)
    paths = [task_checkpoint(Path(sources.source_ckpt_path), task) for task in (first, second)]
    shutil.copy(*paths)
    for script in (unit_model_Fisher, unit_model_RegMean):
        with pytest.raises(UserError) as caught:
            merge(sources, script)
        for word in (
            f"{second}/statistics.safetensors",
            "'delta' was",
            "python -m pewe.merging.collect_deltas --tune_method",
        ):
            assert word in str(caught.value)
    capsys.readouterr()
    collect_deltas.run(sources)
    said, after = capsys.readouterr().err, files_of(sources)
    assert f"{first}: its statistics are current" in said and f"{second}: statistics are collected, since" in said
    assert [task for task in MINI_TASKS if after[task] != before[task]] == [second]
    merge(sources)


def test_statistics_that_do_not_belong_together_or_are_damaged(sources, capsys):
    first, second, _ = MINI_TASKS
    before = files_of(sources)
    collect_deltas.run(replace(sources, tasks=[second], batch_size=4))
    with pytest.raises(UserError, match=f"{second} was not collected as {first}: 'batch_size' was 4, is 8"):
        merge(sources)
    collect_deltas.run(sources)
    assert files_of(sources) == before
    path = statistics_file(Path(sources.source_ckpt_path), second)
    path.write_bytes(before[second][:-9] + bytes([before[second][-9] ^ 8]) + before[second][-8:])
    with pytest.raises(
        UserError, match=rf"{second}/statistics.safetensors is damaged: tensor .* has changed.*; run python"
    ):
        merge(sources)
    collect_deltas.run(sources)
    assert files_of(sources) == before


@pytest.mark.parametrize(
    "changes",
    [{"examples": 3}, {"batch_size": 4}, {"as_original": True}, {"max_input_length": 7}, {"max_output_length": 3}],
)
def test_statistics_depend_on_every_flag(sources, changes):
    before = files_of(sources)
    collect_deltas.run(replace(sources, **changes))
    assert all(before[task] != after for task, after in files_of(sources).items())
    collect_deltas.run(sources)
    assert files_of(sources) == before


def test_statistics_depend_on_the_data_and_not_on_other_kinds_of_delta(sources, capsys):
    second, before = MINI_TASKS[1], files_of(sources)
    file = next((Path(sources.task_dir) / second).glob("*_train.tsv"))
    file.write_text("who is it\tnobody\n" + file.read_text())
    collect_deltas.run(replace(sources, lora_r=7, prefix_num=9))
    assert [task for task, after in files_of(sources).items() if after != before[task]] == [second]
    assert "'data' was" in capsys.readouterr().err


def test_a_delta_of_another_backbone_has_no_statistics(sources, tiny_backbone, tmp_path):
    other = shutil.copytree(tiny_backbone, tmp_path / "other")
    weights = load_file(other / "model.safetensors")
    save_file({name: 2 * tensor for name, tensor in weights.items()}, other / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match="was tuned on another backbone"):
        collect_deltas.run(replace(sources, model=str(other)))
