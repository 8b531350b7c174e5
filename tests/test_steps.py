"""The steps of an experiment: each is made from what it says, is made again when any of that changes, and no stale row is shown.

The backbone is the embedded one, which answers some of the lines after a few updates.
"""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
from conftest import MINI_TASKS, ROOT, tiny_t5

import pewe.merging.save
import pewe.tuning.parts
import pewe.tuning.session
from pewe.data import read_examples
from pewe.deltas.checkpoint import ensemble_checkpoint, read_checkpoint, task_checkpoint
from pewe.errors import UserError
from pewe.files import hold, read_json, read_record, write_json, write_record
from pewe.grid import run as reproduce
from pewe.grid.config import Config
from pewe.grid.step import Step
from pewe.grid.steps import SOURCES
from pewe.grid.suite import Suite
from pewe.identity import digest, state_digest

SUITE = """
title = "Steps"
[all]
model = "{model}"
task_dir = "{data}"
task_list = "mini_task_list"
device = "cpu"
max_input_length = 32
max_output_length = 6
[tuning]
stack = 2
bsz_list = [4]
learning_rate_list = [6e-3]
train_iters = 6
valid_interval = 3
max_grad_norm = 1.0
[weights]
effective = 1.5
[delta.adapter]
adapter_size = 4
[delta.lora]
lora_r = 2
"""
INITS = ["Random", "Average", "Loss"]


class World:
    """A folder with a suite, its data and what was computed."""

    def __init__(self, folder: Path):
        self.folder, self.suite = folder, folder / "steps.toml"
        self.base, self.results = folder / "checkpoints/steps/adapter/seed_1", folder / "results/steps"

    def run(self, **flags) -> pd.DataFrame:
        reproduce.run(Config(**{"suite": "steps.toml", "delta": ["adapter"], "seeds": [1], "init": INITS, **flags}))
        return pd.read_csv(self.results / "cells.tsv", sep="\t")

    def change(self, old: str, new: str) -> None:
        text = self.suite.read_text()
        assert old in text
        self.suite.write_text(text.replace(old, new))

    def contents(self) -> dict:
        """The tensors of every checkpoint, the weights, and the cells but for the seconds."""
        found = {}
        for path in sorted(self.base.rglob("*.pt")):
            if path.name != "resume.pt":
                found[str(path.relative_to(self.base))] = state_digest(read_checkpoint(path, self.base.parent.name))
        for path in sorted(
            [*self.base.rglob("final_weight.tsv"), self.results / "cells.tsv", self.results / "curves.tsv"]
        ):
            found[str(path)] = pd.read_csv(path, sep="\t").drop(columns="seconds", errors="ignore").to_csv()
        return found

    def run_of(self, step: str, task: str = MINI_TASKS[0], seed: int = 1) -> Path:
        """The folder of the one run of a task."""
        return next((self.base.parent / f"seed_{seed}" / step / task).glob("*/*/run.json")).parent

    def settings(self, *args, **flags) -> dict:
        return read_json(self.run_of(*args, **flags) / "run.json")["settings"]


