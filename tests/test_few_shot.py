"""Weights by the target's few-shot lines: LoraHub, greedy soup, gradient, scale; one by one and by slow loops."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import MINI_TASKS, SMALL, draws
from scipy.optimize import minimize
from torch.nn.functional import cross_entropy

from pewe.backbone import BackboneConfig, load_backbone
from pewe.batches import collate
from pewe.data import load_split
from pewe.deltas.attach import attach_delta
from pewe.deltas.checkpoint import ensemble_checkpoint, read_checkpoint, task_checkpoint, write_checkpoint
from pewe.deltas.config import ScoredDeltaConfig
from pewe.errors import UserError
from pewe.files import read_record, read_table, write_table
from pewe.losses import member_losses
from pewe.merging.average import merge
from pewe.merging.few_shot import FewShot, layers_of, merged_by_layer
from pewe.merging.rules.task_arithmetic import TaskArithmeticFlags, task_arithmetic
from pewe.merging.save import read_states
from pewe.meter import metered
from unit_model import (
    ENSEMBLES,
    unit_model_arrow,
    unit_model_gradient,
    unit_model_LoraHub,
    unit_model_scale,
    unit_model_soup,
    unit_model_union,
)

METHODS = ("adapter", "lora", "prefix")
TASKS = list(MINI_TASKS)


class World:
    """Random sources on the tiny backbone, and the scripts on them."""

    def __init__(self, folder, backbone, data):
        self.folder, self.backbone, self.data = folder, backbone, data

    def config(self, module, method: str = "lora", **flags):
        known = {
            **{name: value for name, value in SMALL[method].items() if name != "tune_method"},
            "delta": method,
            "model": str(self.backbone),
            "task_dir": str(self.data),
            "device": "cpu",
            "tasks": TASKS,
            "quiet": True,
            "max_input_length": 32,
            "max_output_length": 6,
            "source_ckpt_path": str(self.folder / method),
            "save_ckpt_path": str(self.folder / f"{method}_{module.__name__.split('.')[-1]}"),
        }
        fields = module.Config.__dataclass_fields__
        return module.Config(**{name: value for name, value in (known | flags).items() if name in fields})

    def few_shot(self, method: str = "lora", **flags) -> FewShot:
        config = self.config(unit_model_LoraHub, method, **flags)
        return FewShot(config, read_states(config.source_ckpt_path, method, TASKS), TASKS)

    def weights(self, config) -> pd.DataFrame:
        table = read_table(Path(config.save_ckpt_path) / "final_weight.tsv", ["target", "source", "weight"])
        return (
            table.astype({"weight": float}).pivot(index="target", columns="source", values="weight").loc[TASKS, TASKS]
        )

    def merged(self, config, task: str) -> dict[str, torch.Tensor]:
        return read_checkpoint(ensemble_checkpoint(Path(config.save_ckpt_path), task), config.delta)


@pytest.fixture(scope="module")
def world(tiny_backbone, tiny_data, tmp_path_factory) -> World:
    folder = tmp_path_factory.mktemp("few_shot")
    for method in METHODS:
        about = ScoredDeltaConfig(**SMALL[method])
        delta = attach_delta(load_backbone(BackboneConfig(model=str(tiny_backbone), device="cpu")).model, about)
        for task in TASKS:
            state = {name: 0.3 * draws(f"{task}/{name}", *p.shape[1:]) for name, p in delta.named.items()}
            write_checkpoint(task_checkpoint(folder / method, task), method, state, {})
    return World(folder, tiny_backbone, tiny_data)


# ---- candidates in a stack


@pytest.mark.parametrize("method", METHODS)
def test_line_losses_are_those_of_transformers_one_by_one(world, method):
    few_shot = world.few_shot(method, stack=2)
    W = torch.tensor([[0.0, 0.7, 0.3], [0.0, -0.4, 1.2], [0.0, 0.0, 0.0]], dtype=torch.float64)
    candidates = few_shot.mixtures(W)
    lines = few_shot.split(TASKS[0], "train")
    sums, tokens = few_shot.line_losses(candidates, lines)
    assert sums.shape == (3, len(lines.inputs)) and tokens.tolist() == [len(label) for label in lines.labels()]
    backbone = load_backbone(BackboneConfig(model=str(world.backbone), device="cpu"))
    delta = attach_delta(backbone.model, ScoredDeltaConfig(**SMALL[method]))
    for candidate, found in zip(candidates, sums, strict=True):
        delta.load([candidate])
        for number in (0, 5):
            ids, labels = torch.tensor([lines.inputs[number]]), torch.tensor([lines.labels()[number]])
            with torch.no_grad():
                logits = backbone.model(input_ids=ids, labels=labels).logits[0]
            assert found[number].item() == pytest.approx(
                cross_entropy(logits, labels[0], reduction="sum").item(), rel=1e-4
            )


# ---- LoraHub


def quadratic(size: int, seed: int, towards: float = 0.3):
    """A function whose first steps along the axes get worse or better by the sign of `towards`."""
    rng = np.random.default_rng(seed)
    A, goal = rng.normal(size=(size, size)) / size, towards * rng.normal(size=size)

    def many(points: np.ndarray) -> np.ndarray:
        return np.square((points - goal) @ (np.eye(size) + A)).sum(1)

    return many


@pytest.mark.parametrize("towards", [0.02, 0.3])
@pytest.mark.parametrize("size", [1, 2, 20])
def test_points_in_stacks_are_those_that_cobyla_asks_for(size, towards):
    many, asked = quadratic(size, size, towards), []

    def one(x):
        asked.append(x.copy())
        return many(x[None])[0]

    options = {"rhobeg": 0.5, "maxiter": 40}
    minimize(one, np.zeros(size), method="COBYLA", options=options)
    stacked = unit_model_LoraHub.InStacks(many, 0.5, size)
    minimize(stacked, np.zeros(size), method="COBYLA", options=options)
    assert len(stacked.asked) == len(asked) <= 40
    assert all(np.allclose(x, y, atol=1e-9) for (_, x), y in zip(stacked.asked, asked, strict=True))
    best = min(asked, key=lambda x: many(x[None])[0])
    assert np.allclose(stacked.best(), best, atol=1e-9)
    if towards < 0.1:  # no axis is better than the start: the whole first simplex is one call
        assert stacked.calls <= 1 + len(asked) - (size + 1)


def test_points_beyond_a_bound_are_reflected():
    points = np.array([2.055, -2.055, 1.5, -1.5, 0.3, 4.6, 7.0])
    assert unit_model_LoraHub.reflected(points, 1.5) == pytest.approx([0.945, -0.945, 1.5, -1.5, 0.3, -1.4, 1.0])


def test_the_loss_is_that_of_the_release():
    sums, tokens = draws("sums", 2, 7).abs().double(), torch.tensor([2.0, 3, 4, 5, 2, 3, 4], dtype=torch.float64)
    expected = [(s[:5].sum() / 16 + s[5:].sum() / 7) / 7 for s in sums]
    assert torch.allclose(unit_model_LoraHub.batch_loss(sums, tokens, 5), torch.stack(expected))


def test_lorahub_weighs_the_others_by_the_loss_of_the_merged_delta(world):
    config = world.config(unit_model_LoraHub, evaluations=12)
    unit_model_LoraHub.run(config)
    W = world.weights(config)
    assert np.diag(W.to_numpy()).tolist() == [0, 0, 0] and np.abs(W.to_numpy()).max() <= 1.5
    few_shot = world.few_shot()
    lines = few_shot.split(TASKS[1], "train")

    def value(row) -> float:
        row = torch.tensor(row, dtype=torch.float64)[None]
        loss = unit_model_LoraHub.batch_loss(*few_shot.line_losses(few_shot.mixtures(row), lines), 5)
        return loss.item() + 0.05 * row.abs().sum().item() / 2  # of two sources

    found = value(W.loc[TASKS[1]].to_list())
    assert found <= min(value([0, 0, 0]), value([0.5, 0, 0]), value([0, 0, 0.5])) + 1e-9
    expected = next(iter(merge(few_shot.states, torch.tensor(W.loc[[TASKS[1]]].to_numpy()))))
    assert all(
        torch.allclose(expected[name], tensor, atol=1e-6) for name, tensor in world.merged(config, TASKS[1]).items()
    )
    settings = read_record(Path(config.save_ckpt_path) / "config.json")["settings"]
    assert settings["few_shot"].keys() == set(TASKS) and settings["evaluations"] == 12
    with pytest.raises(UserError, match=r"lora_A has shape"):
        world.few_shot(lora_r=2)


# ---- greedy soup


def test_a_soup_by_hand():
    zero = torch.tensor([[9.0, 0.5, 0.7, 0.6], [0.2, 9.0, 0.2, 0.1]], dtype=torch.float64)
    allowed = torch.tensor([[False, True, True, True], [True, False, True, True]])
    told = {(0, (2, 3)): 0.65, (0, (1, 2)): 0.7, (1, (0, 2)): 0.3, (1, (0, 2, 3)): 0.29}
    rounds = []

    def score(W, targets):
        rounds.append(len(targets))
        return [told[i, tuple(row.nonzero().flatten().tolist())] for i, row in zip(targets, W, strict=True)]

    chosen = unit_model_soup.soups(zero, allowed, score)
    assert chosen.tolist() == [[False, True, True, False], [True, False, True, False]]  # a tie stays, a fall does not
    assert rounds == [2, 2, 0]


def test_a_soup_has_the_dev_score_that_it_was_chosen_for(world):
    table = [(t, s, float(i == (j + 1) % 3)) for i, t in enumerate(TASKS) for j, s in enumerate(TASKS) if i != j]
    write_table(world.folder / "zero.tsv", pd.DataFrame(table, columns=["target", "source", "dev"]))
    config = world.config(unit_model_soup, zero_result_path=str(world.folder / "zero.tsv"))
    unit_model_soup.run(config)
    W = world.weights(config).to_numpy()
    assert np.allclose(W.sum(1), 1) and not np.diag(W).any()
    assert all(W[i, (i - 1) % 3] > 0 for i in range(3))  # the best zero-shot source is always in it
    assert len(read_record(Path(config.save_ckpt_path) / "config.json")["settings"]["tables"]) == 1


# ---- gradient


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("by_layer", [False, True])
def test_weights_by_gradient_are_those_of_one_target_at_a_time(world, method, by_layer):
    config = world.config(unit_model_gradient, method, updates=2, by_layer=by_layer, learning_rate=0.3, batch_size=4)
    with metered() as spent:
        unit_model_gradient.run(config)
    assert (spent.updates, spent.lines) == (3 * 2, 3 * 2 * 4)
    W = world.weights(config)
    assert np.allclose(W.to_numpy().sum(1), 1, atol=1e-6) and not np.diag(W.to_numpy()).any()
    assert np.abs(W.to_numpy() - (1 - np.eye(3)) / 2).max() > 0.01  # they have moved
    alone = replace(config, stack=1, save_ckpt_path=f"{config.save_ckpt_path}_alone")
    unit_model_gradient.run(alone)
    assert np.allclose(world.weights(alone).to_numpy(), W.to_numpy(), atol=1e-4)
    if by_layer:
        table = read_table(Path(config.save_ckpt_path) / "layer_weight.tsv", ["target", "layer", "source", "weight"])
        means = table.astype({"weight": float}).groupby(["target", "source"])["weight"].mean()
        assert means.loc[(TASKS[0], TASKS[1])] == pytest.approx(W.loc[TASKS[0], TASKS[1]], abs=1e-6)


def test_the_gradient_of_the_weights_by_finite_differences(world):
    few_shot = world.few_shot("adapter")
    layers = [list(few_shot.states[0])[:4], list(few_shot.states[0])[4:]]
    mixed = unit_model_gradient.Mixed(few_shot, layers)
    lines = few_shot.split(TASKS[0], "train")
    batch = collate(list(zip(lines.inputs, lines.labels(), strict=True))[:4], few_shot.backbone.pad)

    def loss(W):
        mixed.load(W)
        return member_losses(few_shot.delta, batch).sum()

    W = torch.full((1, 2, 3), 1 / 3)
    loss(W).backward()
    found = mixed.gradient()
    for place in ((0, 0, 1), (0, 1, 2)):
        step = torch.zeros_like(W)
        step[place] = 1e-2
        expected = (loss(W + step) - loss(W - step)).item() / 2e-2
        assert found[place].item() == pytest.approx(expected, rel=0.02, abs=1e-3)


def test_equal_weights_in_all_layers_are_the_merge(world):
    states = list(world.few_shot().states)
    W = torch.tensor([[0.2, 0.5, 0.3]], dtype=torch.float64)
    (merged,) = merged_by_layer(states, dict.fromkeys(layers_of(states[0]), W))
    (expected,) = merge(states, W)
    assert list(merged) == list(expected) and all(torch.equal(merged[name], expected[name]) for name in merged)


# ---- Union


def test_a_union_is_tuned_on_all_but_the_target(world):
    """In a stack as alone; by plain Adafactor steps on the lines of the two others; the shares are those of the lines."""
    config = world.config(unit_model_union, "adapter", train_iters=2, union_lines=5, bsz_list=[4], full_train=False)
    with metered() as spent:
        unit_model_union.run(config)
    assert (spent.updates, spent.lines) == (3 * 2, 3 * 2 * 4)
    assert np.allclose(world.weights(config).to_numpy(), (1 - np.eye(3)) / 2)
    first = world.merged(config, TASKS[0])
    alone = replace(config, stack=1, save_ckpt_path=f"{config.save_ckpt_path}_alone")
    unit_model_union.run(alone)
    assert all(torch.allclose(first[name], tensor, atol=1e-5) for name, tensor in world.merged(alone, TASKS[0]).items())
    few_shot = world.few_shot("adapter")
    parts = {task: unit_model_union.first_lines(few_shot.split(task, "train"), 5) for task in TASKS}
    joined = unit_model_union.union(parts, TASKS[0])
    assert joined.inputs == parts[TASKS[1]].inputs + parts[TASKS[2]].inputs and len(joined.inputs) == 10
    alone = replace(alone, save_ckpt_path=f"{config.save_ckpt_path}_other")
    (member,) = unit_model_union.members_of(alone, few_shot.delta, {TASKS[0]: joined}, {})
    start = few_shot.delta.states()[0]
    few_shot.delta.initialise([f"{config.seed}"])
    assert all(torch.equal(start[name], tensor) for name, tensor in few_shot.delta.states()[0].items())
    moved = [float((first[name] - tensor).abs().max()) for name, tensor in start.items()]
    assert max(moved) > 1e-3 and max(moved) < 0.1  # two updates from the same start
    bar = unit_model_union.Bar(disable=True)
    other = unit_model_union.tuned(alone, few_shot.backbone, few_shot.delta, [member], bar)
    assert all(torch.allclose(first[name], tensor, atol=1e-5) for name, tensor in other[0].items())
    settings = read_record(Path(config.save_ckpt_path) / "config.json")["settings"]
    assert settings["lines"].keys() == set(TASKS) and settings["train_iters"] == 2 and "sources" not in settings


def union_of(world, name: str, **flags) -> tuple[unit_model_union.Config, dict[str, dict[str, torch.Tensor]]]:
    """A union of two updates in a folder of its own, and its deltas."""
    few = {"train_iters": 2, "union_lines": 5, "bsz_list": [4], "full_train": False, **flags}
    config = world.config(unit_model_union, "adapter", save_ckpt_path=str(world.folder / name), **few)
    unit_model_union.run(config)
    return config, {task: world.merged(config, task) for task in config.tasks}


def apart(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    return max(float((tensor - other[name]).abs().max()) for name, tensor in one.items())


def test_the_flags_of_tuning_reach_a_union(world):
    """Optimizer, schedule, clip, micro-batches: as in a tuning command, and in the record."""
    _, plain = union_of(world, "plain")
    with metered() as spent:
        _, micro = union_of(world, "micro", micro_batch_size=2)
    assert (spent.updates, spent.lines) == (3 * 2, 3 * 2 * 4)  # of four lines two and two
    assert apart(plain[TASKS[0]], micro[TASKS[0]]) < 0.05
    for flags in ({"optimizer": "adamw"}, {"lr_decay_style": "linear", "warmup_steps": 2}, {"max_grad_norm": 1e-4}):
        config, other = union_of(world, "other", **flags)
        assert apart(plain[TASKS[0]], other[TASKS[0]]) > 1e-3, flags
        settings = read_record(Path(config.save_ckpt_path) / "config.json")["settings"]
        assert flags.items() <= settings.items()
    for flags, message in (
        ({"train_epochs": 2}, "--train_epochs: the unions of a stack differ"),
        ({"micro_batch_size": 3}, "--bsz_list 4 must be a multiple of --micro_batch_size 3"),
        ({"report_to": ["none", "wandb"]}, "none stands alone"),
        ({"source_tasks": ["poems", TASKS[0]]}, "no data for task 'poems'"),
    ):
        with pytest.raises(UserError, match=message):
            union_of(world, "refused", **flags)


def test_a_union_of_other_tasks_than_the_targets(world):
    config, _ = union_of(world, "others", tasks=TASKS[:1], source_tasks=TASKS[::-1])
    table = read_table(Path(config.save_ckpt_path) / "final_weight.tsv", ["target", "source", "weight"])
    assert dict(zip(table["source"], map(float, table["weight"]), strict=True)) == {
        TASKS[2]: 0.5,
        TASKS[1]: 0.5,
        TASKS[0]: 0,
    }


def test_an_interrupted_union_goes_on_and_its_cost_is_that_of_all_calls(world, monkeypatch):
    flags = {"train_iters": 6, "log_interval": 2, "stack": 2}  # two stacks, three parts each
    with metered() as whole:
        _, expected = union_of(world, "whole", **flags)
    train, calls, dies = unit_model_union.Session.train, [], iter([False] * 4 + [True])

    def dying(session, steps, bar):
        calls.append(session.members[0].progress.updates)
        if next(dies, False):
            raise KeyboardInterrupt
        return train(session, steps, bar)

    monkeypatch.setattr(unit_model_union.Session, "train", dying)
    with pytest.raises(KeyboardInterrupt):
        union_of(world, "killed", **flags)
    files = sorted((world.folder / "killed").glob("*/resume.pt"))
    assert len(files) == 3 and not (world.folder / "killed/config.json").exists()
    with metered() as spent:
        config, found = union_of(world, "killed", **flags)
    assert calls == [0, 2, 4, 0, 2, 2, 4]  # the first stack was done, the other had two updates
    assert all(apart(found[task], expected[task]) < 1e-6 for task in TASKS)
    assert (spent.updates, spent.lines) == (whole.updates, whole.lines) == (3 * 6, 3 * 20)  # of ten lines 4, 4 and 2
    assert spent.seconds > 0 and not any(path.exists() for path in files)
    calls.clear()
    unit_model_union.run(config)
    assert calls == [0, 2, 4, 0, 2, 4]  # a finished one is not gone on with
    (world.folder / "killed/config.json").unlink()


# ---- Arrow


def test_arrow_by_a_slow_loop_in_float64(world):
    """Full decompositions of A B, token by token, on what transformers gives to each projection of the frozen backbone."""
    config = world.config(unit_model_arrow, arrow_k=1, temperature=0.5)
    unit_model_arrow.run(config)
    table = read_table(Path(config.save_ckpt_path) / "layer_weight.tsv", ["target", "layer", "source", "weight"])
    found = table.astype({"weight": float}).set_index(["target", "layer", "source"])["weight"]
    few_shot = world.few_shot()
    states, target = list(few_shot.states), TASKS[1]
    sites = sorted({name.rpartition(".")[0] for name in states[0]})
    lines, model = (
        few_shot.split(target, "train"),
        load_backbone(BackboneConfig(model=str(world.backbone), device="cpu")).model,
    )
    inputs: dict[str, list[torch.Tensor]] = {site: [] for site in sites}
    for site in sites:
        model.get_submodule(site).register_forward_pre_hook(
            lambda _, x, site=site: inputs[site].append(x[0][0].double())
        )
    with torch.no_grad():
        for ids, labels in zip(lines.inputs, lines.labels(), strict=True):
            model(input_ids=torch.tensor([ids]), labels=torch.tensor([labels]))
    for site in (sites[0], sites[-1]):
        first = [torch.linalg.svd(s[f"{site}.lora_A"].double() @ s[f"{site}.lora_B"].double())[0][:, 0] for s in states]
        total, tokens = torch.zeros(len(TASKS), dtype=torch.float64), torch.cat(inputs[site])
        for x in tokens:
            scores = {j: float((x @ v).abs()) for j, v in enumerate(first) if j != 1}
            total[max(scores, key=scores.get)] += 1  # k = 1: all to the first
        expected = total / len(tokens)
        assert [found[target, site, task] for task in TASKS] == pytest.approx(expected.tolist(), abs=1e-3)
    merged = world.merged(config, target)
    own = sum(
        found[target, sites[0], task] * state[f"{sites[0]}.lora_A"] for task, state in zip(TASKS, states, strict=True)
    )
    assert torch.allclose(merged[f"{sites[0]}.lora_A"], own, atol=1e-5) and merged.keys() == states[0].keys()


def test_arrow_routes_a_token_by_hand():
    V = torch.eye(3, dtype=torch.float64)
    x, allowed = torch.tensor([[3.0, -4.0, 1.0], [0.0, 0.0, -2.0]]), torch.tensor([True, True, True])
    near, far = np.exp(4) / (np.exp(4) + np.exp(3)), 1 / (1 + np.exp(-2))
    found = unit_model_arrow.coefficients(x[:1], V, allowed, 2, 1.0)
    assert found.tolist() == pytest.approx([1 - near, near, 0])
    found = unit_model_arrow.coefficients(x[1:], V, torch.tensor([False, True, True]), 3, 1.0)
    assert found.tolist() == pytest.approx([0, 1 - far, far])  # its own delta gets nothing
    A, B = draws("A", 9, 3), draws("B", 3, 7)
    own = unit_model_arrow.direction(A, B) @ torch.linalg.svd(A.double() @ B.double())[0][:, 0]
    assert abs(own.item()) == pytest.approx(1, abs=1e-12)


def test_arrow_is_for_lora_alone(world):
    with pytest.raises(UserError, match="--delta adapter: Arrow reads the products of LoRAs"):
        unit_model_arrow.run(world.config(unit_model_arrow, "adapter"))
    assert ENSEMBLES["Arrow"].kinds == ("lora",)


# ---- scale


def test_the_scale_of_the_best_dev_score_is_taken(world, monkeypatch):
    told = iter([[0.1, 0.4, 0.4], [0.5, 0.1, 0.2], [0.0, 0.0, 0.3]])
    monkeypatch.setattr(FewShot, "dev_scores", lambda self, candidates, tasks: next(told))
    config = world.config(unit_model_scale, scales=[0.25, 0.5, 1.0], base="zero")
    unit_model_scale.run(config)
    settings = read_record(Path(config.save_ckpt_path) / "config.json")["settings"]
    assert settings["scales"] == {TASKS[0]: 0.5, TASKS[1]: 0.25, TASKS[2]: 1.0}  # of equal scores the first
    states = [read_checkpoint(task_checkpoint(world.folder / "lora", task), "lora") for task in TASKS]
    expected = task_arithmetic(states[1:], torch.tensor([0.5, 0.5]), TaskArithmeticFlags(scale=0.5))
    assert all(torch.allclose(expected[n].float(), t, atol=1e-6) for n, t in world.merged(config, TASKS[0]).items())


def test_candidates_of_one_stack_score_as_alone(world):
    few_shot, W = world.few_shot(), torch.tensor([[0.0, 1, 0], [0, 0.5, 0.5], [0, 0, 1]], dtype=torch.float64)
    together = few_shot.dev_scores(few_shot.mixtures(W), TASKS)
    alone = [few_shot.dev_scores(few_shot.mixtures(row[None]), [task])[0] for row, task in zip(W, TASKS, strict=True)]
    assert together == pytest.approx(alone)
    with pytest.raises(UserError, match="--combine svd has no scale"):
        unit_model_scale.run(world.config(unit_model_scale, combine="svd"))
    with pytest.raises(UserError, match="for the weighted average alone"):
        unit_model_gradient.run(
            world.config(unit_model_gradient, by_layer=True, updates=1, combine="ties", base="zero", batch_size=2)
        )


def test_the_lines_are_those_of_the_target(world):
    few_shot = world.few_shot()
    expected = load_split(few_shot.backbone.tokenizer, few_shot.config, TASKS[0], f"{TASKS[0]}_64_42", "train")
    assert few_shot.split(TASKS[0], "train") == expected
