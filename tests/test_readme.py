"""The documentation: its commands, flags, files and links exist, and both READMEs have the same commands.

A command is given to bash with an interpreter that only writes down what it is called with; the flags that reach a module
of ours are then read by the configuration of that module. So nothing is computed, and the settings of the scripts are
checked too.
"""

import ast
import importlib
import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest
from conftest import ROOT

from pewe.cli import parse

READMES = ("README.md", "README.zh.md")
FOLDERS = ("benchmarks", "results", "results/reference/*", "data/mini_*", "checkpoints/mini_*")  # none that runs write
DOCUMENTS = sorted(
    str(path.relative_to(ROOT))
    for pattern in ("*.md", "docs/*.md", *(f"{folder}/README.md" for folder in FOLDERS))
    for path in ROOT.glob(pattern)
)
FORMER = ("CHANGELOG.md",)  # names what is gone
COMMAND = re.compile(r"(?:[A-Z_]+=\S+ )*(?:bash|python|pewe|pip) \S")
OURS = ("pewe", "scripts", "docs", "tests", "unit_model", "get_similarity", "benchmarks")
FILE = re.compile(rf"(?:{'|'.join(OURS)}|data/build)/[\w./*-]+")
MODULE = re.compile(r"(pewe(?:\.[a-z]\w*)+)(?:\.[A-Z]\w*)?")
CALL = """#!/usr/bin/env bash
[ "${1:-}" = -c ] || { printf '%s\\x1f' "$@"; echo; } >> "$CALLS"
"""


def text_of(document: str) -> str:
    return (ROOT / document).read_text(encoding="utf-8")


def code_of(document: str) -> list[str]:
    """The lines of code of a document: those of its bash blocks without their comments, and what stands in backquotes."""
    found = []
    for block in re.split(r"^(```.*?^```)", text_of(document), flags=re.MULTILINE | re.DOTALL):
        if block.startswith("```bash"):
            lines = block.replace("\\\n", "").splitlines()[1:-1]
            found += [re.sub(r"(^|\s+)# .*", "", line).strip() for line in lines]
        elif not block.startswith("```"):
            found += re.findall(r"`([^`\n]+)`", block)
    return [line for line in found if line]


def commands_of(document: str) -> list[str]:
    return [line for line in code_of(document) if COMMAND.match(line)]


@pytest.fixture
def calls_of(tmp_path):
    """What a command calls an interpreter with, one list of arguments for each call; no interpreter is run."""
    programs, calls = tmp_path / "programs", tmp_path / "calls"
    programs.mkdir()
    interpreters = dict.fromkeys(("python", "python3"), CALL)
    modules = {name: f'#!/usr/bin/env bash\nexec python -m {name} "$@"\n' for name in ("pip", "pewe")}
    for name, text in {**interpreters, **modules}.items():
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    about = {"PATH": f"{programs}:{os.environ['PATH']}", "PYTHON": str(programs / "python"), "CALLS": str(calls)}

    def called(command: str) -> list[list[str]]:
        calls.write_text("")
        subprocess.run(["bash", "-c", command], cwd=ROOT, env={**os.environ, **about}, capture_output=True, check=False)
        return [program_of(line.split("\x1f")[:-1]) for line in calls.read_text().splitlines()]

    return called


def program_of(arguments: list[str]) -> list[str]:
    """The arguments with which `pewe COMMAND WHAT` calls a program of its own; any others as they are."""
    if arguments[:2] != ["-m", "pewe"]:
        return arguments
    _, module, flags = importlib.import_module("pewe.__main__").program(arguments[2:])
    return ["-m", module, *flags]


def flags_of(arguments: list[str]) -> list[str]:
    return arguments[2 if arguments[0] == "-m" else 1 :]


def file_of(arguments: list[str]) -> Path | None:
    """The file of ours that these arguments of an interpreter run; None for a module of others."""
    first, *rest = arguments
    path = ROOT / (rest[0].replace(".", "/") if first == "-m" else first)
    if first != "-m":
        return path
    if path.is_dir():
        return path / "__main__.py"
    return path.with_suffix(".py") if (ROOT / path.relative_to(ROOT).parts[0]).is_dir() else None


