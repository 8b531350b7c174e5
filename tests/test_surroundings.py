"""What a command takes for granted of the machine around it: nothing that is not needed. A few real processes."""

import contextlib
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import matplotlib
import pandas as pd
import pytest
import torch
from conftest import MINI_TASKS, ROOT, small_files

from get_similarity.get_GraNd import seeded_dropout
from pewe import cli
from pewe.batches import Batch
from pewe.cli import main
from pewe.errors import CLOSED_PIPE, OPENDELTA, UserError, one_line, reason
from pewe.flags import SEED, flag
from pewe.fusion.cells import Cell
from pewe.fusion.training import ZooConfig
from pewe.fusion.zoo import Zoo
from pewe.reporting.plots import heat_map
from pewe.tuning.config import TuneConfig
from pewe.tuning.scalars import Scalars
from pewe.tuning.tune import tune


@dataclass(frozen=True)
class Config:
    """A command."""

    lines: int = flag(1, "lines to print")


# ---- errors


def ends(error) -> Config:
    def run(config: Config) -> None:
        raise error

    return run


MACHINE = {
    "bad input": (UserError("x.tsv, line 3: no TAB"), "x.tsv, line 3: no TAB"),
    "full disk": (OSError(28, "No space left on device", "/x/log.txt"), "No space left on device: /x/log.txt"),
    "read-only": (OSError(30, "Read-only file system", "/x"), "Read-only file system: /x"),
    "a file in the way": (FileExistsError(17, "File exists", "/x"), "File exists: /x"),
    "no permission": (PermissionError(13, "Permission denied", "/x"), "Permission denied: /x"),
    "two files": (OSError(18, "Invalid cross-device link", "/x", None, "/y"), "Invalid cross-device link: /x: /y"),
    "no network": (
        ConnectionError("HTTPSConnectionPool(host='h'):\n no route"),
        "HTTPSConnectionPool(host='h'): no route",
    ),
    "torch, full disk": (
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos"),
        "No space left on device?",
    ),
    "torch, read-only": (
        RuntimeError("inline_container.cc:7] . open file failed with strerror: Read-only"),
        "Read-only",
    ),
    "memory": (MemoryError(), "out of memory"),
    "torch, memory": (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "out of memory"),
    "CUDA, memory": (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), "out of memory"),
    "no opendelta": (
        ModuleNotFoundError("No module named 'opendelta'", name="opendelta"),
        f"opendelta is missing; a wheel cannot ask for it: pip install --no-deps {OPENDELTA}",
    ),
    "encoding": (UnicodeEncodeError("ascii", "aé", 1, 2, "ordinal not in range"), "'é' cannot be written as ascii"),
}


@pytest.mark.parametrize("name", MACHINE)
def test_what_the_machine_did_is_one_line(name, capsys):
    error, line = MACHINE[name]
    with pytest.raises(SystemExit) as stop:
        main(ends(error), Config, args=[])
    printed = capsys.readouterr().err
    assert stop.value.code == 2 and printed.startswith(f"error: {line}") and printed.count("\n") == 1


@pytest.mark.parametrize("error", [UserError("a\nb " + "x" * 5000 + " end"), OSError(36, "a b x", "x" * 5000 + " end")])
def test_a_name_of_many_letters_or_lines_leaves_one_line(error, capsys):
    with pytest.raises(SystemExit):
        main(ends(error), Config, args=[])
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and len(line) < 1100 and line.startswith("error: a b x") and line.endswith("xx end\n")


@pytest.mark.parametrize(
    "bug", [TypeError("x"), KeyError("x"), RuntimeError("mat1 and mat2"), ValueError("x"), AssertionError()]
)
def test_a_bug_keeps_its_traceback(bug):
    assert reason(bug) == ""
    with pytest.raises(type(bug)):
        main(ends(bug), Config, args=[])


