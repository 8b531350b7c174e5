"""Stored runs: what makes one again, what damage does to it, runs that diverge, and folders that several commands share."""

import json
import math
import multiprocessing
import shutil
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from conftest import MINI_TASKS, ROOT, SMALL, tuning_config
from safetensors.torch import load_file, save_file

import pewe.tuning.outcomes
import pewe.tuning.runs
from pewe import identity
from pewe.backbone import load_backbone
from pewe.cli import main
from pewe.data import load_split, split_digest
from pewe.deltas.attach import attach_delta
from pewe.deltas.checkpoint import ensemble_checkpoint, read_checkpoint, task_checkpoint, write_checkpoint
from pewe.errors import UserError
from pewe.files import hold, read_record, read_table, write_record
from pewe.tuning.config import TuneAllConfig, TuneConfig
from pewe.tuning.evaluate import evaluate
from pewe.tuning.session import Session
from pewe.tuning.tune import COLUMNS, FailedRuns, tune, tune_all
from task_list import METRICS

TASK = MINI_TASKS[0]
BEST = "checkpoint-best.pt"


def settings(model, data, out, **changes) -> TuneConfig:
    own = {
        "tasks": [TASK],
        "train_iters": 4,
        "valid_interval": 2,
        "early_stop": 10,
        "adapter_size": 4,
        "start_is_candidate": False,
    }
    return tuning_config(model, data, out, **{**own, **changes})


@pytest.fixture
def updates(monkeypatch) -> list[int]:
    """Grows by the updates that are made from now on."""
    made, train = [], Session.train

    def counting(self, steps, bar):
        made.append(steps * len(self.members))
        return train(self, steps, bar)

    monkeypatch.setattr(Session, "train", counting)
    return made


def stored(out: Path) -> dict:
    """All that must be equal after damage and after a clean run: by file, tensors, results and tables."""
    found = {}
    for path in sorted(out.rglob("*.pt")):
        found[str(path.relative_to(out))] = torch.load(path, weights_only=True)["sha256"]
    for path in sorted(out.rglob("run.json")):
        assert read_record(path)
        found[str(path.relative_to(out))] = json.loads(path.read_text())["sha256"]
    found["result.tsv"] = read_table(out / "result.tsv", []).drop(columns="seconds").to_csv()
    return found


# ---- what decides a run


def replace_weights(world) -> None:
    path = world.model / "model.safetensors"
    save_file({name: tensor + 0.01 for name, tensor in load_file(path).items()}, path, {"format": "pt"})


def change_line(split):
    def change(world) -> None:
        (path,) = (world.data / TASK).glob(f"*_64_*_{split}.tsv")
        lines = path.read_text().splitlines()
        path.write_text("\n".join([lines[0] + "s", *lines[1:]]) + "\n")

    return change


def replace_init(world) -> None:
    path = ensemble_checkpoint(world.folder, TASK)
    state = read_checkpoint(path, "adapter")
    write_checkpoint(path, "adapter", {name: tensor + 0.1 for name, tensor in state.items()}, {})


CHANGES = {
    "backbone": replace_weights,
    "backbone by its tokenizer": lambda world: (world.model / "added_tokens.json").write_text("{}"),
    "data": change_line("train"),
    "data of dev": change_line("dev"),
    "data of test": change_line("test"),
    "init": replace_init,
    "metric": lambda world: world.patch.setitem(METRICS, TASK, "Classification-F1"),
    "max_grad_norm": lambda world: {"max_grad_norm": 0.2},
    "full_train": lambda world: {"full_train": True},
}


class World:
    """A backbone, data and an ensemble that may be spoiled, and the command on them."""

    def __init__(self, folder, model, data, patch):
        self.folder, self.patch = folder, patch
        self.model, self.data, self.out = (folder / name for name in ("model", "data", "out"))
        shutil.copytree(model, self.model)
        shutil.copytree(data, self.data)

    def tune(self, **changes) -> pd.DataFrame:
        return tune(replace(settings(self.model, self.data, self.out, train_iters=2), **changes))

    def log(self) -> str:
        return (self.out / "log.txt").read_text()


