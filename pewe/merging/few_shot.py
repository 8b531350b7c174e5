"""Weights that are chosen by how well merged deltas do on the few-shot lines of their target: many candidates in one stack.

A candidate is one state; K of them are the members of one stack (`pewe/deltas/base.py`), so that a search costs as many
forwards of the backbone as it has rounds.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import ClassVar

import torch
from torch import Tensor

from pewe.backbone import Backbone, BackboneConfig, load_backbone
from pewe.batches import collate
from pewe.data import DataConfig, Encoded, chosen_prefixes, load_split, split_digest
from pewe.deltas.attach import attach_delta
from pewe.deltas.checkpoint import Checkpoints, check_made_for, delta_identity
from pewe.deltas.config import ScoredDeltaConfig, SizeConfig
from pewe.deltas.kinds import SCORED
from pewe.deltas.tunable import Tunable
from pewe.errors import UserError
from pewe.flags import flag
from pewe.identity import model_digest
from pewe.losses import losses
from pewe.merging.average import merge
from pewe.merging.combine import Combiner
from pewe.merging.save import EnsembleConfig, Part, digests, ensemble_sources, ensemble_tasks, read_states, save
from pewe.merging.weights import allowed_sources
from pewe.similarity.scoring import positions
from pewe.state import DeltaState, check_state, scope_of, shapes_of
from pewe.tuning.evaluate import evaluate
from task_list import METRICS

LAYER = 5  # leading parts of the name of a sub-layer


@dataclass(frozen=True)
class FewShotConfig(EnsembleConfig, BackboneConfig, DataConfig, SizeConfig):
    """What the scripts share that look at the target's few-shot lines."""

    reads: ClassVar[str] = "train"  # the split of a target whose few-shot lines are looked at
    stack: int = flag(12, "candidates in one forward", decides=False, low=1, high=2**12)
    predict_batch_size: int = flag(80, "dev lines per forward and candidate", decides=False, low=1)

    def forwards(self, lines: int, sources: int) -> float:
        """How often a line is read for a target of so many lines and sources; a backward pass counts as one."""
        return lines


@dataclass(frozen=True)
class _Attached(BackboneConfig, ScoredDeltaConfig):
    """Which delta on which backbone."""


def attached(config) -> tuple[_Attached, Backbone, Tunable]:
    """What the flags say of the delta, the backbone, and a delta of this kind on it. Raises UserError for other kinds."""
    if config.delta not in SCORED:
        raise UserError(f"--delta {config.delta}: ensembles are of {', '.join(SCORED)} deltas")
    names = [one.name for one in fields(_Attached) if one.name in config.__dataclass_fields__]
    about = _Attached(tune_method=config.delta, **{name: getattr(config, name) for name in names})
    backbone = load_backbone(config)
    return about, backbone, attach_delta(backbone.model, about)


