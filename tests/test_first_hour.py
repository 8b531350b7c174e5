"""The commands of the READMEs, ours and the original's, typed in order in a fresh clone, in a plain shell, with few updates.

A plain shell: no environment is active, and `python` is an interpreter without the packages. The clone has the .venv that
scripts/setup_env.sh would have made.
"""

import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest
from conftest import ROOT
from test_readme import commands_of

# The original's README of telxt/Delta_search: the folder, and what is typed there. Its comments edit constants in between.
FIRST = (
    ("scripts", "bash adapter.sh"),
    ("unit_model", "python unit_model_average.py"),
    ("scripts/get_similarity", "bash adapter_Loss.sh"),
    ("unit_model", "python unit_model_others.py"),
    ("scripts", "bash adapter.sh"),
)
ORIGINAL = (
    *FIRST,
    ("unit_model", "python unit_model_cos.py"),
    ("scripts", "bash adapter_tuneall.sh"),
    ("unit_model", "python unit_model_Euclidean.py"),
    ("scripts", "bash adapter.sh"),
    ("scripts", "bash adapter_tuneall.sh"),
    ("scripts", "bash adapter_devall.sh"),
    ("unit_model", "python unit_model_Performance.py"),
    ("scripts", "bash adapter.sh"),
    ("scripts/get_similarity", "bash adapter_GraNd.sh"),
    ("unit_model", "python unit_model_others.py"),
    ("scripts/get_similarity", "bash adapter_block.sh"),
    ("unit_model", "python unit_model_others.py"),
)
NOT_TYPED = {  # of our README: what has a test of its own, or needs what no clone has
    "bash scripts/test.sh": "this is it",
    "bash scripts/reproduce.sh": "hours; tests/test_reproduce.py",
    "bash scripts/reproduce.sh --suite qa32 --dry_run": "the paper's data",
    "bash scripts/reproduce.sh --suite my.toml --delta lora --init Random Average Loss --seeds 1 2": "a suite of one's own",
    "PEWE_SETTING=paper bash scripts/adapter.sh": "a model hub",
    "bash scripts/fusion/quickstart.sh": "tests/test_fusion_experiment.py",
    "bash scripts/pemt_stage1.sh": "tests/test_scripts.py",
}


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Path:
    """The committed files of this checkout, and a .venv with the packages of this interpreter; dev and test files are cut."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False).stdout
    if not listed:
        pytest.skip("no repository")
    out = tmp_path_factory.mktemp("clone") / "pewe"
    for name in listed.split("\0")[:-1]:
        if not name.startswith(("tests/", "results/", "benchmarks/")) and (ROOT / name).exists():
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, out / name, follow_symlinks=False)
    for path in (out / "data" / "mini_gym").glob("*/*_64_42_[dt]e[vs]*.tsv"):
        path.write_text("".join(path.read_text(encoding="utf-8").splitlines(keepends=True)[:16]), encoding="utf-8")
    venv.create(out / ".venv", symlinks=True)
    (site,) = (out / ".venv").glob("lib/python*/site-packages")
    packages = [path for path in sys.path if path.endswith("-packages")]
    (site / "packages.pth").write_text("\n".join([str(out), *packages]) + "\n")
    command = out / ".venv" / "bin" / "pewe"
    command.write_text(f"#!{out}/.venv/bin/python\nfrom pewe.__main__ import main\nmain()\n")
    command.chmod(0o755)
    mark = 'echo "$(cat requirements*.txt pyproject.toml setup.py | cksum) $PWD" > .venv/.pewe-requirements'
    subprocess.run(["bash", "-c", mark], cwd=out, check=True)
    return out


@pytest.fixture(scope="module")
def bare(tmp_path_factory) -> str:
    """A folder whose `python` has the standard library alone."""
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder, symlinks=True)
    return str(folder / "bin")


@pytest.fixture
def typed(clone, bare):
    """`typed(folder, command, **variables)`: the outcome of a command in a plain shell."""

    def run(folder: str, command: str, **variables) -> subprocess.CompletedProcess:
        plain = {
            "PATH": f"{bare}:/usr/local/bin:/usr/bin:/bin",
            "HOME": os.environ.get("HOME", "/"),
            "OMP_NUM_THREADS": "1",
        }
        plain |= {"PEWE_LIMIT_TRAIN_ITERS": "2", **variables}
        done = subprocess.run(
            ["bash", "-c", command], cwd=clone / folder, env=plain, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{folder}: {command}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
        assert "Traceback" not in done.stderr
        return done

    return run


def files_of(clone: Path, *names: str) -> None:
    missing = [name for name in names if not list((clone / "checkpoints").glob(name))]
    assert not missing, f"not made: {missing}"


def test_a_plain_shell_has_no_packages(bare):
    """Else the others would say nothing."""
    done = subprocess.run([f"{bare}/python", "-c", "import torch"], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "ModuleNotFoundError" in done.stderr


def test_the_first_commands_of_the_original_on_three_tasks(clone, typed):
    """The short form: its first experiment, and a ranking."""
    few = {"TASKS": "mini_yesno"}
    for folder, command in FIRST[:-1]:
        typed(folder, command, **few)
    files_of(clone, "adapter/full_data/result.tsv", "adapter/random/result.tsv")
    files_of(clone, *(f"adapter/{init}/without_mini_yesno_towns_checkpoint.pt" for init in ("average", "Loss")))
    rank = "source .venv/bin/activate; pewe rank --sources checkpoints/adapter/full_data --target data/mini_gym/mini_yesno_towns"
    assert "effective sources" in typed("", f"{rank} --measures Loss").stdout
    assert (clone / "results" / "rank" / "rank.png").is_file()


@pytest.mark.slow
def test_all_commands_of_the_original_in_its_order(clone, typed):
    for folder, command in ORIGINAL:
        typed(folder, command)
    inits = ("average", "Loss", "cos", "Euclidean", "Performance")
    files_of(clone, *(f"adapter/{init}/without_mini_read_towns_checkpoint.pt" for init in inits))
    files_of(clone, "adapter/similarity/GraNd/result.tsv", "adapter/similarity/block/encoder.block.0/result.tsv")


@pytest.mark.slow
def test_all_commands_of_our_readme_in_its_order(clone, typed):
    commands = commands_of("README.md")
    assert set(NOT_TYPED) <= set(commands)
    for command in commands:
        if command not in NOT_TYPED:
            command = command.replace("checkpoints/quickstart/", "checkpoints/quickstart_iters2/")  # of a reduced one
            typed("", f"source .venv/bin/activate; {command}" if command.startswith("pewe ") else command)
    files_of(clone, "quickstart_iters2/adapter/seed_42/sources/result.tsv", "adapter/from_Loss/result.tsv")
    assert (clone / "results" / "mine" / "table.md").is_file() and list(
        (clone / "results").glob("quickstart*/report.html")
    )
