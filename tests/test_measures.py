"""Every measure: slow loops for every delta on T5 v1.0 and v1.1, stacks of any size, bfloat16, signs."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import LINES_OF, METHODS, SMALL, VERSIONS, flags_of, similarity_config, small
from scipy.stats import entropy, spearmanr

from get_similarity import (
    get_block,
    get_Cosine_of_Logits_and_Labels,
    get_EL2N,
    get_GraNd,
    get_KL_divergence,
    get_Loss,
)
from pewe.backbone import load_backbone
from pewe.data import load_split
from pewe.deltas.attach import attach_delta
from pewe.deltas.checkpoint import read_checkpoint, task_checkpoint
from pewe.errors import UserError
from pewe.similarity.config import TargetConfig
from pewe.similarity.loop import run
from pewe.tuning.config import TuneConfig
from pewe.tuning.tune import tune
from task_list import QA_task_list

PLAIN = {
    "Loss": get_Loss.MEASURE,
    "EL2N": get_EL2N.MEASURE,
    "Cosine_of_Logits_and_Labels": get_Cosine_of_Logits_and_Labels.MEASURE,
    "KL_divergence": get_KL_divergence.MEASURE,
}
ALL_NAMES = [*PLAIN, "block", "GraNd_dev", "GraNd_block", "GraNd_layer"]
SOME = list(LINES_OF)
PAIR = ["web_questions", "eli5-eli5"]


def compute(name: str, config: TargetConfig, **changes) -> pd.DataFrame:
    """The matrix of a measure by its name, one of ALL_NAMES."""
    if name.startswith("GraNd"):
        return run(get_GraNd.MEASURE, flags_of(get_GraNd.GraNdConfig, config, mode=name.split("_")[1], **changes))
    measure = get_block.MEASURE if name == "block" else PLAIN[name]
    return run(measure, flags_of(measure.config, config, **changes))


@pytest.fixture
def config_of(tiny_backbones, paper_data, tiny_checkpoints, tmp_path):
    """Settings for a delta and a version of T5."""

    def config(method: str = "adapter", version: str = "v1.1", **changes) -> TargetConfig:
        return similarity_config(
            tiny_backbones[version], paper_data, tiny_checkpoints, tmp_path / "out", method, **changes
        )

    return config


# ---- slow loops: one delta, one sequence, one token at a time


class Slow:
    """The measures from their definitions, with the delta of one source on the dev set of one target."""

    def __init__(self, config, method, target, source, kind="source"):
        backbone = load_backbone(config)
        folder = {"source": config.source_ckpt_path, "random": config.random_tuned_ckpt_path}[kind]
        self.model = backbone.model
        self.delta = attach_delta(self.model, small(method), 1)
        self.delta.load([read_checkpoint(task_checkpoint(Path(folder), source), method)])
        encoded = load_split(backbone.tokenizer, config, target, f"{target}_64_42", "dev")
        labels = [answers[0] for answers in encoded.outputs]
        if config.as_original:  # it takes answer i of the whole file for line i
            labels = [answer for answers in encoded.outputs for answer in answers][: len(labels)]
        self.lines = list(zip(encoded.inputs, labels, strict=True))

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

    def gradient_norms(self, lines_per_batch: int, batches: int) -> dict[tuple[str, str], float]:
        """(mode, scope) -> sum over batches, from the library's own loss, tensor by tensor."""
        sums = {}
        for start in range(0, len(self.lines), lines_per_batch)[:batches]:
            lines = self.lines[start : start + lines_per_batch]
            width = [max(len(line[side]) for line in lines) for side in (0, 1)]
            ids = torch.tensor([[*i, *[0] * (width[0] - len(i))] for i, _ in lines])
            labels = torch.tensor([[*t, *[-100] * (width[1] - len(t))] for _, t in lines])
            loss = self.model(input_ids=ids, attention_mask=(ids != 0).long(), labels=labels).loss
            squares = {}
            for name, gradient in zip(self.delta.named, self.gradients(loss), strict=True):
                for mode in ("dev", "block", "layer"):
                    key = (mode, get_GraNd.scope_of(name, mode))
                    squares[key] = squares.get(key, 0.0) + gradient.square().sum().item()
            for key, square in squares.items():
                sums[key] = sums.get(key, 0.0) + math.sqrt(square)
        return sums

    def gradients(self, loss):
        return torch.autograd.grad(loss, list(self.delta.named.values()))


