"""Gram matrices and Fisher information of deltas, each on its own task's training data, with itself attached.

    python -m pewe.merging.collect_deltas --tune_method lora --source_ckpt_path checkpoints/lora/full_data --full_train

writes `<source_ckpt_path>/<task>/statistics.safetensors` beside each `checkpoint-best.pt`. The statistics are of the maps
of `deltas.source_maps`: `gram.<map>` (d_in, d_in) of what it is applied to, `fisher.<map>` (d_in, d_out) of its entries
(LoRA: up to the square of its scale, the same for all models). The Fisher is the empirical one. Statistics that are of this
delta, these data and flags already are left as they are.
"""

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pewe.command import main

import torch
from torch import Tensor
from transformers import PreTrainedModel

from pewe.backbone import Backbone, BackboneConfig, frozen_backbone
from pewe.batches import Batch, scoring_batches
from pewe.cli import log, log_to
from pewe.data import DataConfig, Encoded, chosen_prefixes, load_split, split_digest, task_names
from pewe.deltas.attach import attach_delta
from pewe.deltas.base import Delta, layer_name
from pewe.deltas.checkpoint import delta_identity, read_checkpoint
from pewe.deltas.config import DeltaConfig, unread_flags
from pewe.deltas.sources import source_files
from pewe.errors import UserError
from pewe.files import hold
from pewe.flags import flag
from pewe.forward import T5, pack
from pewe.identity import deciding, state_digest
from pewe.merging.collect import Sums, add_gram
from pewe.merging.deltas import prefix_name
from pewe.merging.rules.matrices import lora_names
from pewe.merging.statistics import FISHER, GRAM, Statistics
from pewe.merging.store import stale, write_tensors
from pewe.packing import token_losses
from pewe.state import DeltaState, shapes_of

DELTA, TASK, DATA = OF_ONE_DELTA = (
    "delta",
    "task",
    "data",
)  # in the identity of statistics; of alike deltas all else is equal
Leaves = dict[str, Tensor]  # what the loss is differentiated by


def collect_delta(
    model: PreTrainedModel,
    delta: Delta,
    kind: str,
    batches: Iterable[Batch],
    examples: int = 1000,
    padding: bool = False,
) -> Statistics:
    """Statistics of the one delta that is attached and loaded, up to the batch that reaches `examples` examples.

    Padding counts with `padding`, as in the original. Raises UserError for a stack of several or no batches.
    """
    if kind not in WATCHES or delta.stack != 1:
        raise UserError(f"statistics are taken of one adapter, lora or prefix at a time, not {delta.stack} of {kind!r}")
    model.eval()
    grams, squares, seen, used = Sums(), Sums(), 0, 0
    with differentiable(model, delta, kind):
        for batch in batches:
            if seen >= examples:
                break
            loss, leaves = loss_and_leaves(delta, kind, batch, grams, padding)
            for name, gradient in zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True):
                _add_square(squares, kind, name, gradient)
            used, seen = used + 1, seen + len(batch.input_ids)
    if not used:
        raise UserError("there are no batches to collect statistics from")
    shapes = {stack: list(network.shape) for stack, network in delta.networks.items()} if kind == "prefix" else {}
    info = {"fisher": "empirical", "batches": used, "examples": seen, "padding": padding, "shapes": shapes}
    return Statistics({**grams.means(GRAM), **squares.means(FISHER)}, info)


def loss_and_leaves(delta: Delta, kind: str, batch: Batch, grams: Sums, padding: bool) -> tuple[Tensor, Leaves]:
    """The mean loss of a batch, and what it is differentiated by; adds what the maps are applied to, to their Grams."""
    model, leaves = delta.backbone_model, {}
    packed = pack(model, batch, 1, padding)
    states = T5(delta, watch=partial(WATCHES[kind], delta, grams, leaves)).states(packed)
    return token_losses(states[packed.scored], model.lm_head.weight, packed.labels[packed.scored]).mean(), leaves


@contextlib.contextmanager
def differentiable(model: PreTrainedModel, delta: Delta, kind: str) -> Iterator[None]:
    """The frozen weights of LoRA's projections have gradients: d loss / d (A B) is that by the weight, times the scale."""
    weights = [model.get_submodule(name).weight for name in lora_names(delta.named)] if kind == "lora" else []
    for weight in weights:
        weight.requires_grad_(True)
    try:
        yield
    finally:
        for weight in weights:
            weight.requires_grad_(False)


def _add_square(squares: Sums, kind: str, name: str, gradient: Tensor) -> None:
    """The squared gradient of one leaf in the orientation and under the name of its map."""
    if kind == "adapter":
        squares.add(name, gradient[0].square(), 1)
    elif kind == "lora":  # of the frozen weight (d_out, d_in)
        squares.add(name, gradient.mT.square().contiguous(), 1)
    else:  # (1, heads, P, d_kv)
        stack, layer, what = name.split(".")
        for head, own in enumerate(gradient[0]):
            own = own.mT if what == "keys" else own
            squares.add(prefix_name(stack, int(layer), head, what), own.square().contiguous(), 1)


