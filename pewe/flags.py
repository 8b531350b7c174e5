"""Flags: dataclass fields with a help, a range, and whether a result depends on them."""

import dataclasses
import difflib
import functools
import math
import typing
import unicodedata
from collections.abc import Collection, Iterable, Mapping, Sequence
from types import MappingProxyType

from pewe.errors import UserError

SEED = 2**63  # seeds are whole numbers below it, which torch, numpy and random all take: `number % SEED`
LARGEST = 2**31 - 1  # of a whole number that is no seed


def suggest(name: str, known: Iterable[str]) -> str:
    """Text for an unknown name: "'lorra'; did you mean 'lora'? Known: adapter, lora, prefix"."""
    known = list(known)
    close = difflib.get_close_matches(str(name), known, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else "."
    return f"{name!r}{hint} Known: {', '.join(known)}"


def flag(
    default: typing.Any,
    help: str,
    decides: bool = True,
    *,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    choices: Collection[str] | None = None,
    unique: bool = False,
    name: bool = False,
    hidden: bool = False,
    also: str = "",
    words: Mapping[str, int] = MappingProxyType({}),
) -> typing.Any:
    """A dataclass field that becomes `--NAME`; `default` may be a list.

    `decides=False`: no result depends on this flag itself (at most on the content that it names, which a record holds).

    The rest says which values (of a list: which items) are allowed beside the default: `low` to `high`, larger than
    `above`, one of `choices`; no item twice (`unique`); a `name`, which becomes a part of a path. A subclass that gives a
    flag another default need not say it again. See `complaint`.

    A `hidden` flag is not in the help: only the original's scripts give it. `also` is a second name on the command line.
    `words` stand for values there.
    """
    rules = {
        "low": low,
        "high": high,
        "above": above,
        "choices": choices,
        "unique": unique or None,
        "name": name or None,
    }
    about = {
        "help": help,
        "decides": decides,
        "hidden": hidden,
        "also": also,
        "words": words,
        "rules": {key: rule for key, rule in rules.items() if rule is not None},
    }
    if isinstance(default, list):
        return dataclasses.field(default_factory=lambda: list(default), metadata=about)
    return dataclasses.field(default=default, metadata=about)


def seed_flag(default: int | list[int], help: str) -> typing.Any:
    """A seed, or a list of them."""
    return flag(default, help, low=0, high=SEED - 1, unique=isinstance(default, list))


def complaint(config_class: type, name: str, value: object) -> str:
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
    if value == default_of(config_class.__dataclass_fields__[name]):
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


def _wrong(rules: dict, item: str | float) -> str:
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


def checked_name(name: object, what: str) -> str:
    """This name, which becomes a part of a path. Raises UserError for one that would lead elsewhere, or is no text."""
    if fault := name_fault(name) if isinstance(name, str) else "must not be empty":
        raise UserError(f"{what} {fault}")
    return name


def check(config: object) -> None:
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


def default_of(field: dataclasses.Field) -> typing.Any:
    """The default of a flag; of a list, a list of its own."""
    return field.default if field.default is not dataclasses.MISSING else field.default_factory()


@dataclasses.dataclass(frozen=True)
class OriginalConfig:
    """The flag that data, deltas and training share."""

    as_original: bool = flag(
        False, "restore every quirk of the original code that changes a number (docs/DEVIATIONS.md)"
    )


@dataclasses.dataclass(frozen=True)
class SeedConfig:
    """The flag that data and training share."""

    seed: int = seed_flag(42, "seed of init, data order and dropout, and of --sample by_seed")
