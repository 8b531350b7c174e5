"""Command lines from dataclasses: one field is one flag. Errors are one readable message and exit code 2."""

import argparse
import dataclasses
import difflib
import functools
import logging
import math
import os
import sys
import tomllib
import typing
import unicodedata
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path

from pewe.errors import LogFile, Terminal, UserError, one_line, reason

log = logging.getLogger("pewe")
ROOT = Path(__file__).resolve().parent.parent
SEED = 2**63  # seeds are whole numbers below it, which torch, numpy and random all take: `number % SEED`
LARGEST = 2**31 - 1  # of a whole number that is no seed


def suggest(name: str, known: Iterable[str]) -> str:
    """Text for an unknown name: "'lorra'; did you mean 'lora'? Known: adapter, lora, prefix"."""
    known = list(known)
    close = difflib.get_close_matches(str(name), known, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else "."
    return f"{name!r}{hint} Known: {', '.join(known)}"


def flag(
    default,
    help: str,
    decides: bool = True,
    *,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    choices: Collection[str] | None = None,
    unique: bool = False,
    name: bool = False,
):
    """A dataclass field that becomes `--NAME`; `default` may be a list.

    `decides=False`: no result depends on this flag itself (at most on the content that it names, which a record holds).

    The rest says which values (of a list: which items) are allowed beside the default: `low` to `high`, larger than
    `above`, one of `choices`; no item twice (`unique`); a `name`, which becomes a part of a path. A subclass that gives a
    flag another default need not say it again. See `complaint`.
    """
    rules = {
        "low": low,
        "high": high,
        "above": above,
        "choices": choices,
        "unique": unique or None,
        "name": name or None,
    }
    about = {"help": help, "decides": decides, "rules": {key: rule for key, rule in rules.items() if rule is not None}}
    if isinstance(default, list):
        return dataclasses.field(default_factory=lambda: list(default), metadata=about)
    return dataclasses.field(default=default, metadata=about)


def seed_flag(default, help: str):
    """A seed, or a list of them."""
    return flag(default, help, low=0, high=SEED - 1, unique=isinstance(default, list))


def complaint(config_class: type, name: str, value) -> str:
    """What is wrong with a flag's value, as the rest of a sentence that begins with the flag; empty where nothing is.

    Whole numbers lie within 32 bits unless the flag says otherwise, numbers are finite; a text or a list may be empty only
    where that is the default.
    """
    kind, rules = typing.get_type_hints(config_class)[name], _rules(config_class, name)
    (item_kind,) = typing.get_args(kind) or (kind,)
    as_list = typing.get_origin(kind) is list
    items = value if isinstance(value, list) else [value]
    allowed = (int, float) if item_kind is float else (item_kind,)
    if isinstance(value, list) != as_list or any(type(item) not in allowed for item in items):
        return f"must be {f'a list of {item_kind.__name__}' if as_list else item_kind.__name__}, not {value!r}"
    if value == _default(config_class.__dataclass_fields__[name]):
        return ""
    if not items:
        return "must not be empty"
    if wrong := next(filter(None, (_wrong(rules, item) for item in items)), ""):
        return wrong
    shown = [f"{item:g}" if item_kind is float else item for item in items]  # as they stand in the names of folders
    twice = [item for item in shown if shown.count(item) > 1] if "unique" in rules else []
    return f"names {twice[0]!r} twice" if twice else ""


@functools.cache
def _rules(config_class: type, name: str) -> dict:
    """The rules of a flag: those of the class go before those of its bases."""
    found = {}
    for base in reversed(config_class.__mro__):
        field = base.__dict__.get("__dataclass_fields__", {}).get(name)
        found |= field.metadata.get("rules", {}) if field else {}
    return found


def _wrong(rules: dict, item) -> str:
    """What is wrong with one value of the right type."""
    if "choices" in rules and item not in rules["choices"]:
        return f"cannot be {suggest(item, rules['choices'])}"
    if isinstance(item, str):
        return name_fault(item) if "name" in rules else _text_fault(item)
    if isinstance(item, bool):
        return ""
    if isinstance(item, float) and not math.isfinite(item):
        return f"must be a finite number, not {item}"
    low, high = (-LARGEST, LARGEST) if isinstance(item, int) else (-math.inf, math.inf)
    low, high, above = rules.get("low", low), rules.get("high", high), rules.get("above", -math.inf)
    if not item > above:
        return f"must be above {above}, not {item}"
    if item < low:
        return f"must be at least {low}, not {item}"
    return f"must be at most {high}, not {item}" if item > high else ""


def _text_fault(text: str) -> str:
    if not text:
        return "must not be empty"
    broken = "\0" in text or any("\ud800" <= character <= "\udfff" for character in text)
    return f"must be UTF-8 text, not {text!r}" if broken else ""


def name_fault(name: str) -> str:
    """Why this cannot be the name of a file or folder, as `complaint`; empty where it can. Blanks and any letters are fine."""
    control = any(unicodedata.category(character) in ("Cc", "Zl", "Zp") for character in name)
    if name in (".", "..") or "/" in name or "\\" in name or control:
        return f"must be a plain name without slashes, not {name!r}"
    return _text_fault(name)


def checked_name(name, what: str) -> str:
    """This name, which becomes a part of a path. Raises UserError for one that would lead elsewhere, or is no text."""
    if fault := name_fault(name) if isinstance(name, str) else "must not be empty":
        raise UserError(f"{what} {fault}")
    return name


def check(config) -> None:
    """Raises UserError for the first flag of a configuration whose value is not allowed."""
    for field in dataclasses.fields(config):
        if wrong := complaint(type(config), field.name, getattr(config, field.name)):
            raise UserError(f"--{field.name} {wrong}")


def check_file(values: dict, config_classes: Sequence[type], where: str) -> None:
    """The same for flags that stand in a file and are meant for these commands, each for those that have it.

    Raises UserError for unknown flags too; `where` is the file and section.
    """
    for name, value in values.items():
        own = [one for one in config_classes if name in one.__dataclass_fields__]
        if not own:
            known = sorted({name for one in config_classes for name in one.__dataclass_fields__})
            raise UserError(f"{where}: unknown flag {suggest(name, known)}")
        if wrong := next(filter(None, (complaint(one, name, value) for one in own)), ""):
            raise UserError(f"{where}: {name} {wrong}")


def _default(field: dataclasses.Field):
    return field.default if field.default is not dataclasses.MISSING else field.default_factory()


@dataclasses.dataclass
class OriginalConfig:
    """The flag that data, deltas and training share."""

    as_original: bool = flag(
        False, "restore every quirk of the original code that changes a number (docs/DEVIATIONS.md)"
    )


@dataclasses.dataclass
class SeedConfig:
    """The flag that data and training share."""

    seed: int = seed_flag(42, "seed of init, data order and dropout, and of --sample by_seed")


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
    default = _default(field)
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
        values = read_toml(ROOT / path)
        check_file(values, [config_class], path)
        parser.set_defaults(**values)
    given = vars(parser.parse_args(args))
    if extra := sorted(given.keys() - kinds.keys()):
        print(f"ignored, no result of this command depends on them: --{', --'.join(extra)}", file=sys.stderr)
    config = config_class(**{name: value for name, value in given.items() if name in kinds})
    check(config)
    return config


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

    Relative paths start at the repository root, whatever folder the command is given in. A character that the terminal
    cannot show is written as its code.
    """
    with one_line():
        config = parse(config_class, args, description, file_flag)
        os.chdir(ROOT)
        run(config)