def without_pictures(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(reproduce.report, "write", lambda out: (out / "table.txt").write_text(""))
    patch.setattr(pewe.merging.save, "heat_map", lambda frame, path, *args, **flags: path.write_text(""))
    patch.setattr("pewe.similarity.matrix.heat_map", lambda frame, path, *args, **flags: None)
    patch.setattr(Suite, "tasks", lambda self: list(MINI_TASKS))


@pytest.fixture(scope="module")
def finished(tiny_data, tmp_path_factory) -> Path:
    """The experiment, finished, for two seeds."""
    folder = tmp_path_factory.mktemp("steps")
    text = SUITE.format(model=ROOT / "checkpoints/mini_t5", data=tiny_data)
    (folder / "steps.toml").write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        without_pictures(patch)
        World(folder).run(seeds=[1, 2])
    return folder


@pytest.fixture
def world(finished, tmp_path, monkeypatch) -> World:
    """A copy of the finished experiment to spoil."""
    folder = tmp_path / "copy"
    shutil.copytree(finished, folder)
    monkeypatch.chdir(folder)
    without_pictures(monkeypatch)
    return World(folder)


@pytest.fixture
def calls(monkeypatch) -> list[str]:
    """Names of the steps that are carried out from here on."""
    done, carry_out = [], Step.carry_out

    def noted(step, finished, again=True):
        done.append("/".join(step.folder.parts[-(2 if step.folder.parent.name in ("weights", "similarity") else 1) :]))
        return carry_out(step, finished, again)

    monkeypatch.setattr(Step, "carry_out", noted)
    return done


# what is stored


def test_the_runs_of_an_init_begin_with_its_ensemble(world):
    for init in ("Average", "Loss"):
        for task in MINI_TASKS:
            state = read_checkpoint(ensemble_checkpoint(world.base / "weights" / init, task), "adapter")
            assert world.settings(f"from_{init}", task)["init"] == state_digest(state)
    inits = {world.settings(step)["init"] for step in ("from_Random", "from_Average", "from_Loss", "sources")}
    assert len(inits) == 3  # Random and the sources begin with the same


def test_seeds_differ_in_init_data_order_and_result(world):
    for step in ("sources", "from_Random", "from_Average"):
        one, two = (world.settings(step, seed=seed) for seed in (1, 2))
        assert (one["seed"], two["seed"]) == (1, 2) and one["init"] != two["init"] and one["data"] == two["data"]
        histories = [read_json(world.run_of(step, seed=seed) / "run.json")["result"]["history"] for seed in (1, 2)]
        losses = [[point["loss"] for point in history[1:]] for history in histories]
        assert losses[0] and losses[0] != losses[1]


def test_sources_are_tuned_on_the_full_file_and_targets_on_the_few_lines(world, tiny_data):
    def content(name: str) -> str:
        examples = read_examples(tiny_data / MINI_TASKS[0] / f"{MINI_TASKS[0]}_{name}_train.tsv")
        return digest([(example.input, *example.outputs) for example in examples])

    assert content("full") != content("64_42")
    assert world.settings("sources")["data"]["train"] == content("full")
    assert (
        world.settings("from_Random")["data"]["train"]
        == world.settings("from_Loss")["data"]["train"]
        == content("64_42")
    )


def test_the_cells_are_those_of_the_runs_and_above_zero(world):
    cells = pd.read_csv(world.results / "cells.tsv", sep="\t")
    assert len(cells) == 4 * 3 * 2 and set(cells["init"]) == {*INITS, SOURCES}
    for cell in cells.itertuples():
        result = read_record(Path("checkpoints") / cell.run / "run.json")["result"]
        assert (cell.task, cell.seed) == (result["task"], result["seed"])
        assert (cell.dev, cell.test) == pytest.approx((result["dev"], result["test"]), abs=1e-6)
    assert (cells["test"] > 0).mean() > 0.5 and cells["test"].nunique() > 5
    assert not cells["dev"].equals(cells["test"])


# what is made again


def test_a_finished_experiment_is_left_alone(world, calls):
    before = world.contents()
    world.run()
    assert not calls and world.contents() == before


INTERRUPTED = {
    "tuning": ("train_iters = 6", "train_iters = 9", "tune_stack", pewe.tuning.parts, "sources"),
    "weights": ("effective = 1.5", "effective = 1.3", "write_checkpoint", pewe.merging.save, "weights/Loss"),
}


@pytest.mark.parametrize("name", INTERRUPTED)
def test_interrupted_under_other_settings(world, monkeypatch, calls, name):
    """A is finished, B is started in the same place and killed: A again computes what B has overwritten."""
    old, new, function, module, first = INTERRUPTED[name]
    before, original, count = world.contents(), getattr(module, function), []

    def dying(*args, **flags):
        count.append(1)
        if len(count) == 2:
            raise KeyboardInterrupt
        return original(*args, **flags)

    world.change(old, new)
    with monkeypatch.context() as patch:
        patch.setattr(module, function, dying)
        with pytest.raises(KeyboardInterrupt):
            world.run(init=["Loss"])
    assert world.contents() != before
    world.change(new, old)
    calls.clear()
    world.run()
    assert calls[0] == first and world.contents() == before


def test_killed_between_the_work_and_the_last_stamp(world, monkeypatch, calls):
    before = world.contents()
    stamp = world.base / "weights/Loss/step.json"
    write_record(stamp, {**read_record(stamp), "state": "started", "files": {}})
    world.run()
    assert calls == ["weights/Loss", "from_Loss"] and world.contents() == before


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("path", "first"),
    [
        ("sources/result.tsv", "sources"),
        (f"sources/{MINI_TASKS[1]}/checkpoint-best.pt", "sources"),
        ("similarity/Loss/result.tsv", "similarity/Loss"),
        ("similarity/Loss/config.json", "similarity/Loss"),
        ("weights/Loss/final_weight.tsv", "weights/Loss"),
        (f"weights/Average/without_{MINI_TASKS[0]}_checkpoint.pt", "weights/Average"),
        ("weights/Average/step.json", "weights/Average"),
    ],
)
@pytest.mark.parametrize("how", [flip, Path.unlink])
def test_a_file_that_is_changed_or_gone_is_made_again(world, calls, path, first, how):
    before = world.contents()
    how(world.base / path)
    world.run()
    assert calls[0] == first and world.contents() == before


