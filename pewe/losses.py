"""Losses of a stack of deltas on a batch, by token and by member."""

import torch
from torch import Tensor

from pewe.batches import Batch
from pewe.dropout import NoDropout
from pewe.forward import T5, Packed, pack
from pewe.no_delta import NoDelta
from pewe.packing import token_losses


def losses(delta: NoDelta, batch: Batch, dropout: NoDropout | None = None) -> tuple[Tensor, Packed]:
    """Cross-entropy of every label token, (n,), and where they stand: `packed.scored` in its decoder's line."""
    model = delta.backbone_model
    packed = pack(model, batch, delta.stack, delta.counts_padding)
    states = T5(delta, dropout).states(packed)
    return token_losses(states[packed.scored], model.lm_head.weight, packed.labels[packed.scored]), packed


def member_losses(delta: NoDelta, batch: Batch, dropout: NoDropout | None = None) -> Tensor:
    """Mean token cross-entropy of each member on its own rows, (K,); 0 for a member without labels."""
    found, packed = losses(delta, batch, dropout)
    member = torch.repeat_interleave(torch.tensor(packed.decoder.counts))[packed.scored.cpu()].to(found.device)
    totals = found.new_zeros(delta.stack).index_add(0, member, found)
    return totals / member.bincount(minlength=delta.stack).clamp(min=1)
