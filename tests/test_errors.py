"""Malformed inputs: each gives one readable message that names what is wrong, exit code 2, and no traceback."""

import json
import runpy
import shutil
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import MINI_TASKS, ROOT, small, tiny_t5

from get_similarity import get_Loss
from pewe.cli import main
from pewe.deltas import convert
from pewe.deltas.attach import attach_delta
from pewe.deltas.checkpoint import ensemble_checkpoint, task_checkpoint, write_checkpoint
from pewe.reporting import tables
from pewe.similarity.config import SimilarityConfig
from pewe.similarity.loop import run
from pewe.tuning.config import TuneAllConfig, TuneConfig
from pewe.tuning.tune import tune, tune_all
from unit_model import unit_model_average, unit_model_others

TASK = MINI_TASKS[0]
TUNE = [
    "--do_train",
    "--do_predict",
    "--train_iters",
    "1",
    "--valid_interval",
    "1",
    "--max_input_length",
    "16",
    "--max_output_length",
    "4",
    "--adapter_size",
    "4",
    "--quiet",
    "--bsz_list",
    "4",
]


class World:
    """A sound set of inputs that each case spoils in one place."""

    def __init__(self, folder: Path, data: Path, backbone: Path):
        self.folder, self.data, self.backbone, self.out = folder, folder / "data", backbone, folder / "out"
        shutil.copytree(data, self.data)
        self.sources, self.table = folder / "sources", folder / "similarity" / "result.tsv"
        delta = attach_delta(tiny_t5(vocab_size=backbone_vocabulary(backbone)), small("adapter"), 1)
        delta.initialise(["1/x"])
        self.state = delta.states()[0]
        for task in MINI_TASKS:
            write_checkpoint(task_checkpoint(self.sources, task), "adapter", self.state, {})
        self.table.parent.mkdir()
        rows = [f"{t}\t{s}\tall\t{1.5}" for t in MINI_TASKS for s in MINI_TASKS]
        self.table.write_text("target\tsource\tscope\tvalue\n" + "\n".join(rows) + "\n")

    def file(self, split: str) -> Path:
        return self.data / TASK / f"{TASK}_64_42_{split}.tsv"

    def edit_line(self, split: str, line: bytes) -> None:
        lines = self.file(split).read_bytes().splitlines()
        lines[2] = line
        self.file(split).write_bytes(b"\n".join(lines) + b"\n")

    def on_cpu(self, tasks: Sequence[str]) -> list:
        places = ["--model", self.backbone, "--task_dir", self.data, "--output_dir", self.out]
        return [*places, "--device", "cpu", "--tasks", *tasks]

    def tune(self, *args):
        main(tune, TuneConfig, "", [*map(str, self.on_cpu([TASK])), *TUNE, *map(str, args)])

    def similarity(self, *args):
        own = ["--source_ckpt_path", self.sources, "--adapter_size", "4", "--quiet"]
        words = [*map(str, [*self.on_cpu(MINI_TASKS), *own, *args])]
        main(partial(run, get_Loss.MEASURE), SimilarityConfig, "", words)

    def others(self, *args):
        base = ["--origin_data_path", self.table, "--source_ckpt_path", self.sources, "--save_ckpt_path", self.out]
        main(unit_model_others.run, unit_model_others.Config, "", [*map(str, base), *map(str, args)])

    def average(self, *args):
        base = ["--tasks", *MINI_TASKS, "--source_ckpt_path", self.sources, "--save_ckpt_path", self.out]
        main(unit_model_average.run, unit_model_average.Config, "", [*map(str, base), *map(str, args)])


def backbone_vocabulary(folder: Path) -> int:
    return json.loads((folder / "config.json").read_text())["vocab_size"]


def broken_model(world: World, spoil) -> Path:
    copy = world.folder / "broken_t5"
    shutil.copytree(world.backbone, copy)
    spoil(copy)
    return copy


def spoiled_state(world: World, **changes) -> None:
    write_checkpoint(task_checkpoint(world.sources, TASK), "adapter", {**world.state, **changes}, {})


def other_size(world: World) -> None:
    first = next(iter(world.state))
    spoiled_state(world, **{first: torch.zeros(3, 3)})


def not_finite(world: World) -> None:
    first = next(iter(world.state))
    spoiled_state(world, **{first: torch.full_like(world.state[first], float("inf"))})


def rewrite_table(world: World, old: str, new: str) -> None:
    world.table.write_text(world.table.read_text().replace(old, new, 1))


FIRST_ROW = f"{MINI_TASKS[0]}\t{MINI_TASKS[1]}\tall\t1.5"