@pytest.fixture
def world(tmp_path, tiny_backbone, tiny_data, monkeypatch):
    return World(tmp_path, tiny_backbone, tiny_data, monkeypatch)


@pytest.mark.parametrize("name", CHANGES)
def test_a_run_is_made_again_when_what_it_was_made_from_has_changed(world, updates, name):
    world.tune(stack=1)
    shutil.copy(task_checkpoint(world.out, TASK), ensemble_checkpoint(world.folder, TASK))
    shutil.rmtree(world.out)
    start = {"train_checkpoint": str(world.folder)} if name == "init" else {}
    world.tune(**start)
    del updates[:]
    world.tune(**start)
    assert not updates
    change = CHANGES[name](world)
    start |= change if isinstance(change, dict) else {}
    world.tune(**start)
    assert updates == [2]
    what = name.split()[0]
    assert f"is made again or continued: '{what}' was" in world.log()
    world.tune(**start)
    assert updates == [2]


def test_weights_replaced_in_place_every_run_is_done_again(world, updates):
    cells = {"tasks": list(MINI_TASKS), "learning_rate_list": [1e-2, 3e-3], "stack": 2}
    before = world.tune(**cells)
    del updates[:]
    world.tune(**cells)
    assert not updates
    replace_weights(world)
    after = world.tune(**cells)
    assert sum(updates) == 2 * len(before) == 2 * len(after) == 12
    clean = replace(settings(world.model, world.data, world.folder / "clean", train_iters=2), **cells)
    assert after.drop(columns="seconds").equals(tune(clean).drop(columns="seconds"))


def test_what_decides_no_result_makes_no_run_again(world, updates):
    world.tune()
    moved = world.model.rename(world.folder / "moved")
    (moved / "README.md").write_text("a note")
    elsewhere = world.data.rename(world.folder / "elsewhere")
    shutil.copytree(world.out, world.folder / "copied")
    changes = {
        "model": str(moved),
        "task_dir": str(elsewhere),
        "output_dir": str(world.folder / "copied"),
        "one_prefix": True,
        "log_interval": 7,
        "stack": 2,
        "lora_alpha": 3.0,
        "prefix_num": 3,
    }
    del updates[:]
    table = world.tune(**changes)
    assert not updates and len(table) == 1
    world.tune(**{**changes, "tasks": list(MINI_TASKS[:2]), "learning_rate_list": [1e-2, 2e-2], "bsz_list": [4, 6]})
    assert sum(updates) == 2 * (2 * 2 * 2 - 1)


# ---- damage


@pytest.fixture(scope="module")
def clean(tiny_backbone, tiny_data, tmp_path_factory):
    out = tmp_path_factory.mktemp("clean") / "out"
    tune(settings(tiny_backbone, tiny_data, out))
    return out


def flip(path: Path, place: float = 0.5) -> None:
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= 4
    path.write_bytes(bytes(content))


def unfinish(run: Path) -> None:
    record = read_record(run / "run.json")
    del record["result"]
    write_record(run / "run.json", record)


def of_task(run: Path) -> Path:
    return run.parents[1] / BEST


def resume(**changes):
    """The resume file of an unfinished run, sealed as it should be, with other entries."""

    def spoil(run: Path) -> None:
        unfinish(run)
        content = identity.unsealed(torch.load(run / "resume.pt", weights_only=True))
        torch.save(identity.sealed({**content, **changes}), run / "resume.pt")

    return spoil


def json_text(text: str):
    return lambda run: (run / "run.json").write_text(text)


