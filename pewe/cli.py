"""Command lines from dataclasses: one field is one flag. Errors are one readable message and exit code 2."""

import argparse
import dataclasses
import logging
import os
import sys
import tomllib
import typing
from collections.abc import Callable, Iterator
from pathlib import Path

from pewe import INSTALLED, ROOT
from pewe.errors import LogFile, Terminal, UserError, one_line, reason
from pewe.flags import check, check_file, default_of, suggest

C = typing.TypeVar("C")
log = logging.getLogger("pewe")
EMBEDDED = (
    "data/mini_gym",
    "data/mini_emotions",
    "data/task_descriptions.tsv",
    "checkpoints/mini_t5",
    "checkpoints/mini_bert",
)


class _Parser(argparse.ArgumentParser):
    """Raises UserError instead of printing the usage, and suggests the nearest flag for an unknown one."""

    def error(self, message: str) -> typing.NoReturn:
        raise UserError(f"{message} (see --help)")

    def parse_args(
        self, args: list[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> argparse.Namespace:
        namespace, unknown = self.parse_known_args(args, namespace)
        flags = [option for action in self._actions for option in action.option_strings]
        if unknown:
            bad = unknown[0]
            raise UserError(f"unknown flag {suggest(bad, flags)}" if bad.startswith("-") else f"unexpected {bad!r}")
        return namespace


def _add_flag(
    parser: argparse.ArgumentParser,
    field: dataclasses.Field,
    kind: type,
    ignored: bool = False,
    own: dict | None = None,
    hidden: bool = False,
) -> None:
    """Add the flag of a field, and its second name where it has one; an ignored one has no default, and is hidden.

    `own` are values that stand in for the defaults.
    """
    default = (own or {}).get(field.name, default_of(field))
    shown = " ".join(map(str, default)) if isinstance(default, list) else default
    help = field.metadata.get("help", "").replace("%", "%%")
    if shown not in (None, "", False):
        help += f" (default: {shown})"
    names = [f"--{name}" for name in (field.name, field.metadata.get("also")) if name]
    about = {"dest": field.name, "default": argparse.SUPPRESS if ignored else default, "help": help}
    if ignored or hidden or field.metadata.get("hidden"):
        about["help"] = argparse.SUPPRESS
    if kind is bool:
        parser.add_argument(*names, action=argparse.BooleanOptionalAction if default else "store_true", **about)
        return
    nargs = None
    if typing.get_origin(kind) is list:
        (kind,), nargs = typing.get_args(kind), "+"
    words = field.metadata.get("words", {})

    def value(text: str) -> typing.Any:
        return words[text] if text in words else kind(text)

    value.__name__ = kind.__name__
    parser.add_argument(*names, type=value, nargs=nargs, metavar=kind.__name__.upper(), **about)


def _ignored(config_class: type) -> Iterator[tuple[dataclasses.Field, type]]:
    """The flags, and the types of their values, of the classes that a command accepts without reading them."""
    known, other = {field.name for field in dataclasses.fields(config_class)}, config_class
    while other := getattr(other, "ignored", None):
        kinds = typing.get_type_hints(other)
        for field in dataclasses.fields(other):
            if field.name not in known:
                known.add(field.name)
                yield field, kinds[field.name]


def parse(config_class: type[C], args: list[str] | None = None, description: str = "", file_flag: str = "") -> C:
    """An instance of a dataclass from the command line. Raises UserError for unknown flags and bad values.

    The flag named `file_flag` holds a TOML file (a relative path starts at the repository root) whose values take the
    place of the defaults. Where the class has an attribute `ignored`, a dataclass, the flags that only that one (or what
    that one ignores) has are accepted and said to be ignored. Its attribute `hidden` names flags that the help leaves out.
    """
    parser, kinds = _parser(config_class, description), typing.get_type_hints(config_class)
    words = sys.argv[1:] if args is None else args
    asked = next((number for number, word in enumerate(words) if word in ("-h", "--help")), None)
    before, _ = parser.parse_known_args(words[:asked])
    if file_flag and (path := getattr(before, file_flag)):
        values = read_toml(Path(path) if INSTALLED and Path(path).is_file() else ROOT / path)
        check_file(values, [config_class], path)
        parser.set_defaults(**values)
    if asked is not None:  # what stands before --help, as a script's flags do, is shown as the defaults
        _parser(config_class, description, vars(parser.parse_args(words[:asked]))).print_help()
        sys.exit(0)
    given = vars(parser.parse_args(args))
    if extra := sorted(given.keys() - kinds.keys()):
        print(f"ignored, no result of this command depends on them: --{', --'.join(extra)}", file=sys.stderr)
    config = config_class(**{name: embedded(value) for name, value in given.items() if name in kinds})
    check(config)
    return settled(config)


def settled(config: C) -> C:
    """The configuration with what --dtype auto stands for on this machine; nothing is measured for any other one."""
    if getattr(config, "dtype", "") != "auto":
        return config
    from pewe import hardware  # torch is loaded only for this

    return hardware.settled(config)


def _parser(config_class: type, description: str, own: dict | None = None) -> _Parser:
    """The parser of a class of flags; `own` are values that stand in for its defaults."""
    parser = _Parser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    kinds = typing.get_type_hints(config_class)
    for field in dataclasses.fields(config_class):
        _add_flag(parser, field, kinds[field.name], own=own, hidden=field.name in getattr(config_class, "hidden", ()))
    for field, kind in _ignored(config_class):
        _add_flag(parser, field, kind, ignored=True)
    return parser


def embedded(value):
    """The value of a flag; where it names something embedded that the working folder of an installed pewe has not, its place.

    Of a list every item. In a checkout, whose root is the working folder, nothing changes.
    """
    if isinstance(value, list):
        return [embedded(item) for item in value]
    ours = isinstance(value, str) and any(Path(value).is_relative_to(path) for path in EMBEDDED)
    return str(ROOT / value) if INSTALLED and ours and not Path(value).exists() else value


def read_toml(path: Path) -> dict:
    """The content of a TOML file. Raises UserError with the file and, where it is malformed, the line."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise UserError(f"there is no file {path}") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:  # malformed, not UTF-8, nested without end
        raise UserError(f"{path}: {error}") from None


def show(config: object) -> str:
    """The resolved configuration, one field a line."""
    fields = dataclasses.asdict(config)
    width = max(map(len, fields))
    return "\n".join(f"  {name:<{width}}  {value}" for name, value in fields.items())


def log_settings(config: object) -> None:
    """Log the flags that are not at their defaults; all of them go to the file alone."""
    values = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    own = {
        field.name: values[field.name]
        for field in dataclasses.fields(config)
        if values[field.name] != default_of(field)
    }
    words = [f"--{name}{'' if value is True else f' {_words(value)}'}" for name, value in own.items()]
    log.info("settings beside the defaults: %s", " ".join(words) or "none")
    log.debug("all settings:\n%s", show(config))


def _words(value) -> str:
    """A value as it is typed."""
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def log_to(path: Path | None, quiet: bool = False) -> None:
    """Log to the terminal (warnings only with `quiet`) and, where a path is given, append everything to that file."""
    log.setLevel(logging.DEBUG)
    log.propagate = False
    for handler in log.handlers[:]:
        handler.close()
        log.removeHandler(handler)
    terminal = Terminal()
    terminal.setLevel(logging.WARNING if quiet else logging.INFO)
    handlers: list[logging.Handler] = [terminal]
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        handlers.append(LogFile(path, encoding="utf-8"))
    for handler in handlers:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S"))
        log.addHandler(handler)


def cause_of(error: Exception) -> str:
    """The line for an error after which the command goes on with something else; the traceback of a bug goes to the log."""
    if not (line := reason(error)):
        log.error("a bug:", exc_info=error)
    return line or f"{type(error).__name__}: {error}"


def main(
    run: Callable, config_class: type, description: str = "", args: list[str] | None = None, file_flag: str = ""
) -> None:
    """Parse and run; every error that is no bug becomes one line on stderr and exit code 2 (`errors.one_line`).

    Relative paths start at the repository root, whatever folder the command is given in; those of an installed pewe at the
    working folder. A character that the terminal cannot show is written as its code.
    """
    with one_line():
        config = parse(config_class, args, description, file_flag)
        if not INSTALLED:
            os.chdir(ROOT)
        run(config)
        if place := getattr(config, "save_ckpt_path", getattr(config, "output_dir", "")):
            print(f"results: {place}")
