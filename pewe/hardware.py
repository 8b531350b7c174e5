"""What the hardware does well: which dtype is faster on it."""

import dataclasses
import functools
import time
import typing

import torch

from pewe.errors import UserError
from pewe.model_files import AUTO, BackboneConfig

C = typing.TypeVar("C", bound=BackboneConfig)
SIZE = {"cpu": 384, "cuda": 4096}  # of the square matrices that are multiplied: at 1 GFLOP/s a tenth of a second
SECONDS = 0.02  # of a measurement, at least
GAIN = 1.5  # from which on bfloat16 is worth its three digits


def device_of(config: BackboneConfig) -> torch.device:
    """Where a command computes. Raises UserError where a GPU is asked for and there is none."""
    if config.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: no CUDA device is available (use --device cpu)")
    return torch.device("cuda" if config.device != "cpu" and torch.cuda.is_available() else "cpu")


@functools.cache
def bfloat16_gain(kind: str) -> float:
    """How many times faster than in float32 a matrix product in bfloat16 is, on a device of this kind, measured."""
    rates = [product_rate(dtype, torch.device(kind), SIZE[kind]) for dtype in (torch.bfloat16, torch.float32)]
    return rates[0] / rates[1]


def product_rate(dtype: torch.dtype, device: torch.device, size: int) -> float:
    """FLOP/s of the product of two square matrices: the best of repetitions for SECONDS, at least two."""
    a = torch.ones(size, size, dtype=dtype, device=device)
    best, count, until = 0.0, 0, time.perf_counter() + SECONDS
    while count < 2 or time.perf_counter() < until:
        start = time.perf_counter()
        a @ a
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best, count = max(best, 2 * size**3 / (time.perf_counter() - start)), count + 1
    return best


def settled(config: C) -> C:
    """The configuration with the dtype that --dtype auto stands for here: what decides a result is what was used."""
    if config.dtype != AUTO:
        return config
    faster = bfloat16_gain(device_of(config).type) >= GAIN
    return dataclasses.replace(config, dtype="bfloat16" if faster else "float32")