FROM_START, FROM_RESUME, KEPT = [2, 2], [], None
DAMAGE = {
    "best of the run flipped": (lambda run: flip(run / BEST), KEPT, "restored from"),
    "best of the run gone": (lambda run: (run / BEST).unlink(), KEPT, "restored from"),
    "best of the task flipped": (lambda run: flip(of_task(run)), KEPT, ""),
    "best of the task gone": (lambda run: of_task(run).unlink(), KEPT, ""),
    "both gone": (lambda run: ((run / BEST).unlink(), of_task(run).unlink()), FROM_RESUME, "is damaged or missing"),
    "both flipped": (lambda run: (flip(run / BEST), flip(of_task(run))), FROM_RESUME, "is damaged or missing"),
    "all gone": (
        lambda run: [(run / BEST).unlink(), of_task(run).unlink(), (run / "resume.pt").unlink()],
        FROM_START,
        "is damaged or missing",
    ),
    "all flipped": (
        lambda run: [flip(run / BEST), flip(of_task(run)), flip(run / "resume.pt")],
        FROM_START,
        "resume.pt is damaged",
    ),
    "interrupted": (unfinish, FROM_RESUME, "it was interrupted"),
    "interrupted, best gone": (lambda run: (unfinish(run), (run / BEST).unlink()), FROM_RESUME, "it was interrupted"),
    "interrupted, best flipped": (lambda run: (unfinish(run), flip(run / BEST)), FROM_RESUME, "it was interrupted"),
    "interrupted, resume flipped": (
        lambda run: (unfinish(run), flip(run / "resume.pt")),
        FROM_START,
        "resume.pt is damaged",
    ),
    "interrupted, resume truncated": (
        lambda run: (unfinish(run), (run / "resume.pt").write_bytes((run / "resume.pt").read_bytes()[:-100])),
        FROM_START,
        "resume.pt is damaged",
    ),
    "interrupted, resume junk": (
        lambda run: (unfinish(run), (run / "resume.pt").write_bytes(b"junk")),
        FROM_START,
        "resume.pt is damaged",
    ),
    "interrupted, resume a number": (
        lambda run: (unfinish(run), torch.save(5, run / "resume.pt")),
        FROM_START,
        "resume.pt is damaged",
    ),
    "interrupted, resume unsealed": (
        lambda run: (unfinish(run), torch.save({"progress": {}}, run / "resume.pt")),
        FROM_START,
        "resume.pt is damaged",
    ),
    "interrupted, resume of another run": (resume(settings={"task": "x"}), FROM_START, "resume.pt is not continued"),
    "interrupted, resume of another version": (
        resume(progress={"x": 1}),
        FROM_START,
        "of an earlier version (TypeError)",
    ),
    "record flipped": (lambda run: flip(run / "run.json"), FROM_RESUME, "is damaged, or of an earlier version"),
    **{
        f"record {text[:9]}": (json_text(text), FROM_RESUME, "is damaged, or of an earlier version")
        for text in ("[]", "5", '"x"', "null", "", '{"settings":5}', "[" * 100_000, "NaN", '{"result": {"dev": 1}}')
    },
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_noticed_and_the_files_are_those_of_a_clean_run(
    clean, tiny_backbone, tiny_data, tmp_path, updates, name
):
    spoil, expected, message = DAMAGE[name]
    shutil.copytree(clean, tmp_path / "out")
    (run,) = (path.parent for path in (tmp_path / "out").rglob("run.json"))
    spoil(run)
    before = (run / "run.json").stat().st_mtime_ns
    tune(settings(tiny_backbone, tiny_data, tmp_path / "out"))
    assert updates == (expected or [])
    assert ((run / "run.json").stat().st_mtime_ns == before) == (expected is KEPT)
    assert message in (tmp_path / "out" / "log.txt").read_text()
    assert stored(tmp_path / "out") == stored(clean)


def test_interrupted_under_other_settings_in_between(tiny_backbone, tiny_data, tmp_path, monkeypatch):
    """A finished, B begun in the same folder and killed at one of its writes, A again: all that is there is A's."""
    both = list(MINI_TASKS[:2])
    a = settings(tiny_backbone, tiny_data, tmp_path / "a", tasks=both, stack=2)
    tune(a)
    clean = stored(tmp_path / "a")
    original = pewe.tuning.runs.replacing

    class Killed(BaseException):
        pass

    for limit in (3, 5, 8, 12):
        calls = 0

        def dying(path, limit=limit):
            nonlocal calls
            calls += 1
            if calls == limit:
                raise Killed
            return original(path)

        with monkeypatch.context() as patch, pytest.raises(Killed):
            for module in (pewe.files, pewe.deltas.checkpoint, pewe.tuning.runs):
                patch.setattr(module, "replacing", dying)
            tune(replace(a, max_grad_norm=0.01))
        tune(a)
        assert stored(tmp_path / "a") == clean


def test_what_killed_writers_left_is_removed(clean, tiny_backbone, tiny_data, tmp_path):
    shutil.copytree(clean, tmp_path / "out")
    (run,) = (path.parent for path in (tmp_path / "out").rglob("run.json"))
    for folder, name in ((run, "resume.pt"), (run.parents[1], BEST), (tmp_path / "out", "result.tsv")):
        left = folder / f".{name}.{pewe.files._HOST}.{2**22 + 1}.tmp"  # no process has a number beyond 2^22
        left.mkdir()
        (left / name).write_bytes(b"x")
    tune(settings(tiny_backbone, tiny_data, tmp_path / "out"))
    assert not list(tmp_path.rglob("*.tmp")) and stored(tmp_path / "out") == stored(clean)


# ---- runs that diverge, scores that are not defined


@pytest.mark.parametrize("start_is_candidate", [False, True])
def test_a_run_that_diverges_costs_its_neighbours_nothing(
    tiny_backbone, tiny_data, tmp_path, start_is_candidate, updates
):
    config = settings(
        tiny_backbone,
        tiny_data,
        tmp_path / "stack",
        learning_rate_list=[1e30, 1e-2, 3e-3],
        stack=3,
        tasks=list(MINI_TASKS[:2]),
        start_is_candidate=start_is_candidate,
    )
    for _ in range(2):  # the same command tries those that failed again, and nothing else
        with pytest.raises(FailedRuns, match=r"2 runs failed, all others are finished: .*diverged: ") as error:
            tune(config)
        assert len(error.value.causes) == 2 and not error.value.tasks and len(error.value.table) == 4
        table = read_table(tmp_path / "stack" / "result.tsv", COLUMNS)
        assert set(table["learning_rate"]) == {1e-2, 3e-3} and len(table) == 4
        made = sum(updates)
        del updates[:]
    assert made <= 2 * 4
    alone = tune(replace(config, learning_rate_list=[1e-2, 3e-3], stack=1, output_dir=str(tmp_path / "alone")))
    assert table.drop(columns="seconds").round(6).equals(alone.drop(columns="seconds").round(6))
    for run in alone["run"]:
        states = [read_checkpoint(tmp_path / name / run / BEST, "adapter") for name in ("stack", "alone")]
        for name in states[0]:
            torch.testing.assert_close(states[0][name], states[1][name], rtol=1e-5, atol=1e-6)
    for task in MINI_TASKS[:2]:
        record = read_record(next((tmp_path / "stack" / task).glob("*/lr_1e+30*/run.json")))
        assert record["failed"].startswith("diverged: ") and "result" not in record


@pytest.mark.parametrize("start_is_candidate", [False, True])
def test_alone_it_fails_too_and_leaves_no_checkpoint_of_former_settings(world, capsys, start_is_candidate):
    world.tune()
    assert task_checkpoint(world.out, TASK).is_file()
    flags = {"learning_rate_list": [1e-2], "start_is_candidate": start_is_candidate, "max_grad_norm": 1.0}
    real = Session.train
    world.patch.setattr(Session, "train", lambda self, steps, bar: [math.nan] * len(real(self, steps, bar)))
    with pytest.raises(SystemExit) as stop:
        main(lambda _: world.tune(**flags), TuneConfig, "", [])
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert stop.value.code == 2 and "1 runs failed" in line and "the training loss is nan at update 2" in line
    assert not task_checkpoint(world.out, TASK).exists() and not len(read_table(world.out / "result.tsv", COLUMNS))
    world.patch.setattr(Session, "train", real)
    assert len(world.tune(**flags)) == 1


def test_the_task_of_which_every_run_failed_is_told(tiny_backbone, tiny_data, tmp_path, monkeypatch):
    config = settings(tiny_backbone, tiny_data, tmp_path, tasks=list(MINI_TASKS[:2]))
    train = Session.train

    def spoiled(self, steps, bar):
        return [
            math.inf if m.task == MINI_TASKS[1] else loss
            for m, loss in zip(self.members, train(self, steps, bar), strict=True)
        ]

    monkeypatch.setattr(Session, "train", spoiled)
    with pytest.raises(FailedRuns) as error:
        tune(config)
    assert list(error.value.tasks) == [MINI_TASKS[1]] and "the training loss is inf" in error.value.tasks[MINI_TASKS[1]]


@pytest.mark.parametrize("score", [math.nan, -1.0])
@pytest.mark.parametrize("as_original", [False, True])
def test_scores_that_are_undefined_or_lowest_end_with_a_result(world, score, as_original):
    for module in (pewe.tuning.outcomes, pewe.tuning.session):
        world.patch.setattr(module, "evaluate", lambda backbone, delta, splits, *_: [score] * len(splits))
    table = world.tune(as_original=as_original, stack=2, tasks=list(MINI_TASKS[:2]))
    assert len(table) == 2 and table[["dev", "test"]].map(lambda x: x == score or (x != x and score != score)).all(
        axis=None
    )
    assert ("is not defined on test" in world.log()) == math.isnan(score)
    assert all(task_checkpoint(world.out, task).is_file() for task in MINI_TASKS[:2])


# ---- one folder, several commands


def test_a_folder_used_for_one_task_after_another_keeps_both(world, updates):
    both = list(MINI_TASKS[:2])
    for task in both:
        world.tune(tasks=[task])
    world.tune(tasks=both[:1], learning_rate_list=[2e-2])
    world.tune(tasks=both[:1], seed=7)
    table = read_table(world.out / "result.tsv", COLUMNS)
    cells = {(row.task, row.learning_rate, row.seed) for row in table.itertuples()}
    assert (
        cells == {(both[0], 1e-2, 42), (both[0], 2e-2, 42), (both[0], 1e-2, 7), (both[1], 1e-2, 42)} and len(table) == 4
    )
    del updates[:]
    world.tune(tasks=both, max_grad_norm=0.01)  # replaces the rows of two cells
    assert updates == [2, 2]
    new = read_table(world.out / "result.tsv", COLUMNS)
    assert set(new["run"]) == set(table["run"]) and len(new) == 4
    clips = {run: read_record(world.out / run / "run.json")["settings"]["max_grad_norm"] for run in new["run"]}
    assert sorted(clips.values()) == [0.01, 0.01, 0.1, 0.1]
    run = next(run for run, clip in clips.items() if clip == 0.1)
    flip(world.out / run / "run.json")
    (world.out / "result.tsv").write_text("junk")
    world.tune(tasks=both, max_grad_norm=0.01)
    assert set(read_table(world.out / "result.tsv", COLUMNS)["run"]) == clips.keys() - {run}


def test_a_record_that_lies_elsewhere_is_no_row(world):
    world.tune()
    (run,) = (path.parent for path in world.out.rglob("run.json"))
    shutil.copytree(run, run.with_name("lr_0.5_bsz_4_seed_42"))
    assert list(world.tune()["learning_rate"]) == [1e-2]
    assert len(read_table(world.out / "result.tsv", COLUMNS)) == 1


def test_a_cell_named_twice_is_refused(world):
    for flags, message in (
        ({"learning_rate_list": [5e-4, 0.0005]}, "--learning_rate_list names '0.0005' twice"),
        ({"learning_rate_list": [1e-3, 3e-3, 1.0000001e-3]}, "--learning_rate_list names '0.001' twice"),
        ({"bsz_list": [4, 4]}, "--bsz_list names 4 twice"),
        ({"learning_rate_list": [math.inf]}, "--learning_rate_list must be a finite number, not inf"),
        ({"learning_rate_list": [1e300]}, "--learning_rate_list must be at most 1e+38, not 1e+300"),
        ({"learning_rate_list": [math.nan]}, "--learning_rate_list must be a finite number, not nan"),
        ({"bsz_list": [0]}, "--bsz_list must be at least 1, not 0"),
    ):
        with pytest.raises(UserError) as error:
            world.tune(**flags)
        assert message in str(error.value)
    assert not world.out.exists()


def _hold(folder, held, release):
    with hold(folder):
        held.set()
        release.wait(60)


def test_a_second_process_says_who_holds_the_folder_and_changes_nothing(clean, tiny_backbone, tiny_data, tmp_path):
    shutil.copytree(clean, tmp_path / "out")
    context = multiprocessing.get_context("fork")
    held, release = context.Event(), context.Event()
    other = context.Process(target=_hold, args=(tmp_path / "out", held, release))
    other.start()
    assert held.wait(30)
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=f"out is in use by process {other.pid}"):
        tune(settings(tiny_backbone, tiny_data, tmp_path / "out", max_grad_norm=0.2))
    assert before == {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    other.kill()
    other.join()
    tune(settings(tiny_backbone, tiny_data, tmp_path / "out"))


# ---- a delta used as it was tuned


def made(world, **changes) -> Path:
    """A folder with the delta of a task as source and as ensemble."""
    world.tune(**{**SMALL["lora"], **changes, "output_dir": str(world.folder / "made")})
    best = task_checkpoint(world.folder / "made", TASK)
    shutil.copy(best, ensemble_checkpoint(world.folder / "made", TASK))
    return world.folder / "made"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lora_alpha": 600.0}, "was tuned with --lora_alpha 6.0, not 600.0; give --lora_alpha 6.0"),
        ({"lora_r": 2}, "was tuned with --lora_r 3, not 2; give --lora_r 3"),
        ({"tune_method": "adapter"}, "is a lora checkpoint; expected one of --tune_method adapter"),
        ({"model": "other"}, "was tuned on another backbone"),
    ],
)
def test_a_delta_under_another_scale_size_kind_or_backbone_is_refused(world, changes, message):
    folder = made(world)
    if "model" in changes:
        shutil.copytree(world.model, world.folder / "other")
        world.model = world.folder / "other"
        replace_weights(world)
    flags = {**SMALL["lora"], **{name: value for name, value in changes.items() if name != "model"}}
    pairs = {**vars(settings(world.model, world.data, world.out)), **flags, "source_ckpt_path": str(folder)}
    uses = [
        lambda: world.tune(**flags, train_checkpoint=str(folder)),
        lambda: world.tune(**flags, do_train=False, test_checkpoint=str(folder)),
        lambda: tune_all(TuneAllConfig(**pairs)),
    ]
    for use in uses:
        with pytest.raises(UserError) as error:
            use()
        assert message in str(error.value) and str(folder) in str(error.value)


