"""TaskEmb and LogME: by slow loops, and by the evidence of a Gaussian."""

import pytest
import torch
from conftest import MINI_TASKS, SMALL, draws, similarity_config, tasks_config
from torch.distributions import MultivariateNormal

from get_similarity import get_LogME, get_TaskEmb
from pewe.backbone import load_backbone
from pewe.data import load_split
from pewe.deltas.attach import attach_delta
from pewe.similarity.loop import run
from pewe.similarity.table import similarity_frame


def test_ranks_of_layers_are_fused_without_the_target_itself():
    unit = torch.eye(3, dtype=torch.float64)
    near, far = unit[0] + 0.1 * unit[1], unit[2]
    targets = {"a": {"x": unit[0], "y": unit[0]}}
    sources = {"a": targets["a"], "b": {"x": near, "y": far}, "c": {"x": far, "y": near}, "d": {"x": unit[1], "y": far}}
    (row,) = get_TaskEmb.fused(targets, sources).tolist()
    assert row == pytest.approx([0, 1 / 61 + 1 / 62, 1 / 62 + 1 / 61, 1 / 63 + 1 / 63])


@pytest.mark.parametrize("method", ["adapter", "lora"])
def test_squared_gradients_by_the_stock_model(tiny_backbone, tiny_data, tmp_path, method):
    flags = {**SMALL[method], "max_input_length": 24, "max_output_length": 6, "text_lines": 5, "batch_size": 2}
    config = tasks_config(get_TaskEmb.TaskEmbConfig, tiny_backbone, tiny_data, tmp_path, **flags)
    reader = get_TaskEmb.reader(config)
    lines = load_split(reader.tokenizer, config, MINI_TASKS[0], f"{MINI_TASKS[0]}_64_42", "dev")
    found = torch.cat([part for _, part in sorted(reader.read(lines).items())])
    backbone = load_backbone(config)
    delta = attach_delta(backbone.model, config)
    delta.initialise(["42/probe"])
    expected: dict = {}
    for start in (0, 2, 4):
        rows = range(start, min(start + 2, 5))
        parts = []
        for i in rows:
            logits = backbone.model(
                input_ids=torch.tensor([lines.inputs[i]]), labels=torch.tensor([lines.labels()[i]])
            ).logits[0]
            parts.append(torch.nn.functional.cross_entropy(logits, torch.tensor(lines.labels()[i]), reduction="none"))
        for name, gradient in zip(
            delta.named, torch.autograd.grad(torch.cat(parts).mean(), list(delta.named.values())), strict=True
        ):
            layer = ".".join(name.split(".")[:5])
            expected.setdefault(layer, {})[name] = (
                expected.get(layer, {}).get(name, 0) + gradient.flatten().square() / 5
            )
    slow = torch.cat([torch.cat(list(parts.values())) for _, parts in sorted(expected.items())]).double()
    assert found.shape == slow.shape and (found - slow).abs().max() < 1e-4 * slow.max()
    table = similarity_frame(run(get_TaskEmb.MEASURE, config))
    assert (table.to_numpy().diagonal() == 0).all() and (table.to_numpy().sum(1) > 0).all()


@pytest.mark.parametrize(("lines", "width"), [(12, 5), (6, 9)])
def test_the_evidence_is_that_of_a_gaussian_and_the_best(lines, width):
    F, y = draws("F", lines, width).double(), (draws("y", lines) > 0).double()
    alpha, beta = 0.7, 3.0
    covariance = torch.eye(lines, dtype=torch.float64) / beta + F @ F.T / alpha
    exact = MultivariateNormal(torch.zeros(lines, dtype=torch.float64), covariance).log_prob(y).item()
    assert get_LogME.log_evidence(F, y, alpha, beta) == pytest.approx(exact)
    if lines > width:
        best = get_LogME.evidence(F, y)
        grid = [get_LogME.log_evidence(F, y, a, b) / lines for a in (0.1, 1, 10, 100) for b in (0.5, 2, 4, 8)]
        assert best >= max(grid) - 1e-6


def test_features_that_tell_the_classes_have_more_evidence():
    y = torch.tensor([0.0, 1] * 8)
    noise = draws("noise", 16, 3)
    assert get_LogME.evidence(torch.cat([noise, y[:, None]], 1), y) > get_LogME.evidence(noise, y) + 0.5


def test_logme_on_classes_and_on_none(tiny_backbone, paper_data, tiny_checkpoints, tmp_path, caplog):
    config = similarity_config(
        tiny_backbone, paper_data, tiny_checkpoints, tmp_path, tasks=["boolq", "web_questions"], predict_batch_size=12
    )
    with caplog.at_level("WARNING", "pewe"):
        frame = similarity_frame(run(get_LogME.MEASURE, config))
    assert frame.loc["web_questions"].tolist() == [0, 0] and frame.loc["boolq"].nunique() == 2