class FewShot:
    """A backbone, the sources of one kind of delta, and the few-shot lines of their targets."""

    def __init__(self, config: FewShotConfig, states: Checkpoints, tasks: Sequence[str]):
        """Raises UserError where the sources are not of this backbone and size, or a target has no lines."""
        about, self.backbone, self.delta = attached(config)
        self.config, self.states, self.tasks = config, states, list(tasks)
        check_made_for(states.made_for, delta_identity(about), states.paths[0])
        check_state(states[0], shapes_of(self.delta), states.paths[0])
        self.backbone.model.eval()

    def split(self, task: str, split: str) -> Encoded:
        """The few-shot lines of a target: those of the first prefix that it would be tuned on."""
        prefix = chosen_prefixes(self.config, task)[0]
        return load_split(self.backbone.tokenizer, self.config, task, prefix, split)

    def made_from(self) -> dict:
        """What the lines and the backbone add to an ensemble's identity."""
        return {
            "few_shot": {task: split_digest(self.split(task, self.config.reads)) for task in self.tasks},
            "backbone": model_digest(self.config.model, self.config.tokenizer_path),
        }

    def mixtures(self, W: Tensor) -> list[DeltaState]:
        """sum_j w_kj theta_j for each row of W (K, n)."""
        return list(merge(self.states, W))

    @torch.no_grad()
    def line_losses(self, candidates: Sequence[DeltaState], lines: Encoded) -> tuple[Tensor, Tensor]:
        """Summed token cross-entropy in nats of each candidate on each line, (K, L), and the tokens of the lines, (L,)."""
        rows = list(zip(lines.inputs, lines.labels(), strict=True))
        longest = max(len(inputs) + len(labels) for inputs, labels in rows)
        sums = []
        for start in range(0, len(candidates), self.config.stack):
            chunk = candidates[start : start + self.config.stack]
            self.delta.load(chunk)
            size = max(1, positions(self.backbone, longest) // (len(chunk) * longest))
            batches = [collate(rows[at : at + size], self.backbone.pad) for at in range(0, len(rows), size)]
            parts = []
            for batch in batches:
                found, packed = losses(self.delta, batch.repeat(len(chunk)))
                total = found.new_zeros(len(chunk) * len(batch.labels))
                parts.append(total.index_add(0, packed.decoder.row[packed.scored], found).view(len(chunk), -1))
            sums.append(torch.cat(parts, dim=1).double().cpu())
        return torch.cat(sums), torch.tensor([len(labels) for _, labels in rows], dtype=torch.float64)

    def dev_scores(self, candidates: Sequence[DeltaState], tasks: Sequence[str]) -> list[float]:
        """The metric of each candidate on the dev lines of its own task."""
        scores = []
        for start in range(0, len(candidates), self.config.stack):
            chunk, own = (items[start : start + self.config.stack] for items in (candidates, tasks))
            self.delta.load(chunk)
            splits, names = [self.split(task, "dev") for task in own], [METRICS[task] for task in own]
            size, length = self.config.predict_batch_size, self.delta.generation_length(self.config)
            scores += evaluate(self.backbone, self.delta, splits, names, size, length)
        return scores


@dataclass
class Found:
    """What a script found: weights (T, n), or of each layer (T, L, n) with the layers' names; and what else decides them."""

    W: Tensor
    layers: Sequence[str] = ()
    made_from: Mapping = field(default_factory=dict)


def weigh_and_save(
    config: FewShotConfig,
    default: Sequence[str] | str,
    title: str,
    weigh: Callable[[FewShot, Tensor], Found],
) -> None:
    """What the scripts that weigh by few-shot lines do: weights from `weigh`, then one ensemble for every target.

    `weigh` also gets which sources a target may use, (T, n). Weights by layer are for the average alone.
    """
    tasks = ensemble_tasks(config, default)
    sources = ensemble_sources(config, tasks)
    states = read_states(config.source_ckpt_path, config.delta, sources)
    combiner = Combiner(config, states, sources, config.source_ckpt_path)
    few_shot = FewShot(config, states, tasks)
    found = weigh(few_shot, allowed_sources(tasks, sources))
    W, by_layer = found.W, {}
    if found.layers:
        W, by_layer = W.mean(1), dict(zip(found.layers, W.unbind(1), strict=True))
    merged = merged_by_layer(states, by_layer) if by_layer else combiner.merge(W)
    part = Part(tasks, sources, W, f"{config.delta}: {title}", merged, layers=by_layer)
    made_from = {"sources": digests(sources, states), **few_shot.made_from(), **found.made_from}
    save(config, [part], {**made_from, **combiner.made_from()}, states.made_for)


def layers_of(state: DeltaState) -> dict[str, list[str]]:
    """The layers of a delta, each with the names of its tensors: sub-layers, of a prefix the sides of the model."""
    layers: dict[str, list[str]] = {}
    for name in state:
        layers.setdefault(scope_of(name, LAYER), []).append(name)
    return layers


def merged_by_layer(states: Sequence[DeltaState], by_layer: Mapping[str, Tensor]) -> Iterator[DeltaState]:
    """theta_i = sum_j w_ij^l theta_j in each layer l, for every target; weights (T, n) by layer.

    A layer is the beginning of the names of its tensors: a sub-layer, a linear layer, a side of the model. All have weights.
    """
    layers = {layer: [name for name in states[0] if name.startswith(f"{layer}.")] for layer in by_layer}
    parts = [
        merge([{name: state[name] for name in layers[layer]} for state in states], W) for layer, W in by_layer.items()
    ]
    for of_target in zip(*parts, strict=True):
        together = {name: tensor for part in of_target for name, tensor in part.items()}
        yield {name: together[name] for name in states[0]}
