"""The shell scripts: their syntax, and (slow) every one of them on three tasks of the mini gym with a few steps."""

import os
import subprocess
import sys

import pytest
from conftest import METHODS, MINI_TASKS, ROOT

from get_similarity import MEASURES
from pewe.__main__ import program
from pewe.cli import parse
from pewe.files import read_table

SCRIPTS = sorted((ROOT / "scripts").rglob("*.sh"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_syntax(script):
    subprocess.run(["bash", "-n", script], check=True)


def test_every_measure_and_step_has_a_script_for_every_delta():
    names = {str(script.relative_to(ROOT / "scripts")) for script in SCRIPTS}
    for method in METHODS:
        assert {f"{method}.sh", f"{method}_tuneall.sh", f"{method}_devall.sh"} <= names
        assert {f"get_similarity/{method}_{measure}.sh" for measure in MEASURES} <= names


SHOWS = """#!/usr/bin/env bash
[ "$1" = -c ] || printf '%s\\n' "$@"
"""


@pytest.mark.parametrize("method", METHODS)
def test_a_similarity_script_is_one_line_of_work_with_the_settings_of_the_measure(method, tmp_path):
    """What it asks the interpreter for; a stand-in shows it."""
    (tmp_path / "python").write_text(SHOWS)
    (tmp_path / "python").chmod(0o755)
    environment = {**os.environ, "PYTHON": str(tmp_path / "python")}
    for name in MEASURES:
        script = ROOT / "scripts" / "get_similarity" / f"{method}_{name}.sh"
        work = [line for line in script.read_text().splitlines() if not line.startswith("#")]
        tuned = f"--random_tuned_ckpt_path checkpoints/{method}/random " if MEASURES[name].needs_target else ""
        assert work[1:] == [f'similarity {method} {name} {tuned}"$@"']
        shown = subprocess.run(["bash", script, "--quiet"], env=environment, capture_output=True, text=True, check=True)
        dash_m, module, *words = shown.stdout.splitlines()
        assert (dash_m, module) == ("-m", "pewe")
        config = parse(MEASURES[name].config, program(words)[2])
        assert config.quiet and config.output_dir == f"checkpoints/{method}/similarity/{name}"
        assert config.task_dir == "data/mini_gym" and config.predict_batch_size == (5 if name == "GraNd" else 50)
        assert getattr(config, "tune_method", method) == method


def bash(script: str, *flags) -> None:
    """Run a script from another folder, as the original README does, with this interpreter."""
    environment = {**os.environ, "PYTHON": sys.executable}
    folder = (ROOT / "scripts" / script).parent
    command = ["bash", script.rsplit("/", 1)[-1], *map(str, flags), "--quiet"]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def python(script: str, *flags) -> None:
    done = subprocess.run(
        [sys.executable, ROOT / script, *map(str, flags)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_every_script_on_the_mini_gym(method, tmp_path):
    tasks = ["--tasks", *MINI_TASKS, "--device", "cpu", "--max_input_length", 48, "--max_output_length", 8]
    few = [
        "--train_iters",
        4,
        "--valid_interval",
        2,
        "--learning_rate_list",
        "1e-2",
        "--stack",
        3,
        "--predict_batch_size",
        64,
    ]
    sources, tuned = tmp_path / "full_data", tmp_path / "random"
    bash(f"{method}.sh", *tasks, *few, "--full_train", "--output_dir", sources)
    bash(f"{method}.sh", *tasks, *few, "--output_dir", tuned)
    for measure in MEASURES:
        paths = ["--source_ckpt_path", sources, "--random_tuned_ckpt_path", tuned, "--output_dir", tmp_path / measure]
        bash(f"get_similarity/{method}_{measure}.sh", *tasks, *paths)
        ensembles = tmp_path / f"from_{measure}"
        python(
            "unit_model/unit_model_others.py",
            "--delta",
            method,
            "--origin_data_path",
            tmp_path / measure,
            "--source_ckpt_path",
            sources,
            "--save_ckpt_path",
            ensembles,
        )
        found = list(ensembles.rglob("without_*_checkpoint.pt"))
        assert len(found) % 3 == 0 and found
    everything = ["--source_ckpt_path", sources]
    bash(f"{method}_tuneall.sh", *tasks, *few, *everything, "--output_dir", tmp_path / "tuned_all")
    bash(f"{method}_devall.sh", *tasks, *few, *everything, "--output_dir", tmp_path / "zero")
    common = ["--delta", method, "--tasks", *MINI_TASKS]
    python("unit_model/unit_model_average.py", *common, *everything, "--save_ckpt_path", tmp_path / "average")
    python(
        "unit_model/unit_model_cos.py",
        *common,
        *everything,
        "--tuned_64shot_ckpt_path",
        tuned,
        "--save_ckpt_path",
        tmp_path / "cos",
    )
    python(
        "unit_model/unit_model_Euclidean.py",
        *common,
        *everything,
        "--tuned_ckpt_path",
        tmp_path / "tuned_all",
        "--save_ckpt_path",
        tmp_path / "Euclidean",
    )
    python(
        "unit_model/unit_model_Performance.py",
        *common,
        "--tuned_ckpt_path",
        tmp_path / "tuned_all",
        "--zero_result_path",
        tmp_path / "zero" / "result.tsv",
        "--save_ckpt_path",
        tmp_path / "Performance",
    )
    for init in ("average", "cos", "Euclidean", "Performance", "from_Loss"):
        out = tmp_path / f"tuned_{init}"
        bash(f"{method}.sh", *tasks, *few, "--train_checkpoint", tmp_path / init, "--output_dir", out)
        assert read_table(out / "result.tsv", ["task", "dev", "test"])["test"].notna().all()


@pytest.mark.slow
def test_both_stages_of_pemt_on_the_mini_gym(tmp_path):
    few = [
        "--tasks",
        *MINI_TASKS,
        "--device",
        "cpu",
        "--max_input_length",
        48,
        "--max_output_length",
        8,
        "--train_epochs",
        0,
        "--train_iters",
        4,
        "--valid_interval",
        2,
        "--bsz_list",
        8,
        "--expert_rank",
        4,
    ]
    bash("pemt_stage1.sh", *few, "--output_dir", tmp_path / "stage1")
    for script in ("pemt_stage2.sh", "pemt_stage2_few_shot.sh"):
        bash(script, *few, "--expert_path", tmp_path / "stage1", "--output_dir", tmp_path / script)
        table = read_table(tmp_path / script / "result.tsv", ["task", "test", "test_loss", "test_moe_weight_1"])
        assert table["task"].tolist() == list(MINI_TASKS) and table["test_moe_weight_1"].notna().all()