def test_a_source_replaced_by_another_is_restored(world, calls):
    before = world.contents()
    shutil.copy(
        task_checkpoint(world.base / "sources", MINI_TASKS[1]), task_checkpoint(world.base / "sources", MINI_TASKS[0])
    )
    world.run()
    assert calls[0] == "sources" and world.contents() == before


def test_a_backbone_replaced_in_place_makes_everything_again(world, calls):
    folder = world.folder / "t5"
    shutil.copytree(ROOT / "checkpoints/mini_t5", folder)
    world.change(str(ROOT / "checkpoints/mini_t5"), str(folder))
    before = world.contents()
    world.run()
    assert not calls  # the same content under another name
    vocabulary = json.loads((folder / "config.json").read_text())["vocab_size"]
    tiny_t5(vocab_size=vocabulary).save_pretrained(folder)
    cells = world.run(init=["Average"])
    assert calls == ["sources", "weights/Average", "from_Average"]
    assert not (cells["test"] > 0).any() and world.contents() != before
    assert set(cells["init"]) == {SOURCES, "Average"}  # no row of the old one


def test_data_changed_in_place_makes_everything_again(world, calls):
    data = world.folder / "data"
    shutil.copytree(Path(world.suite.read_text().split('task_dir = "')[1].split('"')[0]), data)
    world.change(world.suite.read_text().split('task_dir = "')[1].split('"')[0], str(data))
    (path,) = (data / MINI_TASKS[0]).glob("*_64_42_test.tsv")
    path.write_text("".join(f"{line.split(chr(9))[0]}\tnever\n" for line in path.read_text().splitlines()))
    cells = world.run(init=["Random"])
    assert calls == ["sources", "from_Random"]
    assert (cells["test"][cells["task"] == MINI_TASKS[0]] == 0).all()


# what is shown


def test_rows_that_do_not_hold_today_are_left_out(world, capsys):
    world.change("train_iters = 6", "train_iters = 3")
    cells = world.run(init=["Random"])
    assert set(cells["init"]) == {"Random", SOURCES} and (cells["updates"] == 3).all() and set(cells["seed"]) == {1}
    assert "left out, since their steps do not hold today" in capsys.readouterr().err
    kept = pd.read_csv(world.results / "cells.previous.tsv", sep="\t")
    assert len(kept) == 24 and (kept["updates"] == 6).all()
    assert not (world.results / "weights.tsv").exists()


def test_rows_of_other_deltas_and_seeds_that_hold_stay(world):
    cells = world.run(delta=["lora"], init=["Random"], seeds=[2])
    sizes = cells.groupby(["delta", "seed"]).size().to_dict()
    assert sizes == {("adapter", 1): 12, ("adapter", 2): 12, ("lora", 2): 6}
    assert set(pd.read_csv(world.results / "weights.tsv", sep="\t")["init"]) == {"Average", "Loss"}


def test_rows_of_runs_with_other_learning_rates_are_not_shown(world):
    world.change("learning_rate_list = [6e-3]", "learning_rate_list = [3e-3]")
    cells = world.run(init=["Random"])
    assert (cells["learning_rate"] == 3e-3).all() and len(cells) == 6


def test_a_run_that_diverges_is_a_failed_cell_and_the_others_go_on(world, capsys):
    world.change("learning_rate_list = [6e-3]", "learning_rate_list = [6e-3, 1e30]\nstart_is_candidate = false")
    for _ in range(2):  # it is told each time
        with pytest.raises(UserError, match="6 cells or steps failed"):
            world.run(init=["Random"])
        printed = capsys.readouterr().out
        run = f"steps/adapter/seed_1/from_Random/{MINI_TASKS[0]}/{MINI_TASKS[0]}_64_42/lr_1e+30_bsz_4_seed_1"
        assert f"failed: {run}: diverged: " in printed
    cells = pd.read_csv(world.results / "cells.tsv", sep="\t")
    assert (cells["learning_rate"] == 6e-3).all() and set(cells["init"]) == {"Random", SOURCES} and len(cells) == 6


def test_a_task_whose_source_diverges_is_left_out_and_the_others_go_on(world, capsys, monkeypatch):
    """The failure is of one task, so that its neighbours keep theirs, also in a later call for another delta."""
    world.change("[weights]", "[sources]\nlearning_rate_list = [5e-3]\n[weights]")
    drop = pewe.tuning.session.Session.drop_diverged

    def dropping(session, losses):
        for member in session.members:
            if member.task == MINI_TASKS[2] and member.learning_rate == 5e-3:
                member.failed = "diverged: on purpose"
        return drop(session, losses)

    monkeypatch.setattr(pewe.tuning.session.Session, "drop_diverged", dropping)
    with pytest.raises(UserError, match="1 cells or steps failed"):
        world.run(init=["Average"])
    assert "failed: steps/adapter/seed_1/sources/mini_yesno_towns/" in capsys.readouterr().out
    cells = pd.read_csv(world.results / "cells.tsv", sep="\t")
    tasks = cells[cells["seed"] == 1].groupby("init")["task"].agg(set).to_dict()
    assert tasks == {init: set(MINI_TASKS[:2]) for init in ("Average", SOURCES)}
    monkeypatch.undo()
    monkeypatch.chdir(world.folder)
    without_pictures(monkeypatch)
    cells = world.run(delta=["lora"], init=["Random"])
    cells = cells[cells["seed"] == 1]
    assert cells.groupby("delta")["init"].agg(set).to_dict() == {
        "adapter": {"Average", SOURCES},
        "lora": {"Random", SOURCES},
    }


