"""Every measure: the original's matrices, slow loops for every delta, stacks of any size, signs."""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import METHODS, SMALL, golden_backbone, golden_npz, golden_state, small
from scipy.stats import entropy, spearmanr

from get_similarity import (
    get_block,
    get_Cosine_of_Logits_and_Labels,
    get_EL2N,
    get_GraNd,
    get_KL_divergence,
    get_Loss,
)
from pewe.data import load_split
from pewe.deltas import attach_delta
from pewe.similarity import SimilarityConfig, run
from task_list import QA_task_list

PLAIN = {
    "Loss": get_Loss.MEASURE,
    "EL2N": get_EL2N.MEASURE,
    "Cosine_of_Logits_and_Labels": get_Cosine_of_Logits_and_Labels.MEASURE,
    "KL_divergence": get_KL_divergence.MEASURE,
}
SOME = ["adversarialqa", "ai2_arc", "boolq", "codah", "eli5-eli5", "web_questions"]  # three with lines of two answers


def compute(name: str, config: SimilarityConfig, **changes) -> pd.DataFrame:
    """The matrix of a measure by the name of its reference file: Loss, ..., block, GraNd_dev, GraNd_block, GraNd_layer."""
    fields = {**vars(config), **changes}
    if name.startswith("GraNd"):
        return get_GraNd.run_mode(get_GraNd.GraNdConfig(**{**fields, "mode": name.split("_")[1]}))
    if name == "block":
        return get_block.run_mode(get_block.BlockConfig(**fields))
    return run(PLAIN[name], SimilarityConfig(**fields))


@pytest.fixture
def config(golden, golden_checkpoints, tmp_path):
    return SimilarityConfig(
        model=str(golden / "backbone"), task_dir=str(golden / "data"), device="cpu", adapter_size=4, quiet=True,
        lora_r=3, lora_alpha=6.0, prefix_num=5, prefix_r=6, max_input_length=32, max_output_length=12, predict_batch_size=5,
        source_ckpt_path=str(golden_checkpoints / "adapter" / "source"), output_dir=str(tmp_path), tasks=SOME,
        random_tuned_ckpt_path=str(golden_checkpoints / "adapter" / "random"),
    )  # fmt: skip


def of_delta(config, method):
    """The same settings for another delta of the reference data."""
    paths = {
        field: getattr(config, field).replace("/adapter/", f"/{method}/")
        for field in ("source_ckpt_path", "random_tuned_ckpt_path")
    }
    return replace(config, tune_method=method, **paths)


def reference(golden, name: str) -> dict[str, pd.DataFrame]:
    """Scope -> matrix (targets down, sources across) that the original computed."""
    folder = golden / "adapter" / "similarity"
    if (folder / f"{name}.csv").is_file():
        table = pd.read_csv(folder / f"{name}.csv")
        return {"all": table.pivot(index="target", columns="source", values="value")}
    arrays = golden_npz(f"adapter/similarity/{name}.npz")
    return {
        module.replace("_", "."): pd.DataFrame(values, index=arrays["tasks"], columns=arrays["tasks"])
        for module, values in zip(arrays["modules"], arrays["values"], strict=True)
    }


def worst_difference(table, expected) -> float:
    assert set(table["scope"]) == expected.keys()
    worst = 0.0
    for scope, rows in table.groupby("scope"):
        ours = rows.pivot(index="target", columns="source", values="value")
        theirs = expected[scope].loc[ours.index, ours.columns]
        worst = max(worst, ((ours - theirs).abs() / theirs.abs()).to_numpy().max())
    return worst


ALL_NAMES = [*PLAIN, "block", "GraNd_dev", "GraNd_block", "GraNd_layer"]
TOLERANCE = {"KL_divergence": 1e-3}


@pytest.mark.parametrize("name", ALL_NAMES)
def test_matrices_of_the_original_on_six_tasks(golden, config, name):
    table = compute(name, config, as_original=True)
    assert worst_difference(table, reference(golden, name)) < TOLERANCE.get(name, 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL_NAMES)
