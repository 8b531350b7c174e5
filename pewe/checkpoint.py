"""Delta checkpoints: `checkpoint-best.pt`, always loadable with `torch.load(weights_only=True)`.

    {tune_method: {original parameter name: tensor}, "args": {plain values}, "current_state": {"epoch", "num_updates"},
     "sha256": fingerprint of all that}

`args` say, among others, what the delta was made for (`delta_identity`). A checkpoint of the original code, which holds
pickled objects, is converted, without running any code of it, by

    python -m pewe.checkpoint --original ORIGINAL.pt --out OUT.pt
"""

import pickle
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import safetensors.torch
import torch

from pewe import identity
from pewe.cli import UserError, flag, log, main
from pewe.deltas import TUNE_METHODS, DeltaState, describing_flags
from pewe.results import replacing

BEST = "checkpoint-best.pt"
BACKBONE, MODEL = "backbone", "model"  # entries of `args`: fingerprint of the backbone's content, and its name
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
NOTHING: Mapping = MappingProxyType({})
Shapes = Mapping[str, torch.Size]


def task_checkpoint(folder: Path, task: str) -> Path:
    """Where the delta tuned on a task lies: `<folder>/<task>/checkpoint-best.pt`."""
    return folder / task / BEST


def ensemble_checkpoint(folder: Path, task: str) -> Path:
    """Where the ensemble for a target lies: `<folder>/without_<task>_checkpoint.pt`."""
    return folder / f"without_{task}_checkpoint.pt"


def delta_identity(config) -> dict:
    """What a delta of this configuration (a DeltaConfig and BackboneConfig) is made for: the flags of its kind, the backbone.

    Entries of this kind stand in the `args` of a checkpoint.
    """
    flags = {name: getattr(config, name) for name in describing_flags(config.tune_method)}
    return {**flags, BACKBONE: identity.model_digest(config.model, config.tokenizer_path)}


def experts_of(built_on: Mapping[str, str]) -> list[list[str]]:
    """Frozen deltas and their fingerprints as the entry `built_on` of `args`, which keeps their order."""
    return [list(pair) for pair in built_on.items()]


def write_checkpoint(
    path: Path, tune_method: str, state: DeltaState, args: Mapping, updates: int = 0, epoch: int = 0
) -> None:
    """Write a delta state with its checksum, atomically; `args` must hold plain values only."""
    own = {
        name: tensor.clone() for name, tensor in state.items()
    }  # of a view, torch.save writes all that lies behind it
    content = {tune_method: own, "args": dict(args), "current_state": {"epoch": epoch, "num_updates": updates}}
    save_sealed(path, content)


def save_sealed(path: Path, content: Mapping) -> None:
    """Write tensors and plain values with their checksum in torch's format, atomically; equal content gives equal bytes."""
    with replacing(path) as temporary, temporary.open("wb") as file:  # of a path, torch would store the name
        torch.save(identity.sealed(content), file)


def read_checkpoint(
    path: Path, tune_method: str, shapes: Shapes | None = None, hint: str = "", mapped: bool = False,
    built_on: Mapping[str, str] = NOTHING, made_for: Mapping = NOTHING,
) -> DeltaState:  # fmt: skip
    """The delta state in a checkpoint (`.pt` or `.safetensors`) as float32, checked against the expected names and shapes.

    `mapped` leaves the tensors in the file, mapped into memory, for a state that is copied elsewhere at once. `built_on`
    are the frozen deltas, name -> fingerprint, that the checkpoint must have been tuned on, in this order. `made_for` is
    the `delta_identity` of whoever uses it; a checkpoint that does not say its own (the original's) is taken with a warning.

    Raises UserError that names the file and the tensor: a missing or damaged file, another tune method, scale, size,
    backbone or other frozen deltas; missing or unexpected names, another shape, values that are not finite floats.
    """
    state, args = open_checkpoint(path, tune_method, hint, mapped)
    check_made_for(args, made_for, path)
    check_state(state, shapes, path)
    saved = args.get("built_on", [])
    if built_on and saved != experts_of(built_on):
        raise UserError(
            f"{path} was tuned on other experts: {saved}; expected {experts_of(built_on)} (--experts, --expert_path)"
        )
    return state


def open_checkpoint(
    path: Path, tune_method: str, hint: str = "", mapped: bool = False, verify: bool = True
) -> tuple[DeltaState, dict]:
    """The state, as float32, and the `args` of a checkpoint; neither names, shapes nor values are checked.

    Raises UserError for a missing or damaged file, and for a content that is not a checkpoint of this method.
    """
    if not path.is_file():
        raise UserError(f"there is no checkpoint {path}" + (f"; {hint}" if hint else ""))
    content = _load(path, mapped)
    if not isinstance(content, dict) or tune_method not in content:
        found = next((name for name in TUNE_METHODS if isinstance(content, dict) and name in content), None)
        what = f"a {found} checkpoint" if found else "no delta checkpoint"
        raise UserError(f"{path} is {what}; expected one of --tune_method {tune_method}")
    for entry in (tune_method, "args", "current_state"):
        if not isinstance(content.get(entry, {}), dict):
            raise UserError(f"{path}: its entry {entry} is a {type(content[entry]).__name__}, not names with values")
    state = float_state(content[tune_method], path)
    if verify:
        check_seal(content, state, path)
    return state, content.get("args", {})


def check_seal(content: dict, state: DeltaState, path: Path) -> None:
    """Raises UserError where the content does not fit its checksum; one without checksum, of others, is taken."""
    if identity.SEAL in content and identity.unsealed(content) is None:
        check_state(state, None, path)  # names the tensor
        raise UserError(
            f"cannot read the checkpoint {path}: it is damaged, its content does not fit its checksum "
            f"(a file changed on purpose must have no entry {identity.SEAL!r})"
        )