# what is refused


def test_two_at_once_in_one_name(world):
    for folder in ("checkpoints/steps", "results/steps"):
        with hold(world.folder / folder), pytest.raises(UserError, match=f"{folder} is in use by process"):
            world.run()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"delta": ["adapter", "lora", "adapter"]}, "--delta names 'adapter' twice"),
        ({"seeds": [1, 2, 1]}, "--seeds names 1 twice"),
        ({"init": ["Loss", "Loss"]}, "--init names 'Loss' twice"),
        ({"tasks": [MINI_TASKS[0], MINI_TASKS[0]]}, f"--tasks names {MINI_TASKS[0]!r} twice"),
    ],
)
@pytest.mark.parametrize("dry_run", [False, True])
def test_named_twice(world, flags, message, dry_run):
    with pytest.raises(UserError, match=message):
        world.run(**flags, dry_run=dry_run)


@pytest.mark.parametrize(
    "content", ["[1]", "5", "{", '{"made_from": 1, "state": "done"}', "\x00", '{"files": [], "sha256": ""}']
)
def test_a_plan_over_damaged_files(world, capsys, calls, content):
    (world.base / "sources/step.json").write_text(content)
    (world.results / "cells.tsv").write_text(content)
    reproduce.run(Config(suite="steps.toml", delta=["adapter"], seeds=[1], init=INITS, dry_run=True))
    printed = capsys.readouterr().out
    assert "to do   steps/adapter/seed_1/sources" in printed
    assert "done    steps/adapter/seed_1/from_Random" in printed and not calls
    write_json(world.base / "sources/step.json", {})


def test_a_plan_says_why_a_step_is_made_again(world, capsys):
    world.change("train_iters = 6", "train_iters = 9")
    reproduce.run(Config(suite="steps.toml", delta=["adapter"], seeds=[1], init=INITS, dry_run=True))
    printed = capsys.readouterr().out
    (line,) = [
        line for line in printed.splitlines() if line.startswith("to do   steps/adapter/seed_1/sources  3 cells, ")
    ]
    assert line.endswith("  ('train_iters' was 6, is 9)")


# rows with a combiner, and a start that all sources share


def test_a_row_with_a_combiner_takes_differences_from_the_start_that_all_sources_share(world, calls):
    world.change("[weights]", "[sources]\ncommon_init = true\n[weights]")
    cells = world.run(init=["Random", "Loss+ties"])
    assert set(cells["init"]) == {"Full data", "Random", "Loss+ties"}  # the others are of the sources as they were
    assert "weights/Loss+ties" in calls and "similarity/Loss" in calls and "similarity/Loss+ties" not in calls
    start = state_digest(read_checkpoint(world.base / "sources/common_init.pt", "adapter"))
    assert {world.settings("sources", task)["init"] for task in MINI_TASKS} == {start}
    combined = read_record(world.base / "weights/Loss+ties/config.json")["settings"]["combined"]
    assert combined["rule"] == "ties" and (combined["base"], combined["inits"]) == (start, "common")
    assert "Loss+ties" in set(pd.read_csv(world.results / "weights.tsv", sep="\t")["init"])
    calls.clear()
    assert len(world.run(init=["Random"])) == len(cells) and not calls


@pytest.mark.parametrize(
    ("init", "message"),
    [
        ("Loss+tise", "--init Loss[+]tise: its combiner cannot be 'tise'; did you mean 'ties'"),
        ("Fisher+ties", "--init Fisher[+]ties: its combiner cannot be 'ties'. Known: fisher"),
        ("Random+ties", "--init cannot be 'Random[+]ties'"),
    ],
)
def test_a_combiner_that_cannot_be_is_named_before_any_step(world, calls, init, message):
    with pytest.raises(UserError, match=message):
        world.run(init=[init])
    assert not calls


def test_a_row_of_another_kind_of_delta_is_named_and_not_made(world, calls, capsys):
    world.run(init=["Average+svd", "Arrow", "Average"])
    assert not calls and "without Average+svd, Arrow: no row of adapter\n" in capsys.readouterr().err
