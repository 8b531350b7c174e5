"""A checkpoint of the original code, which holds pickled objects, becomes one of ours, without running any code of it.

python -m pewe.deltas.convert --original ORIGINAL.pt --out OUT.pt
"""

import pickle
from dataclasses import dataclass
from pathlib import Path

from pewe.command import main

import torch

from pewe.deltas.checkpoint import check_seal, write_checkpoint
from pewe.deltas.kinds import KINDS
from pewe.errors import UserError
from pewe.flags import flag
from pewe.state import check_state, float_state


class _Opaque:
    """Stands for any pickled object of an original checkpoint; keeps its state, runs none of its code."""

    def __init__(self, *args: object, **kwargs: object):
        pass

    def __setstate__(self, state: object) -> None:
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
    method = next((name for name in KINDS if isinstance(content, dict) and isinstance(content.get(name), dict)), None)
    if method is None:
        raise UserError(f"{original} has none of the entries {', '.join(KINDS)}: not a checkpoint of the original code")
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


@dataclass(frozen=True)
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
