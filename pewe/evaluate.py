"""Greedy generation and the task metric, for a stack of deltas with a split of data each."""

from collections.abc import Sequence

import torch
from transformers import DynamicCache, EncoderDecoderCache

from pewe import metrics
from pewe.backbone import Backbone
from pewe.cli import log
from pewe.data import Encoded, Row, collate


@torch.no_grad()
def generate(backbone: Backbone, splits: Sequence[Encoded], batch_size: int, max_length: int) -> list[list[str]]:
    """The text that member k of the attached stack gives for each input of `splits[k]`, stripped, in file order.

    `batch_size` is per member. Inputs are taken longest first, so that batches pad little; a member that has run out of
    lines repeats its last one and the repetition is dropped.
    """
    backbone.model.eval()
    orders = [sorted(range(len(split.inputs)), key=lambda i, s=split: -len(s.inputs[i])) for split in splits]
    answers = [[""] * len(split.inputs) for split in splits]
    for start in range(0, max(map(len, orders)), batch_size):
        chosen = [order[start : start + batch_size] or order[-1:] for order in orders]
        size = max(map(len, chosen))
        rows: list[Row] = []
        for split, lines in zip(splits, chosen, strict=True):
            members = [(split.inputs[i], (0,)) for i in lines]
            rows += [*members, *[members[-1]] * (size - len(members))]
        texts = _generate_batch(backbone, rows, max_length)
        for k, (order, lines) in enumerate(zip(orders, chosen, strict=True)):
            if start < len(order):
                for i, text in zip(lines, texts[k * size :], strict=False):
                    answers[k][i] = text
    return answers


def _generate_batch(backbone: Backbone, rows: list[Row], max_length: int) -> list[str]:
    batch = collate(rows, backbone.pad).to(backbone.device)
    ids = backbone.model.generate(
        input_ids=batch.input_ids, attention_mask=batch.attention_mask, generation_config=backbone.greedy(max_length),
        past_key_values=empty_cache(),
    )  # fmt: skip
    return [text.strip() for text in backbone.tokenizer.batch_decode(ids, skip_special_tokens=True)]


def empty_cache() -> EncoderDecoderCache:
    """A cache that grows with the layers: transformers' own has as many as the encoder, too few for a deeper decoder."""
    return EncoderDecoderCache(DynamicCache(), DynamicCache())


def evaluate(
    backbone: Backbone, splits: Sequence[Encoded], metric_names: Sequence[str], batch_size: int, max_length: int
) -> list[float]:
    """The metric of member k of the attached stack on `splits[k]`; 0, with a warning, where it is not defined."""
    predictions = generate(backbone, splits, batch_size, max_length)
    scores = []
    for split, metric, answers in zip(splits, metric_names, predictions, strict=True):
        value, undefined = metrics.score(metric, answers, [example.outputs for example in split.examples])
        if undefined:
            log.warning("%s: %s; it counts as %g", split.task, undefined, value)
        scores.append(value)
    return scores
