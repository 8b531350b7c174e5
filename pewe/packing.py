"""Real tokens only: where the tokens of a stack stand, and the products that work on them.

All real tokens of K members stand in one line (N, d), member after member, row after row. What works token by token reads
the line, a delta its member's segment of it; attention alone sees a rectangle (R * heads, L, d_kv) of R rows, L the longest.

Symbols: K members, R rows of all members, N tokens, L the longest row, h = heads * d_kv.
"""

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor
from torch.autograd import Function


class Layout:
    """Rows of `lengths` tokens (R,), the first `rows[0]` of which are member 0's and so on; a length is at least 1.

    `attended` (R, L) is False on tokens that no query sees, where padding stands in the line too (`--as_original`).
    `row` numbers the rows, for the decoder those of the encoder that they look at.
    """

    def __init__(self, lengths: Tensor, rows: Sequence[int], attended: Tensor | None = None, row: Tensor | None = None):
        self.lengths, self.rows, self.width = lengths, list(rows), int(lengths.max())
        self.inside = torch.arange(self.width, device=lengths.device) < lengths[:, None]
        self.attended = self.inside if attended is None else attended
        self.counts = [int(own.sum()) for own in lengths.split(self.rows)]
        self.full = bool(self.inside.all())  # no padding in the rectangle
        self._heads: dict[int, tuple[Tensor, Tensor]] = {}
        self.row = (torch.arange(len(lengths), device=lengths.device) if row is None else row).repeat_interleave(
            lengths
        )

    @cached_property
    def position(self) -> Tensor:
        """The place of each token in its row, (N,)."""
        return self.inside.nonzero()[:, 1]

    @cached_property
    def corner(self) -> Tensor:
        """The place of each token in the flat rectangle, (N,)."""
        return self.inside.flatten().nonzero()[:, 0]

    @cached_property
    def place(self) -> Tensor:
        """The token at each place of the flat rectangle, (R * L,); on padding the row's first one.

        So that what is not finite in one member, times a weight of 0, does not reach another one's rows.
        """
        first = (self.lengths.cumsum(0) - self.lengths).clamp(max=len(self.corner) - 1)  # a row may have no token
        place = first.repeat_interleave(self.width)
        place[self.corner] = torch.arange(len(self.corner), device=place.device)
        return place

    def heads(self, count: int) -> tuple[Tensor, Tensor]:
        """`place` and `corner` for vectors of heads: (R * heads * L,) into N * heads, and (N * heads,) back."""
        if count not in self._heads:
            head = torch.arange(count, device=self.lengths.device)
            place = (self.place.view(-1, 1, self.width) * count + head[:, None]).flatten()
            row, column = self.corner // self.width, self.corner % self.width
            corner = ((row[:, None] * count + head) * self.width + column[:, None]).flatten()
            self._heads[count] = place, corner
        return self._heads[count]

    def mean(self, first: int) -> Tensor:
        """(R, N): times a line, the mean of each row's first tokens; of all its attended ones where `first` is 0."""
        counted = self.inside if first else self.inside & self.attended
        counted = counted[self.inside] & (self.position < (first or self.width))
        matrix = torch.zeros(len(self.lengths), len(counted), device=counted.device)
        matrix[self.corner // self.width, torch.arange(len(counted), device=counted.device)] = counted.float()
        return matrix / matrix.sum(1, keepdim=True)


class _ToRectangle(Function):
    """(N, h) -> (R * heads, L, d_kv); what stands on padding is never read."""

    @staticmethod
    def forward(ctx, line: Tensor, heads: int, layout: Layout) -> Tensor:
        ctx.heads, ctx.layout = heads, layout
        place, _ = layout.heads(heads)
        vectors = line.reshape(len(line) * heads, -1)
        return vectors.index_select(0, place).view(-1, layout.width, vectors.shape[1])

    @staticmethod
    def backward(ctx, gradient: Tensor):
        _, corner = ctx.layout.heads(ctx.heads)
        return gradient.flatten(0, 1).index_select(0, corner).view(len(corner) // ctx.heads, -1), None, None


class _ToLine(Function):
    """(R * heads, L, d_kv) -> (N, h)."""

    @staticmethod
    def forward(ctx, rectangle: Tensor, heads: int, layout: Layout) -> Tensor:
        ctx.heads, ctx.layout = heads, layout
        _, corner = layout.heads(heads)
        return rectangle.flatten(0, 1).index_select(0, corner).view(len(corner) // heads, -1)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        layout, heads = ctx.layout, ctx.heads
        place, _ = layout.heads(heads)
        vectors = gradient.reshape(len(gradient) * heads, -1).index_select(0, place)
        filled = vectors.view(len(layout.lengths), heads, layout.width, -1)
        if not layout.full:
            filled.mul_(layout.inside.view(torch.uint8)[:, None, :, None].to(filled.dtype))
        return filled.flatten(0, 1), None, None


def to_rectangle(line: Tensor, heads: int, layout: Layout) -> Tensor:
    """The heads of a line's tokens as attention reads them, (N, h) -> (R * heads, L, d_kv)."""
    return _ToRectangle.apply(line, heads, layout)


def to_line(rectangle: Tensor, heads: int, layout: Layout) -> Tensor:
    """Back: (R * heads, L, d_kv) -> (N, h)."""
    return _ToLine.apply(rectangle, heads, layout)


class _ByMember(Function):
    """base + scale * x_k W_k on each member's segment."""

    @staticmethod
    def forward(ctx, x: Tensor, W: Tensor, base: Tensor | None, counts: list[int], scale: float) -> Tensor:
        ctx.save_for_backward(x, W)
        ctx.counts, ctx.scale, ctx.has_base = counts, scale, base is not None
        out = x.new_empty(len(x), W.shape[2]) if base is None else base.clone(memory_format=torch.contiguous_format)
        _products(x, W, counts, out, 0.0 if base is None else 1.0, scale)
        return out

    @staticmethod
    def backward(ctx, gradient: Tensor):
        x, W = ctx.saved_tensors
        by_x = by_W = None
        if ctx.needs_input_grad[0]:
            by_x = torch.empty_like(x, memory_format=torch.contiguous_format)
            _products(gradient, W.mT, ctx.counts, by_x, 0.0, ctx.scale)
        if ctx.needs_input_grad[1]:
            by_W = torch.empty_like(W, memory_format=torch.contiguous_format)
            for own_x, own, target in zip(x.split(ctx.counts), gradient.split(ctx.counts), by_W, strict=True):
                torch.addmm(target, own_x.mT, own, beta=0.0, alpha=ctx.scale, out=target)
        return by_x, by_W, gradient if ctx.has_base else None, None, None


def _products(x: Tensor, W: Tensor, counts: list[int], out: Tensor, beta: float, scale: float) -> None:
    """out_k = beta * out_k + scale * x_k W_k; one batched product where all members have as many tokens."""
    if len(W) > 1 and len(set(counts)) == 1:
        shape = (len(W), counts[0], -1)
        target = out.view(shape)
        torch.baddbmm(target, x.reshape(shape), W, beta=beta, alpha=scale, out=target)
        return
    for own, weight, target in zip(x.split(counts), W, out.split(counts), strict=True):
        torch.addmm(target, own, weight, beta=beta, alpha=scale, out=target)


def by_member(x: Tensor, W: Tensor, counts: list[int], base: Tensor | None = None, scale: float = 1.0) -> Tensor:
    """base + scale * x_k W_k of every member k: x (N, a), W (K, a, b), N = sum of `counts`; returns (N, b)."""
    return _ByMember.apply(x, W.to(x.dtype), base, counts, scale)


class _Linears(Function):
    """x W^T for several W (out, in) at once: on the way back their shares of the gradient by x are summed in the product."""

    @staticmethod
    def forward(ctx, x: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        ctx.save_for_backward(x, *weights)
        return tuple(x @ weight.mT for weight in weights)

    @staticmethod
    def backward(ctx, *gradients: Tensor):
        x, *weights = ctx.saved_tensors
        by_x = None
        if ctx.needs_input_grad[0]:
            by_x = gradients[0] @ weights[0]
            for gradient, weight in zip(gradients[1:], weights[1:], strict=True):
                by_x.addmm_(gradient, weight)
        needed = zip(gradients, ctx.needs_input_grad[1:], strict=True)
        return by_x, *(gradient.mT @ x if need else None for gradient, need in needed)


def linears(x: Tensor, *layers: torch.nn.Linear) -> list[Tensor]:
    """The line (N, d_in) through several linear layers without bias, in the dtype of the line."""
    weights = [layer.weight for layer in layers]
    return [y.to(x.dtype) for y in _Linears.apply(x.to(weights[0].dtype), *weights)]


class _Norm(Function):
    """w x / sqrt(mean(x^2) + eps), in fp32; nothing but x and one number a token is kept for the way back."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        exact = torch.promote_types(x.dtype, torch.float32)
        y = x.to(exact)
        size = torch.linalg.vector_norm(y, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, size)
        return (y * size).mul_(weight.to(exact)).to(x.dtype)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        x, weight, size = ctx.saved_tensors
        y, gradient = x.to(size.dtype) * size, gradient.to(size.dtype)  # y is normalised
        by_x = by_weight = None
        if ctx.needs_input_grad[1]:
            by_weight = (gradient * y).sum(0).view(weight.shape).to(weight.dtype)
        if ctx.needs_input_grad[0]:
            scaled = gradient * weight.to(size.dtype)
            share = (scaled * y).mean(-1, keepdim=True)
            by_x = scaled.sub_(y.mul_(share)).mul_(size).to(x.dtype)
        return by_x, by_weight, None


def norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """T5's layer norm of a line (N, d); weight (d,) or (1, d)."""
    return _Norm.apply(x, weight, eps)


CHUNK = 2**22  # numbers of a chunk of logits


class _TokenLosses(Function):
    """-log softmax(x head^T)[label]; the gradient by x is made on the way, so that only one chunk of logits is ever held."""

    @staticmethod
    def forward(ctx, x: Tensor, head: Tensor, labels: Tensor, backwards: bool) -> Tensor:
        losses = torch.empty(len(x), device=x.device, dtype=torch.promote_types(x.dtype, torch.float32))
        by_x = torch.empty_like(x) if backwards else None
        for start in range(0, len(x), step := max(1, CHUNK // len(head))):
            chosen = slice(start, start + step)
            logits = torch.nn.functional.linear(x[chosen], head).to(losses.dtype)
            total, gold = logits.logsumexp(1, keepdim=True), labels[chosen, None]
            losses[chosen] = (total - logits.gather(1, gold)).squeeze(1)
            if by_x is not None:
                errors = logits.sub_(total).exp_()
                errors.scatter_add_(1, gold, errors.new_full(gold.shape, -1.0))
                by_x[chosen] = errors.to(head.dtype) @ head
        ctx.by_x = by_x
        return losses

    @staticmethod
    def backward(ctx, gradient: Tensor):
        return ctx.by_x * gradient[:, None].to(ctx.by_x.dtype), None, None, None


def token_losses(x: Tensor, head: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of each label in fp32, (N,), for a head (V, d), frozen or not, on x (N, d)."""
    if head.requires_grad:
        return torch.nn.functional.cross_entropy(torch.nn.functional.linear(x, head).float(), labels, reduction="none")
    return _TokenLosses.apply(x, head, labels, x.requires_grad and torch.is_grad_enabled())
