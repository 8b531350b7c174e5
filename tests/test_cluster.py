"""The grid on a Ray cluster of this machine: the same tables as in one process, whatever is killed meanwhile."""

import random
import shutil
import subprocess
import time
from pathlib import Path

import pandas as pd
import pytest
from conftest import ROOT, write_tiny_data
from nodes import Cluster, grid

pytestmark = pytest.mark.slow
SUITE = """
title = "Cluster"
[all]
model = "{root}/checkpoints/mini_t5"
task_dir = "data"
tasks = {tasks}
device = "cpu"
max_input_length = 64
max_output_length = 8
one_prefix = true
[tuning]
stack = 2
bsz_list = [8]
predict_batch_size = 200
valid_interval = 5
[sources]
train_iters = 20
[targets]
train_iters = 10
[weights]
effective = 1.5
[delta.adapter]
adapter_size = 4
learning_rate_list = [6e-3]
"""
TASKS = ["mini_read_towns", "mini_read_people", "mini_yesno_towns", "mini_yesno_people"]
FLAGS = ("--suite", "suite.toml", "--seeds", "1", "2", "--init", "Random", "Average", "Loss")
TABLES = ("cells.tsv", "curves.tsv", "weights.tsv", "similarities.tsv")


@pytest.fixture(scope="module", autouse=True)
def ray():
    """Skips where Ray is not installed, and says so."""
    return pytest.importorskip("ray", reason="Ray is not installed: pip install -r requirements-cluster.txt")


def place(folder: Path) -> Path:
    """A folder with the suite and its data."""
    folder.mkdir()
    write_tiny_data(folder / "data", {task: task for task in TASKS})
    (folder / "suite.toml").write_text(SUITE.format(root=ROOT, tasks=TASKS))
    return folder


def tables(folder: Path) -> dict[str, str]:
    """What the experiment has shown, but for the seconds."""
    return {
        name: pd.read_csv(folder / "results/suite" / name, sep="\t", dtype=str)
        .drop(columns="seconds", errors="ignore")
        .to_csv()
        for name in TABLES
    }


@pytest.fixture(scope="module")
def clean(tmp_path_factory) -> dict[str, str]:
    """The tables of one process without Ray."""
    folder = place(tmp_path_factory.mktemp("clean") / "in")
    assert grid(folder, *FLAGS).wait(900) == 0, (folder / "driver.log").read_text()
    return tables(folder)


def until(folder: Path, step: str, driver: subprocess.Popen) -> None:
    """Wait until a run of the step has been validated once: it is in the midst of its updates then."""
    end = time.monotonic() + 900
    while not list(folder.glob(f"checkpoints/suite/adapter/*/{step}/**/resume.pt")):
        assert driver.poll() is None and time.monotonic() < end, (folder / "driver.log").read_text()[-4000:]
        time.sleep(0.1)


def ends(driver: subprocess.Popen, folder: Path) -> None:
    assert driver.wait(1500) == 0, (folder / "driver.log").read_text()[-4000:]


def test_two_devices_are_as_one(clean, tmp_path):
    folder = place(tmp_path / "two")
    ends(grid(folder, *FLAGS, "--devices", "2"), folder)
    assert tables(folder) == clean


def test_a_node_is_lost_and_the_driver_too(clean, tmp_path):
    folder = place(tmp_path / "nodes")
    with Cluster(20123, tmp_path) as cluster:
        words = (*FLAGS, "--ray_address", cluster.address)
        driver = grid(folder, *words)
        until(folder, "sources", driver)
        cluster.lose_node()
        until(folder, "from_Random", driver)
        driver.kill()
        driver.wait()
        ends(grid(folder, *words), folder)
    assert tables(folder) == clean
    assert not list(folder.glob("checkpoints/**/.parts/*/unit.json"))


def test_thirty_random_kills(clean, tmp_path):
    folder, dice, kills = place(tmp_path / "kills"), random.Random(18), []
    with Cluster(20456, tmp_path) as cluster:
        words = (*FLAGS, "--ray_address", cluster.address)
        driver = grid(folder, *words)
        while len(kills) < 30:
            time.sleep(dice.uniform(6, 16))
            if driver.poll() is not None:
                if driver.returncode == 0:  # it came to its end before: part of it is done again
                    shutil.rmtree(folder / "checkpoints/suite/adapter" / dice.choice(("seed_1", "seed_2")))
                driver = grid(folder, *words)
                continue
            what = dice.choice(("worker", "worker", "node", "driver"))
            if what == "worker" and not cluster.lose_worker(dice):
                continue
            if what == "node":
                cluster.lose_node(dice.randrange(2))
            if what == "driver":
                driver.kill()
                driver.wait()
                driver = grid(folder, *words)
            kills.append(what)
        for _ in range(3):  # a unit that was killed three times is a failure, which the same command tries again
            if driver.wait(1500) == 0:
                break
            driver = grid(folder, *words)
        ends(driver, folder)
    assert {*kills} == {"worker", "node", "driver"} and tables(folder) == clean
