"""TIES (Yadav et al. 2023, "TIES-Merging: resolving interference when merging models", algorithm 1).

trim    tau_i keeps its entries of largest absolute value, a share `density` of all
elect   gamma = sign(sum_i tau_i), entry by entry; where the sum is 0, the sign that most entries have
merge   lambda times the mean of the entries tau_i that have the sign gamma

With weights w_i: gamma = sign(sum_i w_i tau_i), and the weighted mean. Equal weights are the paper's.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pewe.flags import flag
from pewe.merging.rules.tensors import linear, per_tensor, used
from pewe.state import DeltaState


@dataclass(frozen=True)
class TiesFlags:
    """Defaults of the paper where no data choose (its section 4, "merging without validation sets")."""

    density: float = flag(0.2, "TIES: share of the entries of a source that are kept", low=0, high=1)
    scale: float = flag(1.0, "TIES: lambda, the factor of the merged difference", low=0)
    as_peft: bool = flag(
        False,
        "TIES as in PEFT: trim each tensor by itself, elect without weights, divide by the count, zero sums are +",
    )


def ties(states: Sequence[DeltaState], weights: Tensor, flags: TiesFlags) -> DeltaState:
    """Trim, elect, merge; differences tau_i of any shapes, weights (n,). Density 0 keeps nothing: the common base.

    Raises UserError as `used`.
    """
    states, weights = used(states, weights, flags)
    cut = trimmed_each if flags.as_peft else trimmed
    merged = elected_mean([cut(state, flags.density) for state in states], weights, flags.as_peft)
    return per_tensor([merged], lambda name, tensors: flags.scale * tensors[0].double())


def trimmed(state: DeltaState, density: float) -> DeltaState:
    """The state with 0 for all but its largest absolute values, taken over all tensors of floats as one vector.

    As in the release: of d values, what is at least the (d - int(d density))-th smallest is kept, so one value more than
    int(d density), and all that equal the smallest one kept.
    """
    floats = {name: tensor for name, tensor in state.items() if tensor.is_floating_point()}
    if density >= 1 or not any(tensor.numel() for tensor in floats.values()):
        return state
    sizes = torch.cat([tensor.abs().flatten().float() for tensor in floats.values()])
    least = float(sizes.kthvalue(len(sizes) - int(len(sizes) * density)).values) if density > 0 else torch.inf
    return {**state, **{name: tensor * (tensor.abs().float() >= least) for name, tensor in floats.items()}}


def trimmed_each(state: DeltaState, density: float) -> DeltaState:
    """The state with 0 for all but the int(density numel) largest absolute values of each tensor (PEFT)."""
    if density >= 1:
        return state
    kept = {}
    for name, tensor in state.items():
        mask = torch.zeros(tensor.numel(), dtype=torch.bool)
        mask[tensor.abs().flatten().topk(int(density * tensor.numel())).indices] = True
        kept[name] = tensor * mask.view(tensor.shape) if tensor.is_floating_point() else tensor
    return kept


def elected_mean(states: Sequence[DeltaState], weights: Tensor, as_peft: bool = False) -> DeltaState:
    """sum_i w_i tau_i / sum_i |w_i| over the sources whose w_i tau_i has the elected sign, entry by entry; 0 without any.

    As in the release, zeros have no sign, and where the signs of all entries cancel out, zero sums are negative. As in
    PEFT, tau_i has the sign, and the divisor is the count.
    """
    votes = torch.ones_like(weights) if as_peft else weights / weights.abs().max()  # equal ones sum without rounding
    sums = per_signs(states, votes)
    zero = 1 if as_peft or sum(int(sign.sum()) for sign in sums.values()) > 0 else -1

    def merge(name: str, tensors: list[Tensor]) -> Tensor:
        sign = torch.where(sums[name] == 0, zero, sums[name])
        above = below = 0.0
        for vote, weight, tensor in zip(votes.tolist(), weights.tolist(), tensors, strict=True):
            agrees = (vote * tensor).sign() == sign
            above = above + agrees * (weight if as_peft else vote) * tensor.double()
            below = below + agrees * abs(vote)
        return torch.where(below > 0, above / below, 0.0)

    return per_tensor(states, merge)


def ties_of_one(tensors: Sequence[Tensor], weights: Tensor, density: float) -> Tensor:
    """TIES of one tensor of every source, of lambda 1, as the rule inside another."""
    return elected_mean([trimmed({"": tensor}, density) for tensor in tensors], weights)[""]


def per_signs(states: Sequence[DeltaState], votes: Tensor) -> DeltaState:
    """sign(sum_i v_i tau_i) of every tensor of floats, int8."""
    floats = [name for name, tensor in states[0].items() if tensor.is_floating_point()]
    return {name: linear([state[name] for state in states], votes).sign().to(torch.int8) for name in floats}
