"""T5's relative bias, and what a position sees."""

import math

import torch
from torch import Tensor
from torch.nn import functional


def precise(x: Tensor) -> torch.dtype:
    """The dtype of a softmax: at least fp32."""
    return torch.promote_types(x.dtype, torch.float32)


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
