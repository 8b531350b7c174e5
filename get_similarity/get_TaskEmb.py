"""TaskEmb: how alike the gradients of two tasks are on one probe delta (Vu et al. 2020, "Exploring and Predicting Transferability
across NLP Tasks"; Achille et al. 2019, "Task2Vec"). No source delta is needed, only its kind and size.

    F^c = sum over batches of (d batch loss / d phi^c)^2 / lines,    of each layer c of the probe phi
    S[i, j] = sum over layers c of 1 / (60 + rank of cos(F_i^c, F_j^c) among all sources but i)      higher is more similar

phi is random, the same for all tasks (`--probe_seed`), tuned on none. The loss is that of the labels; `--sampled` takes labels
that the probe draws itself, token by token behind the given ones, as Task2Vec does. F_i is of the dev lines of target i, F_j
of the first training lines of source j.
"""

import pewe_environment  # noqa: F401

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from pewe.command import main

import torch
from torch import Tensor

from pewe.backbone import Backbone, load_backbone
from pewe.batches import Batch, collate
from pewe.data import Encoded
from pewe.deltas.attach import attach_delta
from pewe.deltas.config import ScoredDeltaConfig
from pewe.deltas.tunable import Tunable
from pewe.flags import flag, seed_flag
from pewe.forward import T5, pack
from pewe.packing import token_losses
from pewe.similarity.loop import run
from pewe.similarity.tasks import OfTasks, Reader, TasksConfig
from pewe.state import scope_of

FUSION = 60  # of reciprocal rank fusion
LAYER = 5  # leading parts of the name of a sub-layer


@dataclass(frozen=True)
class TaskEmbConfig(TasksConfig, ScoredDeltaConfig):
    """Similarity of the gradients of two tasks."""

    forwards: ClassVar[int] = 2
    output_dir: str = flag("checkpoints/adapter/similarity/TaskEmb", "folder of result.tsv", decides=False)
    batch_size: int = flag(8, "lines of a batch, whose mean loss has the gradient that is squared", low=1)
    probe_seed: int = seed_flag(42, "seed of the probe, and of the labels that it draws")
    sampled: bool = flag(False, "labels drawn by the probe instead of those given (Task2Vec)")


def batch_loss(delta: Tunable, batch: Batch, generator: torch.Generator | None) -> Tensor:
    """The mean loss of the batch's label tokens, or of tokens that a generator draws from the probe's own distribution."""
    model = delta.backbone_model
    packed = pack(model, batch, 1)
    states, labels = T5(delta).states(packed), packed.labels
    if generator is not None:
        p = torch.softmax((states @ model.lm_head.weight.mT).detach().float(), dim=1)
        labels = torch.multinomial(p.cpu(), 1, generator=generator)[:, 0].to(labels.device)
    return token_losses(states, model.lm_head.weight, labels).mean()


def embedding(backbone: Backbone, delta: Tunable, config: TaskEmbConfig, encoded: Encoded) -> dict[str, Tensor]:
    """F of every layer of the probe, layer -> (P,), float64."""
    generator = torch.Generator().manual_seed(config.probe_seed) if config.sampled else None
    rows = list(zip(encoded.inputs, encoded.labels(), strict=True))[: config.text_lines]
    totals: dict[str, Tensor] = {}
    for start in range(0, len(rows), config.batch_size):
        batch = collate(rows[start : start + config.batch_size], backbone.pad)
        gradients = torch.autograd.grad(batch_loss(delta, batch, generator), list(delta.named.values()))
        for name, gradient in zip(delta.named, gradients, strict=True):
            totals[name] = totals.get(name, 0) + gradient.flatten().double().cpu().square()
    layers: dict[str, list[Tensor]] = {}
    for name, total in totals.items():
        layers.setdefault(scope_of(name, LAYER), []).append(total / len(rows))
    return {layer: torch.cat(parts) for layer, parts in layers.items()}


def reader(config: TaskEmbConfig) -> Reader:
    """A task as its F on the probe."""
    backbone = load_backbone(config)
    delta = attach_delta(backbone.model, config)
    delta.initialise([f"{config.probe_seed}/probe"])
    backbone.model.eval()
    return Reader(backbone.tokenizer, partial(embedding, backbone, delta, config))


def fused(targets: Mapping[str, dict[str, Tensor]], sources: Mapping[str, dict[str, Tensor]]) -> Tensor:
    """Reciprocal rank fusion over the layers, (T, n); a source that is the target itself gets no rank, and 0."""
    S = torch.zeros(len(targets), len(sources), dtype=torch.float64)
    for row, (target, own) in zip(S, targets.items(), strict=True):
        others = [place for place, source in enumerate(sources) if source != target]
        for layer, mine in own.items():
            theirs = torch.stack([source[layer] for source in sources.values()])[others]
            cosines = torch.cosine_similarity(mine[None], theirs)
            ranks = cosines.argsort(descending=True, stable=True).argsort() + 1
            row[others] += 1.0 / (FUSION + ranks)
    return S


MEASURE = OfTasks("TaskEmb", True, TaskEmbConfig, reader, fused).measure()

if __name__ == "__main__":
    main(partial(run, MEASURE), MEASURE.config, __doc__)
