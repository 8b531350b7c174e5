"""Examples as tensors: padded batches of rows, and the order in which tuning and scoring take them."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pewe.data import Encoded

IGNORED = -100  # label of a padded position
Row = tuple[tuple[int, ...], tuple[int, ...]]  # input ids, label ids


@dataclass
class Batch:
    """N sequences: input_ids and attention_mask (N, S), labels (N, T) with -100 on padding."""

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor

    def to(self, device: torch.device) -> "Batch":
        """The same batch on a device; asynchronous from pinned memory."""
        tensors = (self.input_ids, self.attention_mask, self.labels)
        if device.type == "cuda":
            tensors = tuple(tensor.pin_memory() for tensor in tensors)
        return Batch(*(tensor.to(device, non_blocking=True) for tensor in tensors))

    def pieces(self, tokens: int) -> Iterator["Batch"]:
        """The rows in pieces, longest input first, each without the padding that it does not need.

        A piece has at most `tokens` positions of input and label together, or is a single row.
        """
        lengths, label_lengths = self.attention_mask.sum(1), (self.labels != IGNORED).sum(1)
        order = lengths.argsort(descending=True, stable=True)
        while len(order):
            width, label_width = int(lengths[order[0]]), int(label_lengths[order].max())
            count = max(1, tokens // (width + label_width))
            rows, order = order[:count], order[count:]
            yield Batch(
                self.input_ids[rows, :width], self.attention_mask[rows, :width], self.labels[rows, :label_width]
            )

    def repeat(self, stack: int) -> "Batch":
        """The batch once for each of `stack` members: (stack * N, ...)."""
        return Batch(*(t.repeat(stack, 1) for t in (self.input_ids, self.attention_mask, self.labels)))


def collate(rows: Sequence[Row], pad: int) -> Batch:
    """Pad rows to the longest input and the longest label of the batch."""
    inputs, labels = zip(*rows, strict=True)
    input_ids = _pad(inputs, pad)
    lengths = torch.tensor([len(ids) for ids in inputs])
    attention_mask = (torch.arange(input_ids.shape[1]) < lengths[:, None]).long()
    return Batch(input_ids, attention_mask, _pad(labels, IGNORED))


def _pad(sequences: Sequence[Sequence[int]], value: int) -> Tensor:
    width = max(map(len, sequences))
    return torch.tensor([[*sequence, *[value] * (width - len(sequence))] for sequence in sequences])


def collate_stack(members: Sequence[Sequence[Row]], pad: int) -> Batch:
    """One batch for a stack: the rows of member k at [k*B, (k+1)*B), B the longest member.

    A shorter member is filled with its last row without labels, which adds nothing to its loss; a member without rows
    borrows the input of another one.
    """
    size = max(map(len, members))
    spare = next(rows[-1] for rows in members if rows)
    filled = []
    for rows in members:
        filler = ((rows[-1] if rows else spare)[0], (IGNORED,))
        filled += [*rows, *[filler] * (size - len(rows))]
    return collate(filled, pad)


def scoring_batches(encoded: Encoded, batch_size: int, pad: int, flat_labels: bool = False) -> Iterator[Batch]:
    """The lines of a dev or test split in file order, `batch_size` at a time, with the labels of the loss (`Encoded.labels`)."""
    rows = list(zip(encoded.inputs, encoded.labels(flat_labels), strict=True))
    for start in range(0, len(rows), batch_size):
        yield collate(rows[start : start + batch_size], pad)


def training_updates(
    encoded: Encoded, seed: str, batch_size: int, accumulate: int, full: bool = True
) -> Iterator[list[list[Row]]]:
    """For each update, forever, its micro-batches of `batch_size` rows: a pure function of the data and the seed.

    Each epoch is shuffled anew and each example draws one of its acceptable outputs. An update takes the next
    `accumulate` micro-batches. Where updates need not be `full`, as in the original, one comes after the first micro-batch
    of an epoch, then after every `accumulate`-th, and the rest of the epoch is dropped.
    """
    epoch, window = 0, []
    while True:
        generator = random.Random(f"{seed}/{epoch}")
        order = generator.sample(range(len(encoded.inputs)), len(encoded.inputs))
        rows = [(encoded.inputs[i], generator.choice(encoded.outputs[i])) for i in order]
        for number, start in enumerate(range(0, len(rows), batch_size)):
            window.append(rows[start : start + batch_size])
            if len(window) == accumulate if full else number % accumulate == 0:
                yield window
                window = []
        if not full:
            window = []
        epoch += 1
