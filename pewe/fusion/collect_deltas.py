"""Gram matrices and Fisher information of deltas, each on its own task's training data, with itself attached.

    python -m pewe.fusion.collect_deltas --tune_method lora --source_ckpt_path checkpoints/lora/full_data --full_train

writes `<source_ckpt_path>/<task>/statistics.safetensors` beside each `checkpoint-best.pt`. The statistics are of the maps
of `deltas.source_maps`: `gram.<map>` (d_in, d_in) of what it is applied to, `fisher.<map>` (d_in, d_out) of its entries
(LoRA: up to the square of its scale, the same for all models). The Fisher is the empirical one. Statistics that are of this
delta, these data and flags already are left as they are.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from pewe.backbone import Backbone, BackboneConfig, load_backbone
from pewe.checkpoint import delta_identity, read_checkpoint, shapes_of, task_checkpoint
from pewe.cli import UserError, flag, log, log_to, main
from pewe.data import DataConfig, Encoded, find_prefixes, load_split, scoring_batches, split_digest, task_names
from pewe.deltas import Delta, DeltaConfig, DeltaState, attach_delta, unread_flags
from pewe.deltas.prefix import Prefix
from pewe.fusion.collect import Batch, Sums, add_gram, counted, gold_loss, watching
from pewe.fusion.deltas import lora_names, prefix_name
from pewe.fusion.store import FISHER, GRAM, Statistics, stale, write_tensors
from pewe.identity import deciding, state_digest
from pewe.results import hold

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
    as_original: bool = False,
) -> Statistics:
    """Statistics of the one delta that is attached and loaded, up to the batch that reaches `examples` examples.

    `as_original` counts padding. Raises UserError for a stack of several or no batches.
    """
    if kind not in WATCHES or delta.stack != 1:
        raise UserError(f"statistics are taken of one adapter, lora or prefix at a time, not {delta.stack} of {kind!r}")
    model.eval()
    grams, squares, seen, used = Sums(), Sums(), 0, 0
    for batch in batches:
        if seen >= examples:
            break
        batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
        with WATCHES[kind](model, delta, batch, grams, as_original) as leaves:
            output = model(**batch, use_cache=False, output_attentions=kind == "prefix")
            if kind == "prefix":
                _attention_grams(output, delta, batch, grams, as_original)
            loss = gold_loss(output.logits, batch["labels"])
            for name, gradient in zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True):
                _add_square(squares, kind, name, gradient)
        used, seen = used + 1, seen + len(batch["input_ids"])
    if not used:
        raise UserError("there are no batches to collect statistics from")
    shapes = {stack: list(network.shape) for stack, network in delta.networks.items()} if kind == "prefix" else {}
    info = {"fisher": "empirical", "batches": used, "examples": seen, "padding": as_original, "shapes": shapes}
    return Statistics({**grams.means(GRAM), **squares.means(FISHER)}, info)


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


@contextlib.contextmanager
def _watch_lora(model: PreTrainedModel, delta: Delta, batch: Batch, grams: Sums, as_original: bool) -> Iterator[Leaves]:
    """Inputs of the projections, and their frozen weights: d loss / d (A B) is that by the weight, times the scale."""
    layers = {name: model.get_submodule(name) for name in lora_names(delta.named)}
    for layer in layers.values():
        layer.weight.requires_grad_(True)
    try:
        with watching(model, layers, batch, grams, as_original):
            yield {name: layer.weight for name, layer in layers.items()}
    finally:
        for layer in layers.values():
            layer.weight.requires_grad_(False)


@contextlib.contextmanager
def _watch_adapter(
    model: PreTrainedModel, delta: Delta, batch: Batch, grams: Sums, as_original: bool
) -> Iterator[Leaves]:
    """h for A and z = f(h A) for B; the sites multiply in batches, which hooks on linear layers do not see."""
    names = [name.removesuffix("_A") for name in delta.named if name.endswith("adapter_A")]
    for name, site in zip(names, delta.delta_modules, strict=True):

        def adapt(hidden, name=name, site=site):
            mask = None if as_original else counted(name, hidden, batch, True)
            add_gram(grams, f"{name}_A", hidden, mask)
            add_gram(grams, f"{name}_B", site.activation(hidden @ site.adapter_A[0]), mask)
            return type(site).adapt(site, hidden)

        site.adapt = adapt
    try:
        yield dict(delta.named)
    finally:
        for site in delta.delta_modules:
            del site.adapt


@contextlib.contextmanager
def _watch_prefix(
    model: PreTrainedModel, delta: Prefix, batch: Batch, grams: Sums, as_original: bool
) -> Iterator[Leaves]:
    """The queries of every head, and the keys and values that the networks make."""
    leaves, handles = {}, []
    for stack, network in delta.networks.items():
        network.forward = _remembering(network, stack, leaves)
        for layer in range(network.shape[0]):
            name = f"{stack}.block.{layer}.layer.0.SelfAttention.q"

            def hook(module, args, queries, name=name, stack=stack, layer=layer, heads=network.shape[2]):
                mask = None if as_original else counted(name, args[0], batch, True)
                for head, own in enumerate(queries.chunk(heads, dim=-1)):
                    add_gram(grams, prefix_name(stack, layer, head, "keys"), own, mask)

            handles.append(model.get_submodule(name).register_forward_hook(hook))
    try:
        yield leaves
    finally:
        for handle in handles:
            handle.remove()
        for network in delta.networks.values():
            del network.forward


def _remembering(network, stack: str, leaves: Leaves) -> Callable:
    def forward(layer: int) -> tuple[Tensor, Tensor]:
        made = type(network).forward(network, layer)
        leaves.update(
            {f"{stack}.{layer}.{what}": tensor for what, tensor in zip(("keys", "values"), made, strict=True)}
        )
        return made

    return forward


def _attention_grams(output, delta: Prefix, batch: Batch, grams: Sums, as_original: bool) -> None:
    """The rows of attention over the prefix slots, (B, T, P) of every layer and head."""
    for stack, network in delta.networks.items():
        for layer, attention in enumerate(getattr(output, f"{stack}_attentions")):
            for head, rows in enumerate(attention[..., : network.shape[3]].unbind(1)):
                mask = None if as_original else counted(f"{stack}.", rows, batch, True)
                add_gram(grams, prefix_name(stack, layer, head, "values"), rows, mask)


WATCHES = {"lora": _watch_lora, "adapter": _watch_adapter, "prefix": _watch_prefix}


@dataclass
class Config(BackboneConfig, DataConfig, DeltaConfig):
    """Which deltas, on which data."""

    source_ckpt_path: str = flag(
        "checkpoints/adapter/full_data", "folder with <source>/checkpoint-best.pt", decides=False
    )
    examples: int = flag(1000, "training lines at most, of the beginning of the file", low=1)
    batch_size: int = flag(16, "lines per batch; the Fisher squares the gradient of a batch", low=1)
    quiet: bool = flag(False, "warnings only", decides=False)


def statistics_file(folder: Path, task: str) -> Path:
    """Where the statistics of the delta tuned on a task lie: `<folder>/<task>/statistics.safetensors`."""
    return folder / task / "statistics.safetensors"


def statistics_of_delta(config: Config, delta: Delta, state: DeltaState, data: Encoded) -> dict:
    """All that the statistics of a delta depend on."""
    own = deciding(config, tasks=[], one_prefix=False, full_train=False)  # told by task and data
    flags = {name: value for name, value in own.items() if name not in unread_flags(delta)}
    return {DELTA: state_digest(state), TASK: data.task, DATA: split_digest(data), **flags, **delta_identity(config)}


def run(config: Config) -> None:
    """Write the statistics of every task's delta, where they are not there yet."""
    log_to(None, config.quiet)
    if config.tune_method not in WATCHES:
        raise UserError(f"--tune_method {config.tune_method}: statistics are taken of {', '.join(WATCHES)} only")
    backbone = load_backbone(config)
    delta = attach_delta(backbone.model, config)
    folder, tasks = Path(config.source_ckpt_path), task_names(config)
    paths, made_for = [task_checkpoint(folder, task) for task in tasks], delta_identity(config)
    for path in paths:  # all, before the first is worked on
        read_checkpoint(path, config.tune_method, shapes_of(delta), made_for=made_for)
    with hold(folder):
        for task, path in zip(tasks, paths, strict=True):
            state = read_checkpoint(path, config.tune_method, shapes_of(delta), made_for=made_for)
            prefix = find_prefixes(Path(config.task_dir), task)[0]
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
    batches = (vars(batch) for batch in scoring_batches(data, config.batch_size, backbone.pad, config.as_original))
    found = collect_delta(backbone.model, delta, config.tune_method, batches, config.examples, config.as_original)
    write_tensors(path, found.tensors, identity, found.info)


if __name__ == "__main__":
    main(run, Config, __doc__)
