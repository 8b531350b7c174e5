"""Command lines from dataclasses: one field is one flag. Errors are one readable message and exit code 2."""

import argparse
import dataclasses
import difflib
import logging
import os
import sys
import tomllib
import typing
from collections.abc import Callable, Iterable
from pathlib import Path

log = logging.getLogger("pewe")
ROOT = Path(__file__).resolve().parent.parent


class UserError(Exception):
    """Bad input. The message names the file, line, flag or tensor and says what was expected."""


def suggest(name: str, known: Iterable[str]) -> str:
    """Text for an unknown name: "'lorra'; did you mean 'lora'? Known: adapter, lora, prefix"."""
    known = list(known)
    close = difflib.get_close_matches(str(name), known, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else "."
    return f"{name!r}{hint} Known: {', '.join(known)}"


def flag(default, help: str, decides: bool = True):
    """A dataclass field that becomes `--NAME`; `default` may be a list.

    `decides=False`: no result depends on this flag itself (at most on the content that it names, which a record holds).
    """
    about = {"help": help, "decides": decides}
    if isinstance(default, list):
        return dataclasses.field(default_factory=lambda: list(default), metadata=about)
    return dataclasses.field(default=default, metadata=about)


@dataclasses.dataclass
class OriginalConfig:
    """The flag that data, deltas and training share."""

    as_original: bool = flag(
        False, "restore every quirk of the original code that changes a number (docs/DEVIATIONS.md)"
    )


class _Parser(argparse.ArgumentParser):
    """Raises UserError instead of printing the usage, and suggests the nearest flag for an unknown one."""

    def error(self, message: str):
        raise UserError(f"{message} (see --help)")

    def parse_args(self, args=None, namespace=None):
        namespace, unknown = self.parse_known_args(args, namespace)
        flags = [option for action in self._actions for option in action.option_strings]
        if unknown:
            bad = unknown[0]
            raise UserError(f"unknown flag {suggest(bad, flags)}" if bad.startswith("-") else f"unexpected {bad!r}")
        return namespace


def _add_flag(parser: argparse.ArgumentParser, field: dataclasses.Field, kind, hidden: bool = False) -> None:
    """Add the flag of a field; a hidden one is not in the help, and has no default."""
    default = field.default if field.default is not dataclasses.MISSING else field.default_factory()
    shown = " ".join(map(str, default)) if isinstance(default, list) else default
    help = field.metadata.get("help", "").replace("%", "%%")
    if shown not in (None, "", False):
        help += f" (default: {shown})"
    if hidden:
        default = help = argparse.SUPPRESS
    name = f"--{field.name}"
    if kind is bool:
        parser.add_argument(
            name, action=argparse.BooleanOptionalAction if default else "store_true", default=default, help=help
        )
        return
    nargs = None
    if typing.get_origin(kind) is list:
        (kind,), nargs = typing.get_args(kind), "+"
    parser.add_argument(name, type=kind, nargs=nargs, default=default, help=help, metavar=kind.__name__.upper())


def parse(config_class: type, args: list[str] | None = None, description: str = "", file_flag: str = ""):
    """An instance of a dataclass from the command line. Raises UserError for unknown flags and bad values.

    The flag named `file_flag` holds a TOML file (a relative path starts at the repository root) whose values take the
    place of the defaults. Where the class has an attribute `ignored`, a dataclass, the flags that only that one has are
    accepted and said to be ignored.
    """
    parser = _Parser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    kinds = typing.get_type_hints(config_class)
    for field in dataclasses.fields(config_class):
        _add_flag(parser, field, kinds[field.name])
    if ignored := getattr(config_class, "ignored", None):
        for field in dataclasses.fields(ignored):
            if field.name not in kinds:
                _add_flag(parser, field, typing.get_type_hints(ignored)[field.name], hidden=True)
    if file_flag and (path := getattr(parser.parse_args(args), file_flag)):
        parser.set_defaults(**_checked(read_toml(ROOT / path), kinds, path))
    given = vars(parser.parse_args(args))
    if extra := sorted(given.keys() - kinds.keys()):
        print(f"ignored, no result of this command depends on them: --{', --'.join(extra)}", file=sys.stderr)
    return config_class(**{name: value for name, value in given.items() if name in kinds})


def read_toml(path: Path) -> dict:
    """The content of a TOML file. Raises UserError with the file and, where it is malformed, the line."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"there is no file {path}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: {error}") from None


def _checked(values: dict, kinds: dict[str, type], path: str) -> dict:
    """The values of a file of flags. Raises UserError for an unknown flag or a value of another type."""
    for name, value in values.items():
        if name not in kinds:
            raise UserError(f"{path}: unknown flag {suggest(name, kinds)}")
        (kind,) = typing.get_args(kinds[name]) or (kinds[name],)
        items = value if isinstance(value, list) else [value]
        as_list = typing.get_origin(kinds[name]) is list
        allowed = (int, float) if kind is float else (kind,)
        if isinstance(value, list) != as_list or any(type(item) not in allowed for item in items):
            wanted = f"a list of {kind.__name__}" if as_list else kind.__name__
            raise UserError(f"{path}: {name} must be {wanted}, not {value!r}")
    return values


def show(config) -> str:
    """The resolved configuration, one field a line."""
    fields = dataclasses.asdict(config)
    width = max(map(len, fields))
    return "\n".join(f"  {name:<{width}}  {value}" for name, value in fields.items())


def log_to(path: Path | None, quiet: bool = False) -> None:
    """Log to the terminal (warnings only with `quiet`) and, where a path is given, append everything to that file."""
    log.setLevel(logging.INFO)
    log.propagate = False
    for handler in log.handlers[:]:
        handler.close()
        log.removeHandler(handler)
    terminal = logging.StreamHandler(sys.stderr)
    terminal.setLevel(logging.WARNING if quiet else logging.INFO)
    handlers: list[logging.Handler] = [terminal]
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        handlers.append(logging.FileHandler(path, encoding="utf-8"))
    for handler in handlers:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S"))
        log.addHandler(handler)


def main(
    run: Callable, config_class: type, description: str = "", args: list[str] | None = None, file_flag: str = ""
) -> None:
    """Parse, run, and turn every UserError into one line on stderr and exit code 2.

    Relative paths start at the repository root, whatever folder the command is given in. A character that the terminal
    cannot show is written as its code.
    """
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")
    try:
        config = parse(config_class, args, description, file_flag)
        os.chdir(ROOT)
        run(config)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("stopped; the same command continues where it left off", file=sys.stderr)
        sys.exit(130)
