"""The files of a model's folder, and the flags that name one: what can be said of it before anything is loaded."""

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pewe.errors import UserError, shortened
from pewe.flags import flag
from pewe.setting import SETTING
from pewe.texts import visible

DTYPE_NAMES = ("float32", "bfloat16")
AUTO = "auto"  # the faster of them: pewe/hardware.py
DEVICES = ("auto", "cpu", "cuda")


@dataclass(frozen=True)
class BackboneConfig:
    """The frozen model and where it runs."""

    model: str = flag(
        SETTING.model,
        "a T5 v1.0 or v1.1, Flan-T5, ByT5, mT5 or umT5: a folder or a hub id",
        decides=False,
    )
    tokenizer_path: str = flag("", "folder or hub id of the tokenizer (default: the model's)", decides=False)
    device: str = flag("auto", "auto, cpu or cuda", decides=False, choices=DEVICES)
    dtype: str = flag(
        "float32",
        "dtype of the backbone: float32, bfloat16, or auto, what is faster here",
        choices=(*DTYPE_NAMES, AUTO),
    )


def check_folder(name: str, flag: str = "--model", needs: str = "config.json") -> None:
    """What can be said of the folder of a model or a tokenizer (or of a hub's name) without loading it.

    Raises UserError where a needed file is missing, a file is a pointer of Git LFS, or code of the folder would be run.
    """
    folder = Path(name)
    if not folder.exists():
        beside = folder.parent != Path() and folder.parent.is_dir()  # a hub id would have no such folder here
        if name.count("/") > 1 or beside:
            raise UserError(f"{flag} {name}: there is no such folder")
        return
    if needs and not (folder / needs).is_file():
        raise UserError(f"{flag} {name}: not a transformers folder, there is no {needs} in it")
    if not folder.is_dir():
        raise UserError(f"{flag} {name}: not a folder")
    for path in visible(folder.iterdir()):
        if path.is_file() and _begins_with(path, LFS_POINTER):
            raise UserError(f"{path} is a pointer of Git LFS, not the file itself; run git lfs pull")
    if needs and "model_type" not in json_object(folder / needs):  # transformers would guess it from the folder's name
        raise UserError(f"{folder / needs} has no model_type")
    for path in (folder / "config.json", folder / "tokenizer_config.json"):
        if path.is_file() and json_object(path).get("auto_map"):
            raise UserError(f"{path} names code of its own (auto_map); no code of a model is ever run")
    for path in folder.glob("*.index.json"):
        index_files(path)
    if (folder / "custom_generate").exists():  # transformers would run it, trusted or not
        raise UserError(f"{folder / 'custom_generate'}: no code of a model is ever run")


def index_files(path: Path) -> list[Path]:
    """The files that an index of weights names. Raises UserError for what is no file of its folder."""
    names = json_object(path).get("weight_map")
    found = list(names.values()) if isinstance(names, dict) and names else [names]
    if odd := [name for name in found if not isinstance(name, str) or not name or Path(name).name != name]:
        raise UserError(f"{path}: weight_map must name files of the folder, not {odd[0]!r}")
    return [path.parent / name for name in dict.fromkeys(found)]


LFS_POINTER = b"version https://git-lfs.github.com/spec/"


def _begins_with(path: Path, start: bytes) -> bool:
    with path.open("rb") as file:
        return file.read(len(start)) == start


def json_object(path: Path) -> dict:
    """The object in a JSON file. Raises UserError for anything else."""
    with loading(str(path)):
        content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a JSON object, not a {type(content).__name__}")
    return content


@contextlib.contextmanager
def loading(what: str) -> Iterator[None]:
    """Turn whatever transformers raises on damaged files, which are many kinds of errors, into one UserError."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"cannot load {what}: {_in_words(error)}") from None


def _in_words(error: Exception) -> str:
    """What an error says in a line, with its kind where that is half of it."""
    text = shortened(" ".join(str(error).split()), 300)
    told = text and not isinstance(error, AttributeError | TypeError | LookupError)
    return text if told else f"{type(error).__name__}: {text}".removesuffix(": ")
