"""Statistics of a model or a delta: what they are called, and whether they can be used."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from pewe.errors import UserError

GRAM, FISHER = "gram.", "fisher."  # before the name of a linear layer or map, and of a parameter


class Statistics(NamedTuple):
    """The tensors of a model's statistics by name, and what is known of their making."""

    tensors: Mapping[str, Tensor]
    info: dict


def check_finite(name: str, tensor: Tensor, where: str | Path) -> None:
    """Raises UserError for a tensor of floats with NaN or infinity in it; `where` it is, a file or a model."""
    values = tensor.float() if tensor.element_size() == 1 else tensor  # there is no test of floats of 8 bits
    if tensor.is_floating_point() and not torch.isfinite(values).all():
        raise UserError(f"{where}: tensor {name} has values that are not finite (NaN or infinity)")


def sound(statistics: Statistics, number: int, name: str, shape: tuple[int, ...]) -> Tensor:
    """A Gram or Fisher of source `number`, float64.

    Raises UserError where there is none, of this shape, or it is not finite, or a Fisher value is below 0.
    """
    tensor = statistics.tensors.get(name)
    if tensor is None or tuple(tensor.shape) != shape:
        raise UserError(f"statistics {number} have no {name} of shape {shape}; collect them for these models or deltas")
    if not torch.isfinite(tensor).all() or (name.startswith(FISHER) and (tensor < 0).any()):
        raise UserError(f"statistics {number}: {name} has values that are not finite, or below 0; collect them anew")
    return tensor.double()
