"""What a stored result was made from: every fingerprint of the suite.

Whether a flag decides a result is declared at the flag (`cli.flag(..., decides=False)`). A record holds the deciding flags
of its command and a fingerprint of everything else that it was made from: data, states, and the content of the backbone.
It is used again only if all of that is equal today; `difference` says what is not.
"""

import dataclasses
import functools
import hashlib
import json
import os
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

LENGTH = 16  # hexadecimal digits of a fingerprint: 64 bits
SEAL = "sha256"  # entry of a sealed record
PROVENANCE = "provenance"  # entry of what differs each time that equal content is made: times, machine
FRESH = 10**8  # nanoseconds
_OF_A_MODEL = (".safetensors", ".bin", ".json", ".model", ".txt")
_UNREAD = "generation_config.json"  # nothing of it is kept


def digest(content) -> str:
    """A fingerprint of plain values (numbers, texts, lists, dicts; a path counts as its text) and dense tensors.

    Of a tensor dtype, shape and every byte count.
    """
    text = json.dumps(_as_read(content), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:LENGTH]


def _as_read(content):
    """Plain values as JSON would give them back."""
    return json.loads(json.dumps(content, default=_plain))


def _plain(value) -> str | list:
    torch = sys.modules.get("torch")  # loaded by whoever made a tensor
    if torch is None or not isinstance(value, torch.Tensor):
        return str(value)
    raw = value.detach().cpu().contiguous().flatten().view(torch.uint8)
    return [str(value.dtype), list(value.shape), hashlib.sha256(raw.numpy()).hexdigest()]


def deciding(config, **narrowed) -> dict:
    """The flags of a configuration that decide a result, name -> value, some of them replaced by `narrowed`."""
    own = dataclasses.replace(config, **narrowed)
    return {
        field.name: getattr(own, field.name) for field in dataclasses.fields(own) if field.metadata.get("decides", True)
    }


def part(config, kind: type):
    """The flags of a configuration that also are those of another class of flags, as one of that class."""
    return kind(**{field.name: getattr(config, field.name) for field in dataclasses.fields(kind)})


def state_digest(state: "Mapping[str, Tensor]") -> str:
    """A fingerprint of tensors: names, shapes and values (as float32, whatever their dtype)."""
    fingerprint = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().float().cpu().contiguous()
        fingerprint.update(f"{name}{tuple(tensor.shape)}".encode())
        fingerprint.update(tensor.numpy().data)
    return fingerprint.hexdigest()[:LENGTH]


def by_content(function):
    """Remember what a function of a file says until the file's size, time or place change.

    Not while the file is so new that another change may leave its time as it is.
    """
    remembered = functools.lru_cache(maxsize=4096)(lambda path, *about: function(path))

    @functools.wraps(function)
    def of(path: Path):
        about = path.stat()
        if time.time_ns() - about.st_mtime_ns < FRESH:
            return function(path)
        return remembered(path.resolve(), about.st_size, about.st_mtime_ns, about.st_ino)

    return of


@by_content
def file_digest(path: Path) -> str:
    """The SHA-256 of a file's content; computed again only where its size, time or place have changed."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_print(path: Path) -> list:
    """[SHA-256, size, time of the last change in ns] of a file, by which `has_print` tells whether it is still the same."""
    about = path.stat()
    return [file_digest(path), about.st_size, about.st_mtime_ns]


def has_print(path: Path, saved: Sequence) -> bool:
    """Whether a file is there with this print; its content is read only where its size or time is another."""
    if not path.is_file():
        return False
    about = path.stat()
    return [about.st_size, about.st_mtime_ns] == list(saved[1:]) or file_digest(path) == saved[0]


def model_digest(model: str, tokenizer: str = "") -> str:
    """A fingerprint of the content of a model folder (or of a hub's model in the cache) and of its tokenizer's folder.

    The weights that are loaded (safetensors, where both kinds are there), configuration and tokenizer files count, under
    their names; a model that is not there yet counts as its name.
    """
    names = [model, tokenizer] if tokenizer and tokenizer != model else [model]
    return digest([_folder_prints(name) for name in names])


def _folder_prints(name: str) -> dict[str, str] | str:
    folder = model_folder(name)
    if folder is None:
        return name
    paths = [path for path in folder.iterdir() if path.suffix in _OF_A_MODEL and path.name != _UNREAD]
    safe = any(path.suffix == ".safetensors" for path in paths)
    return files_digests(path for path in paths if not (safe and path.suffix == ".bin"))


def model_folder(name: str) -> Path | None:
    """The folder of a model, or of a hub's in the cache; None where it is not there. Nothing is downloaded."""
    if os.path.isdir(name):  # noqa: PTH112  no name is too long for it
        return Path(name)
    from huggingface_hub import try_to_load_from_cache

    try:
        found = try_to_load_from_cache(name, "config.json")
    except ValueError:  # not the form of a hub id
        return None
    return Path(found).parent if isinstance(found, str) else None


def files_digests(paths: Iterable[Path]) -> dict[str, str]:
    """Name -> fingerprint of the content of files; hidden files do not count."""
    return {path.name: file_digest(path) for path in sorted(paths) if path.is_file() and not path.name.startswith(".")}


def difference(saved: Mapping | None, wanted: Mapping) -> str:
    """What of the wanted identity a stored one does not have, in words; empty where it is equal.

    Further entries of the stored one, of earlier versions, do not count.
    """
    if not isinstance(saved, Mapping):
        return "it has no record of what it was made from"
    saved = _as_read(saved)
    for name, value in _as_read(wanted).items():
        if name not in saved:
            return f"its record has no {name!r} (an earlier version)"
        if saved[name] != value:
            return f"{name!r} was {_short(saved[name])}, is {_short(value)}"
    return ""


def _short(value) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def sealed(content: Mapping) -> dict:
    """The content with a fingerprint of itself, by which a changed byte is noticed.

    Its provenance has one of its own, so that equal results have equal fingerprints.
    """
    inner = {name: value for name, value in content.items() if name != PROVENANCE}
    about = {PROVENANCE: sealed(content[PROVENANCE])} if PROVENANCE in content else {}
    return {**inner, **about, SEAL: digest(inner)}


def unsealed(content: Mapping) -> dict | None:
    """The content without its fingerprint; None where that is missing or does not fit."""
    if not isinstance(content, Mapping):
        return None
    inner = {name: value for name, value in content.items() if name not in (SEAL, PROVENANCE)}
    about = {PROVENANCE: unsealed(content[PROVENANCE])} if PROVENANCE in content else {}
    return {**inner, **about} if content.get(SEAL) == digest(inner) and None not in about.values() else None
