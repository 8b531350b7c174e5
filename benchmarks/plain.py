"""The plain way: one delta at a time, the model rebuilt for every target, every example padded to the full length, Python
loops over the tokens. Every score must equal that of get_similarity/ with --as_original.
"""

from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import scipy.stats
import torch
from torch import Tensor, nn
from transformers import GenerationConfig
from transformers.optimization import Adafactor

from get_similarity.get_GraNd import GraNdConfig, original_budget
from pewe import metrics
from pewe.backbone import Backbone, load_backbone
from pewe.batches import IGNORED, Batch, collate, scoring_batches, training_updates
from pewe.data import SPLITS, DataConfig, Encoded, find_prefixes, load_split
from pewe.deltas.attach import attach_delta
from pewe.deltas.checkpoint import read_checkpoint, task_checkpoint
from pewe.similarity.config import TargetConfig
from pewe.tuning.config import TuneConfig
from task_list import METRICS


def matrix(measure: str, config: TargetConfig, tasks: list[str]) -> np.ndarray:
    """The values of every source (columns) on every target (rows); of `block`, the sum over the blocks."""
    score, limit = SCORES[measure]
    values = np.zeros((len(tasks), len(tasks)))
    for i, target in enumerate(tasks):
        backbone = load_backbone(config)
        delta = attach_delta(backbone.model, config, 1)
        prefix = find_prefixes(Path(config.task_dir), target)[0]
        encoded = load_split(backbone.tokenizer, config, target, prefix, "dev")
        batches = list(scoring_batches(encoded, config.predict_batch_size, backbone.pad, flat_labels=True))
        batches = [full_length(batch, config, backbone.pad) for batch in batches[: limit(target)]]
        delta.load([read_checkpoint(task_checkpoint(Path(config.random_tuned_ckpt_path), target), config.tune_method)])
        reference = [_outputs(backbone.model, batch) for batch in batches] if measure in ("KL", "block") else []
        for j, source in enumerate(tasks):
            delta.load([read_checkpoint(task_checkpoint(Path(config.source_ckpt_path), source), config.tune_method)])
            values[i, j] = score(backbone.model, delta, batches, reference)
    return values


def full_length(batch: Batch, config: DataConfig, pad: int) -> Batch:
    """The batch, padded to --max_input_length and --max_output_length."""

    def widen(tensor: Tensor, width: int, value: int) -> Tensor:
        return nn.functional.pad(tensor, (0, width - tensor.shape[1]), value=value)

    return Batch(
        widen(batch.input_ids, config.max_input_length, pad),
        widen(batch.attention_mask, config.max_input_length, 0),
        widen(batch.labels, config.max_output_length, IGNORED),
    )