def _watch_lora(delta: Delta, grams: Sums, leaves: Leaves, name: str, x: Tensor) -> None:
    """Inputs of the projections, and their frozen weights."""
    if name in delta.at:
        add_gram(grams, name, x, None)
        leaves[name] = delta.backbone_model.get_submodule(name).weight


def _watch_adapter(delta: Delta, grams: Sums, leaves: Leaves, name: str, x: Tensor) -> None:
    """h for A and z = f(h A) for B."""
    if name in delta.at:
        site, own = delta.at[name], f"{layer_name(name)}.adapter"
        add_gram(grams, f"{own}.adapter_A", x, None)
        add_gram(grams, f"{own}.adapter_B", site.down(x, [len(x)]), None)
        leaves.update({f"{own}.adapter_A": site.adapter_A, f"{own}.adapter_B": site.adapter_B})


def _watch_prefix(delta: Delta, grams: Sums, leaves: Leaves, name: str, x: Tensor) -> None:
    """The queries of every head, the rows of attention over the prefix, and the keys and values that the networks make."""
    stack, *parts = name.split(".")
    if parts[-1] in ("keys", "values"):
        leaves[name] = x
    elif parts[-1] in ("queries", "prefix"):
        what = "keys" if parts[-1] == "queries" else "values"
        for head, own in enumerate(x.view(len(x), delta.networks[stack].shape[2], -1).unbind(1)):
            add_gram(grams, prefix_name(stack, int(parts[1]), head, what), own, None)


WATCHES = {"lora": _watch_lora, "adapter": _watch_adapter, "prefix": _watch_prefix}


@dataclass(frozen=True)
class Config(BackboneConfig, DataConfig, DeltaConfig):
    """Which deltas, on which data."""

    source_ckpt_path: str = flag(
        "checkpoints/adapter/full_data", "folder with <source>/checkpoint-best.pt, or a list of sources", decides=False
    )
    examples: int = flag(1000, "training lines at most, of the beginning of the file", low=1)
    batch_size: int = flag(16, "lines per batch; the Fisher squares the gradient of a batch", low=1)
    quiet: bool = flag(False, "warnings only", decides=False)


def statistics_file(folder: Path, task: str) -> Path:
    """Where the statistics of the delta tuned on a task lie: `<folder>/<task>/statistics.safetensors`."""
    return folder / task / "statistics.safetensors"


def statistics_of_delta(config: Config, delta: Delta, state: DeltaState, data: Encoded) -> dict:
    """All that the statistics of a delta depend on."""
    told = {"tasks": [], "one_prefix": False, "sample": "", "seed": 0, "full_train": False}  # by task and data
    own = deciding(config, **told)
    flags = {name: value for name, value in own.items() if name not in unread_flags(config.tune_method)}
    return {DELTA: state_digest(state), TASK: data.task, DATA: split_digest(data), **flags, **delta_identity(config)}


def run(config: Config) -> None:
    """Write the statistics of every task's delta, where they are not there yet."""
    log_to(None, config.quiet)
    if config.tune_method not in WATCHES:
        raise UserError(f"--tune_method {config.tune_method}: statistics are taken of {', '.join(WATCHES)} only")
    folder, tasks = Path(config.source_ckpt_path), task_names(config)
    paths = list(source_files(config.source_ckpt_path, tasks).values())  # said to be missing before a model is loaded
    backbone, made_for = frozen_backbone(config), delta_identity(config)
    delta = attach_delta(backbone.model, config)
    for path in paths:  # all, before the first is worked on
        read_checkpoint(path, config.tune_method, shapes_of(delta), made_for=made_for, among=paths)
    with hold(folder):
        for task, path in zip(tasks, paths, strict=True):
            state = read_checkpoint(path, config.tune_method, shapes_of(delta), made_for=made_for, among=paths)
            prefix = chosen_prefixes(config, task)[0]
            data = load_split(backbone.tokenizer, config, task, prefix, "train")
            write_delta_statistics(config, backbone, delta, state, data, statistics_file(folder, task))


def write_delta_statistics(
    config: Config, backbone: Backbone, delta: Delta, state: DeltaState, data: Encoded, path: Path
) -> None:
    """Write the statistics of one delta, where they are missing, damaged, or were made from something else."""
    identity = statistics_of_delta(config, delta, state, data)
    if not (why := stale(path, identity)):
        log.info("%s: its statistics are current", data.task)
        return
    log.info("%s: statistics are collected, since %s", data.task, why)
    delta.load([state])
    batches = scoring_batches(data, config.batch_size, backbone.pad, config.as_original)
    found = collect_delta(backbone.model, delta, config.tune_method, batches, config.examples, config.as_original)
    write_tensors(path, found.tensors, identity, found.info)


if __name__ == "__main__":
    main(run, Config, __doc__)
