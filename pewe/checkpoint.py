"""Delta checkpoints: `checkpoint-best.pt`, always loadable with `torch.load(weights_only=True)`.

    {tune_method: {original parameter name: tensor}, "args": {plain values}, "current_state": {"epoch", "num_updates"}}

`python -m pewe.checkpoint ORIGINAL.pt OUT.pt` converts a checkpoint of the original code, which holds pickled objects,
without running any code of it.
"""

import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import safetensors.torch
import torch

from pewe.cli import UserError, flag, main
from pewe.deltas import TUNE_METHODS, DeltaState
from pewe.results import replacing

BEST = "checkpoint-best.pt"
Shapes = Mapping[str, torch.Size]


def task_checkpoint(folder: Path, task: str) -> Path:
    """Where the delta tuned on a task lies: `<folder>/<task>/checkpoint-best.pt`."""
    return folder / task / BEST


def ensemble_checkpoint(folder: Path, task: str) -> Path:
    """Where the ensemble for a target lies: `<folder>/without_<task>_checkpoint.pt`."""
    return folder / f"without_{task}_checkpoint.pt"


def write_checkpoint(
    path: Path, tune_method: str, state: DeltaState, args: dict, updates: int = 0, epoch: int = 0
) -> None:
    """Write a delta state atomically; `args` must hold plain values only."""
    own = {
        name: tensor.clone() for name, tensor in state.items()
    }  # of a view, torch.save writes all that lies behind it
    content = {tune_method: own, "args": args, "current_state": {"epoch": epoch, "num_updates": updates}}
    with replacing(path) as temporary:
        torch.save(content, temporary)


def read_checkpoint(
    path: Path, tune_method: str, shapes: Shapes | None = None, hint: str = "", mapped: bool = False,
    built_on: Mapping[str, str] = MappingProxyType({}),
) -> DeltaState:  # fmt: skip
    """The delta state in a checkpoint (`.pt` or `.safetensors`), checked against the expected names and shapes.

    `mapped` leaves the tensors in the file, mapped into memory, for a state that is copied elsewhere at once. `built_on`
    are the frozen deltas, name -> fingerprint, that the checkpoint must have been tuned on, in this order.

    Raises UserError that names the file and the tensor: a missing file, another tune method, missing or unexpected
    names, another shape, a value that is not finite, other frozen deltas.
    """
    if not path.is_file():
        raise UserError(f"there is no checkpoint {path}" + (f"; {hint}" if hint else ""))
    content = _load(path, mapped)
    if not isinstance(content, dict) or not isinstance(content.get(tune_method), dict):
        found = next((name for name in TUNE_METHODS if isinstance(content, dict) and name in content), None)
        what = f"a {found} checkpoint" if found else "no delta checkpoint"
        raise UserError(f"{path} is {what}; expected one of --tune_method {tune_method}")
    state = content[tune_method]
    check_state(state, shapes, path)
    saved = content.get("args", {}).get("built_on", {}) if built_on else {}
    if built_on and list(saved.items()) != list(built_on.items()):
        raise UserError(
            f"{path} was tuned on other experts: {saved}; expected {dict(built_on)} (--experts, --expert_path)"
        )
    return state


class Checkpoints(Sequence[DeltaState]):
    """The delta states in files, all with the tensors of the first; each is read from its file whenever it is asked for."""

    def __init__(self, paths: Sequence[Path], tune_method: str, hint: str = ""):
        self.paths, self.tune_method, self.hint = list(paths), tune_method, hint
        self.shapes = shapes_of_state(read_checkpoint(self.paths[0], tune_method, None, hint))

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, number: int) -> DeltaState:
        return read_checkpoint(self.paths[number], self.tune_method, self.shapes, self.hint, mapped=True)

    def loaded(self, limit: int) -> Sequence[DeltaState]:
        """The states in memory where their files are smaller than `limit` bytes together, else this sequence."""
        size = sum(path.stat().st_size for path in self.paths if path.is_file())
        return list(self) if size < limit else self


