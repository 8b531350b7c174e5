"""The state of a delta: named tensors, and what they must be like."""

import pickle
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from pewe.errors import UserError

DeltaState = dict[str, Tensor]  # original parameter names, no leading axis
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
Shapes = Mapping[str, torch.Size]


def scope_of(name: str, parts: int) -> str:
    """`decoder.block.3.layer.2.adapter.adapter_A` -> decoder.block.3 (3 leading parts), decoder.block.3.layer.2 (5).

    A prefix has one network for each side of the model, whose scope is that side.
    """
    words = name.split(".")
    return ".".join(words[:parts]) if words[1] == "block" else words[0]


def read_stored(path: Path, mapped: bool = False, otherwise: str = "only tensors are read") -> object:
    """What torch or safetensors stored in a file, on the CPU; nothing is unpickled but tensors and plain values.

    `mapped` leaves the tensors in the file, mapped into memory. Raises UserError for a file that is damaged or cannot be
    read, and for one that holds other objects, with what to do `otherwise`.
    """
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        mapped = mapped and zipfile.is_zipfile(path)  # not in torch's format before 1.6
        with warnings.catch_warnings(action="ignore"):  # of a plain pickle, which is refused
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError:
        raise UserError(f"{path} holds pickled objects, or is damaged; {otherwise}") from None
    except PermissionError as error:
        raise UserError(f"cannot read the checkpoint {path}: {error.strerror}") from None
    except Exception as error:  # a damaged file raises many kinds of errors in torch and safetensors
        raise UserError(f"cannot read the checkpoint {path}: it is damaged ({type(error).__name__})") from None


def float_state(state: Mapping, path: Path) -> DeltaState:
    """The tensors as float32, without gradients. Raises UserError for anything but dense tensors of floats in the file."""
    if not state:
        raise UserError(f"{path} holds no tensors")
    room = path.stat().st_size
    for name, tensor in state.items():
        if not isinstance(tensor, torch.Tensor):
            raise UserError(f"{path}: {name} is a {type(tensor).__name__}, not a tensor")
        kind = next((kind for kind, given in _kinds(tensor, name, room) if given), "")
        if kind:
            raise UserError(f"{path}: tensor {name} is {kind}; expected a dense tensor of floats (float16 to float64)")
    return {name: tensor.detach().to(torch.float32) for name, tensor in state.items()}


def _kinds(tensor: torch.Tensor, name, room: int) -> Iterable[tuple[str, bool]]:
    yield f"named by a {type(name).__name__}", not isinstance(name, str)
    yield f"{tensor.layout}", tensor.layout != torch.strided
    yield "without values (on the device meta)", tensor.is_meta
    yield f"of {tensor.dtype}", tensor.dtype not in FLOATS
    yield "empty", tensor.numel() == 0
    yield f"larger ({tensor.numel()} values) than its file", tensor.numel() * tensor.element_size() > room


def check_state(state: DeltaState, shapes: Shapes | None, path: Path) -> None:
    """Raises UserError unless the state has these names and shapes (if given) and finite values."""
    for name, shape in (shapes or {}).items():
        if name in state and state[name].shape != shape:
            raise UserError(f"{path}: tensor {name} has shape {tuple(state[name].shape)}, expected {tuple(shape)}")
    for name, tensor in state.items():
        if not torch.isfinite(tensor).all():
            raise UserError(f"{path}: tensor {name} has values that are not finite (NaN, infinity, or beyond float32)")
    if shapes is None:
        return
    missing, unexpected = sorted(shapes.keys() - state.keys()), sorted(state.keys() - shapes.keys())
    if missing:
        raise UserError(
            f"{path}: {len(missing)} tensors are missing, e.g. {missing[0]} (another backbone or delta type?)"
        )
    if unexpected:
        raise UserError(f"{path}: {len(unexpected)} unexpected tensors, e.g. {unexpected[0]} (another backbone?)")


def shapes_of_state(state: DeltaState) -> Shapes:
    """Names and shapes of a state."""
    return {name: tensor.shape for name, tensor in state.items()}


def shapes_of(delta) -> Shapes:
    """Names and shapes that a state of this delta must have."""
    return shapes_of_state(delta.states()[0])
