"""The one command `pewe`: its programs are those of the registries, and it names what it does not know."""

import ast
import importlib.util
import os
import subprocess
import sys

from pewe.command import HEAVY

import pytest
from conftest import ROOT

from get_similarity import MEASURES
from pewe.__main__ import COMMANDS, main, program
from pewe.cli import parse
from pewe.errors import UserError
from unit_model import ENSEMBLES


def test_help_lists_every_command_and_imports_no_program():
    code = "import sys; from pewe.__main__ import main; main(['--help']); print('torch' in sys.modules, 'pandas' in sys.modules)"
    printed = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert all(f"\n  {name} " in printed for name in COMMANDS) and printed.endswith("False False\n")


def helped(how: str, programs: list[str]) -> tuple[str, list[str]]:
    """What these programs print when asked for help, all in one process, and the modules that were loaded for it."""
    code = f"""
import runpy, sys
for program in {programs}:
    try:
        runpy.{how}(program, run_name="__main__")
    except SystemExit as stop:
        assert stop.code == 0, program
print([name for name in {[*HEAVY, "matplotlib"]} if getattr(sys.modules.get(name), "__file__", None)], file=sys.stderr)
"""
    run = [sys.executable, "-c", code, "--help"]
    done = subprocess.run(
        run, cwd=ROOT, capture_output=True, text=True, check=True, env={**os.environ, "COLUMNS": "100"}
    )
    return done.stdout, ast.literal_eval(done.stderr.splitlines()[-1])


def test_help_of_every_command_loads_nothing_that_computes():
    modules = {module for command in COMMANDS.values() for module, _ in command.programs().values()}
    printed, loaded = helped("run_module", sorted(modules | {"pewe.merging.collect_deltas"}))
    assert printed.count("usage: ") == len(modules) + 1 > 25 and loaded == []


@pytest.mark.parametrize("script", ["get_similarity/get_GraNd.py", "unit_model/unit_model_cos.py"])
def test_help_of_a_script_is_that_of_its_flags(script, capsys, monkeypatch):
    """By its path too, where nothing was imported before it; stand-ins change no word."""
    printed, loaded = helped("run_path", [script])
    module = importlib.import_module(script.removesuffix(".py").replace("/", "."))
    config = module.MEASURE.config if hasattr(module, "MEASURE") else module.Config
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit):
        parse(config, ["--help"], module.__doc__)
    assert printed.split("options:")[1] == capsys.readouterr().out.split("options:")[1] and loaded == []


@pytest.mark.parametrize(("words", "stood_in"), [(["--quiet"], False), (["-h"], True), (["helpless"], False)])
def test_only_where_help_is_asked_for_something_is_stood_in_for(words, stood_in):
    code = "import sys; before = [*sys.meta_path]; import pewe.command; print(sys.meta_path != before)"
    printed = subprocess.run([sys.executable, "-c", code, *words], cwd=ROOT, capture_output=True, text=True, check=True)
    assert printed.stdout == f"{stood_in}\n"


def test_programs_are_those_of_the_registries_and_exist():
    assert list(COMMANDS["similarity"].programs()) == list(MEASURES)
    assert list(COMMANDS["ensemble"].programs()) == list(ENSEMBLES)
    for command in COMMANDS.values():
        for module, _ in command.programs().values():
            assert importlib.util.find_spec(module)
        assert command.default in ("", *command.programs())


def test_flags_of_an_init_go_before_those_of_the_user():
    name, module, flags = program(["ensemble", "Manual", "--quiet"])
    assert (name, module) == ("pewe ensemble Manual", "unit_model.unit_model_average")
    assert flags == ["--manual_division", "--quiet"]
    _, _, flags = program(["ensemble", "KL"])
    assert flags == ["--origin_data_path", "checkpoints/adapter/similarity/KL"]
    assert program(["report", "--folder", "x"]) == ("pewe report page", "pewe.reporting.page", ["--folder", "x"])


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["simliarity"], "unknown command 'simliarity'; did you mean 'similarity'"),
        (["similarity", "Los"], "unknown 'Los'; did you mean 'Loss'"),
        (["ensemble"], "which one[?] Known: Average"),
        (["data", "--tasks", "x"], "which one[?] Known: build, check"),
        (["convert", "all"], "unknown 'all'. Known: one"),
    ],
)
def test_what_is_unknown_is_named(args, message):
    with pytest.raises(UserError, match=message):
        program(args)


def test_a_program_runs_in_this_process_and_gets_its_flags(capsys):
    argv = sys.argv
    with pytest.raises(SystemExit) as stop:
        main(["report", "tables"])
    assert stop.value.code == 2 and "did you mean 'table'" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        main(["report", "table", "--rows", "x"])
    assert stop.value.code == 2 and "--rows needs NAME=FOLDER" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        main(["tune", "--help"])
    assert stop.value.code == 0 and "usage: pewe tune tasks" in capsys.readouterr().out
    assert sys.argv is argv
