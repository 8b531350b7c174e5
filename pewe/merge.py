"""Weighted averages of delta states: one product of the weight matrix with the stacked states."""

from collections.abc import Sequence

import torch
from torch import Tensor

from pewe.cli import UserError
from pewe.deltas.base import DeltaState


def merge(states: Sequence[DeltaState], weights: Tensor) -> list[DeltaState]:
    """theta_i = sum_j w_ij theta_j for every row of the weights (T, n); T states of the sources' dtype and shapes.

    Raises UserError where the states do not have the same tensors.
    """
    if len(states) != weights.shape[1]:
        raise UserError(f"{len(states)} states for {weights.shape[1]} weights per target")
    merged: list[DeltaState] = [{} for _ in range(weights.shape[0])]
    for name, first in states[0].items():
        for number, state in enumerate(states):
            if state.keys() != states[0].keys() or state[name].shape != first.shape:
                raise UserError(f"source {number}: its tensors do not fit those of source 0, e.g. {name}")
        stacked = torch.stack([state[name].flatten() for state in states]).float()
        for target, row in enumerate((weights.float() @ stacked).to(first.dtype)):
            merged[target][name] = row.view(first.shape).clone()
    return merged
