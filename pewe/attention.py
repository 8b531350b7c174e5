"""T5's relative bias, and what a position sees."""

import math

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional


def precise(x: Tensor) -> torch.dtype:
    """The dtype of a softmax: at least fp32."""
    return torch.promote_types(x.dtype, torch.float32)


def softmax(scores: Tensor) -> Tensor:
    """Softmax of scores (..., n), computed in the dtype of `precise`, in theirs."""
    return torch.softmax(scores, -1, dtype=precise(scores)).to(scores.dtype)


class _SoftmaxTotal(Function):
    """Softmax of the last axis and log sum exp, from one exponential; nothing but the weights is kept for the way back."""

    @staticmethod
    def forward(ctx, scores: Tensor) -> tuple[Tensor, Tensor]:
        weights = torch.softmax(scores, -1)
        ctx.save_for_backward(weights)
        return weights, scores.amax(-1, keepdim=True) - weights.amax(-1, keepdim=True).log()

    @staticmethod
    def backward(ctx, by_weights: Tensor, by_total: Tensor) -> Tensor:
        (weights,) = ctx.saved_tensors
        gradient = torch._softmax_backward_data(by_weights, weights, -1, weights.dtype)
        return gradient.addcmul_(weights, by_total)


def softmax_total(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Softmax of scores (..., n) in their dtype, and log sum exp (..., 1) in that of `precise`."""
    weights, total = _SoftmaxTotal.apply(scores.to(precise(scores)))
    return weights.to(scores.dtype), total


def seen(bias: Tensor, keys: Tensor, heads: int, width: int, causal: bool = False) -> Tensor:
    """bias (heads or 1, Lq or 1, Lk) for every row, -inf where keys (R, Lk) is False or a key comes later: (R * heads, Lq, Lk)."""
    shape = (len(keys), heads, width, keys.shape[1])
    full = torch.where(keys[:, None, None, :], bias, -torch.inf).expand(shape)
    if causal:
        later = torch.ones(shape[2:], dtype=torch.bool, device=keys.device).triu(1)
        full = full.masked_fill(later, -torch.inf)
    return full.flatten(0, 1)


def relative_bias(config, table: Tensor, queries: Tensor, keys: Tensor, side: str) -> Tensor:
    """T5's bias of every head for the distance of key and query, (heads, Lq, Lk), from its table (buckets, heads).

    Half of the buckets hold one distance each, the other half larger distances on a logarithmic scale; in the encoder half
    of either are for keys that come later.
    """
    distance, buckets = queries[:, None] - keys, config.relative_attention_num_buckets
    bucket = torch.zeros_like(distance)
    if side == "encoder":
        buckets //= 2
        bucket = buckets * (distance < 0)
        distance = distance.abs()
    distance, exact = distance.clamp(min=0), buckets // 2
    scale = math.log(config.relative_attention_max_distance / exact)
    far = exact + (torch.log(distance.clamp(min=1).float() / exact) / scale * (buckets - exact)).long()
    bucket = bucket + torch.where(distance < exact, distance, far.clamp(max=buckets - 1))
    return functional.embedding(bucket, table).permute(2, 0, 1)
