"""Greedy generation, the task metric and the answers' likelihood, for a stack of deltas with a split of data each."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pewe import metrics
from pewe.backbone import Backbone
from pewe.cli import log
from pewe.data import Encoded
from pewe.deltas.tunable import Tunable
from pewe.forward import T5, Cache, KeysValues
from pewe.packing import Layout, token_losses

ALIVE = 0.75  # rows that go on, below which share of the rows at hand the finished ones are dropped


@dataclass
class Chunk:
    """Some lines of every member, and what the encoder makes of them: `lines` are their numbers in file order."""

    lines: list[list[int]]
    t5: T5
    encoded: Tensor
    layout: Layout


def encode(delta: Tunable, inputs: Sequence[Sequence[Sequence[int]]]) -> tuple[T5, Tensor, Layout]:
    """The encoder on the rows of each member: states (N, d) and where they stand."""
    device = delta.backbone_model.shared.weight.device
    lengths = torch.tensor([len(row) for rows in inputs for row in rows], device=device)
    line = torch.tensor([token for rows in inputs for row in rows for token in row], device=device)
    t5 = T5(delta)
    return t5, *t5.encode(line, Layout(lengths, [len(rows) for rows in inputs]))


def chunks(backbone: Backbone, delta: Tunable, splits: Sequence[Encoded], batch_size: int) -> Iterator[Chunk]:
    """All lines of `splits[k]` through member k, `batch_size` of each member at once, the longest first: attention pads little."""
    backbone.model.eval()
    orders = [sorted(range(len(split.inputs)), key=lambda i, s=split: -len(s.inputs[i])) for split in splits]
    for start in range(0, max(map(len, orders)), batch_size):
        chosen = [order[start : start + batch_size] for order in orders]
        inputs = [[split.inputs[i] for i in lines] for split, lines in zip(splits, chosen, strict=True)]
        yield Chunk(chosen, *encode(delta, inputs))


@torch.no_grad()
def generate(
    backbone: Backbone, delta: Tunable, splits: Sequence[Encoded], batch_size: int, max_length: int
) -> list[list[str]]:
    """The text that member k of the delta gives for each input of `splits[k]`, stripped, in file order.

    `batch_size` is per member.
    """
    answers = [[""] * len(split.inputs) for split in splits]
    for chunk in chunks(backbone, delta, splits, batch_size):
        write_answers(answers, backbone, chunk, max_length)
    return answers


def write_answers(answers: list[list[str]], backbone: Backbone, chunk: Chunk, max_length: int) -> None:
    """The text for each line of a chunk, into its place."""
    ids = answer(chunk.t5, chunk.encoded, chunk.layout, max_length).tolist()
    texts = iter(backbone.tokenizer.batch_decode(ids, skip_special_tokens=True))
    for own, lines in zip(answers, chunk.lines, strict=True):
        for i in lines:
            own[i] = next(texts).strip()


@torch.no_grad()
def greedy(delta: Tunable, inputs: Sequence[Sequence[Sequence[int]]], max_length: int) -> Tensor:
    """The most likely ids of each member's inputs, (R, T), start token first, padding after the end; T at most `max_length`."""
    return answer(*encode(delta, inputs), max_length)


def answer(t5: T5, encoded: Tensor, layout: Layout, max_length: int) -> Tensor:
    """The most likely ids of each row, as of `greedy`."""
    config, device, rows = t5.model.config, encoded.device, len(layout.lengths)
    decoding = Decoding(t5, encoded, layout, max_length)
    answers = torch.full((rows, max_length), config.pad_token_id, device=device)
    answers[:, 0] = config.decoder_start_token_id
    going = torch.ones(rows, dtype=torch.bool, device=device)  # of the rows at hand
    for length in range(1, max_length):
        tokens = decoding.step(answers[decoding.row, length - 1]).masked_fill(~going, config.pad_token_id)
        answers[decoding.row, length] = tokens
        going &= tokens != config.eos_token_id
        left = int(going.sum())
        if not left:
            return answers[:, : length + 1]
        if left < ALIVE * len(going):
            decoding.keep(going)
            going = going[going]
    return answers