# ---- tests that notice: a backbone that scores above zero, dev and test answers that differ


REAL = ("mini_yesno_towns", "mini_yesno_animals")


@pytest.fixture(scope="module")
def real_data(tmp_path_factory) -> Path:
    """The two tasks with 50 of their test lines."""
    out = tmp_path_factory.mktemp("real_data")
    for task in REAL:
        shutil.copytree(ROOT / "data" / "mini_gym" / task, out / task)
        (path,) = (out / task).glob("*_test.tsv")
        path.write_text("\n".join(path.read_text().splitlines()[:50]) + "\n")
    return out


@pytest.fixture(scope="module")
def scored(real_data, tmp_path_factory):
    """Two tasks and two seeds on the embedded backbone; the best step is not always the last one."""
    out = tmp_path_factory.mktemp("scored") / "out"
    for seed in (1, 2):
        tune(real(real_data, out, seed=seed))
    return out


def real(data, out, **changes) -> TuneConfig:
    return settings(
        ROOT / "checkpoints" / "mini_t5",
        data,
        out,
        **{
            "tasks": list(REAL),
            "train_iters": 14,
            "start_is_candidate": True,
            "learning_rate_list": [2.5e-2],
            **changes,
        },
    )


def recomputed(config, path: Path, task: str, prefix: str, split: str) -> float:
    """The score of a checkpoint on a split, by nothing of the code that made it but the evaluation."""
    backbone = load_backbone(config)
    delta = attach_delta(backbone.model, config, 1)
    delta.load([read_checkpoint(path, config.tune_method)])
    data = load_split(backbone.tokenizer, config, task, prefix, split)
    return evaluate(backbone, delta, [data], [METRICS[task]], config.predict_batch_size, config.max_output_length)[0]


