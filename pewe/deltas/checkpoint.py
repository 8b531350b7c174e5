"""Delta checkpoints: `checkpoint-best.pt`, always loadable with `torch.load(weights_only=True)`.

    {tune_method: {original parameter name: tensor}, "args": {plain values}, "current_state": {"epoch", "num_updates"},
     "sha256": fingerprint of all that}

`args` say, among others, what the delta was made for (`delta_identity`). `pewe/deltas/convert.py` makes one of a checkpoint
of the original code.
"""

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Protocol

import torch

from pewe import identity
from pewe.cli import log
from pewe.deltas.kinds import KINDS
from pewe.deltas.peft_folder import fitted, is_peft, read_peft, says_scale
from pewe.errors import UserError
from pewe.files import replacing
from pewe.state import DeltaState, Shapes, check_state, float_state, read_stored, shapes_of_state

BEST = "checkpoint-best.pt"
COMMON_INIT = "common_init.pt"  # in a folder of runs: the delta that all of them began with (--common_init)
BACKBONE, MODEL = "backbone", "model"  # entries of `args`: fingerprint of the backbone's content, and its name
NOTHING: Mapping = MappingProxyType({})


class OfABackbone(Protocol):
    """The flags that say of which kind a delta is, and of which backbone; besides, it has those of its kind."""

    tune_method: str
    model: str
    tokenizer_path: str


def task_checkpoint(folder: Path, task: str) -> Path:
    """Where the delta tuned on a task lies: `<folder>/<task>/checkpoint-best.pt`."""
    return folder / task / BEST


def ensemble_checkpoint(folder: Path, task: str) -> Path:
    """Where the ensemble for a target lies: `<folder>/without_<task>_checkpoint.pt`."""
    return folder / f"without_{task}_checkpoint.pt"


def sources_hint(tune_method: str, folder: Path | str) -> str:
    """How missing sources are made."""
    return f"tune the sources first: bash scripts/{tune_method}.sh --full_train --output_dir {folder}"


def delta_identity(config: OfABackbone) -> dict:
    """What a delta of this configuration (a MethodConfig and BackboneConfig) is made for: the flags of its kind, the backbone.

    Entries of this kind stand in the `args` of a checkpoint.
    """
    flags = {name: getattr(config, name) for name in KINDS[config.tune_method].describing}
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
    save_together({path: content})


def save_together(contents: Mapping[Path, Mapping]) -> None:
    """The same for several files, none of which takes its place before all of them are written."""
    with contextlib.ExitStack() as written:
        for path, content in contents.items():
            with written.enter_context(replacing(path)).open("wb") as file:  # of a path, torch would store the name
                torch.save(identity.sealed(content), file)


def read_checkpoint(
    path: Path,
    tune_method: str,
    shapes: Shapes | None = None,
    hint: str = "",
    mapped: bool = False,
    built_on: Mapping[str, str] = NOTHING,
    made_for: Mapping = NOTHING,
    among: Iterable[Path] = (),
) -> DeltaState:
    """The delta state in a checkpoint (`.pt` or `.safetensors`) as float32, checked against the expected names and shapes.

    `mapped` leaves the tensors in the file, mapped into memory, for a state that is copied elsewhere at once. `built_on`
    are the frozen deltas, name -> fingerprint, that the checkpoint must have been tuned on, in this order. `made_for` is
    the `delta_identity` of whoever uses it; a checkpoint that does not say its own (the original's) is taken with a warning.
    LoRA of PEFT gets the rank and scale of that, and so does a LoRA `among` others that are of PEFT.

    Raises UserError that names the file and the tensor: a missing or damaged file, another tune method, scale, size,
    backbone or other frozen deltas; missing or unexpected names, another shape, values that are not finite floats.
    """
    state, args = open_checkpoint(path, tune_method, hint, mapped)
    if "lora_r" in made_for and any(map(is_peft, (path, *among))):
        state, args = fitted(state, args, made_for["lora_r"], made_for["lora_alpha"], path)
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
    if is_peft(path):
        if tune_method != "lora":
            raise UserError(f"{path} is a LoRA of PEFT; expected one of --tune_method {tune_method}")
        return read_peft(path)
    if not path.is_file():
        raise UserError(f"there is no checkpoint {path}" + (f"; {hint}" if hint else ""))
    content = _load(path, mapped)
    if not isinstance(content, dict) or tune_method not in content:
        found = next((name for name in KINDS if isinstance(content, dict) and name in content), None)
        what = f"a {found} checkpoint" if found else "no delta checkpoint"
        raise UserError(f"{path} is {what}; expected one of --tune_method {tune_method}")
    for entry in (tune_method, "args", "current_state"):
        if not isinstance(content.get(entry, {}), dict):
            raise UserError(f"{path}: its entry {entry} is a {type(content[entry]).__name__}, not names with values")
    state = float_state(content[tune_method], path)
    if verify:
        check_seal(content, state, path)
    return state, content.get("args", {})


