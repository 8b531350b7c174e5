"""Merging of whole models by slow loops: statistics row by row, merges and ensembles number by number."""

import math

import numpy as np
import pytest
import torch
from conftest import draws, random_batch, tiny_t5
from test_fusion import encoder_batches, merged, random_encoder, state_of

from pewe.fusion.voting import hard_ensemble, known_ensemble, label_f1, soft_ensemble
from pewe.merging.collect import collect, counts_of
from pewe.merging.statistics import FISHER, GRAM

ENCODER, T5 = random_encoder, lambda seed: tiny_t5()
LAYERS = {  # linear layer -> the field whose padding its inputs have
    ENCODER: {"roberta.encoder.layer.0.attention.self.query": "attention_mask", "classifier.out_proj": ""},
    T5: {
        "encoder.block.2.layer.1.DenseReluDense.wo": "attention_mask",
        "decoder.block.1.layer.1.EncDecAttention.q": "labels",
        "decoder.block.1.layer.1.EncDecAttention.k": "attention_mask",
        "lm_head": "labels",
    },
}
BATCHES = {ENCODER: lambda: encoder_batches(1, 3), T5: lambda: [random_batch(4, seed=seed) for seed in (1, 2, 3)]}


@pytest.mark.parametrize("kind", [ENCODER, T5], ids=["encoder", "t5"])
@pytest.mark.parametrize("as_original", [False, True])
def test_grams_by_a_slow_loop(kind, as_original):
    """The mean of x^T x over the positions that are no padding; as the original of all, with those of a generation of 4."""
    model, data = kind(1), BATCHES[kind]()
    found, seen = (
        collect(model, data, fisher="none", counts=counts_of(as_original)),
        {name: [] for name in LAYERS[kind]},
    )
    for name, field in LAYERS[kind].items():
        for batch in data:
            inputs = []
            handle = model.get_submodule(name).register_forward_pre_hook(
                lambda module, args, inputs=inputs: inputs.append(args[0].detach())
            )
            if kind is T5 and as_original:
                model.generate(
                    input_ids=batch["input_ids"],
                    attention_mask=batch["attention_mask"],
                    max_length=4,
                    num_beams=1,
                    do_sample=False,
                )
            model(**{key: value for key, value in batch.items() if kind is T5 or key != "labels"})
            handle.remove()
            for x in inputs:
                keep = torch.ones(x.shape[:-1], dtype=bool)
                if field and not as_original:
                    keep = batch[field] != -100 if field == "labels" else batch[field] == 1
                seen[name] += [row.double().numpy() for row in x[keep]]
    for name, rows in seen.items():
        slow = sum(np.outer(row, row) for row in rows) / len(rows)
        assert np.abs(found.tensors[GRAM + name].numpy() - slow).max() < 1e-5 * np.abs(slow).max(), name


@pytest.mark.parametrize(
    ("kind", "fisher"),
    [(ENCODER, "hard"), (ENCODER, "empirical"), (T5, "empirical")],
    ids=["encoder-hard", "encoder-empirical", "t5-empirical"],
)
def test_fishers_by_a_slow_loop(kind, fisher):
    """The mean over batches of the squared gradient of a batch's mean loss; hard: against the most likely class."""
    model, data = kind(1), BATCHES[kind]()
    found, squares = collect(model, data, gram=False, fisher=fisher), {}
    for batch in data:
        logits = model(**{key: value for key, value in batch.items() if kind is T5 or key != "labels"}).logits
        gold = batch["labels"].flatten() if fisher == "empirical" else logits.argmax(-1)
        rows = logits.flatten(0, -2)
        losses = [torch.logsumexp(row, 0) - row[label] for row, label in zip(rows, gold, strict=True) if label >= 0]
        model.zero_grad()
        (sum(losses) / len(losses)).backward()
        for name, parameter in model.named_parameters():
            gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            squares[name] = squares.get(name, 0) + gradient.double() ** 2 / len(data)
    assert {FISHER + name for name in squares} == found.tensors.keys()
    for name, slow in squares.items():
        off = (found.tensors[FISHER + name].double() - slow).abs().max()
        assert off <= 1e-4 * slow.abs().max() + 1e-15, name


def slow_fisher(tensors, fishers, factors, smoothing):
    out = np.zeros_like(tensors[0])
    for place in np.ndindex(out.shape):
        weights = [k * (f[place] + smoothing) for k, f in zip(factors, fishers, strict=True)]
        out[place] = sum(w * t[place] for w, t in zip(weights, tensors, strict=True)) / sum(weights)
    return out


def slow_regmean(tensors, grams, coefficients, alpha, ridge):
    """The weights (d_out, d_in) of each layer, with Grams whose entries off the diagonal are multiplied with alpha."""
    weighted = []
    for gram, c in zip(grams, coefficients, strict=True):
        d, small = len(gram), gram.copy()
        for i in range(d):
            for j in range(d):
                small[i, j] = alpha * gram[i, j] if i != j else gram[i, i] + ridge * np.trace(gram) / d
        weighted.append(c * small)
    product = sum(g @ t.T for g, t in zip(weighted, tensors, strict=True))
    return (np.linalg.inv(sum(weighted)) @ product).T