def test_matrices_of_the_original_32_by_32(golden, config, name):
    table = compute(name, config, as_original=True, tasks=QA_task_list)
    assert len(table) % 1024 == 0
    assert worst_difference(table, reference(golden, name)) < TOLERANCE.get(name, 1e-4)


@pytest.mark.parametrize("name", ["GraNd_dev", "GraNd_block"])
def test_gradient_norms_of_the_original_one_line_a_batch(golden, config, name):
    """Here the original's caps on the number of batches act."""
    tasks = ["adversarialqa", "boolq", "eli5-eli5"]
    table = compute(name, config, as_original=True, predict_batch_size=1, tasks=tasks)
    assert worst_difference(table, reference(golden, f"{name}_bs1")) < 1e-4


# ---- slow loops: one delta, one sequence, one token at a time


class Slow:
    """The measures from their definitions, on the dev set of one target."""

    def __init__(self, config, method, target, kind, source):
        self.backbone = golden_backbone()
        self.model = self.backbone.model
        self.delta = attach_delta(self.model, small(method), 1)
        self.delta.load([golden_state(method, source, kind)])
        encoded = load_split(self.backbone.tokenizer, config, target, f"{target}_64_42", "dev")
        self.lines = list(zip(encoded.inputs, encoded.labels(), strict=True))

    def outputs(self, lines=None):
        for inputs, labels in self.lines[:lines]:
            yield (
                self.model(input_ids=torch.tensor([inputs]), labels=torch.tensor([labels]), output_hidden_states=True),
                labels,
            )

    @torch.no_grad()
    def tokens(self, lines=None) -> list:
        return [
            (torch.softmax(logits.double(), -1).numpy(), label)
            for output, labels in self.outputs(lines)
            for logits, label in zip(output.logits[0], labels, strict=True)
        ]


def slow_value(name, config, method, target, source) -> float:
    one = Slow(config, method, target, "source", source)
    if name == "Loss":
        return float(np.mean([-math.log(p[label]) for p, label in one.tokens(5)]))
    if name == "EL2N":
        return sum(float(np.linalg.norm(p - np.eye(len(p))[label])) for p, label in one.tokens(5))
    if name == "Cosine_of_Logits_and_Labels":
        return sum(float(p[label] / np.linalg.norm(p)) for p, label in one.tokens())
    tuned = Slow(config, method, target, "random", target)
    return sum(float(entropy(p, q)) for (p, _), (q, _) in zip(tuned.tokens(5), one.tokens(5), strict=True))


PAIR = ["web_questions", "eli5-eli5"]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", PLAIN)
def test_token_measures_by_a_slow_loop(config, name, method):
    table = compute(name, of_delta(config, method), tasks=PAIR).set_index(["target", "source"])["value"]
    expected = slow_value(name, config, method, *PAIR)
    assert table[PAIR[0], PAIR[1]] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_gradient_norms_by_a_slow_loop(config, method):
    """Batch by batch, tensor by tensor, from the library's own loss; the parts add up to the whole."""
    settings = of_delta(replace(config, tasks=PAIR), method)
    tables = {
        name: compute(name, settings, output_dir=f"{config.output_dir}/{name}") for name in ALL_NAMES if "GraNd" in name
    }
    one = Slow(config, method, PAIR[0], "source", PAIR[1])
    whole, parts = 0.0, {}
    for start in range(0, len(one.lines), 5):
        lines = one.lines[start : start + 5]
        width = [max(len(line[side]) for line in lines) for side in (0, 1)]
        ids = torch.tensor([[*i, *[0] * (width[0] - len(i))] for i, _ in lines])
        labels = torch.tensor([[*t, *[-100] * (width[1] - len(t))] for _, t in lines])
        loss = one.model(input_ids=ids, attention_mask=(ids != 0).long(), labels=labels).loss
        gradients = torch.autograd.grad(loss, list(one.delta.named.values()))
        squares = {}
        for name, gradient in zip(one.delta.named, gradients, strict=True):
            for mode in ("dev", "block", "layer"):
                key = (mode, get_GraNd.scope_of(name, mode))
                squares[key] = squares.get(key, 0.0) + gradient.square().sum().item()
        for key, square in squares.items():
            parts[key] = parts.get(key, 0.0) + math.sqrt(square)
        whole += math.sqrt(sum(g.square().sum().item() for g in gradients))
    assert parts["dev", "all"] == pytest.approx(whole)
    for name, table in tables.items():
        row = table[(table["target"] == PAIR[0]) & (table["source"] == PAIR[1])]
        for scope, value in zip(row["scope"], row["value"], strict=True):
            assert value == pytest.approx(parts[name.split("_")[1], scope], rel=1e-4), (name, scope)
    assert tables["GraNd_layer"]["scope"].nunique() == {"adapter": 60, "lora": 36, "prefix": 2}[method]


