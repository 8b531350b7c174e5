"""Whether a folder is free, and whether its file system does what locks and atomic files ask of it."""

import tempfile
from pathlib import Path

import filelock

from pewe.errors import UserError
from pewe.files import holder_in


def check_free(folder: Path) -> None:
    """Raises UserError that names the holder where another process holds a folder."""
    try:
        with filelock.FileLock(folder / ".lock", timeout=1):  # another may be looking, too
            return
    except filelock.Timeout:
        raise UserError(f"{folder} is in use by {holder_in(folder / '.lock.owner')}; wait for it") from None


def check_place(folder: Path) -> None:
    """What locks and atomic files ask of a file system: exclusive creation, renaming over a file, locks that exclude.

    Raises UserError that names what the one of this folder lacks.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".check.", dir=folder) as place:
        one, other = Path(place) / "one", Path(place) / "other"
        one.touch(exist_ok=False)
        other.write_text("other", encoding="utf-8")
        try:
            one.touch(exist_ok=False)
            lacks = "exclusive creation"
        except FileExistsError:
            other.replace(one)
            lacks = "" if one.read_text(encoding="utf-8") == "other" else "renaming over a file"
        with filelock.FileLock(other, timeout=0):
            try:
                with filelock.FileLock(other, timeout=0, is_singleton=False):
                    lacks = lacks or "locks that exclude"
            except filelock.Timeout:
                pass
    if lacks:
        raise UserError(f"the file system of {folder.resolve()} has no {lacks}; put checkpoints/ on another one")
