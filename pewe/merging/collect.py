"""Statistics of a fine-tuned model from one pass over its training data (Jin et al. 2023, sections 2 and 3).

    Gram     G = 1/n * sum of x^T x             x: inputs (1, d) of one linear layer at n positions
    Fisher   F = 1/b * sum of (d loss / d theta)^2   over b batches, the loss being the mean of its batch

The model is in eval mode. What counts beside the real tokens is a choice (`Counts`).

    python -m pewe.merging.collect --model A --data train.tsv --output a.safetensors

takes lines of text TAB label (a T5: input TAB output); token classifiers go through `collect`.
"""

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from pewe.command import main

import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.pytorch_utils import Conv1D

from pewe.batches import IGNORED
from pewe.cli import log, log_to
from pewe.data import LONGEST, Example, read_examples
from pewe.errors import UserError
from pewe.flags import flag, suggest
from pewe.identity import deciding, digest, model_digest
from pewe.merging.statistics import FISHER, GRAM, Statistics
from pewe.merging.store import WEIGHTS, made
from pewe.tokens import tokenise
from pewe.whole_model import load_model, load_tokenizer, model_config, text_length

FISHERS = ("hard", "empirical", "none")
Batch = dict[str, Tensor]  # input_ids, attention_mask (B, S), labels: (B,), (B, C) multi-label, (B, S) or (B, T)


@dataclass(frozen=True)
class Counts:
    """What a pass counts, by name."""

    padding: bool = False  # positions of padding
    generated: bool = False  # of a T5, the positions of a generation of 4 tokens too
    batches: bool = False  # `examples` is a number of batches


OURS, RELEASE = Counts(), Counts(padding=True, generated=True, batches=True)


def counts_of(as_original: bool) -> Counts:
    """What our pass counts, or the release's."""
    return RELEASE if as_original else OURS


class Sums(dict):
    """Running sums of tensors by name, and the number of terms in each."""

    def __init__(self):
        self.counts: dict[str, int] = {}

    def add(self, name: str, term: Tensor, count: int) -> None:
        """Add a sum over `count` terms."""
        self[name] = self[name].add_(term) if name in self else term
        self.counts[name] = self.counts.get(name, 0) + count

    def means(self, prefix: str) -> dict[str, Tensor]:
        """Each sum divided by its count in place, on the CPU, its name prefixed."""
        return {prefix + name: term.div_(self.counts[name]).cpu() for name, term in self.items()}


def add_gram(sums: Sums, name: str, x: Tensor, mask: Tensor | None) -> None:
    """Add the positions of x (..., d) to the Gram matrix of `name`; mask (...) is True where a position counts."""
    rows = (x.flatten(0, -2) if mask is None else x[mask.bool()]).detach().double()
    sums.add(name, rows.mT @ rows, len(rows))


def collect(
    model: PreTrainedModel,
    batches: Iterable[Batch],
    gram: bool = True,
    fisher: str = "empirical",
    examples: int = 1000,
    counts: Counts = OURS,
) -> Statistics:
    """Gram matrices of all linear layers and the Fisher information of all parameters, in one pass over the batches.

    The pass ends with the batch that reaches `examples` examples, or batches.
    `info["labels"]` lists the labels that occurred, for the head rule of the merge.

    Raises UserError for an unknown Fisher, no batches, or a hard Fisher of a model with a label per token.
    """
    if fisher not in FISHERS:
        raise UserError(f"unknown Fisher {suggest(fisher, FISHERS)}")
    model.eval()
    grams, squares, labels, seen, used = Sums(), Sums(), set(), 0, 0
    seq2seq, layers = model.config.is_encoder_decoder, linear_layers(model)
    for batch in batches:
        if (used if counts.batches else seen) >= examples:
            break
        batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
        inputs = {name: tensor for name, tensor in batch.items() if name != "labels" or seq2seq}
        with watching(model, layers, batch, grams, counts) if gram else contextlib.nullcontext():
            if gram and seq2seq and counts.generated:
                model.generate(**{**inputs, "labels": None}, max_length=4, num_beams=1, do_sample=False)
            with torch.set_grad_enabled(fisher != "none"):
                logits = model(**inputs).logits
        if fisher != "none":
            loss = hard_loss if fisher == "hard" and logits.shape[-1] > 1 else gold_loss
            add_squared_gradients(squares, loss(logits, batch["labels"]), dict(model.named_parameters()))
        labels |= _labels(logits, batch["labels"])
        used, seen = used + 1, seen + len(batch["input_ids"])
    if not used:
        raise UserError("there are no batches to collect statistics from")
    info = {
        "fisher": fisher,
        "batches": used,
        "examples": seen,
        "padding": counts.padding,
        "labels": sorted(labels),
        "conv1d": [name for name, layer in layers.items() if isinstance(layer, Conv1D)],
    }
    return Statistics({**grams.means(GRAM), **squares.means(FISHER)}, info)