@pytest.mark.parametrize("method", METHODS)
def test_hidden_states_by_a_slow_loop(config, method):
    """Sequence by sequence without padding; the last block is taken before the final norm."""
    table = compute("block", of_delta(replace(config, tasks=PAIR), method)).set_index(["target", "source", "scope"])[
        "value"
    ]
    tuned, one = Slow(config, method, PAIR[0], "random", PAIR[0]), Slow(config, method, PAIR[0], "source", PAIR[1])
    last = {}
    for name, slow in (("tuned", tuned), ("one", one)):
        slow.model.encoder.final_layer_norm.register_forward_pre_hook(
            lambda m, args, n=name: last.__setitem__(n, args[0])
        )
    sums = np.zeros(12)
    with torch.no_grad():
        for (a, _), (b, _) in zip(tuned.outputs(5), one.outputs(5), strict=True):
            states = [
                *zip(a.encoder_hidden_states[1:-1], b.encoder_hidden_states[1:-1], strict=True),
                (last["tuned"], last["one"]),
            ]
            sums += [torch.cosine_similarity(x.flatten(), y.flatten(), dim=0).item() for x, y in states]
    ours = [table[PAIR[0], PAIR[1], f"encoder.block.{number}"] for number in range(12)]
    assert ours == pytest.approx(sums.tolist(), rel=1e-4)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ALL_NAMES)
def test_stacks_of_1_3_and_all_agree(config, name, method):
    settings = of_delta(replace(config, tasks=SOME[:2], source_tasks=SOME[:4]), method)
    tables = [
        compute(name, settings, stack=k, output_dir=f"{config.output_dir}/{k}")["value"].to_numpy() for k in (1, 3, 4)
    ]
    for values in tables[1:]:
        assert values == pytest.approx(tables[0], rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", [*PLAIN, "block", "GraNd_dev"])
def test_stacks_of_1_3_and_32_agree(config, name, method):
    settings = of_delta(replace(config, tasks=["boolq", "codah"], source_tasks=QA_task_list), method)
    tables = [
        compute(name, settings, stack=k, output_dir=f"{config.output_dir}/{k}")["value"].to_numpy() for k in (1, 3, 32)
    ]
    for values in tables[1:]:
        assert values == pytest.approx(tables[0], rel=1e-5)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", [*PLAIN, "GraNd_dev"])
def test_bfloat16_keeps_the_ranking_of_sources(config, name, method):
    settings = of_delta(replace(config, tasks=["boolq", "codah"], source_tasks=QA_task_list), method)
    exact, rounded = (
        compute(name, settings, dtype=dtype, output_dir=f"{config.output_dir}/{dtype}")
        .pivot(index="target", columns="source", values="value")
        for dtype in ("float32", "bfloat16")
    )  # fmt: skip
    for target in exact.index:
        assert spearmanr(exact.loc[target], rounded.loc[target]).statistic > 0.98, target


@pytest.mark.parametrize("name", PLAIN)
def test_signs(config, name):
    """Where source and target are the same task (the diagonal), the similarity is mostly better than the median source's."""
    table = compute(name, config, tasks=QA_task_list[::2])
    frame = table.pivot(index="target", columns="source", values="value")
    higher = PLAIN[name].higher_is_more_similar
    gap = pd.Series({task: frame.loc[task, task] - frame.loc[task].median() for task in frame.index})
    assert ((gap > 0) if higher else (gap < 0)).mean() > 0.7


def test_small_settings_cover_every_delta():
    assert set(METHODS) <= SMALL.keys()
