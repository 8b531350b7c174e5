"""Fusion of deltas and of whole models: statistics, merges, ensembles."""

import itertools
from functools import partial

import numpy as np
import torch
from conftest import SMALL, VERSIONS, draws, fill, filled, random_batch, tiny_t5
from golden.compare import Numbers, summaries, summary
from transformers import AutoConfig, RobertaForSequenceClassification

from pewe.batches import Batch
from pewe.fusion import voting as ensembles
from pewe.merging.collect import collect, counts_of
from pewe.merging.collect_deltas import collect_delta
from pewe.merging.deltas import DeltaMergeConfig, merge_deltas, source_maps
from pewe.merging.models import MergeConfig, merge_models
from pewe.merging.statistics import GRAM


def of_deltas(name: str, method: str, world) -> Numbers:
    """The maps of three deltas merged by their statistics, for two targets."""
    kind, states, statistics = SMALL[name]["tune_method"], [], []
    for seed in (1, 2, 3):
        backbone = tiny_t5()
        delta, (state,) = filled(backbone, name, 1, seed)
        states.append(state)
        statistics.append(
            collect_delta(backbone, delta, kind, [Batch(**random_batch(4, seed=10 * seed + n)) for n in range(3)])
        )
    W = torch.tensor([[0.5, 0.3, 0.2], [0.0, 0.6, 0.4]])
    merged = merge_deltas(kind, method, states, statistics, W, DeltaMergeConfig())
    maps = source_maps(kind, merged, statistics[0].info["shapes"])
    groups = itertools.groupby(maps, lambda one: one[0].split(".head.")[0])
    return {group: summary(torch.cat([M.flatten() for _, pair in members for M in pair])) for group, members in groups}


def tiny_roberta() -> RobertaForSequenceClassification:
    """A random tiny RoBERTa with four labels."""
    config = AutoConfig.for_model(
        "roberta",
        vocab_size=96,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=20,
        num_labels=4,
    )
    return RobertaForSequenceClassification(config).eval()


BACKBONES = {"encoder": tiny_roberta, "T5 v1.1": tiny_t5, "T5 v1.0": partial(tiny_t5, **VERSIONS["v1.0"])}
MERGES = {"simple": {}, "fisher": {"normalise": "param"}, "regmean": {"alpha": 0.9, "ridge": 1e-3}}


def of_models(name: str, as_original: bool, world) -> Numbers:
    """Statistics of two models, and what the three merges make of them."""
    models, statistics = [], []
    for seed in (1, 2):
        one = fill(BACKBONES[name](), f"model {seed}")
        batches = [random_batch(4, seed=10 * seed + number) for number in range(2)]
        if name == "encoder":
            batches = [{**batch, "labels": batch["input_ids"][:, 0] % 4} for batch in batches]
        statistics.append(collect(one, batches, counts=counts_of(as_original)))
        models.append({key: parameter.detach().double() for key, parameter in one.named_parameters()})
    if as_original:  # it counts padding; the rest is the same
        return summaries({key: gram for key, gram in statistics[0].tensors.items() if key.startswith(GRAM)})
    found = summaries(statistics[0].tensors)
    for method, settings in MERGES.items():
        merged = dict(merge_models(models, MergeConfig(method=method, coefficients=[0.6, 0.4], **settings), statistics))
        found |= summaries(merged, f"{method} ")
    return found


def of_predictions(world) -> Numbers:
    """Ensembles of logits and tokens, and their scores."""
    logits, tokens = draws("logits", 3, 6, 4), (draws("tokens", 3, 5, 4) > 0).int()
    gold = (draws("gold", 6, 4) > 0).int().numpy()
    soft, known = ensembles.soft_ensemble(logits), ensembles.known_ensemble(logits, [[0, 1], [1, 2], [0, 3]])
    tags = np.array(["O", "B-PER", "I-PER", "B-LOC", "I-LOC"])
    predicted, right = (
        tags[(draws(side, 6, 8).numpy() * 2).astype(int) % 5].tolist() for side in ("predicted", "right")
    )
    return {
        "soft": summary(soft),
        "known": summary(known),
        "hard": ensembles.hard_ensemble(tokens).flatten().tolist(),
        "label_f1": list(ensembles.label_f1((known > 0).numpy(), gold).values()),
        "entity_f1": list(ensembles.entity_f1(predicted, right).values()),
    }