def tune(config: TuneConfig, task: str, folder: Path) -> tuple[float, float]:
    """Tune one delta from random init with the first learning rate and batch size; dev and test score of its best step."""
    backbone = load_backbone(config)
    delta = attach_delta(backbone.model, config, 1)
    delta.initialise([f"{config.seed}/{task}"])
    prefix = find_prefixes(Path(config.task_dir), task)[0]
    splits = {split: load_split(backbone.tokenizer, config, task, prefix, split) for split in SPLITS}
    parameters, best = list(delta.named.values()), -1.0
    optimizer = Adafactor(parameters, lr=config.learning_rate_list[0], scale_parameter=False, relative_step=False)
    updates = training_updates(splits["train"], f"{config.seed}/{task}", config.bsz_list[0], 1, not config.as_original)
    for number, (rows,) in enumerate(islice(updates, config.train_iters + 1)):
        if number % config.valid_interval == 0:
            score = _generated_score(backbone, config, splits["dev"])
            if score > best:
                best = score
                torch.save(delta.states()[0], folder / f"{task}.pt")
        if number < config.train_iters:
            backbone.model.train()
            _call(backbone.model, full_length(collate(rows, backbone.pad), config, backbone.pad)).loss.backward()
            nn.utils.clip_grad_norm_(parameters, config.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()
    delta.load([torch.load(folder / f"{task}.pt", weights_only=True)])
    return best, _generated_score(backbone, config, splits["test"])


def greedy_settings(model, max_length: int) -> GenerationConfig:
    """Greedy generation; `max_length` counts the start token. Nothing of the model folder's own settings is kept."""
    ids = {name: getattr(model, name) for name in ("pad_token_id", "eos_token_id", "decoder_start_token_id")}
    return GenerationConfig(max_length=max_length, num_beams=1, do_sample=False, **ids)


@torch.no_grad()
def _generated_score(backbone: Backbone, config: TuneConfig, split: Encoded) -> float:
    backbone.model.eval()
    answers, inputs, greedy = [], split.inputs, greedy_settings(backbone.model.config, config.max_output_length)
    for start in range(0, len(inputs), config.predict_batch_size):
        rows = [(ids, (0,)) for ids in inputs[start : start + config.predict_batch_size]]
        batch = full_length(collate(rows, backbone.pad), config, backbone.pad)
        ids = backbone.model.generate(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask, generation_config=greedy
        )
        answers += backbone.tokenizer.batch_decode(ids, skip_special_tokens=True)
    golds = [example.outputs for example in split.examples]
    return metrics.evaluate(METRICS[split.task], [answer.strip() for answer in answers], golds)


def _call(model, batch: Batch):
    mask = (batch.labels != IGNORED).long()
    return model(
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask,
        labels=batch.labels,
        decoder_attention_mask=mask,
    )


def _outputs(model, batch: Batch) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Logits (B, T, V), and the output of every encoder and decoder block."""
    kept: dict[str, list[Tensor]] = {"encoder": [], "decoder": []}
    hooks = [
        block.register_forward_hook(lambda m, a, output, name=name: kept[name].append(output[0]))
        for name in kept
        for block in getattr(model, name).block
    ]
    model.eval()
    with torch.no_grad():
        logits = _call(model, batch).logits
    for hook in hooks:
        hook.remove()
    return logits, kept["encoder"], kept["decoder"]


def _tokens(batch: Batch) -> Iterator[tuple[int, int]]:
    """Row and column of every label token."""
    for i in range(len(batch.labels)):
        for j in range(batch.labels.shape[1]):
            if int(batch.labels[i, j]) == IGNORED:
                break
            yield i, j


def loss(model, delta, batches, reference) -> float:
    """Mean token loss of the first batch."""
    model.eval()
    with torch.no_grad():
        return _call(model, batches[0]).loss.item()


def kl_divergence(model, delta, batches, reference) -> float:
    """Token by token: entries that are 0 on either side are deleted, scipy does the rest."""
    target, source = reference[0][0], _outputs(model, batches[0])[0]
    return kl_token_loop(target, source, _tokens(batches[0]))


def kl_token_loop(target: Tensor, source: Tensor, tokens) -> float:
    """Sum of the divergences at these (row, column) places of two (B, T, V) tensors of logits."""
    total = 0.0
    for i, j in tokens:
        p, q = torch.softmax(target[i, j], 0).numpy(), torch.softmax(source[i, j], 0).numpy()
        zero = np.union1d(np.where(p == 0)[0], np.where(q == 0)[0])
        total += scipy.stats.entropy(pk=np.delete(p, zero), qk=np.delete(q, zero))
    return float(total)


def el2n(model, delta, batches, reference) -> float:
    """Token by token: the norm of softmax minus one-hot."""
    logits, total = _outputs(model, batches[0])[0], 0.0
    for i, j in _tokens(batches[0]):
        error = torch.softmax(logits[i, j], 0)
        error[int(batches[0].labels[i, j])] -= 1
        total += error.norm().item()
    return total


def cosine(model, delta, batches, reference) -> float:
    """Token by token over all batches: cosine of softmax and one-hot."""
    total = 0.0
    for batch in batches:
        logits = _outputs(model, batch)[0]
        for i, j in _tokens(batch):
            label = torch.zeros(logits.shape[-1])
            label[int(batch.labels[i, j])] = 1
            total += torch.cosine_similarity(torch.softmax(logits[i, j], 0), label, dim=0).item()
    return total


def grand(model, delta, batches, reference) -> float:
    """Batch by batch: the norm of the gradient in train mode."""
    total = 0.0
    for batch in batches:
        model.train()
        for parameter in delta.named.values():
            parameter.grad = None
        _call(model, batch).loss.backward()
        total += sum(parameter.grad.square().sum() for parameter in delta.named.values()).sqrt().item()
    return total


def block(model, delta, batches, reference) -> float:
    """Row by row and block by block: cosine of the states that are not padding; the sum over blocks and rows."""
    batch, total = batches[0], 0.0
    masks = (batch.attention_mask.bool(), batch.labels != IGNORED)
    for targets, sources, mask in zip(reference[0][1:], _outputs(model, batch)[1:], masks, strict=True):
        for ours, theirs in zip(targets, sources, strict=True):
            for i in range(len(mask)):
                total += torch.cosine_similarity(ours[i][mask[i]].flatten(), theirs[i][mask[i]].flatten(), dim=0).item()
    return total


def _one(task: str) -> int:
    return 1


SCORES: dict[str, tuple[Callable, Callable[[str], int | None]]] = {
    "Loss": (loss, _one),
    "KL": (kl_divergence, _one),
    "EL2N": (el2n, _one),
    "Cosine_of_Logits_and_Labels": (cosine, lambda task: None),
    "GraNd": (grand, lambda task: original_budget(GraNdConfig(), task)),
    "block": (block, _one),
}