def test_scores_are_those_of_the_best_checkpoint_on_dev_and_on_test(scored, real_data):
    table = read_table(scored / "result.tsv", COLUMNS)
    assert len(table) == 4 and (table["dev"] > 0).all() and (table["dev"] != table["test"]).any()
    best_before_the_last = 0
    for row in table.itertuples():
        run = scored / row.run
        result = read_record(run / "run.json")["result"]
        best = torch.load(run / BEST, weights_only=True)
        for split, value in (("dev", row.dev), ("test", row.test)):
            assert (
                value == result[split] == recomputed(real(real_data, scored), run / BEST, row.task, row.prefix, split)
            )
        assert row.dev == max(point["dev"] for point in result["history"])
        first = next(point["updates"] for point in result["history"] if point["dev"] == row.dev)
        assert best["current_state"]["num_updates"] == first == result["best_updates"]
        best_before_the_last += first < row.updates
        assert best["sha256"] == result["checkpoint"]
    assert best_before_the_last


def test_seeds_differ_in_init_and_history(scored):
    for task in REAL:
        first, second = (read_record(next(scored.glob(f"{task}/*/*_seed_{seed}/run.json"))) for seed in (1, 2))
        assert first["settings"]["seed"] == 1 and second["settings"]["seed"] == 2
        assert first["settings"]["init"] != second["settings"]["init"]
        losses = [[point["loss"] for point in run["result"]["history"]][1:] for run in (first, second)]
        assert losses[0] != losses[1]


