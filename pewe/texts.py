"""Text files by lines, and folders without the files that an operating system hides in them."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from pewe.errors import UserError

BOM = "\ufeff"  # some editors begin a file with it; it is no part of a text


def raw_lines(path: Path) -> list[bytes]:
    """The lines of a file. Only LF, CR LF or CR ends one: U+2028, U+0085 or a form feed is a character like any other.

    Raises UserError where there is no such file.
    """
    if not path.is_file():
        raise UserError(f"there is no file {path}")
    return path.read_bytes().removeprefix(BOM.encode()).splitlines()


def decoded(raw: bytes) -> str:
    """The text of one line. Raises ValueError that says what is wrong with it."""
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 (byte {error.start})") from None
    if "\0" in text:
        raise ValueError("a NUL character; expected a text file in UTF-8")
    return text.removeprefix(BOM)  # inside, where files were put together


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Number and text of every line. Raises UserError that names the file and the line which is no text."""
    for number, raw in enumerate(raw_lines(path), start=1):
        try:
            text = decoded(raw)
        except ValueError as error:
            raise UserError(f"{path}, line {number}: {error}") from None
        yield number, text


def visible(paths: Iterable[Path]) -> list[Path]:
    """The paths in their order, without those whose name begins with a dot: `._x.tsv` of macOS, `.~lock.x.tsv#`."""
    return sorted(path for path in paths if not path.name.startswith("."))
