"""Dropout on a line of tokens and on attention's weights: torch's own, or from a stream of random numbers per member.

A member's stream is a function of (seed, task, update) alone, and what is drawn from it depends on the member's own rows
alone, so that its result does not depend on the stack that it is tuned in. An element is kept where 16 random bits, four
elements to a 64-bit number, are at least p 2^16: p is met to 2^-16.
"""

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional

from pewe.packing import Layout


class NoDropout:
    """Every element is kept: in eval mode, or where p is 0."""

    def __call__(self, x: Tensor, layout: Layout) -> Tensor:
        """A line (N, width) with dropout."""
        return x

    def add(self, hidden: Tensor, x: Tensor, layout: Layout) -> Tensor:
        """hidden + dropout(x), lines (N, d)."""
        return hidden + x

    def weights(self, weights: Tensor, queries: Layout, keys: Layout | None) -> Tensor:
        """Attention's weights (R * heads, L, L of the keys); of a prefix (K * heads, n, P), without a layout of keys."""
        return weights


class OneStream(NoDropout):
    """torch's own dropout, from its one stream for all members."""

    def __init__(self, p: float):
        self.p = p

    def __call__(self, x: Tensor, layout: Layout) -> Tensor:
        return functional.dropout(x, self.p)

    def add(self, hidden: Tensor, x: Tensor, layout: Layout) -> Tensor:
        return hidden + functional.dropout(x, self.p)

    def weights(self, weights: Tensor, queries: Layout, keys: Layout | None) -> Tensor:
        return functional.dropout(weights, self.p)


class _Masked(Function):
    """base + scale * x where `keep` (bool), base alone elsewhere; without a base 0."""

    @staticmethod
    def forward(ctx, x: Tensor, keep: Tensor, scale: float, base: Tensor | None) -> Tensor:
        ctx.save_for_backward(keep)
        ctx.scale, ctx.has_base = scale, base is not None
        mask = keep.view(torch.uint8).to(x.dtype)  # from bool torch converts five times slower
        return mask.mul_(x).mul_(scale) if base is None else torch.addcmul(base, x, mask, value=scale)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        (keep,) = ctx.saved_tensors
        mask = keep.view(torch.uint8).to(gradient.dtype)
        return mask.mul_(gradient).mul_(ctx.scale), None, None, gradient if ctx.has_base else None


THREADS_FROM = 2**20  # elements drawn at once, below which threads cost more than they gain
_POOL = ThreadPoolExecutor(thread_name_prefix="dropout")


class OwnStreams(NoDropout):
    """Each member's dropout from its own stream; `seeds` are texts such as "42/boolq/17", one a member."""

    def __init__(self, p: float, seeds: Sequence[str], device: torch.device):
        digests = [hashlib.sha256(seed.encode()).digest() for seed in seeds]
        self.p, self.device, self.threshold = p, device, round(p * 2**16)
        if device.type == "cpu":
            self.streams = [np.random.SFC64(int.from_bytes(digest[:16], "big")) for digest in digests]
        else:
            numbers = [int.from_bytes(digest[:7], "big") for digest in digests]
            self.streams = [torch.Generator(device).manual_seed(number) for number in numbers]

    def __call__(self, x: Tensor, layout: Layout) -> Tensor:
        return _Masked.apply(x, self._keep_line(x, layout), self._scale, None)

    def add(self, hidden: Tensor, x: Tensor, layout: Layout) -> Tensor:
        return _Masked.apply(x, self._keep_line(x, layout), self._scale, hidden)

    def weights(self, weights: Tensor, queries: Layout, keys: Layout | None) -> Tensor:
        keep = torch.empty(weights.shape, dtype=torch.bool, device=weights.device)
        corners = []  # what each member's own rows and lengths reach; the rest of the rectangle is padding
        heads = len(weights) // len(queries.lengths)
        for rows, own, width in self._own_rows(queries, keys, weights.shape[2]):
            corners.append(keep[rows.start * heads : rows.stop * heads, :own, :width])
        return _Masked.apply(weights, self._fill(keep, corners), self._scale, None)

    @property
    def _scale(self) -> float:
        return 1 / (1 - self.p)

    @staticmethod
    def _own_rows(queries: Layout, keys: Layout | None, width: int) -> Iterator[tuple[slice, int, int]]:
        """Each member's rows, the longest of their queries, and of their keys."""
        start = 0
        for count in queries.rows:
            rows, start = slice(start, start + count), start + count
            own = int(queries.lengths[rows].max()) if count else 0
            yield rows, own, int(keys.lengths[rows].max()) if keys is not None and count else width

    def _keep_line(self, x: Tensor, layout: Layout) -> Tensor:
        keep = torch.empty(x.shape, dtype=torch.bool, device=x.device)
        return self._fill(keep, keep.split(layout.counts))

    def _fill(self, keep: Tensor, parts: Sequence[Tensor]) -> Tensor:
        """Draw each member's part (a view of `keep`) from its stream."""
        draw = _draw if self.device.type == "cpu" else _draw_on_device
        several = keep.numel() >= THREADS_FROM and torch.get_num_threads() > 1 and self.device.type == "cpu"
        for _ in (_POOL.map if several else map)(draw, self.streams, parts, [self.threshold] * len(parts)):
            pass
        return keep


def _draw(stream: np.random.SFC64, part: Tensor, threshold: int) -> None:
    """Fill a part of a mask from numpy's stream."""
    bits = stream.random_raw(-(-part.numel() // 4)).view(np.uint16)[: part.numel()]
    np.greater_equal(bits.reshape(part.shape), threshold, out=part.numpy())


def _draw_on_device(stream: torch.Generator, part: Tensor, threshold: int) -> None:
    """The same from torch's counter-based stream of a GPU."""
    part.copy_(torch.randint(2**16, part.shape, generator=stream, device=part.device, dtype=torch.int32) >= threshold)
