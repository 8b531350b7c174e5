"""A checkpoint of the original code, which holds pickled objects, or a LoRA of PEFT becomes one of ours; no code is run.

python -m pewe.deltas.convert --original ORIGINAL.pt --out OUT.pt
python -m pewe.deltas.convert --peft FOLDER_OR_HUB_ID --out OUT.pt
"""

import pickle
from dataclasses import dataclass
from pathlib import Path

from pewe.command import main

import torch

from pewe.deltas.checkpoint import BACKBONE, MODEL, check_seal, write_checkpoint
from pewe.deltas.flags import WIDEST
from pewe.deltas.kinds import KINDS
from pewe.deltas.peft_folder import fitted, read_peft
from pewe.deltas.projections import targets_of
from pewe.deltas.sources import peft_folder
from pewe.errors import UserError
from pewe.flags import check, flag
from pewe.identity import model_digest
from pewe.model_files import check_folder
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


def convert_peft(config: "ConvertConfig") -> dict:
    """Convert a LoRA of PEFT; returns what the checkpoint says that it was made for, and its targets.

    `--model` says that this is its backbone, whatever its configuration calls it.
    """
    folder = peft_folder(config.peft)
    if Path(config.out).resolve().parent == folder.resolve():
        raise UserError(f"--out {config.out} is in the --peft folder, whose files would be lost; give another place")
    state, args = read_peft(folder, config.model)
    r, alpha = config.lora_r or args["lora_r"], config.lora_alpha or args["lora_alpha"]
    state, args = fitted(state, args, r, alpha, folder)
    if config.model:
        check_folder(config.model)
        args |= {MODEL: config.model, BACKBONE: model_digest(config.model, config.tokenizer_path)}
    args |= {"lora_targets": targets_of(state), "converted_from": config.peft}
    write_checkpoint(Path(config.out), "lora", state, args)
    return args


@dataclass(frozen=True)
class ConvertConfig:
    """Convert a checkpoint of others to one that loads with weights_only=True."""

    original: str = flag("", "checkpoint written by the original code")
    out: str = flag("", "file to write")
    peft: str = flag("", "folder or hub id of a LoRA of PEFT (adapter_config.json, adapter_model.safetensors)")
    model: str = flag("", "its backbone, where adapter_config.json has another name for it")
    tokenizer_path: str = flag("", "tokenizer of that backbone, where it is not the model's own")
    lora_r: int = flag(0, "widen it to this rank, the function stays; 0: as it is", low=0, high=WIDEST)
    lora_alpha: float = flag(0.0, "give it this alpha, the function stays; 0: as it is", low=0)


def _run(config: ConvertConfig) -> None:
    check(config)
    if bool(config.original) == bool(config.peft) or not config.out:
        raise UserError("--out and one of --original and --peft are needed")
    if Path(config.out).suffix == ".safetensors":
        raise UserError(f"--out {config.out}: a checkpoint is written in torch's format, NAME.pt")
    if config.peft:
        args = convert_peft(config)
        flags = f"--lora_r {args['lora_r']} --lora_alpha {args['lora_alpha']!r} --lora_targets {' '.join(args['lora_targets'])}"
        print(f"{config.out}: a lora checkpoint of {args.get(MODEL, 'a backbone that it does not name')}, {flags}")
        return
    if Path(config.original).resolve() == Path(config.out).resolve():
        raise UserError(f"--out {config.out} is the --original, which would be lost; give another name")
    method = convert(Path(config.original), Path(config.out))
    print(f"{config.out}: a {method} checkpoint")


if __name__ == "__main__":
    main(_run, ConvertConfig, __doc__)
