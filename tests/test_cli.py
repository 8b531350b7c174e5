"""Flags from dataclasses."""

from dataclasses import dataclass

import pytest

from pewe.cli import parse
from pewe.errors import UserError
from pewe.flags import flag, suggest


@dataclass(frozen=True)
class Config:
    """An example."""

    name: str = flag("x", "a name")
    rates: list[float] = flag([0.1], "rates")
    count: int = flag(3, "how many, 100% sure")
    on: bool = flag(False, "off by default")
    off: bool = flag(True, "on by default")


def test_defaults_and_values():
    assert parse(Config, []) == Config()
    given = parse(Config, ["--name", "y", "--rates", "1e-3", "2", "--on", "--no-off", "--count", "4", "--count", "5"])
    assert given == Config("y", [1e-3, 2.0], 5, True, False)
    assert Config().rates is not Config().rates


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--naem", "y"], "unknown flag '--naem'; did you mean '--name'"),
        (["--nam", "y"], "unknown flag '--nam'"),  # no abbreviations
        (["--count", "many"], "invalid int value: 'many'"),
        (["--rates"], "expected at least one argument"),
        (["stray"], "unexpected 'stray'"),
    ],
)
def test_errors_are_one_line(args, message):
    with pytest.raises(UserError, match=message) as error:
        parse(Config, args)
    assert "\n" not in str(error.value)


def test_help_names_defaults(capsys):
    with pytest.raises(SystemExit):
        parse(Config, ["--help"], "What it does.")
    printed = capsys.readouterr().out
    assert "What it does." in printed and "rates (default: 0.1)" in printed and "100% sure (default: 3)" in printed


def test_suggestions():
    assert suggest("lorra", ["adapter", "lora"]) == "'lorra'; did you mean 'lora'? Known: adapter, lora"
    assert "did you mean" not in suggest("zzz", ["adapter", "lora"])
