"""Weighted averages of delta states: products of the weight matrix with the stacked states, streamed in blocks."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from pewe.errors import UserError
from pewe.state import DeltaState

MEMORY = 2**29  # bytes: of a block of sources, and of a block of merged states


def merge(
    states: Sequence[DeltaState], weights: Tensor, memory: int = MEMORY, names: Sequence[str] = ()
) -> Iterator[DeltaState]:
    """theta_i = sum_j w_ij theta_j for every row of the weights (T, n), in order; floats as float32, shapes as the sources'.

    Whole numbers, which have no mean, must be equal in all sources and stay as they are. `states` may read its items when
    they are asked for (`checkpoint.Checkpoints`): each is taken once per block of targets, and neither the sources nor the
    merged states need to fit in memory. The tensors of a merged state are views of one block.

    Raises UserError, with the tensor and the source (one of `names`, or its number), where the states do not have the same
    tensors, whole numbers differ, or a result is not finite.
    """
    if len(states) != weights.shape[1]:
        raise UserError(f"{len(states)} states for {weights.shape[1]} weights per target")
    if not torch.isfinite(weights).all():
        raise UserError("the weights of an ensemble must be finite numbers")
    first = {name: tensor.to("meta") if tensor.is_floating_point() else tensor for name, tensor in states[0].items()}
    called = [repr(name) for name in names] or [str(number) for number in range(len(states))]
    size = max(1, memory // (4 * max(1, sum(tensor.numel() for tensor in first.values()))))
    for rows in weights.float().split(size):
        yield from _block(states, rows, first, size, called)


def _block(
    states: Sequence[DeltaState], weights: Tensor, first: DeltaState, size: int, called: Sequence[str]
) -> Iterator[DeltaState]:
    """The merged states of these rows of weights; a function of its own, so that it keeps no block when the next begins."""
    numbers = sum(tensor.numel() for tensor in _floats(first).values())
    merged = torch.from_numpy(
        np.empty((len(weights), numbers), np.float32)
    )  # on Linux numpy asks for large pages: faster
    for start in range(0, len(states), size):
        columns = range(start, min(start + size, len(states)))
        chunk = [fitting(states[number], first, called[number], called[0]) for number in columns]
        _add_products(merged, weights[:, columns.start : columns.stop], chunk, start > 0, first)
    _check_finite(merged, weights, states, first, called)
    for row in merged:
        yield _unflatten(row, first)


def _floats(state: DeltaState) -> DeltaState:
    return {name: tensor for name, tensor in state.items() if tensor.is_floating_point()}


def fitting(state: DeltaState, first: DeltaState, source: str, other: str) -> DeltaState:
    """The state, whose tensors have the names, shapes and whole numbers of the first one's. Raises UserError, naming both."""
    same_names = state.keys() == first.keys()
    for name, expected in first.items():
        if not same_names or state[name].shape != expected.shape:
            raise UserError(f"source {source}: its tensors do not fit those of source {other}, e.g. {name}")
        if expected.is_complex() or state[name].is_floating_point() != expected.is_floating_point():
            raise UserError(f"source {source}: tensor {name} is of {state[name].dtype}; only floats can be averaged")
        if not expected.is_floating_point() and not torch.equal(state[name], expected):
            raise UserError(f"source {source}: the whole numbers of tensor {name} are not those of source {other}")
    return state


def _add_products(merged: Tensor, weights: Tensor, chunk: Sequence[DeltaState], add: bool, first: DeltaState) -> None:
    """Add weights @ these states, or put it there, tensor by tensor, so that what is stacked stays in the cache."""
    floats = _floats(first)
    start, room = 0, torch.empty(len(chunk) * max((tensor.numel() for tensor in floats.values()), default=0))
    for name, tensor in floats.items():
        stacked = room[: len(chunk) * tensor.numel()].view(len(chunk), -1)
        torch.stack([state[name].flatten().float() for state in chunk], out=stacked)
        part = merged[:, start : start + tensor.numel()]
        torch.addmm(part, weights, stacked, beta=int(add), out=part)
        start += tensor.numel()


def _check_finite(
    merged: Tensor, weights: Tensor, states: Sequence[DeltaState], first: DeltaState, called: Sequence[str]
) -> None:
    """Raises UserError that names the first tensor with a result that is not finite, and the source that makes it so."""
    floats = _floats(first)
    for name, part in zip(floats, merged.split([tensor.numel() for tensor in floats.values()], dim=1), strict=True):
        if torch.isfinite(part).all():
            continue
        weight = weights[int((~torch.isfinite(part)).any(1).nonzero()[0])].abs()
        sizes = [float(state[name].float().abs().max()) for state in states]  # NaN and infinity stay what they are
        worst = max(range(len(states)), key=lambda j: (not np.isfinite(sizes[j]), float(weight[j]) * sizes[j]))
        what = "has values that are not finite" if not np.isfinite(sizes[worst]) else "is beyond float32 once weighted"
        raise UserError(f"source {called[worst]}: tensor {name} {what}; it cannot be averaged")


def _unflatten(row: Tensor, first: DeltaState) -> DeltaState:
    """The row as a state with the shapes of the first one, and its whole numbers."""
    floats = _floats(first)
    parts = iter(row.split([tensor.numel() for tensor in floats.values()]))
    return {name: next(parts).view(old.shape) if name in floats else old.clone() for name, old in first.items()}