CASES = {
    # files
    "no TAB": (lambda w: (w.edit_line("train", b"no tab"), w.tune()), "train.tsv, line 3: no TAB"),
    "empty output": (lambda w: (w.edit_line("dev", b"a\t"), w.tune()), "dev.tsv, line 3: empty output"),
    "empty input": (lambda w: (w.edit_line("dev", b"\ta"), w.tune()), "dev.tsv, line 3: empty input"),
    "not UTF-8": (lambda w: (w.edit_line("test", b"\xff\ta"), w.tune()), "test.tsv, line 3: not UTF-8"),
    "missing split": (lambda w: (w.file("dev").unlink(), w.tune()), "missing split dev"),
    "empty file": (lambda w: (w.file("train").write_text(""), w.tune()), "is empty"),
    "no training file": (lambda w: (w.file("train").unlink(), w.tune()), "has no <prefix>_train.tsv"),
    "no full training file": (
        lambda w: ((w.data / TASK / f"{TASK}_full_train.tsv").unlink(), w.tune("--full_train")),
        "missing split train",
    ),
    "no task folder": (lambda w: (shutil.rmtree(w.data / TASK), w.tune()), f"no data for task '{TASK}'"),
    "no data folder": (lambda w: w.tune("--task_dir", w.folder / "nowhere"), "there is no data folder"),
    "fewer lines than a batch": (
        lambda w: w.tune("--bsz_list", 16),
        "12 training lines are fewer than one batch of 16",
    ),
    # flags
    "unknown task": (lambda w: w.tune("--tasks", "mini_read_town"), "did you mean 'mini_read_towns'"),
    "unknown list": (lambda w: w.tune("--tasks", TASK, TASK), "names 'mini_read_towns' twice"),
    "unknown flag": (lambda w: w.tune("--learning_rates", "1"), "did you mean '--learning_rate_list'"),
    "not a number": (lambda w: w.tune("--learning_rate_list", "fast"), "invalid float value: 'fast'"),
    "negative rate": (lambda w: w.tune("--learning_rate_list", "-1"), "--learning_rate_list must be above 0"),
    "unknown method": (lambda w: w.tune("--tune_method", "adaptor"), "did you mean 'adapter'"),
    "contradiction": (lambda w: w.tune("--apply_lora"), "--apply_lora contradicts --tune_method adapter"),
    "zero interval": (lambda w: w.tune("--valid_interval", "0"), "--valid_interval must be at least 1"),
    "unknown dtype": (lambda w: w.tune("--dtype", "float31"), "did you mean 'float32'"),
    "accumulation": (
        lambda w: w.tune("--bsz_list", "10", "--micro_batch_size", "4"),
        "must be a multiple of --micro_batch_size",
    ),
    "nothing to do": (lambda w: main(tune, TuneConfig, "", []), "nothing to do"),
    "nothing to test": (lambda w: main(tune, TuneConfig, "", ["--do_predict"]), "needs --test_checkpoint"),
    "tested and tuned": (lambda w: w.tune("--test_checkpoint", "x.pt"), "leave --do_train out"),
    "a start and no tuning": (
        lambda w: main(tune, TuneConfig, "", ["--do_predict", "--test_checkpoint", "x", "--train_checkpoint", "y"]),
        "--train_checkpoint is where tuning starts: give --do_train",
    ),
    "a start of pairs": (
        lambda w: main(tune_all, TuneAllConfig, "", ["--train_checkpoint", "x"]),
        "every run starts at a source",
    ),
    "reduction": (lambda w: w.similarity("--reduction", "max"), "--reduction cannot be 'max'"),
    "no cuda": (lambda w: w.tune("--device", "cuda"), "no CUDA device is available"),
    # backbone
    "no model": (lambda w: w.tune("--model", w.folder / "no" / "model"), "there is no such folder"),
    "no config": (
        lambda w: w.tune("--model", broken_model(w, lambda c: (c / "config.json").unlink())),
        "no config.json",
    ),
    "damaged weights": (
        lambda w: w.tune("--model", broken_model(w, lambda c: (c / "model.safetensors").write_bytes(b"x" * 99))),
        "cannot load the model",
    ),
    "other model": (
        lambda w: w.tune(
            "--model", broken_model(w, lambda c: (c / "config.json").write_text('{"model_type": "bert"}'))
        ),
        "a T5 is needed (t5, mt5, umt5), this is a 'bert' model",
    ),
    # checkpoints
    "missing source": (lambda w: (shutil.rmtree(w.sources / TASK), w.similarity()), "tune the sources first"),
    "other size": (lambda w: (other_size(w), w.similarity()), "has shape (3, 3), expected"),
    "not finite": (lambda w: (not_finite(w), w.similarity()), "not finite"),
    "other kind": (
        lambda w: w.similarity("--tune_method", "lora"),
        "is a adapter checkpoint; expected one of --tune_method lora",
    ),
    "other adapter size": (lambda w: w.similarity("--adapter_size", "5"), "expected"),
    "damaged checkpoint": (
        lambda w: (task_checkpoint(w.sources, TASK).write_bytes(b"junk"), w.average()),
        "it is damaged",
    ),
    "truncated checkpoint": (
        lambda w: (p := task_checkpoint(w.sources, TASK), p.write_bytes(p.read_bytes()[:500]), w.average()),
        "cannot read",
    ),
    "missing ensemble": (lambda w: w.tune("--train_checkpoint", w.folder), "make them with a script of unit_model/"),
    "other scale": (
        lambda w: (
            write_checkpoint(ensemble_checkpoint(w.folder, TASK), "lora", w.state, {"lora_alpha": 4.0}),
            w.tune("--tune_method", "lora", "--train_checkpoint", w.folder),
        ),
        "give --lora_alpha 4.0",
    ),
    "rate twice": (
        lambda w: w.tune("--learning_rate_list", "5e-4", "0.0005"),
        "--learning_rate_list names '0.0005' twice",
    ),
    "batch size twice": (lambda w: w.tune("--bsz_list", "4", "4"), "--bsz_list names 4 twice"),
    "diverged": (
        lambda w: w.tune("--train_iters", "3", "--valid_interval", "3", "--learning_rate_list", "1e30"),
        "1 runs failed",
    ),
    "nothing to convert": (
        lambda w: main(convert._run, convert.ConvertConfig, "", ["--original", "none.pt", "--out", "x.pt"]),
        "there is no checkpoint none.pt",
    ),
    "incomplete ensemble": (
        lambda w: (
            write_checkpoint(ensemble_checkpoint(w.folder, TASK), "adapter", dict(list(w.state.items())[1:]), {}),
            w.tune("--train_checkpoint", w.folder),
        ),
        "1 tensors are missing",
    ),
    # tables
    "no table": (lambda w: (w.table.unlink(), w.others()), "there is no table"),
    "no header": (lambda w: (rewrite_table(w, "scope", "layer"), w.others()), "column 'scope' is missing"),
    "not a value": (
        lambda w: (rewrite_table(w, FIRST_ROW, FIRST_ROW[:-3] + "high"), w.others()),
        "line 3: value must be a number",
    ),
    "pair twice": (lambda w: (rewrite_table(w, FIRST_ROW, f"{FIRST_ROW}\n{FIRST_ROW}"), w.others()), "stands twice"),
    "pair missing": (lambda w: (rewrite_table(w, FIRST_ROW + "\n", ""), w.others()), "is missing"),
    "zero temperature": (lambda w: w.others("--tem", "0"), "--tem must be above 0"),
    "no result": (
        lambda w: main(tables.run, tables.TableConfig, "", ["--rows", f"Random={w.folder}"]),
        "there is no table",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_one_readable_message_and_exit_code_2(name, tiny_data, tiny_backbone, tmp_path, capsys):
    if name == "no cuda" and torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    case, message = CASES[name]
    world = World(tmp_path, tiny_data, tiny_backbone)
    with pytest.raises(SystemExit) as stop:
        case(world)
    printed = capsys.readouterr().err
    errors = [line for line in printed.splitlines() if line.startswith("error: ")]
    assert stop.value.code == 2
    assert len(errors) == 1 and message in errors[0], printed
    assert "Traceback" not in printed


def test_there_are_at_least_thirty():
    assert len(CASES) >= 30


def as_script(monkeypatch, folder: Path, script: str, *flags: str) -> int:
    """Run a script as the main program, in this process, from another folder; its exit code."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", [str(ROOT / script), *flags])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(sys.argv[0], run_name="__main__")
    return stop.value.code or 0


@pytest.mark.parametrize(
    ("script", "flags"),
    [
        ("tune_hps_singletask.py", ["--do_trian"]),
        ("get_similarity/get_Loss.py", ["--reduction", "max"]),
        ("unit_model/unit_model_others.py", ["--origin_data_path", "nowhere.tsv"]),
    ],
)
def test_as_a_script_from_another_folder(script, flags, tmp_path, monkeypatch, capsys):
    code, printed = as_script(monkeypatch, tmp_path, script, *flags), capsys.readouterr().err
    assert code == 2 and printed.startswith("error: ") and "Traceback" not in printed


def test_as_a_process_from_another_folder(tmp_path):
    """What is imported is found there, too."""
    command = [sys.executable, ROOT / "get_similarity" / "get_Loss.py", "--reduction", "max"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "script", ["tune_hps_singletask.py", "get_similarity/get_Loss.py", "unit_model/unit_model_average.py"]
)
def test_help_explains_every_flag(script, tmp_path, monkeypatch, capsys):
    assert as_script(monkeypatch, tmp_path, script, "--help") == 0
    printed = capsys.readouterr().out
    assert "--help" in printed and "(default: " in printed
