"""How the numbers of tests/golden are kept and compared."""

import numpy as np
import torch
from conftest import draws

TOLERANCE, ZERO = 1e-4, 1e-10
Numbers = dict[str, list]  # name -> floats; or whole numbers or texts, which must be equal


def summary(tensor) -> list[float]:
    """A tensor of up to 16 numbers as it is; of a larger one the norm and three products with fixed random tensors.

    An error of a share e of the norm moves those by about e of the norm.
    """
    flat = torch.as_tensor(tensor).detach().double().flatten()
    if len(flat) <= 16:
        return flat.tolist()
    return [flat.norm().item(), *(draws("probe", 3, len(flat)).double() @ flat).tolist()]


def summaries(tensors: dict, prefix: str = "") -> Numbers:
    return {prefix + name: summary(tensor) for name, tensor in tensors.items()}


def differences(found: Numbers, expected: Numbers) -> list[str]:
    """Names of what does not agree."""
    if found.keys() != expected.keys():
        return sorted(found.keys() ^ expected.keys())
    return [name for name in expected if not agree(found[name], expected[name])]


def agree(found: list, expected: list) -> bool:
    """To the tolerance, relative to the largest of the numbers, or both zero but for rounding; other values exactly."""
    if len(found) != len(expected) or not all(isinstance(value, float) for value in expected):
        return found == expected
    off = np.abs(np.subtract(found, expected))
    return bool((off <= TOLERANCE * np.abs(expected).max() + ZERO).all())