@cache
def main_of(path: Path) -> tuple[ModuleType, ast.Call] | None:
    """The module of a command and its call of `main`; None where it reads its flags itself."""
    calls = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
    found = [call for call in calls if getattr(call.func, "id", "") == "main" and len(call.args) >= 2]
    if not found:
        return None
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(path.parent)  # as where it is started by its path
        return importlib.import_module(module), found[0]


def check_flags(path: Path, flags: list[str], monkeypatch) -> None:
    """Fails where the command would refuse a flag or its value."""
    if "--help" in flags:
        return
    found = main_of(path)
    if found is None:
        text = "".join(one.read_text(encoding="utf-8") for one in path.parent.glob("*.py"))
        unknown = [flag for flag in flags if flag.startswith("--") and f'"{flag}"' not in text]
        assert not unknown, unknown
        return
    module, call = found
    monkeypatch.setattr(sys, "argv", [str(path), *flags])
    config, *given = (eval(ast.unparse(node), vars(module)) for node in (call.args[1], *call.args[3:]))
    file_flag = next((word.value.value for word in call.keywords if word.arg == "file_flag"), "")
    parse(config, given[0] if given else flags, file_flag=file_flag)


def check_others(arguments: list[str]) -> None:
    """Fails where a file that is given to pip or pytest does not exist."""
    named = [word.split("::")[0] for word in arguments if re.fullmatch(r"tests/\S+|requirements\S*\.txt", word)]
    assert all((ROOT / word).exists() for word in named), named


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_command_exists_with_its_flags(document, calls_of, monkeypatch):
    for command in commands_of(document):
        if "setup_env.sh" in command:  # would make an environment
            given = re.findall(r"--\w+", command)
            assert all(flag in text_of("scripts/setup_env.sh") for flag in given), command
            continue
        calls = calls_of(command)
        assert calls, f"{document}: {command!r} calls nothing"
        for arguments in calls:
            path = file_of(arguments)
            if path is None:
                check_others(arguments)
                continue
            assert path.is_file(), f"{document}: {command!r}: there is no {path.relative_to(ROOT)}"
            try:
                check_flags(path, flags_of(arguments), monkeypatch)
            except Exception as error:
                pytest.fail(f"{document}: {command!r}: {error}")


@pytest.mark.parametrize("document", sorted(set(DOCUMENTS) - set(FORMER)))
def test_every_file_and_module_that_is_named_exists(document):
    words = [word for line in code_of(document) for word in re.split(r"[\s,;()=]+", line)]
    files = [word.rstrip("/.") for word in words if FILE.fullmatch(word)]
    gone = [name for name in files if not list(ROOT.glob(name))]
    for found in filter(None, map(MODULE.fullmatch, words)):
        path = ROOT / found[1].replace(".", "/")
        if not (path.is_dir() or path.with_suffix(".py").is_file()):
            gone.append(found[0])
    assert not gone, gone


def slug(heading: str) -> str:
    """The anchor of a heading, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_link_leads_somewhere(document):
    links = re.findall(r"\]\(([^)\s]+)\)", text_of(document))
    for link in (link for link in links if not re.match(r"https?:|mailto:", link)):
        name, _, anchor = link.partition("#")
        target = (ROOT / document).parent / name if name else ROOT / document
        assert target.exists(), f"{document}: {link}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), flags=re.MULTILINE)
            assert anchor in map(slug, headings), f"{document}: {link}"


def test_both_readmes_have_the_same_commands_in_the_same_order():
    first, second = map(commands_of, READMES)
    assert first == second and len(first) > 15


def test_a_wrong_command_would_be_seen(calls_of, monkeypatch):
    (arguments,) = calls_of("bash scripts/adapter.sh --learning_rate 1")
    with pytest.raises(Exception, match="unknown flag '--learning_rate'"):
        check_flags(file_of(arguments), flags_of(arguments), monkeypatch)
    assert calls_of("bash scripts/no_such.sh") == []
    assert not file_of(["-m", "pewe.no_such"]).is_file()
