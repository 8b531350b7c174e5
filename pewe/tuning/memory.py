"""Memory: what the forward and backward of a stack hold at their peak, from shapes alone, and how much is free.

Symbols: R rows of all members, N tokens of their inputs, L the longest, M and T those of their labels; d = d_model,
h = num_heads * d_kv, f = d_ff. The terms follow `pewe/forward.py` line by line: what autograd keeps of each operation.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from pewe.deltas.tunable import Tunable
from pewe.packing import CHUNK

SHARE = 0.7  # of the free memory, that a stack may take: allocators keep more than they give


@dataclass(frozen=True)
class Shape:
    """The lines of a stack."""

    rows: int  # R
    tokens: int  # N
    longest: int  # L
    labels: int  # M
    longest_label: int  # T

    @classmethod
    def of(cls, lengths: Sequence[int], label_lengths: Sequence[int]) -> "Shape":
        """Of rows with inputs and labels of these lengths."""
        return cls(len(lengths), sum(lengths), max(lengths), sum(label_lengths), max(label_lengths))


def update_bytes(delta: Tunable, shape: Shape, members: int) -> int:
    """Peak of one update of a stack of so many members in bytes, beside the backbone.

    The peak is at the end of the forward or, where labels are short, in the first steps of the encoder's backward.
    """
    model = delta.backbone_model
    config, size = model.config, model.shared.weight.element_size()
    d, h, f, heads = config.d_model, config.num_heads * config.d_kv, config.d_ff, config.num_heads
    encoder = shape.tokens * delta.held("encoder")
    decoder = shape.labels * delta.held("decoder")
    square = shape.rows * heads * shape.longest**2
    encoder += config.num_layers * (
        _attention(config, shape.tokens, shape.rows * shape.longest, square)
        + 2 * shape.rows * shape.longest * h
        + _feed_forward(config, shape.tokens)
    )
    across, own = shape.longest_label * shape.longest, shape.longest_label**2
    decoder += config.num_decoder_layers * (
        _attention(config, shape.labels, shape.rows * shape.longest_label, shape.rows * heads * own)
        + 2 * shape.rows * shape.longest_label * h
        + _attention(config, shape.labels, shape.rows * shape.longest_label, shape.rows * heads * across)
        + 2 * shape.rows * shape.longest * h
        + _feed_forward(config, shape.labels)
    )
    head = 3 * shape.labels * d + 2 * min(CHUNK, shape.labels * config.vocab_size)
    backward = shape.tokens * (3 * f + 2 * d)  # gradients of a feed-forward, the first of the encoder's
    parameters = members * sum(parameter[0].numel() for parameter in delta.named.values())
    forward_end = encoder + 2 * shape.tokens * d + decoder + head
    return round(size * max(forward_end, encoder + 2 * shape.tokens * d + backward) + 4 * 2.5 * parameters)


def _attention(config, tokens: int, places: int, square: int) -> float:
    """Numbers held of one attention without its keys and values: of `tokens` queries on `places` of the rectangle."""
    d, h = config.d_model, config.num_heads * config.d_kv
    masks = (tokens * d + square) / 4 if config.dropout_rate else 0  # one byte an element
    return tokens * (2 * d + h) + places * h + square * (2 if config.dropout_rate else 1) + masks


def _feed_forward(config, tokens: int) -> float:
    """Numbers held of one feed-forward."""
    d, f, dropout = config.d_model, config.d_ff, bool(config.dropout_rate)
    inner = 4 if config.is_gated_act else 1 + dropout
    masks = tokens * (d + f) / 4 if dropout else 0
    return tokens * (2 * d + inner * f) + masks


def generation_bytes(delta: Tunable, shape: Shape, length: int) -> int:
    """Peak of generating answers of at most `length` tokens to the inputs of all members, in bytes, beside the backbone."""
    model = delta.backbone_model
    config, size = model.config, model.shared.weight.element_size()
    d, h, heads = config.d_model, config.num_heads * config.d_kv, config.num_heads
    places = shape.rows * shape.longest
    of_delta = delta.held("encoder") / config.num_layers  # one layer at a time
    encoding = shape.tokens * (2 * d + 3 * h + of_delta) + 3 * places * h + 4 * shape.rows * heads * shape.longest**2
    layers = config.num_decoder_layers
    decoding = shape.tokens * d + layers * 2 * h * (places + shape.rows * length) + shape.rows * config.vocab_size
    return size * max(encoding, decoding, shape.tokens * (2 * d + 3 * config.d_ff))


def free_bytes(device: torch.device) -> int:
    """Memory that a process may still take: of the GPU, or of the machine and the limit of its control group."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    available = [int(line.split()[1]) * 1024 for line in _lines("/proc/meminfo") if line.startswith("MemAvailable")]
    limit, used = (_lines(f"/sys/fs/cgroup/memory.{name}") for name in ("max", "current"))
    if limit and used and limit[0].isdecimal():
        available.append(int(limit[0]) - int(used[0]))
    return min(available, default=2**33)  # where no system says: 8 GiB


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