def test_the_stored_init_is_the_ensemble_and_the_run_starts_from_it(scored, real_data, tmp_path):
    task = REAL[0]
    source = task_checkpoint(scored, task)
    shutil.copy(source, ensemble_checkpoint(tmp_path, task))
    table = tune(real(real_data, tmp_path / "out", tasks=[task], train_checkpoint=str(tmp_path), seed=3, train_iters=2))
    record = read_record(tmp_path / "out" / table["run"][0] / "run.json")
    state = read_checkpoint(source, "adapter")
    assert record["settings"]["init"] == identity.state_digest(state)
    start = record["result"]["history"][0]
    assert start["updates"] == 0 and start["dev"] == recomputed(
        real(real_data, scored), source, task, table["prefix"][0], "dev"
    )
    random = tune(real(real_data, tmp_path / "random", tasks=[task], seed=3, train_iters=2))
    assert (
        read_record(tmp_path / "random" / random["run"][0] / "run.json")["result"]["history"][0]["dev"] != start["dev"]
    )


def test_a_source_is_tuned_on_the_full_file(tmp_path, tiny_backbone, tiny_data):
    digests = {}
    for full in (False, True):
        config = settings(tiny_backbone, tiny_data, tmp_path / str(full), full_train=full, train_iters=2)
        table = tune(config)
        record = read_record(tmp_path / str(full) / table["run"][0] / "run.json")
        tokenizer = load_backbone(config).tokenizer
        splits = {
            split: load_split(tokenizer, config, TASK, table["prefix"][0], split) for split in ("train", "dev", "test")
        }
        assert record["settings"]["data"] == {split: split_digest(data) for split, data in splits.items()}
        digests[full] = record["settings"]["data"]["train"]
        lines = (tiny_data / TASK / f"{TASK}_full_train.tsv").read_text().splitlines()
        assert (len(splits["train"].examples) == len(lines)) == full
    assert digests[False] != digests[True]