def kind_of(path: Path, tune_method: str = "") -> tuple[str, dict]:
    """The kind of delta in a checkpoint, and what it says of its scale and size; `tune_method` is the kind where it is known."""
    tune_method = tune_method or ("lora" if is_peft(path) else "")
    content = _load(path, mapped=False) if path.is_file() and not tune_method else {}
    kinds = [tune_method] if tune_method else [name for name in KINDS if isinstance(content, dict) and name in content]
    if len(kinds) != 1:
        raise UserError(f"{path} does not say of which kind of delta it is; give --tune_method")
    args = content.get("args", {}) if not tune_method else open_checkpoint(path, tune_method, verify=False)[1]
    return kinds[0], {name: args[name] for name in KINDS[kinds[0]].describing if name in args}


def start_of(path: Path, tune_method: str) -> str:
    """The fingerprint of the delta that a checkpoint's tuning began with; empty where it does not say."""
    return open_checkpoint(path, tune_method, mapped=True, verify=False)[1].get("init", "")


def check_seal(content: dict, state: DeltaState, path: Path) -> None:
    """Raises UserError where the content does not fit its checksum; one without checksum, of others, is taken."""
    if identity.SEAL in content and identity.unsealed(content) is None:
        check_state(state, None, path)  # names the tensor
        raise UserError(
            f"cannot read the checkpoint {path}: it is damaged, its content does not fit its checksum "
            f"(a file changed on purpose must have no entry {identity.SEAL!r})"
        )


def _load(path: Path, mapped: bool) -> object:
    convert = f"a checkpoint of the original code? convert it first: python -m pewe.deltas.convert --original {path} --out NEW.pt"
    content = read_stored(path, mapped, convert)
    return dict.fromkeys(KINDS, content) if path.suffix == ".safetensors" else content


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
            way = (
                f"say that it is this one: pewe convert --peft {path} --model ..."
                if is_peft(path)
                else "tune it on this one"
            )
            raise UserError(f"{path} was tuned {what}; {advice or f'give that as --model, or {way}'}")
        raise UserError(f"{path} was tuned with --{name} {given}, not {wanted}; {advice or f'give --{name} {given}'}")
    silent = tuple(name for name in made_for if name not in args)
    if silent and silent not in _told:
        _told.add(silent)
        log.warning(
            "%s does not say its %s (an earlier version, or the original code?); it and others like it are used as they are",
            path,
            ", ".join(silent),
        )


class Checkpoints(Sequence[DeltaState]):
    """The delta states in files, all with the tensors of the first and made for the same scale, size and backbone.

    Each is read from its file whenever it is asked for. `made_for` is what those that say it were made for. Where any is a
    LoRA of PEFT, all get the largest rank among them, and its scale.
    """

    def __init__(self, paths: Sequence[Path], tune_method: str, hint: str = ""):
        self.paths, self.tune_method, self.hint = list(paths), tune_method, hint
        self.shapes: Shapes | None = None
        self.made_for: dict = {}
        self._kept: list[DeltaState] | None = None
        self.rank = self._rank()
        for path in self.paths:
            state, args = self._open(path)
            self.shapes = self.shapes or shapes_of_state(state)
            check_state(state, self.shapes, path)
            known = {name: value for name, value in self.made_for.items() if name != MODEL}
            check_made_for(args, known, path, "unlike those before it: the sources of an ensemble must be alike")
            names = (*KINDS[tune_method].describing, BACKBONE, MODEL)
            self.made_for = {name: args[name] for name in names if name in args} | self.made_for

    def _rank(self) -> tuple[int, float] | None:
        """Rank and alpha that all must have where LoRA of PEFT is among them: the largest, of ours where that is one of ours."""
        if not any(map(is_peft, self.paths)):
            return None
        said = [(open_checkpoint(path, self.tune_method, self.hint, True, False)[1], path) for path in self.paths]
        known = [(args["lora_r"], not is_peft(path), args["lora_alpha"]) for args, path in said if says_scale(args)]
        r, _, alpha = max(known, key=lambda one: one[:2])
        return r, alpha

    def _open(self, path: Path, verify: bool = True) -> tuple[DeltaState, dict]:
        state, args = open_checkpoint(path, self.tune_method, self.hint, mapped=True, verify=verify)
        return fitted(state, args, *self.rank, path) if self.rank else (state, args)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, number: int) -> DeltaState:
        if self._kept is not None:
            return self._kept[number]
        path = self.paths[number]
        state, _ = self._open(path, verify=False)
        check_state(state, self.shapes, path)
        return state

    def loaded(self, limit: int) -> "Checkpoints":
        """This sequence, with its states in memory where their files are smaller than `limit` bytes together."""
        if sum(path.stat().st_size for path in self.paths) < limit:
            self._kept = list(self)
        return self