def linear_layers(model: PreTrainedModel) -> dict[str, nn.Module]:
    """Every linear layer by name; of layers with a tied weight only the one that owns it."""
    parameters = dict(model.named_parameters())
    modules = model.named_modules()
    return {name: m for name, m in modules if isinstance(m, nn.Linear | Conv1D) and f"{name}.weight" in parameters}


@contextlib.contextmanager
def watching(
    model: PreTrainedModel, layers: dict[str, nn.Module], batch: Batch, grams: Sums, counts: Counts
) -> Iterator[None]:
    """Add the inputs of these layers to their Grams while the block runs."""
    handles = []
    for name, module in layers.items():

        def hook(module, args, name=name):
            mask = None if counts.padding else counted(name, args[0], batch, model.config.is_encoder_decoder)
            add_gram(grams, name, args[0], mask)

        handles.append(module.register_forward_pre_hook(hook))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def counted(name: str, x: Tensor, batch: Batch, seq2seq: bool) -> Tensor | None:
    """The mask (B, S) of the positions of x that are no padding; None where x is not one vector per position.

    The decoder of a T5 has a position per label; the keys and values of its cross-attention one per input token.
    """
    decoder = (
        seq2seq and not name.startswith("encoder.") and not name.endswith(("EncDecAttention.k", "EncDecAttention.v"))
    )
    mask = batch["labels"] != IGNORED if decoder else batch["attention_mask"]
    return mask if x.shape[:-1] == mask.shape else None


def hard_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """-log softmax of the model's own most likely class, mean over the batch; logits (B, C), scalar."""
    if logits.dim() != 2:
        raise UserError("the hard Fisher needs one class per example, not one per token; use the empirical Fisher")
    return nn.functional.cross_entropy(logits, logits.argmax(-1))


def gold_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """The training loss against the labels, mean over the known ones (label -100: unknown), scalar.

    Binary cross-entropy for several labels per example, (B, C) both; squared error for one logit; else cross-entropy.
    """
    if logits.shape[-1] == 1:
        return nn.functional.mse_loss(logits.flatten(), labels.flatten().to(logits.dtype))
    if logits.shape == labels.shape:
        known = labels != IGNORED
        return nn.functional.binary_cross_entropy_with_logits(logits[known], labels[known].to(logits.dtype))
    return nn.functional.cross_entropy(logits.flatten(0, -2), labels.flatten(), ignore_index=IGNORED)


def add_squared_gradients(squares: Sums, loss: Tensor, parameters: dict[str, Tensor]) -> None:
    """Add (d loss / d parameter)^2 of one batch; a parameter that the loss does not depend on adds 0."""
    gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    for (name, parameter), gradient in zip(parameters.items(), gradients, strict=True):
        squares.add(name, torch.zeros_like(parameter) if gradient is None else gradient.square_(), 1)


def _labels(logits: Tensor, labels: Tensor) -> set[int]:
    """The classes that occur in a batch of a classifier; of several labels per example, those that are known."""
    if logits.dim() != 2 or logits.shape[-1] == 1:
        return set()
    if logits.shape == labels.shape:
        return set((labels != IGNORED).any(0).nonzero().flatten().tolist())
    return set(labels.flatten().tolist()) - {IGNORED}