def test_settings_and_checkpoint_say_what_the_run_was(scored):
    for row in read_table(scored / "result.tsv", COLUMNS).itertuples():
        record = json.loads((scored / row.run / "run.json").read_text())["settings"]
        args = torch.load(scored / row.run / BEST, weights_only=True)["args"]
        assert {name: args[name] for name in record} == record
        assert args["tune_method"] == "adapter" and args["adapter_size"] == 4 and args["adapter_type"] == "houlsby"
        assert args["backbone"] == identity.model_digest(str(ROOT / "checkpoints" / "mini_t5"))
        assert record["tasks"] == [row.task] and record["learning_rate_list"] == [2.5e-2] and record["metric"] == "ACC"


def test_scoring_without_tuning_in_the_folder_of_a_tuned_run_loses_nothing(world, updates):
    tuned = world.tune()
    before = {path: path.read_bytes() for path in world.out.rglob("*.pt")}
    again = world.tune(do_train=False, test_checkpoint=str(world.out))
    assert again["test"].tolist() == tuned["test"].tolist() and again["updates"].tolist() == [0]
    assert before == {path: path.read_bytes() for path in world.out.rglob("*.pt")}
    del updates[:]
    assert world.tune()["updates"].tolist() == [2] and not updates


def test_what_was_tuned_is_not_tuned_again_to_be_tested(clean, tiny_backbone, tiny_data, tmp_path, updates):
    config = settings(tiny_backbone, tiny_data, tmp_path / "out", do_predict=False)
    assert tune(config)["test"].isna().all()
    del updates[:]
    assert tune(replace(config, do_predict=True))["test"].notna().all() and not updates
    assert stored(tmp_path / "out") == stored(clean)
    assert tune(config)["test"].notna().all() and not updates