def test_a_command_that_goes_on_tells_the_cause_and_shows_the_traceback_of_a_bug(capsys):
    cli.log_to(None, quiet=True)
    assert cli.cause_of(OSError(28, "No space left on device", "/x")) == "No space left on device: /x"
    assert cli.cause_of(UserError("task 'a': no TAB")) == "task 'a': no TAB" and capsys.readouterr().err == ""
    try:
        len(None)
    except TypeError as bug:
        assert cli.cause_of(bug).startswith("TypeError: object of type")
    shown = capsys.readouterr().err
    assert "Traceback" in shown and "len(None)" in shown


def test_an_interrupt_says_that_the_command_goes_on(capsys):
    with pytest.raises(SystemExit) as stop:
        main(ends(KeyboardInterrupt()), Config, args=[])
    assert stop.value.code == 130 and "continues where it left off" in capsys.readouterr().err


PRINTS = """
from dataclasses import dataclass
from pewe.cli import main
from pewe.flags import flag
@dataclass(frozen=True)
class Config:
    word: str = flag("a", "to print")
main(lambda config: print("\\n".join([config.word] * 50_000)), Config)
"""


def printed(command: str, **environment) -> subprocess.CompletedProcess:
    """A shell command in the root folder, in which $PRINTS is a command of ours that prints 50,000 times what it is given."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHON": sys.executable, "CODE": PRINTS, **environment}
    command = command.replace("$PRINTS", '"$PYTHON" -c "$CODE" --word')
    return subprocess.run(
        ["bash", "-c", command], cwd="/", env=environment, capture_output=True, text=True, check=False
    )


def test_a_closed_pipe_ends_the_command_silently():
    done = printed("$PRINTS x | head -1; exit ${PIPESTATUS[0]}")
    assert (done.returncode, done.stdout, done.stderr) == (CLOSED_PIPE, "x\n", "")


def test_a_terminal_of_few_letters_gets_the_codes_of_the_others():
    done = printed("$PRINTS 'ñ ±' | tail -1", PYTHONIOENCODING="ascii")
    assert (done.stdout, done.stderr) == ("\\xf1 \\xb1\n", "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_output_into_a_full_disk_is_one_line():
    done = printed("$PRINTS x > /dev/full")
    assert (done.returncode, done.stderr) == (2, "error: No space left on device\n")
    assert printed("$PRINTS '' 2> /dev/full").returncode == 2


def test_the_commands_beside_the_package_are_found_from_any_folder():
    code = (
        "import importlib.util as u, sys; sys.path = [p for p in sys.path if p != sys.argv[1]]\n"
        "spec = u.spec_from_file_location('pewe', sys.argv[1] + '/pewe/__init__.py'); m = u.module_from_spec(spec)\n"
        "spec.loader.exec_module(m); print(*(u.find_spec(n).origin for n in sys.argv[2:]))"
    )
    names = {"dev_all_ckpt": "dev_all_ckpt.py", "unit_model": "unit_model/__init__.py", "data": "data/__init__.py"}
    done = subprocess.run(
        [sys.executable, "-c", code, ROOT, *names], cwd="/", capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [str(ROOT / path) for path in names.values()]


def test_a_command_that_draws_and_writes_without_git_home_or_backend(tmp_path):
    folder = tmp_path / "ñ $x$"
    folder.mkdir()
    for name in ("cells.tsv", "curves.tsv"):
        shutil.copy(ROOT / "results" / "reference" / "flan_t5_small" / name, folder)
    poor = {
        "PATH": str(tmp_path),
        "HOME": "/proc/nothing",
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
        "PYTHONIOENCODING": "ascii",
        "PYTHONPATH": str(ROOT),
        "MPLCONFIGDIR": matplotlib.get_cachedir(),
    }
    command = [sys.executable, "-m", "pewe.reporting.page", "--folder", folder]
    done = subprocess.run(command, cwd="/", env=poor, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert {path.name for path in (folder / "pictures").glob("*.png")} == {"scores_adapter.png", "curves_adapter.png"}


# ---- seeds


def test_a_seed_from_the_clock(tiny_backbone, tiny_data, tmp_path):
    """19 digits, and the largest one."""
    for seed in ("1764157000123456789", str(SEED - 1)):
        main(
            tune,
            TuneConfig,
            args=[
                "--model",
                str(tiny_backbone),
                "--task_dir",
                str(tiny_data),
                "--tasks",
                MINI_TASKS[2],
                "--adapter_size",
                "4",
                "--output_dir",
                str(tmp_path),
                "--do_train",
                "--train_iters",
                "2",
                "--valid_interval",
                "2",
                "--bsz_list",
                "4",
                "--max_input_length",
                "16",
                "--max_output_length",
                "4",
                "--quiet",
                "--one_prefix",
                "--device",
                "cpu",
                "--seed",
                seed,
            ],
        )
    names = {path.parent.name for path in tmp_path.rglob("run.json")}
    assert names == {f"lr_0.0005_bsz_4_seed_{seed}" for seed in ("1764157000123456789", SEED - 1)}


def test_seeds_of_merged_models_gradients_and_dropout_stay_within_torch(monkeypatch):
    cell = Cell(("a", "b"), "different", SEED - 1, "simple")
    zoo = object.__new__(Zoo)
    zoo.config, zoo.labels, zoo.kind, zoo.device = ZooConfig(), ["x"], None, "cpu"
    monkeypatch.setattr("pewe.fusion.zoo.load_model", lambda *_, **__: torch.nn.Linear(2, 2))
    weights = [zoo.new_model(head).weight for _, _, head in cell.members(["a", "b"])]
    assert not torch.equal(*weights)
    batch = Batch(torch.zeros(1, 2, dtype=torch.long), torch.ones(1, 2), torch.zeros(1, 1))
    for seed in (0, SEED - 1):
        seeded_dropout(SimpleNamespace(config=SimpleNamespace(as_original=True, seed=seed)), batch)
    small = 2**31 - 1
    assert (
        small * 1_000_003 + 10**6
    ) % SEED == small * 1_000_003 + 10**6  # the seeds in use give what they always gave


# ---- by-products: log, TensorBoard, pictures


def test_a_log_file_that_cannot_be_written_any_more_is_given_up(tmp_path, capsys):
    cli.log_to(tmp_path / "log.txt")
    with small_files():
        for number in range(40):
            cli.log.info("%d %s", number, "x" * 200)
    cli.log_to(None)
    shown = capsys.readouterr().err
    assert shown.count("cannot be written and ends here: [Errno 27] File too large") == 1 and " 39 x" in shown
    assert "Traceback" not in shown


def test_a_log_file_that_cannot_be_opened_is_one_line(tmp_path, capsys):
    (tmp_path / "log.txt").mkdir()
    with pytest.raises(SystemExit):
        main(lambda config: cli.log_to(tmp_path / "log.txt"), Config, args=[])
    assert capsys.readouterr().err == f"error: Is a directory: {tmp_path / 'log.txt'}\n"


@pytest.mark.parametrize("what", ["in the way", "full"])
def test_a_run_goes_on_without_tensorboard(what, tmp_path, capsys):
    cli.log_to(None)
    if what == "in the way":
        (tmp_path / "tensorboard").write_text("x")
    with one_line(), contextlib.nullcontext() if what == "in the way" else small_files():
        scalars = Scalars(tmp_path / "tensorboard", purge_step=0)
        for step in range(2000):
            scalars.add_scalar("train/loss", 0.5, step)
        scalars.close()
    shown = capsys.readouterr().err
    assert shown.count("cannot be written") == 1 and "Traceback" not in shown


def test_names_with_dollars_are_no_formulas(tmp_path):
    heat_map(pd.DataFrame([[1.0]], index=["$\\frac$"], columns=["a$b$"]), tmp_path / "x.png", "$\\x$")
    assert (tmp_path / "x.png").is_file()