@pytest.fixture(scope="module")
def three():
    """Three random encoders and their statistics, with the labels that each has seen."""
    models = [random_encoder(seed) for seed in (1, 2, 3)]
    statistics = [collect(model, encoder_batches(seed)) for seed, model in enumerate(models, start=1)]
    for one, labels in zip(statistics, ([0, 1], [1, 2], [0, 2, 3]), strict=True):
        one.info["labels"] = labels
    return [state_of(model) for model in models], statistics


HEAD = "classifier.out_proj.weight"


def slow_merge(name, names, models, statistics, c, method, alpha=0.9, ridge=0.0, normalise="none", regmean_exclude=()):
    tensors = [model[name].numpy() for model in models]
    if method == "fisher":
        fishers = {key: [one.tensors[FISHER + key].double().numpy() for one in statistics] for key in names}
        over = {"none": [], "param": [name], "model": names}[normalise]
        norms = [math.sqrt(sum((fishers[key][i] ** 2).sum() for key in over)) if over else 1.0 for i in range(len(c))]
        return slow_fisher(
            tensors, fishers[name], [factor / norm for factor, norm in zip(c, norms, strict=True)], 1e-10
        )
    if name == HEAD:  # each label's row from the models that know it
        known = [[i for i, one in enumerate(statistics) if label in one.info["labels"]] for label in range(4)]
        return np.stack([np.mean([tensors[i][label] for i in own], axis=0) for label, own in enumerate(known)])
    gram = GRAM + name.removesuffix(".weight")
    if method == "regmean" and gram in statistics[0].tensors and name not in regmean_exclude:
        return slow_regmean(tensors, [one.tensors[gram].numpy() for one in statistics], c, alpha, ridge)
    return sum(factor * tensor for factor, tensor in zip(c, tensors, strict=True))


@pytest.mark.parametrize("coefficients", [[], [0.5, 0.3, 0.2]], ids=["equal", "unequal"])
@pytest.mark.parametrize(
    "settings",
    [
        {"method": "simple"},
        *({"method": "fisher", "normalise": kind} for kind in ("none", "param", "model")),
        *({"method": "regmean", "alpha": alpha, "ridge": 1e-3} for alpha in (0.0, 0.5, 1.0)),
        {
            "method": "regmean",
            "ridge": 1e-6,
            "regmean_exclude": ["roberta.encoder.layer.0.output.dense.weight", "classifier.dense.weight"],
        },
    ],
    ids=str,
)
def test_merges_by_a_slow_loop(three, settings, coefficients):
    models, statistics = three
    found = merged(models, statistics, **settings, coefficients=coefficients, exclude=["roberta.embeddings.LayerNorm"])
    assert models[0].keys() - found.keys() == {
        "roberta.embeddings.LayerNorm.weight",
        "roberta.embeddings.LayerNorm.bias",
    }
    for name, tensor in found.items():
        slow = slow_merge(name, found.keys(), models, statistics, coefficients or [1 / 3] * 3, **settings)
        assert np.abs(tensor.numpy() - slow).max() < 1e-6 * max(1.0, np.abs(slow).max()), name


@pytest.mark.parametrize(
    ("examples", "as_original", "used"), [(17, False, 3), (16, False, 2), (8, False, 1), (2, True, 2)]
)
def test_how_many_batches_are_used(examples, as_original, used):
    """Up to the batch that reaches the number of examples; the original takes it as a number of batches of 8."""
    model, data = random_encoder(1), encoder_batches(1, 4)
    found = collect(model, data, examples=examples, counts=counts_of(as_original))
    assert found.info["batches"] == used and found.info["examples"] == 8 * used
    expected = collect(model, data[:used], counts=counts_of(as_original))
    assert all(torch.equal(found.tensors[name], tensor) for name, tensor in expected.tensors.items())


def test_ensembles_by_a_slow_loop():
    logits, known = draws("logits", 3, 5, 4), [[0, 1], [1, 2], [0, 2]]  # three models, five lines; nobody knows label 3
    for line in range(5):
        for label in range(4):
            each = logits[:, line, label].tolist()
            own = [value for value, labels in zip(each, known, strict=True) if label in labels]
            assert soft_ensemble(logits)[line, label].item() == pytest.approx(sum(each) / 3, abs=1e-6)
            assert known_ensemble(logits, known)[line, label].item() == pytest.approx(
                sum(own) / max(1, len(own)), abs=1e-6
            )
    tokens = (2 * draws("tokens", 4, 5, 6)).int()
    for place in np.ndindex(5, 6):
        votes = tokens[:, *place].tolist()
        assert hard_ensemble(tokens)[place] == max(votes, key=votes.count)  # the first of the most frequent ones


def test_label_f1_by_hand():
    """Label 0: one right of two predicted and one gold; label 1: its unknown line does not count; label 2 is known nowhere."""
    gold = np.array([[1, 0, -100], [0, 1, -100], [0, -100, -100]])
    predicted = np.array([[1, 1, 1], [1, 1, 0], [0, 1, 1]])
    assert label_f1(predicted, gold) == pytest.approx({0: 2 / 3, 1: 2 / 3})
    assert label_f1(np.zeros((3, 3)), np.zeros((3, 3))) == {0: 0.0, 1: 0.0, 2: 0.0}
