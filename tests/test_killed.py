"""Any command, killed with SIGKILL at ten random moments and started again, ends with the table of one clean run."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from functools import partial

import pandas as pd
import pytest
from conftest import METHODS, MINI_TASKS, ROOT

from pewe.tuning.config import TuneConfig
from pewe.tuning.tune import tune

pytestmark = pytest.mark.slow

MEASURES = {
    "Loss": ["get_similarity/get_Loss.py"],
    "KL": ["get_similarity/get_KL_divergence.py"],
    "EL2N": ["get_similarity/get_EL2N.py"],
    "Cosine": ["get_similarity/get_Cosine_of_Logits_and_Labels.py"],
    "GraNd": ["get_similarity/get_GraNd.py", "--mode", "layer"],
    "block": ["get_similarity/get_block.py"],
}
FEW = [
    "--train_iters",
    40,
    "--valid_interval",
    4,
    "--learning_rate_list",
    1e-2,
    "--bsz_list",
    4,
    "--stack",
    3,
    "--early_stop",
    99,
]
TUNING = {
    "tune": ["tune_hps_singletask.py", *FEW, "--do_train", "--do_predict"],
    "tune_all": ["tune_all_ckpt.py", *FEW, "--do_predict"],
    "dev_all": ["dev_all_ckpt.py", "--stack", 2],
}
COMMANDS = {**MEASURES, **TUNING}
CASES = [("adapter", name) for name in COMMANDS] + [(method, name) for method in METHODS[1:] for name in ("KL", "tune")]


@pytest.fixture
def flags(method, tiny_backbone, tiny_data, tmp_path_factory):
    """The flags that all commands share, with three sources of this delta."""
    sources = tmp_path_factory.mktemp("sources")
    common = {
        "tune_method": method,
        "model": str(tiny_backbone),
        "task_dir": str(tiny_data),
        "device": "cpu",
        "max_input_length": 32,
        "max_output_length": 6,
        "adapter_size": 4,
        "lora_r": 3,
        "prefix_num": 5,
        "prefix_r": 4,
    }
    tune(
        TuneConfig(
            **common,
            tasks=list(MINI_TASKS),
            bsz_list=[4],
            learning_rate_list=[1e-2],
            train_iters=4,
            valid_interval=2,
            stack=3,
            do_train=True,
            quiet=True,
            output_dir=str(sources),
        )
    )
    return [
        "--quiet",
        "--tasks",
        *MINI_TASKS,
        *(word for item in common.items() for word in ("--" + item[0], item[1])),
    ], sources


def start(name: str, flags, sources, out) -> subprocess.Popen:
    command = [*COMMANDS[name], *flags, "--output_dir", out]
    if name != "tune":
        command += ["--source_ckpt_path", sources]
    if name in MEASURES:
        command += ["--random_tuned_ckpt_path", sources, "--max_batches", -1, "--predict_batch_size", 1]
    words = [sys.executable, ROOT / command[0], *map(str, command[1:])]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def finish(process: subprocess.Popen) -> None:
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors.decode()


def clean_and_killed(clean, killed, times: int, moments: tuple[float, float], generator: random.Random) -> int:
    """Run `clean` once; start `killed` so many times, kill it at random moments (in clean runs), then let it finish."""
    began = time.monotonic()
    finish(clean())
    clean_seconds, kills = time.monotonic() - began, 0
    for _ in range(times):
        process = killed()
        try:
            process.wait(timeout=generator.uniform(*moments) * clean_seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
        process.stderr.close()
    finish(killed())
    return kills


def result(out) -> pd.DataFrame:
    return pd.read_csv(out / "result.tsv", sep="\t").drop(columns="seconds", errors="ignore")


@pytest.mark.parametrize(("method", "name"), CASES)
def test_killed_ten_times(method, name, flags, tmp_path):
    commands = [partial(start, name, *flags, tmp_path / folder) for folder in ("clean", "killed")]
    kills = clean_and_killed(*commands, 10, (0.3, 1.0), random.Random(name))
    assert kills > 0
    pd.testing.assert_frame_equal(result(tmp_path / "killed"), result(tmp_path / "clean"), rtol=0, atol=1e-6)


SUITE = """
[all]
model = "{model}"
task_dir = "{data}"
task_list = "mini_reading"
device = "cpu"
max_input_length = 32
max_output_length = 6
[tuning]
stack = 3
bsz_list = [4]
learning_rate_list = [1e-2]
train_iters = 20
valid_interval = 4
[weights]
effective = 1.5
[delta.adapter]
adapter_size = 4
"""


def reproduce(suite) -> subprocess.Popen:
    inits = ["Random", "Average", "Loss", "KL", "Performance"]
    words = ["-m", "pewe.grid", "--suite", suite, "--seeds", "1", "2", "--init", *inits]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, *words], cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )


def test_the_grid_killed_five_times(tiny_backbone, tmp_path):
    outputs = {}
    for name in ("kill_test_clean", "kill_test_killed"):
        (tmp_path / f"{name}.toml").write_text(SUITE.format(model=tiny_backbone, data=ROOT / "data" / "mini_gym"))
    try:
        suites = [partial(reproduce, tmp_path / f"kill_test_{name}.toml") for name in ("clean", "killed")]
        kills = clean_and_killed(*suites, 5, (0.2, 0.6), random.Random(5))
        for name in ("clean", "killed"):
            folder = ROOT / "results" / f"kill_test_{name}"
            outputs[name] = [
                (folder / table).read_text()
                for table in ("table.csv", "comparisons.tsv", "weights.tsv", "similarities.tsv")
            ]
    finally:
        for name in ("clean", "killed"):
            for parent in ("checkpoints", "results"):
                shutil.rmtree(ROOT / parent / f"kill_test_{name}", ignore_errors=True)
    assert kills > 1 and outputs["killed"] == outputs["clean"]