def slow_value(name, config, method, target, source) -> float:
    one = Slow(config, method, target, source)
    if name == "Loss":
        return float(np.mean([-math.log(p[label]) for p, label in one.tokens(5)]))
    if name == "EL2N":
        return sum(float(np.linalg.norm(p - np.eye(len(p))[label])) for p, label in one.tokens(5))
    if name == "Cosine_of_Logits_and_Labels":
        return sum(float(p[label] / np.linalg.norm(p)) for p, label in one.tokens())
    tuned = Slow(config, method, target, target, "random")
    return sum(float(entropy(p, q)) for (p, _), (q, _) in zip(tuned.tokens(5), one.tokens(5), strict=True))


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", PLAIN)
def test_token_measures_by_a_slow_loop(config_of, name, method, version):
    config = config_of(method, version, tasks=PAIR)
    table = compute(name, config).set_index(["target", "source"])["value"]
    assert table[PAIR[0], PAIR[1]] == pytest.approx(slow_value(name, config, method, *PAIR), rel=1e-4)


@pytest.mark.parametrize("name", PLAIN)
def test_token_measures_as_original_by_a_slow_loop(config_of, name):
    """With the labels of the original, whose lines shift after one of several answers."""
    config = config_of(as_original=True, tasks=PAIR)
    table = compute(name, config).set_index(["target", "source"])["value"]
    expected = slow_value(name, config, "adapter", *PAIR)
    assert table[PAIR[0], PAIR[1]] == pytest.approx(expected, rel=1e-4)
    assert expected != pytest.approx(slow_value(name, config_of(tasks=PAIR), "adapter", *PAIR), rel=1e-3)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("method", METHODS)
def test_gradient_norms_by_a_slow_loop(config_of, method, version):
    """Batch by batch, tensor by tensor; a mode's scopes are those of the delta's tensors."""
    config = config_of(method, version, tasks=PAIR)
    expected = Slow(config, method, *PAIR).gradient_norms(5, batches=3)
    for mode in ("dev", "block", "layer"):
        table = compute(f"GraNd_{mode}", config, output_dir=f"{config.output_dir}/{mode}")
        rows = table[(table["target"] == PAIR[0]) & (table["source"] == PAIR[1])]
        ours = {(mode, scope): value for scope, value in zip(rows["scope"], rows["value"], strict=True)}
        assert ours == pytest.approx({key: value for key, value in expected.items() if key[0] == mode}, rel=1e-4)
    # 3 encoder and 2 decoder blocks: 2 and 3 sub-layers with an adapter, 1 and 2 attentions with LoRA, a network per stack
    assert len(ours) == {"adapter": 12, "lora": 7, "prefix": 2}[method]


@pytest.mark.parametrize(("mode", "caps"), [("dev", (6, 10)), ("block", (3, 5)), ("layer", (3, 5))])
def test_caps_on_the_batches_of_a_gradient_norm(config_of, mode, caps):
    """One line a batch, so that the original's caps on the number of batches act; it divides by the accumulation steps."""
    config = config_of(as_original=True, predict_batch_size=1, tasks=["boolq", "web_questions"])
    table = compute(f"GraNd_{mode}", config, bsz_list=[32]).set_index(["target", "source", "scope"])["value"]
    for (target, source), cap in zip([config.tasks, config.tasks[::-1]], caps, strict=True):
        expected = Slow(config, "adapter", target, source).gradient_norms(1, batches=cap)
        ours = {(mode, scope): 2 * value for scope, value in table[target, source].items()}
        assert ours == pytest.approx({key: value for key, value in expected.items() if key[0] == mode}, rel=1e-4)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("method", METHODS)