class Decoding:
    """Decoder steps on the rows that are still at hand: their keys and values of the input, and those of the answer so far."""

    def __init__(self, t5: T5, encoded: Tensor, encoder: Layout, max_length: int):
        self.t5, self.rows, self.lengths = t5, encoder.rows, encoder.lengths
        self.attended, self.row = encoder.attended, torch.arange(len(encoder.lengths), device=encoded.device)
        blocks = t5.model.decoder.block
        names = [f"decoder.block.{number}.layer.1.EncDecAttention" for number in range(len(blocks))]
        self.memory: dict[str, KeysValues] = {
            name: t5.keys_values(name, block.layer[1].EncDecAttention, encoded, encoder)
            for name, block in zip(names, blocks, strict=True)
        }
        shape = (len(self.row) * t5.heads, max_length, t5.model.config.d_kv)
        self.cache = Cache(
            [(encoded.new_empty(shape), encoded.new_empty(shape)) for _ in blocks],
            [t5.delta.prefix("decoder", layer) for layer in range(len(blocks))],
        )
        self._lay_out()

    def step(self, tokens: Tensor) -> Tensor:
        """The most likely token after each row's last one, (rows,) -> (rows,)."""
        states = self.t5.decode(tokens, self.layout, lambda name, cross: self.memory[name], self.encoder, self.cache)
        self.cache.length += 1
        return (states @ self.t5.model.lm_head.weight.mT).argmax(1)

    def keep(self, going: Tensor) -> None:
        """Drop the other rows (a mask of those at hand)."""
        heads = going.repeat_interleave(self.t5.heads).nonzero()[:, 0]
        self.rows = [int(own.sum()) for own in going.split(self.rows)]
        self.row, self.lengths = self.row[going], self.lengths[going]
        width = int(self.lengths.max())
        self.attended = self.attended[going, :width]
        self.memory = {name: (k[heads, :width], v[heads, :width]) for name, (k, v) in self.memory.items()}
        self.cache.layers = [(k[heads], v[heads]) for k, v in self.cache.layers]
        self._lay_out()

    def _lay_out(self) -> None:
        self.layout = Layout(torch.ones_like(self.lengths), self.rows, row=self.row)
        self.encoder = Layout(self.lengths, self.rows, self.attended)


def evaluate(
    backbone: Backbone,
    delta: Tunable,
    splits: Sequence[Encoded],
    metric_names: Sequence[str],
    batch_size: int,
    max_length: int,
) -> list[float]:
    """The metric of member k of the delta on `splits[k]`; 0, with a warning, where it is not defined."""
    return metric_scores(splits, metric_names, generate(backbone, delta, splits, batch_size, max_length))


def metric_scores(
    splits: Sequence[Encoded], metric_names: Sequence[str], predictions: Sequence[Sequence[str]]
) -> list[float]:
    """The metric of what was predicted for each split; 0, with a warning, where it is not defined."""
    scores = []
    for split, metric, answers in zip(splits, metric_names, predictions, strict=True):
        value, undefined = metrics.score(metric, answers, [example.outputs for example in split.examples])
        if undefined:
            log.warning("%s: %s; it counts as %g", split.task, undefined, value)
        scores.append(value)
    return scores


@torch.no_grad()
def outcomes(
    backbone: Backbone,
    delta: Tunable,
    splits: Sequence[Encoded],
    metric_names: Sequence[str],
    batch_size: int,
    max_length: int,
) -> list[dict[str, float]]:
    """`test`, the score of member k on `splits[k]`, and `log_likelihood`, how likely it finds the answers, in nats per label token.

    Of each line the mean of log p(token | input, tokens before) over the tokens of its first answer, as tuning sees them;
    then the mean over the lines. Both from one pass of the encoder.
    """
    answers = [[""] * len(split.inputs) for split in splits]
    totals, labels = [0.0] * len(splits), [split.labels() for split in splits]
    for chunk in chunks(backbone, delta, splits, batch_size):
        rows = [[own[i] for i in lines] for own, lines in zip(labels, chunk.lines, strict=True)]
        of_rows = log_likelihoods(chunk.t5, chunk.encoded, chunk.layout, [row for own in rows for row in own])
        of_members = of_rows.split([len(own) for own in rows])
        totals = [total + own.sum().item() for total, own in zip(totals, of_members, strict=True)]
        write_answers(answers, backbone, chunk, max_length)
    means = [total / len(split.inputs) for total, split in zip(totals, splits, strict=True)]
    scores = metric_scores(splits, metric_names, answers)
    return [{"test": score, "log_likelihood": mean} for score, mean in zip(scores, means, strict=True)]


def log_likelihoods(t5: T5, encoded: Tensor, layout: Layout, labels: Sequence[Sequence[int]]) -> Tensor:
    """The mean log-likelihood of each row's label tokens in nats, (R,) in float64 on the CPU."""
    device, start = encoded.device, t5.model.config.decoder_start_token_id
    lengths = torch.tensor([len(row) for row in labels], device=device)
    line = torch.tensor([token for row in labels for token in row], device=device)
    before = torch.tensor([token for row in labels for token in (start, *row[:-1])], device=device)
    decoder = Layout(lengths, layout.rows)
    states = t5.answers(encoded, layout, before, decoder)
    found = -token_losses(states, t5.model.lm_head.weight, line).double().cpu()
    return torch.zeros(len(labels), dtype=torch.float64).index_add(0, decoder.row.cpu(), found) / lengths.cpu()
