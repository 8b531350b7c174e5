"""Weighted averages of delta states: products of the weight matrix with the stacked states, streamed in blocks."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from pewe.cli import UserError
from pewe.deltas.base import DeltaState

MEMORY = 2**29  # bytes: of a block of sources, and of a block of merged states


def merge(states: Sequence[DeltaState], weights: Tensor, memory: int = MEMORY) -> Iterator[DeltaState]:
    """theta_i = sum_j w_ij theta_j for every row of the weights (T, n), in order; dtype and shapes are those of the sources.

    `states` may read its items when they are asked for (`checkpoint.Checkpoints`): each is taken once per block of
    targets, and neither the sources nor the merged states need to fit in memory. The tensors of a merged state are views
    of one block. Raises UserError where the states do not have the same tensors.
    """
    if len(states) != weights.shape[1]:
        raise UserError(f"{len(states)} states for {weights.shape[1]} weights per target")
    first = {name: tensor.to("meta") for name, tensor in states[0].items()}
    size = max(1, memory // (4 * max(1, sum(tensor.numel() for tensor in first.values()))))
    for rows in weights.float().split(size):
        yield from _block(states, rows, first, size)


def _block(states: Sequence[DeltaState], weights: Tensor, first: DeltaState, size: int) -> Iterator[DeltaState]:
    """The merged states of these rows of weights; a function of its own, so that it keeps no block when the next begins."""
    numbers = sum(tensor.numel() for tensor in first.values())
    merged = torch.from_numpy(
        np.empty((len(weights), numbers), np.float32)
    )  # on Linux numpy asks for large pages: faster
    for start in range(0, len(states), size):
        columns = range(start, min(start + size, len(states)))
        _add_products(merged, weights[:, columns.start : columns.stop], states, columns, first)
    for row in merged:
        yield _unflatten(row, first)


def _fitting(state: DeltaState, first: DeltaState, number: int) -> DeltaState:
    same_names = state.keys() == first.keys()
    for name, expected in first.items():
        if not same_names or state[name].shape != expected.shape:
            raise UserError(f"source {number}: its tensors do not fit those of source 0, e.g. {name}")
    return state


def _add_products(
    merged: Tensor, weights: Tensor, states: Sequence[DeltaState], columns: range, first: DeltaState
) -> None:
    """Add weights @ these states, tensor by tensor, so that what is stacked stays in the cache; the first columns overwrite."""
    chunk = [_fitting(states[number], first, number) for number in columns]
    start, room = 0, torch.empty(len(chunk) * max(tensor.numel() for tensor in first.values()))
    for name, tensor in first.items():
        stacked = room[: len(chunk) * tensor.numel()].view(len(chunk), -1)
        torch.stack([state[name].flatten().float() for state in chunk], out=stacked)
        part = merged[:, start : start + tensor.numel()]
        torch.addmm(part, weights, stacked, beta=min(columns.start, 1), out=part)
        start += tensor.numel()


def _unflatten(row: Tensor, first: DeltaState) -> DeltaState:
    """The row as a state with the shapes and dtypes of the first one."""
    parts = row.split([tensor.numel() for tensor in first.values()])
    return {name: part.view(old.shape).to(old.dtype) for (name, old), part in zip(first.items(), parts, strict=True)}