def test_hidden_states_by_a_slow_loop(config_of, method, version):
    """Sequence by sequence without padding, the last blocks before the final norm."""
    config = config_of(method, version, tasks=PAIR)
    table = compute("block", config).set_index(["target", "source", "scope"])["value"].sort_index()
    tuned, one = Slow(config, method, PAIR[0], PAIR[0], "random"), Slow(config, method, *PAIR)
    expected = dict.fromkeys([f"encoder.block.{n}" for n in range(3)] + [f"decoder.block.{n}" for n in range(2)], 0.0)
    last = {}
    for slow in (tuned, one):
        for stack in ("encoder", "decoder"):
            norm = getattr(slow.model, stack).final_layer_norm
            norm.register_forward_pre_hook(
                lambda m, args, key=(slow, stack): last.__setitem__(key, args[0].squeeze(0).flatten())
            )
    with torch.no_grad():
        for (a, _), (b, _) in zip(tuned.outputs(5), one.outputs(5), strict=True):
            for stack, states in (("encoder", "encoder_hidden_states"), ("decoder", "decoder_hidden_states")):
                pairs = [*zip(a[states][1:-1], b[states][1:-1], strict=True), (last[tuned, stack], last[one, stack])]
                for number, (x, y) in enumerate(pairs):
                    cosine = torch.cosine_similarity(x.flatten(), y.flatten(), dim=0).item()
                    expected[f"{stack}.block.{number}"] += cosine
    assert dict(table[PAIR[0], PAIR[1]]) == pytest.approx(expected, rel=1e-4, abs=1e-4)


# ---- what must not depend on how it is computed


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ALL_NAMES)
def test_stacks_of_1_3_and_all_agree(config_of, name, method):
    config = config_of(method, tasks=SOME[:2], source_tasks=SOME[:4])
    tables = [
        compute(name, config, stack=k, output_dir=f"{config.output_dir}/{k}")["value"].to_numpy() for k in (1, 3, 4)
    ]
    for values in tables[1:]:
        assert values == pytest.approx(tables[0], rel=1e-5, abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", [*PLAIN, "block", "GraNd_dev"])
def test_stacks_of_1_3_and_32_agree(config_of, name, method):
    config = config_of(method, tasks=["boolq"], source_tasks=QA_task_list)
    tables = [
        compute(name, config, stack=k, output_dir=f"{config.output_dir}/{k}")["value"].to_numpy() for k in (1, 3, 32)
    ]
    for values in tables[1:]:
        assert values == pytest.approx(tables[0], rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", [*PLAIN, "GraNd_dev"])
def test_bfloat16_keeps_the_ranking_of_sources(config_of, name, method):
    config = config_of(method, tasks=["boolq", "codah"], source_tasks=QA_task_list)
    exact, rounded = (
        compute(name, config, dtype=dtype, output_dir=f"{config.output_dir}/{dtype}").pivot(
            index="target", columns="source", values="value"
        )
        for dtype in ("float32", "bfloat16")
    )
    for target in exact.index:
        assert spearmanr(exact.loc[target], rounded.loc[target]).statistic > 0.95, target


# ---- signs


@pytest.fixture(scope="module")
def tuned_checkpoints(tiny_backbones, paper_data, tmp_path_factory):
    """Adapters that were really tuned on the six tasks, from two seeds."""
    out = tmp_path_factory.mktemp("tuned")
    for kind, seed in (("source", 1), ("random", 2)):
        tune(
            TuneConfig(
                model=str(tiny_backbones["v1.1"]),
                task_dir=str(paper_data),
                tasks=SOME,
                device="cpu",
                quiet=True,
                do_train=True,
                full_train=True,
                learning_rate_list=[1e-2],
                bsz_list=[8],
                train_iters=60,
                valid_interval=60,
                stack=len(SOME),
                max_input_length=32,
                max_output_length=12,
                seed=seed,
                output_dir=str(out / "adapter" / kind),
                start_is_candidate=False,
                **SMALL["adapter"],
            )
        )
    return out


@pytest.mark.parametrize("name", [*PLAIN, "block"])
def test_signs(tiny_backbones, paper_data, tuned_checkpoints, tmp_path, name):
    """Where source and target are the same task, the similarity is mostly better than the median source's."""
    config = similarity_config(tiny_backbones["v1.1"], paper_data, tuned_checkpoints, tmp_path)
    table = compute(name, config).groupby(["target", "source"], as_index=False)["value"].mean()
    frame = table.pivot(index="target", columns="source", values="value")
    higher = name == "block" or PLAIN[name].higher_is_more_similar
    gap = pd.Series({task: frame.loc[task, task] - frame.loc[task].median() for task in frame.index})
    assert ((gap > 0) if higher else (gap < 0)).mean() > 0.7


def test_small_settings_cover_every_delta():
    assert set(METHODS) <= SMALL.keys()


def test_unknown_modes_are_named(config_of):
    for kind, module in ((get_GraNd.GraNdConfig, get_GraNd), (get_block.BlockConfig, get_block)):
        with pytest.raises(UserError, match="--mode"):
            run(module.MEASURE, flags_of(kind, config_of(), mode="deev"))