def _load(path: Path, mapped: bool):
    try:
        if path.suffix == ".safetensors":
            state = safetensors.torch.load_file(path)
            return dict.fromkeys(TUNE_METHODS, state)
        mapped = mapped and zipfile.is_zipfile(path)  # not in torch's format before 1.6
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError:
        raise UserError(
            f"{path} holds pickled objects (a checkpoint of the original code?) or is damaged; "
            f"convert it first: python -m pewe.checkpoint --original {path} --out NEW.pt"
        ) from None
    except PermissionError as error:
        raise UserError(f"cannot read the checkpoint {path}: {error.strerror}") from None
    except Exception as error:  # a damaged file raises many kinds of errors in torch and safetensors
        raise UserError(f"cannot read the checkpoint {path}: it is damaged ({type(error).__name__})") from None


def sound_content(path: Path) -> dict:
    """The content of a checkpoint that fits its checksum; empty where there is no such file."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        return content if identity.unsealed(content) is not None else {}
    except Exception:  # as in `_load`
        return {}


def checksum(path: Path) -> str:
    """The checksum of a sound checkpoint; empty where there is no such file."""
    return sound_content(path).get(identity.SEAL, "")


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


_told: set[tuple[str, ...]] = set()  # entries of which it was said that a checkpoint lacks them


def check_made_for(args: Mapping, made_for: Mapping, path: Path, advice: str = "") -> None:
    """Raises UserError unless a checkpoint, by its `args`, was made for this scale, type, size and backbone.

    Where it does not say, it is taken, with one warning for all such checkpoints. `advice` takes the place of the flag to
    give.
    """
    for name, wanted in made_for.items():
        given = args.get(name, wanted)
        if given == wanted:
            continue
        if name == BACKBONE:
            what = f"on another backbone ({args.get(MODEL, 'its name is not known')})"
            raise UserError(f"{path} was tuned {what}; {advice or 'give that as --model, or tune it on this one'}")
        raise UserError(f"{path} was tuned with --{name} {given}, not {wanted}; {advice or f'give --{name} {given}'}")
    silent = tuple(name for name in made_for if name not in args)
    if silent and silent not in _told:
        _told.add(silent)
        log.warning(
            "%s does not say its %s (an earlier version, or the original code?); it and others like it are used as they are",
            path, ", ".join(silent),
        )  # fmt: skip


class Checkpoints(Sequence[DeltaState]):
    """The delta states in files, all with the tensors of the first and made for the same scale, size and backbone.

    Each is read from its file whenever it is asked for. `made_for` is what those that say it were made for.
    """

    def __init__(self, paths: Sequence[Path], tune_method: str, hint: str = ""):
        self.paths, self.tune_method, self.hint = list(paths), tune_method, hint
        self.shapes: Shapes | None = None
        self.made_for: dict = {}
        self._kept: list[DeltaState] | None = None
        for path in self.paths:
            state, args = open_checkpoint(path, tune_method, hint, mapped=True)
            self.shapes = self.shapes or shapes_of_state(state)
            check_state(state, self.shapes, path)
            known = {name: value for name, value in self.made_for.items() if name != MODEL}
            check_made_for(args, known, path, "unlike those before it: the sources of an ensemble must be alike")
            names = (*describing_flags(tune_method), BACKBONE, MODEL)
            self.made_for = {name: args[name] for name in names if name in args} | self.made_for

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, number: int) -> DeltaState:
        if self._kept is not None:
            return self._kept[number]
        path = self.paths[number]
        state, _ = open_checkpoint(path, self.tune_method, self.hint, mapped=True, verify=False)
        check_state(state, self.shapes, path)
        return state

    def loaded(self, limit: int) -> "Checkpoints":
        """This sequence, with its states in memory where their files are smaller than `limit` bytes together."""
        if sum(path.stat().st_size for path in self.paths) < limit:
            self._kept = list(self)
        return self


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
    found = float_state(content[method], original)
    check_seal(content, found, original)
    check_state(found, None, original)
    args = {
        key: value
        for key, value in _entries(content, "args", original).items()
        if isinstance(key, str) and isinstance(value, str | int | float | bool)
    }
    progress = _entries(content, "current_state", original)
    counts = {name: progress.get(name, 0) for name in ("num_updates", "epoch")}
    for name, count in counts.items():
        if not isinstance(count, int):
            raise UserError(f"{original}: {name} of its entry current_state is {str(count)[:40]!r}, not a whole number")
    write_checkpoint(out, method, found, args, *counts.values())
    return method


def _entries(content: dict, name: str, path: Path) -> dict:
    """What stands in an entry, a dict or a pickled object; nothing where there is none. Raises UserError for another kind."""
    entry = content.get(name, {})
    if not isinstance(entry, dict | _Opaque):
        raise UserError(f"{path}: its entry {name} is a {type(entry).__name__}, not names with values")
    return entry if isinstance(entry, dict) else vars(entry)


@dataclass
class ConvertConfig:
    """Convert a checkpoint of the original code to one that loads with weights_only=True."""

    original: str = flag("", "checkpoint written by the original code")
    out: str = flag("", "file to write")


def _run(config: ConvertConfig) -> None:
    if not config.original or not config.out:
        raise UserError("--original and --out are both needed")
    if Path(config.original).resolve() == Path(config.out).resolve():
        raise UserError(f"--out {config.out} is the --original, which would be lost; give another name")
    method = convert(Path(config.original), Path(config.out))
    print(f"{config.out}: a {method} checkpoint")


if __name__ == "__main__":
    main(_run, ConvertConfig, __doc__)