@dataclass(frozen=True)
class BatchConfig:
    """The flag that training and statistics share."""

    batch_size: int = flag(
        16, "sentences per update, and per batch of the Fisher, which squares the gradient of a batch", low=1
    )


@dataclass(frozen=True)
class StatisticsConfig(BatchConfig):
    """How the statistics of a model are collected."""

    fisher: str = flag("empirical", "Fisher: empirical (gold labels) or hard (the model's own)", choices=FISHERS[:2])
    examples: int = flag(1000, "training sentences at most for Gram matrices and Fisher", low=1)
    as_original: bool = flag(
        False,
        "as the release: count padding and a T5's generation, and --examples in batches; yesno: answers of any token",
    )


@dataclass(frozen=True)
class Config(StatisticsConfig):
    """Which model, on which data, and what is collected."""

    model: str = flag("", "folder of a sequence classifier or T5, with its tokenizer", decides=False)
    data: str = flag(
        "", "its training data, TSV: text TAB label name or number; of a T5 input TAB output", decides=False
    )
    output: str = flag("", "statistics file to write", decides=False)
    gram: bool = flag(True, "collect Gram matrices (RegMean)")
    fisher: str = flag("empirical", "Fisher: empirical (gold labels), hard (the model's own) or none", choices=FISHERS)
    batch_size: int = flag(16, "examples per batch; the Fisher squares the gradient of a batch", low=1)
    examples: int = flag(1000, "examples at most, of the beginning of the data", low=1)
    max_length: int = flag(128, "tokens of a text at most", low=3, high=LONGEST)


def text_batches(
    examples: tuple[Example, ...], tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, config: Config
) -> Iterator[Batch]:
    """The lines in file order. Raises UserError for a label that is none of the model's."""
    labels = model.config.label2id | {str(number): number for number in range(model.config.num_labels)}

    def tensors(texts: list[str]) -> Batch:
        return dict(tokenizer.pad({"input_ids": tokenise(tokenizer, texts, config.max_length)}, return_tensors="pt"))

    for start in range(0, len(examples), config.batch_size):
        part = examples[start : start + config.batch_size]
        batch = tensors([example.input for example in part])
        first = [example.outputs[0] for example in part]
        if model.config.is_encoder_decoder:
            target = tensors(first)
            batch["labels"] = target["input_ids"].masked_fill(target["attention_mask"] == 0, IGNORED)
        elif unknown := [label for label in first if label not in labels]:
            raise UserError(f"{config.data}: label {suggest(unknown[0], labels)}")
        else:
            batch["labels"] = torch.tensor([labels[label] for label in first])
        yield batch


def run(config: Config) -> None:
    """Write the statistics file of one model, if it is not there yet."""
    log_to(None)
    if not config.model or not config.data or not config.output:
        raise UserError("--model, --data and --output are all needed")
    tokenizer, output = load_tokenizer(config.model), Path(config.output)
    if output.suffix != Path(WEIGHTS).suffix:  # which is written over what lies there
        raise UserError(f"--output {output} must end in {Path(WEIGHTS).suffix}")
    if output.resolve().parent == Path(config.model).resolve():  # it would count as a part of what it is made from
        raise UserError(f"--output {output} lies in the folder of the model; give another place")
    seq2seq = model_config(config.model).is_encoder_decoder
    model = load_model(AutoModelForSeq2SeqLM if seq2seq else AutoModelForSequenceClassification, config.model)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    config = replace(config, max_length=text_length(model, tokenizer, config.max_length))
    data = read_examples(Path(config.data))

    def make() -> Statistics:
        batches = text_batches(data, tokenizer, model, config)
        counts = counts_of(config.as_original)
        return collect(model, batches, config.gram, config.fisher, config.examples, counts)

    texts = [(example.input, *example.outputs) for example in data]
    found = made(output, {"model": model_digest(config.model), "data": digest(texts), **deciding(config)}, make)
    log.info("%s: %d tensors from %d examples", output, len(found.tensors), found.info["examples"])


if __name__ == "__main__":
    main(run, Config, __doc__)