def _load(path: Path, mapped: bool):
    try:
        if path.suffix == ".safetensors":
            state = safetensors.torch.load_file(path)
            return dict.fromkeys(TUNE_METHODS, state)
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError:
        raise UserError(
            f"{path} holds pickled objects (a checkpoint of the original code?) or is damaged; "
            f"convert it first: python -m pewe.checkpoint --original {path} --out NEW.pt"
        ) from None
    except Exception as error:  # a damaged file raises many kinds of errors in torch and safetensors
        raise UserError(f"cannot read the checkpoint {path}: it is damaged ({type(error).__name__})") from None


def check_state(state: DeltaState, shapes: Shapes | None, path: Path) -> None:
    """Raises UserError unless the state has these names and shapes (if given) and finite tensors."""
    for name, tensor in state.items():
        if not isinstance(tensor, torch.Tensor):
            raise UserError(f"{path}: {name} is a {type(tensor).__name__}, not a tensor")
        if not torch.isfinite(tensor).all():
            raise UserError(f"{path}: tensor {name} has values that are not finite (NaN or infinity)")
    if shapes is None:
        return
    missing, unexpected = sorted(shapes.keys() - state.keys()), sorted(state.keys() - shapes.keys())
    if missing:
        raise UserError(
            f"{path}: {len(missing)} tensors are missing, e.g. {missing[0]} (another backbone or delta type?)"
        )
    if unexpected:
        raise UserError(f"{path}: {len(unexpected)} unexpected tensors, e.g. {unexpected[0]} (another backbone?)")
    for name, shape in shapes.items():
        if state[name].shape != shape:
            raise UserError(f"{path}: tensor {name} has shape {tuple(state[name].shape)}, expected {tuple(shape)}")


def shapes_of_state(state: DeltaState) -> Shapes:
    """Names and shapes of a state."""
    return {name: tensor.shape for name, tensor in state.items()}


def shapes_of(delta) -> Shapes:
    """Names and shapes that a state of this delta must have."""
    return shapes_of_state(delta.states()[0])


class _Opaque:
    """Stands for any pickled object of an original checkpoint; keeps its state, runs none of its code."""

    def __init__(self, *args, **kwargs):
        pass

    def __setstate__(self, state):
        self.__dict__.update(state if isinstance(state, dict) else {})


def convert(original: Path, out: Path) -> str:
    """Convert an original checkpoint (same tensor names, plus pickled extras); returns its tune method."""
    if not original.is_file():
        raise UserError(f"there is no checkpoint {original}")
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(original)
        with torch.serialization.safe_globals([(type("Opaque", (_Opaque,), {}), name) for name in names]):
            content = torch.load(original, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise UserError(f"{original} holds objects that cannot be read safely") from None
    except Exception as error:  # as in `_load`
        raise UserError(f"cannot read {original}: it is damaged ({type(error).__name__})") from None
    method = next(
        (name for name in TUNE_METHODS if isinstance(content, dict) and isinstance(content.get(name), dict)), None
    )
    if method is None:
        raise UserError(
            f"{original} has none of the entries {', '.join(TUNE_METHODS)}: not a checkpoint of the original code"
        )
    check_state(content[method], None, original)
    args = {
        key: value
        for key, value in vars(content.get("args", _Opaque())).items()
        if isinstance(value, str | int | float | bool)
    }
    progress = content.get("current_state", {})
    progress = progress if isinstance(progress, dict) else {}
    state = {name: tensor.clone() for name, tensor in content[method].items()}
    write_checkpoint(out, method, state, args, int(progress.get("num_updates", 0)), int(progress.get("epoch", 0)))
    return method


@dataclass
class ConvertConfig:
    """Convert a checkpoint of the original code to one that loads with weights_only=True."""

    original: str = flag("", "checkpoint written by the original code")
    out: str = flag("", "file to write")


def _run(config: ConvertConfig) -> None:
    if not config.original or not config.out:
        raise UserError("--original and --out are both needed")
    method = convert(Path(config.original), Path(config.out))
    print(f"{config.out}: a {method} checkpoint")


if __name__ == "__main__":
    main(_run, ConvertConfig, __doc__)
