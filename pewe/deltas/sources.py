"""Where source deltas lie: one folder by the names of tasks, or a list of deltas that were made anywhere.

    checkpoints/lora/full_data                 <name>/checkpoint-best.pt, or <name> a folder of PEFT, of each name that is asked for
    A,B,C                                      each one a folder of PEFT, a checkpoint, a folder with checkpoint-best.pt, a folder
                                               of such folders, or a hub id; NAME=PLACE gives a source another name

The sources of a list have the names of their folders, files or repositories, which need not be names of tasks.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path

from pewe.deltas.checkpoint import BEST, task_checkpoint
from pewe.deltas.peft_folder import CONFIG, WEIGHTS, is_peft
from pewe.errors import UserError
from pewe.flags import checked_name, suggest
from pewe.identity import digest, files_digests
from pewe.texts import visible

FILES = (".pt", ".safetensors")


def source_files(given: str, names: Sequence[str], fetch: bool = True) -> dict[str, Path]:
    """Name -> file, or folder of PEFT, of each of these sources. Raises UserError for a name that a list has not."""
    listed = listed_sources(given, fetch)
    if not listed:
        return {name: _in_folder(Path(given), name) for name in names}
    for name in names:
        if name not in listed:
            raise UserError(f"--source_ckpt_path {given} has no source {suggest(name, listed)}")
    return {name: listed[name] for name in names}


def first_files(places: Mapping[str, Path]) -> list[Path]:
    """A file of each source, that must be there."""
    return [path / CONFIG if is_peft(path) else path for path in places.values()]


def source_digest(path: Path) -> str:
    """A fingerprint of the content of a checkpoint, or of a folder of PEFT."""
    return digest(files_digests([path / CONFIG, *(path / name for name in WEIGHTS)] if is_peft(path) else [path]))


def source_names(given: str, asked: Sequence[str], tasks: Sequence[str]) -> list[str]:
    """The sources of a command: those asked for (--source_tasks), else those of a list.

    Else, of one folder, the tasks, or where none of them is in it all that it holds.
    """
    names = list(asked or listed_sources(given) or _names_in(given, tasks))
    for name in asked:
        if names.count(checked_name(name, "--source_tasks")) > 1:
            raise UserError(f"--source_tasks names {name!r} twice")
    return names


def listed_sources(given: str, fetch: bool = True) -> dict[str, Path]:
    """Name -> place of the sources in a list; empty for the folder of sources that are called as tasks.

    Raises UserError for a place that holds no delta, and for two sources of one name.
    """
    if not {",", "="} & set(given) and not _is_delta(Path(given)) and not _is_hub_id(given):
        return {}
    return all_sources(given, fetch)


def all_sources(given: str, fetch: bool = True) -> dict[str, Path]:
    """The same of all deltas in a folder, too. Without `fetch` a hub id that is not here yet is its own place, without files."""
    found: dict[str, Path] = {}
    for item in _items(given):
        for name, path in _sources_at(item, fetch):
            if name in found:
                raise UserError(
                    f"--source_ckpt_path: two sources are called {name!r}, {found[name]} and {path}; NAME={path}"
                )
            found[name] = path
    return found


def _items(given: str) -> list[str]:
    return [item.strip() for item in given.split(",") if item.strip()]


def _sources_at(item: str, fetch: bool) -> Iterator[tuple[str, Path]]:
    """The sources that an item of a list stands for."""
    own, _, place = item.rpartition("=")
    path = Path(place)
    if _is_hub_id(place):
        yield checked_name(own or path.name, item), peft_folder(place, fetch)
    elif _is_delta(path):
        yield checked_name(own or (path.stem if path.is_file() else path.resolve().name), item), _file(path)
    elif path.is_dir() and not own:
        if not (inside := _inside(path)):
            raise UserError(f"--source_ckpt_path: {place} holds no delta: no {CONFIG}, no {BEST}, no folder with one")
        yield from ((one.name, _file(one)) for one in inside)
    else:
        raise UserError(f"--source_ckpt_path: {item!r} is no delta: no folder of PEFT, no {BEST}, no hub id OWNER/NAME")


def _names_in(given: str, tasks: Sequence[str]) -> list[str]:
    """The tasks, or where none of them has a delta in the folder, if one is given, the names of all deltas in it."""
    inside = [one.name for one in _inside(Path(given))] if given and Path(given).is_dir() else []
    return list(tasks) if set(inside) & set(tasks) else inside or list(tasks)


def _inside(folder: Path) -> list[Path]:
    return [one for one in visible(sorted(folder.iterdir())) if one.is_dir() and _is_delta(one)]


def _is_delta(path: Path) -> bool:
    return is_peft(path) or (path / BEST).is_file() or (path.is_file() and path.suffix in FILES)


def _file(path: Path) -> Path:
    return path / BEST if path.is_dir() and not is_peft(path) else path


def _in_folder(folder: Path, name: str) -> Path:
    """`<folder>/<name>/checkpoint-best.pt`, or where there is none a folder of PEFT of this name."""
    path = task_checkpoint(folder, name)
    return path.parent if not path.is_file() and is_peft(path.parent) else path


def _is_hub_id(place: str) -> bool:
    """OWNER/NAME, where no folder OWNER is here."""
    owner, slash, name = place.partition("/")
    return bool(slash and owner and name) and "/" not in name and owner[0] not in ".~" and not Path(owner).exists()


def peft_folder(given: str, fetch: bool = True) -> Path:
    """A folder of PEFT, or that of a hub id, fetched into the hub's cache. Raises UserError where there is none.

    Without `fetch` the place of a hub id that is not in the cache is its name.
    """
    path = Path(given)
    if is_peft(path):
        return path
    if path.exists() or not _is_hub_id(given):
        raise UserError(f"{given} is no folder of PEFT, there is no {CONFIG} in it; and no hub id OWNER/NAME")
    try:
        path = _snapshot(given, fetch)
    except Exception as error:  # the hub's client and its transport raise many kinds
        if not fetch:
            return path
        why = str(error).strip().split("\n")[0] or type(error).__name__
        raise UserError(f"cannot fetch {given} from the hub: {why}") from None
    if not is_peft(path):
        raise UserError(f"{given} on the hub has no {CONFIG}: it is no LoRA of PEFT")
    return path


@cache
def _snapshot(name: str, fetch: bool) -> Path:
    """The folder of a repository of the hub in the cache; asked for once."""
    from huggingface_hub import snapshot_download

    about = {} if fetch else {"local_files_only": True}
    return Path(snapshot_download(name, allow_patterns=[CONFIG, *WEIGHTS], **about))
