"""Ensembles of individual models, the comparators of a merge, and the scores of the paper's experiments."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from pewe.batches import IGNORED


def soft_ensemble(logits: Tensor) -> Tensor:
    """Mean of the logits of all models, (N, B, C) -> (B, C)."""
    return logits.mean(0)


def known_ensemble(logits: Tensor, labels: Sequence[Sequence[int]]) -> Tensor:
    """Mean of each label's logits over the models that know the label, 0 where none does, (N, B, C) -> (B, C)."""
    known = torch.zeros(logits.shape[0], 1, logits.shape[2], dtype=logits.dtype)
    for mask, own in zip(known, labels, strict=True):
        mask[0, list(own)] = 1
    return (logits * known).sum(0) / known.sum(0).clamp(min=1)


def hard_ensemble(tokens: Tensor) -> Tensor:
    """The most frequent token of each position, the earliest model's among equals, (N, ...) -> (...).

    Two models therefore give the first one's answer.
    """
    votes = (tokens[:, None] == tokens[None]).sum(1)  # for each model, how many agree with it
    return tokens.gather(0, votes.argmax(0, keepdim=True))[0]


def label_f1(predicted: np.ndarray, gold: np.ndarray) -> dict[int, float]:
    """F1 of each label that is known in the data, from (B, C) 0 or 1; gold -100 is unknown and not counted.

    Of logits, predictions are `logits > 0` (p > 0.5); the release takes `logits > 0.5` (p > 0.62). A label that the
    data knows but for which there are neither positives nor predictions has F1 0. The key score is the mean over labels.
    """
    known = gold != IGNORED
    right, answered = gold == 1, (predicted == 1) & known
    both, either = (right & answered).sum(0), right.sum(0) + answered.sum(0)
    return {int(label): float(2 * both[label] / max(1, either[label])) for label in np.flatnonzero(known.any(0))}


def entities(tags: Sequence[str]) -> set[tuple[str, int, int]]:
    """(type, first, last) of the entities in a sequence of IOB tags; an I- of another type starts a new one."""
    found, kind, first = set(), "", 0
    for position, tag in enumerate([*tags, "O"]):
        prefix, _, own = tag.partition("-")
        if kind and (prefix != "I" or own != kind):
            found.add((kind, first, position - 1))
            kind = ""
        if own and not kind:
            kind, first = own, position
    return found


def entity_f1(predicted: Sequence[Sequence[str]], gold: Sequence[Sequence[str]]) -> dict[str, float]:
    """Micro precision, recall and F1 of entities in percent, over sequences of tags of first subwords (conlleval)."""
    count = Counter()
    for own, right in zip(map(entities, predicted), map(entities, gold), strict=True):
        count.update(predicted=len(own), gold=len(right), both=len(own & right))
    precision, recall = (100 * count["both"] / max(1, count[side]) for side in ("predicted", "gold"))
    return {"precision": precision, "recall": recall, "f1": 2 * precision * recall / max(1e-12, precision + recall)}
