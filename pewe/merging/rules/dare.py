"""DARE: drop and rescale (Yu et al. 2024, "Language models are super Mario", section 3.2).

tau_i' = m_i tau_i / p, m_i ~ Bernoulli(p) for every entry, so that E[tau_i'] = tau_i; then a mean, or TIES without its trim
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pewe.flags import SEED, flag, seed_flag
from pewe.identity import digest
from pewe.merging.rules.tensors import linear, per_tensor, used
from pewe.merging.rules.ties import elected_mean
from pewe.state import DeltaState


@dataclass(frozen=True)
class DareFlags:
    """The density p is 1 minus the paper's drop rate."""

    density: float = flag(0.2, "DARE: probability that an entry is kept", above=0, high=1)
    inside: str = flag("linear", "DARE: how what is left is merged", choices=("linear", "ties"))
    scale: float = flag(1.0, "DARE: factor of the merged difference", low=0)
    seed: int = seed_flag(42, "DARE: seed of what is dropped")
    as_peft: bool = flag(False, "DARE: elect the signs of TIES as PEFT does")


def dare(states: Sequence[DeltaState], weights: Tensor, flags: DareFlags) -> DeltaState:
    """Differences tau_i of any shapes, weights (n,): the weighted sum of tau_i', or their elected mean.

    Raises UserError as `used`.
    """
    states, weights = used(states, weights, flags)
    left = [dropped(state, flags.density, flags.seed) for state in states]
    factor = flags.scale / flags.density
    if flags.inside == "linear":
        return per_tensor(left, lambda name, tensors: linear(tensors, factor * weights))
    merged = elected_mean(left, weights, flags.as_peft)
    return per_tensor([merged], lambda name, tensors: factor * tensors[0].double())


def dropped(state: DeltaState, density: float, seed: int) -> DeltaState:
    """m_i tau_i, not yet divided by p.

    The stream is a function of the seed, the tensor's name and its values, which tell the source: neither the place of a
    source among the others nor who else is merged changes what it loses. Equal tensors lose the same.
    """

    def drop(name: str, tensors: list[Tensor]) -> Tensor:
        (tensor,) = tensors
        stream = torch.Generator().manual_seed(int(digest([seed, name, tensor]), 16) % SEED)
        return tensor.double() * (torch.rand(tensor.shape, generator=stream, dtype=torch.float64) < density)

    return per_tensor([state], drop)