def test_a_pair_is_not_made_again_for_another_list_of_sources(world, updates):
    both = list(MINI_TASKS[:2])
    world.tune(tasks=both, output_dir=str(world.folder / "sources"))
    flags = vars(replace(settings(world.model, world.data, world.out), train_iters=2))
    config = TuneAllConfig(**flags, source_ckpt_path=str(world.folder / "sources"), source_tasks=both)
    before = tune_all(config)
    del updates[:]
    assert list(tune_all(replace(config, source_tasks=both[:1]))["source"]) == both[:1] and not updates
    stored = read_table(world.out / "result.tsv", ["target", "source"])
    assert sorted(stored["source"]) == sorted(both) and len(before) == 2


def test_the_task_keeps_its_checkpoint_while_one_of_its_runs_is_made_again(world):
    rates = {"learning_rate_list": [1e-2, 3e-3]}
    for module in (pewe.tuning.outcomes, pewe.tuning.session):
        world.patch.setattr(module, "evaluate", lambda *_: [0.5])
    world.tune(**rates)
    best = task_checkpoint(world.out, TASK).read_bytes()
    (run,) = world.out.glob("*/*/lr_0.01_*")
    assert (run / BEST).read_bytes() == best  # of equals the first
    (run / "run.json").unlink()
    (run / "resume.pt").unlink()
    world.patch.setattr(Session, "train", None)
    with pytest.raises(TypeError):
        world.tune(**rates)
    assert task_checkpoint(world.out, TASK).read_bytes() == best
