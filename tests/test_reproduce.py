"""The grid and its report, on a tiny backbone and three tasks."""

import json
import shutil
from dataclasses import fields
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import MINI_TASKS, ROOT

from pewe.data import SPLITS
from pewe.deltas.kinds import KINDS
from pewe.errors import UserError
from pewe.files import read_json
from pewe.grid import run as reproduce
from pewe.grid.config import Config
from pewe.grid.experiment import grids
from pewe.grid.steps import Grid, plan
from pewe.grid.suite import Suite, read_suite
from pewe.reporting import page as report
from pewe.reporting import stats
from pewe.reporting.stored import SOURCES
from pewe.reporting.tables import best_by_dev
from pewe.tuning.config import UpdateConfig
from unit_model import EFFECTIVE, FUSION, MODULES, PAPER, of_group

DEFAULT_INITS = ["Random", *of_group(PAPER)]
PEMT = KINDS["pemt"].inits

SUITE = """
title = "Tiny"
[all]
model = "{model}"
task_dir = "{data}"
task_list = "mini_task_list"
device = "cpu"
max_input_length = 32
max_output_length = 6
[tuning]
stack = 3
bsz_list = [4]
train_iters = 4
valid_interval = 2
[weights]
effective = 1.5
[delta.adapter]
adapter_size = 4
targets = {{ learning_rate_list = [1e-2, 3e-3] }}
[delta.prefix]
prefix_num = 5
prefix_r = 4
"""


@pytest.fixture
def here(tiny_backbone, tiny_data, tmp_path, monkeypatch):
    """A folder to run in, with a suite of three tasks; `run(**flags)` runs the grid there."""
    monkeypatch.chdir(tmp_path)
    data = tmp_path / "data"
    shutil.copytree(tiny_data, data)
    (tmp_path / "tiny.toml").write_text(SUITE.format(model=tiny_backbone, data=data))
    monkeypatch.setattr(Suite, "tasks", lambda self: list(MINI_TASKS))

    def run(**flags):
        reproduce.run(
            Config(**{"suite": "tiny.toml", "delta": ["adapter"], "seeds": [1], "init": ["Random", "Average"], **flags})
        )
        path = tmp_path / "results/tiny/cells.tsv"
        return pd.read_csv(path, sep="\t") if path.is_file() else None

    run.folder = tmp_path
    return run


def test_every_row_of_the_paper_for_two_seeds(here, capsys):
    inits = [init for init in DEFAULT_INITS if init != "Manual"]  # one of the three tasks is alone in its group
    inits += of_group(FUSION)
    cells = here(init=[*inits, "GraNd_block"], seeds=[1, 2])
    capsys.readouterr()
    blocks = [init for init in cells["init"].unique() if "/" in init]
    assert {*cells["init"]} == {*inits, SOURCES, *blocks} and len(blocks) == 5  # 3 encoder, 2 decoder blocks
    assert cells["test"].notna().all()
    sizes = cells.groupby(["init", "seed"]).size()
    assert (sizes.drop(SOURCES) == 6).all() and (
        sizes[SOURCES] == 3
    ).all()  # three tasks, two learning rates for targets
    pictures = here.folder / "checkpoints/tiny/adapter/seed_1/weights/GraNd_block"
    assert (pictures / f"overview_{MINI_TASKS[0]}.png").is_file() and (pictures / "importance.png").is_file()
    assert (pd.read_csv(pictures / "importance.tsv", sep="\t")["spread"] > 0).all()
    _two_cells_by_hand(here.folder)
    _the_page_is_well_formed(here.folder / "results/tiny/report.html")
    before = (here.folder / "results/tiny/table.md").read_bytes()
    report.write(here.folder / "results/tiny")
    assert (here.folder / "results/tiny/table.md").read_bytes() == before
    assert (
        "booktabs" in (here.folder / "results/tiny/table.tex").read_text()
        or "toprule" in (here.folder / "results/tiny/table.tex").read_text()
    )


def _two_cells_by_hand(folder):
    """Two numbers of the table from the files of the runs themselves."""
    table = pd.read_csv(folder / "results/tiny/table.csv").set_index("init")
    for init, task in (("Random", MINI_TASKS[0]), ("Loss", MINI_TASKS[2])):
        of_seeds = []
        for seed in (1, 2):
            runs = (folder / f"checkpoints/tiny/adapter/seed_{seed}/from_{init}/{task}").glob("*/*/run.json")
            results = [read_json(run)["result"] for run in sorted(runs)]
            assert len(results) == 2
            of_seeds.append(max(results, key=lambda result: result["dev"])["test"])
        assert table.loc[init, task] == pytest.approx(np.mean(of_seeds), abs=1e-5)


class _Page(HTMLParser):
    """Collects open tags, pictures and outside references."""

    def __init__(self):
        super().__init__()
        self.open, self.pictures, self.outside = [], [], []

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        if tag == "img":
            self.pictures.append(attributes)
        elif tag not in ("meta", "br", "link"):
            self.open.append(tag)
        self.outside += [v for k, v in attributes.items() if k in ("src", "href") and not v.startswith("data:")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def _the_page_is_well_formed(path):
    page = _Page()
    page.feed(path.read_text(encoding="utf-8"))
    assert not page.open and not page.outside
    assert len(page.pictures) > 10 and all(picture["alt"] for picture in page.pictures)


def test_a_second_call_does_nothing_and_a_removed_result_is_redone_alone(here, monkeypatch, capsys):
    here()
    table = (here.folder / "results/tiny/table.txt").read_text()
    monkeypatch.setattr("pewe.grid.steps.tune", None)
    here()
    assert (here.folder / "results/tiny/table.txt").read_text() == table
    monkeypatch.undo()
    monkeypatch.chdir(here.folder)
    monkeypatch.setattr(Suite, "tasks", lambda self: list(MINI_TASKS))
    runs = sorted((here.folder / "checkpoints/tiny/adapter/seed_1").rglob("run.json"))
    times = {run: run.stat().st_mtime_ns for run in runs}
    gone = next(run for run in runs if "from_Average" in str(run))
    gone.unlink()
    here()
    changed = [run for run in runs if run.stat().st_mtime_ns != times[run]]
    assert changed == [gone]
    assert (here.folder / "results/tiny/table.txt").read_text() == table


def test_changed_settings_are_computed_again(here):
    first = here()
    path = here.folder / "tiny.toml"
    path.write_text(path.read_text().replace("train_iters = 4", "train_iters = 2"))
    again = here()
    assert (first["updates"] == 4).all() and (again["updates"] == 2).all()


def test_every_seed_has_its_own_sample(here):
    suite = here.folder / "tiny.toml"
    suite.write_text(
        suite.read_text()
        .replace("[all]", '[all]\nsample = "by_seed"')
        .replace("[weights]", "[targets]\ntrace_test = [0, 2]\n[weights]")
    )
    for task in MINI_TASKS:
        lines = (here.folder / f"data/{task}/{task}_full_train.tsv").read_text().splitlines(keepends=True)
        for split in SPLITS:
            shutil.copy(
                here.folder / f"data/{task}/{task}_64_42_{split}.tsv",
                here.folder / f"data/{task}/{task}_64_1_{split}.tsv",
            )
        (here.folder / f"data/{task}/{task}_64_1_train.tsv").write_text("".join(lines[:12]))
        (here.folder / f"data/{task}/{task}_64_1_dev.tsv").write_text("".join(lines[12:]))
    cells = here(init=["Random", "Loss"], seeds=[1, 42])
    assert (cells["prefix"] == [f"{row.task}_64_{row.seed}" for row in cells.itertuples()]).all()
    settings = [read_json(path)["settings"] for path in sorted(here.folder.rglob("run.json"))]
    assert {(one["sample"], one["prefix"].endswith(f"_64_{one['seed']}")) for one in settings} == {("by_seed", True)}
    for full, differing in ((True, 1), (False, 2)):  # the sources' train lines are the same, the targets' are not
        for task in MINI_TASKS:
            of_task = [one["data"] for one in settings if one["full_train"] == full and one["task"] == task]
            assert len({data["train"] for data in of_task}) == differing
            assert len({data["dev"] for data in of_task}) == 2 and len({data["test"] for data in of_task}) == 1
    _every_point_of_the_trace(here.folder / "results/tiny", cells)
    matrices = [read_json(path)["settings"]["dev"] for path in here.folder.rglob("similarity/Loss/config.json")]
    assert all(len({matrix[task] for matrix in matrices}) == 2 for task in MINI_TASKS)


def _every_point_of_the_trace(folder, cells):
    """trace.tsv has every target run at every point, and trace.md their means."""
    trace = pd.read_csv(folder / "trace.tsv", sep="\t", dtype={"point": str})
    targets = cells[cells["init"] != SOURCES]
    assert (trace["init"] != SOURCES).all() and len(trace) == 3 * len(targets)
    assert list(trace["point"].unique()) == ["0", "2", "best"] and (trace["log_likelihood"] < 0).all()
    best = trace[trace["point"] == "best"]
    assert best["test"].tolist() == targets["test"].tolist() and best["dev"].tolist() == targets["dev"].tolist()
    chosen = best_by_dev(trace[(trace["init"] == "Loss") & (trace["point"] == "0")], ["task", "seed"])
    shown = (folder / "trace.md").read_text().splitlines()
    heads, loss = (next(line for line in shown if name in line).split("|")[1:-1] for name in ("| init |", "| Loss |"))
    column = [head.strip() for head in heads].index("log_likelihood 0")
    assert float(loss[column].strip(" *")) == pytest.approx(chosen["log_likelihood"].mean(), abs=6e-4)


def test_a_bad_task_costs_its_cells_and_is_named(here, capsys):
    bad = here.folder / "data" / MINI_TASKS[1]
    next(bad.glob("*_dev.tsv")).write_text("no tab\n")
    with pytest.raises(UserError, match="cells or steps failed"):
        here()
    printed = capsys.readouterr().out
    assert f"failed: tiny/adapter/seed_1/sources/{MINI_TASKS[1]}:" in printed and "line 1: no TAB" in printed
    cells = pd.read_csv("results/tiny/cells.tsv", sep="\t")
    assert set(cells["task"]) == {MINI_TASKS[0], MINI_TASKS[2]} and set(cells["init"]) == {"Random", "Average", SOURCES}


def test_where_every_source_fails_no_other_task_is_tried(here, capsys):
    for task in MINI_TASKS:
        next((here.folder / "data" / task).glob("*_dev.tsv")).write_text("no tab\n")
    with pytest.raises(UserError, match=r"^3 cells or steps failed"):
        here()
    failed = [line.split(": ")[1] for line in capsys.readouterr().out.splitlines() if line.startswith("failed: ")]
    assert sorted(failed) == sorted(f"tiny/adapter/seed_1/sources/{task}" for task in MINI_TASKS)


def test_a_model_that_is_not_there_is_said_before_any_step(here):
    text = (here.folder / "tiny.toml").read_text()
    (here.folder / "tiny.toml").write_text(text.replace("model = ", 'model = "/nowhere/at/all" #'))
    with pytest.raises(UserError, match=r"^--model /nowhere/at/all: there is no such folder"):
        here()
    assert not (here.folder / "checkpoints").exists()


def test_dry_run_names_the_steps_and_computes_nothing(here, capsys):
    reproduce.run(Config(suite="tiny.toml", seeds=[1], init=["Loss"], dry_run=True))
    printed = capsys.readouterr().out
    assert "to do   tiny/prefix/seed_1/from_Loss  3 cells, 3 runs, 12 updates, " in printed
    assert "the whole: 15 runs, 60 updates, " in printed and "GFLOP/s of a matrix product here, cpu" in printed
    assert "missing" not in printed
    assert not (here.folder / "checkpoints").exists()


def test_a_plan_counts_what_a_row_tunes_itself(here, capsys):
    """Union tunes a delta for each target, four updates of four lines; only seconds are of the searches for weights."""
    flags = {"suite": "tiny.toml", "delta": ["adapter"], "seeds": [1], "dry_run": True}
    reproduce.run(Config(**flags, init=["Average", "Union"]))
    lines = capsys.readouterr().out.splitlines()
    (union,) = [line for line in lines if "seed_1/weights/Union" in line]
    assert "weights/Union  1 cells, 3 runs, 12 updates, " in union
    assert "the whole: 18 runs, 72 updates, " in "\n".join(
        lines
    )  # 3 sources, 3 unions, 2 rates for 3 targets of 2 rows


def test_the_estimated_time_is_of_runs_like_those_that_wait(here, capsys):
    out = here.folder / "results/tiny"
    out.mkdir(parents=True)
    times = {("adapter", SOURCES): 120, ("adapter", "Loss"): 50, ("adapter", "Average"): 70, ("prefix", "Loss"): 0}
    rows = "".join(f"{delta}\t{init}\t{seconds}\n" for (delta, init), seconds in times.items())
    (out / "cells.tsv").write_text(f"delta\tinit\tseconds\n{rows}")

    def printed(delta: str) -> str:
        reproduce.run(Config(suite="tiny.toml", delta=[delta], seeds=[1], init=["Random"], dry_run=True))
        return capsys.readouterr().out

    # three sources; three tasks with two learning rates
    assert f"the whole: 9 runs, 36 updates, {(3 * 120 + 6 * 60) / 60:.1f} minutes of one device" in printed("adapter")
    assert "times: finished runs of adapter, cpu\n" in printed("adapter")
    assert "GFLOP/s of a matrix product here, cpu" in printed("prefix")
    (out / "provenance.json").write_text('{"provenance": {"device": "another"}}')
    assert "finished runs" not in printed("adapter")


def test_a_plan_names_what_is_missing_and_the_time_on_devices(here, capsys):
    flags = {"suite": "tiny.toml", "delta": ["adapter"], "seeds": [1, 2], "init": ["Random", "Loss"], "dry_run": True}
    reproduce.run(Config(**flags, devices="3"))
    printed = capsys.readouterr().out
    assert "critical path: " in printed and "sources > tiny/adapter/seed_" in printed.split("critical path: ")[1]
    assert [line.split(" device")[0] for line in printed.splitlines() if line.startswith("on ")] == [
        f"on {count}" for count in (1, 3, 8, 64)
    ]
    shutil.rmtree(here.folder / "data" / MINI_TASKS[0])
    text = (here.folder / "tiny.toml").read_text()
    (here.folder / "tiny.toml").write_text(text.replace("model = ", 'model = "some/hub_name" #'))
    reproduce.run(Config(**flags))
    printed = capsys.readouterr().out
    assert "missing: --model some/hub_name: not on this machine" in printed and "the whole: 30 runs" in printed
    assert f"missing: no data for task {MINI_TASKS[0]!r}" in printed


def test_a_reduced_run_is_kept_apart(here):
    some = list(MINI_TASKS[:2])
    here(init=["Random"], limit_train_iters=2, tasks=some, name="mine")
    cells = pd.read_csv("results/mine_iters2/cells.tsv", sep="\t")
    assert set(cells["task"]) == set(some) and (cells["updates"] == 2).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("[tuning]", "[tunning]"), "unknown section 'tunning'; did you mean 'tuning'"),
        (("train_iters", "train_iter"), r"\[tuning\]: unknown flag 'train_iter'; did you mean 'train_iters'"),
        (("[delta.prefix]", "[delta.prefx]"), "unknown delta 'prefx'; did you mean 'prefix'"),
        (("[all]", "[all"), "tiny.toml: "),
    ],
)
def test_a_bad_suite_is_refused(here, change, message):
    path = here.folder / "tiny.toml"
    path.write_text(path.read_text().replace(*change))
    with pytest.raises(UserError, match=message):
        here()


def test_unknown_names_are_refused(here):
    with pytest.raises(UserError, match="'Losss'; did you mean 'Loss'"):
        here(init=["Losss"])
    with pytest.raises(UserError, match=r"'lora'.*Known: adapter, prefix"):
        here(delta=["lora"])
    with pytest.raises(UserError, match="no suite 'minni'; did you mean 'mini'"):
        reproduce.run(Config(suite="minni"))


def test_the_suites_of_the_repository_can_be_planned(monkeypatch):
    monkeypatch.chdir(Path(reproduce.__file__).parents[2])
    for name, tasks in (("mini", 12), ("qa32", 32), ("all51", 51)):
        suite = read_suite(name)
        assert len(suite.tasks()) == tasks and suite.deltas == ["adapter", "lora", "prefix"]
        grid = grids(Config(suite=name), suite)[0]
        folders = [step.folder for step in plan(grid, [*DEFAULT_INITS, *of_group(MODULES)])]
        assert len(folders) == len(set(folders))
        for number, step in enumerate(plan(grid, list(DEFAULT_INITS))):
            assert all(need.folder in folders[:number] for need in step.needs)


def test_the_best_source_is_the_first_of_the_loss_and_texts_need_no_deltas(here):
    grid = grids(Config(suite="tiny.toml", seeds=[1]), read_suite("tiny.toml"))[0]
    best, text = grid.step("weights", "Best_source"), grid.step("similarity", "TextEmb")
    assert best.config.top_k == 1 and best.config.origin_data_path.endswith("seed_1/similarity/Loss")
    assert [need.folder.name for need in best.needs] == ["sources", "Loss"] and text.needs == ()
    assert grid.step("weights", "Loss").config.top_k == 0 and text.config.full_train


def test_statistics_by_hand():
    cells = pd.DataFrame(
        [
            ("adapter", init, seed, task, "p", dev, test)
            for init, seed, task, dev, test in [
                ("Random", 1, "a", 0.5, 0.4),
                ("Random", 1, "a", 0.6, 0.2),
                ("Random", 1, "b", 0.5, 0.6),
                ("Random", 2, "a", 0.1, 0.4),
                ("Random", 2, "b", 0.1, 0.4),
                ("Loss", 1, "a", 0.5, 0.3),
                ("Loss", 1, "b", 0.5, 0.8),
                ("Loss", 2, "a", 0.1, 0.6),
                ("Loss", 2, "b", 0.1, 0.5),
            ]
        ],
        columns=["delta", "init", "seed", "task", "prefix", "dev", "test"],
    )
    scored = stats.scores(cells)
    assert scored[(scored["init"] == "Random") & (scored["seed"] == 1)]["test"].tolist() == [
        0.2,
        0.6,
    ]  # the best dev decides
    values = scored.set_index(["init", "task", "seed"])["test"]
    (row,) = stats.contrasts(values, [("Loss", "Random")]).to_dict("records")
    assert row["difference"] == pytest.approx(0.15) and row["difference_percent"] == pytest.approx(100 * 0.15 / 0.4)
    assert row["units"] == 2 and row["better"] == 2 and row["p"] == pytest.approx(0.5)  # both tasks up: 2 / 2^2


def test_weights_statistics_by_hand():
    tasks = [*MINI_TASKS[:2], "mini_closed_towns"]  # two of one group, one alone
    rows = [
        ("adapter", init, 1, t, s, 0.0 if s == t else w)
        for init, ws in (("Loss", (0.9, 0.1)), ("EL2N", (0.6, 0.4)))
        for t in tasks
        for s, w in zip([t, *[x for x in tasks if x != t]], (0.0, *ws), strict=True)
    ]
    weights = pd.DataFrame(rows, columns=["delta", "init", "seed", "target", "source", "weight"])
    found = stats.own_group(weights).set_index("init")
    assert found.loc["Loss", "own_group"] == pytest.approx(0.9) and found.loc["Loss", "chance"] == pytest.approx(0.5)
    expected = float(torch.exp(-torch.tensor([0.9, 0.1]).xlogy(torch.tensor([0.9, 0.1])).sum()))
    assert stats.effective(weights).loc["Loss", "adapter"] == pytest.approx(expected, rel=1e-5)
    assert stats.rank_correlations(weights).loc["Loss", "EL2N"] == pytest.approx(1.0)


def test_settings_and_title_are_on_the_page(here):
    here()
    page = (here.folder / "results/tiny/report.html").read_text()
    assert "<h1>Tiny</h1>" in page and "5 to 8 %" in page
    stored = json.loads((here.folder / "results/tiny/provenance.json").read_text())
    assert stored["settings"]["seeds"] == [1]


def test_few_sources_get_a_lower_effective_number():
    suite = read_suite("mini")
    tasks = suite.tasks()

    def effective(count: int) -> float:
        return Grid(suite, "adapter", 1, Path("x"), {"tasks": tasks[:count]}).step("weights", "Loss").config.effective

    assert (effective(12), effective(4)) == (3.0, 2.0)


def test_rows_of_another_effective_number_share_the_similarity():
    """Their own number, whatever the suite says and however few the tasks; of equal sources all have one."""
    suite = read_suite("mini")
    for count in (12, 6):
        grid = Grid(suite, "adapter", 1, Path("x"), {"tasks": suite.tasks()[:count]})
        for number in (2, 3, 5):
            step = grid.step("weights", f"Loss_{number}")
            assert step.config.effective == number and grid.step("similarity", "Loss") in step.needs
    text = (ROOT / "scripts" / "effective.sh").read_text()
    inits = text.split("--init ")[1].split(' "$@"')[0].split()
    assert inits == ["Random", "Best_source", *of_group(EFFECTIVE), "Average"]


def test_arrow_is_a_row_of_lora_alone():
    suite = read_suite("mini")
    rows = {d: Grid(suite, d, 1, Path("x"), {"tasks": suite.tasks()}).inits() for d in ("adapter", "lora")}
    assert "Arrow" in rows["lora"] and "Arrow" not in rows["adapter"] and "Union" in rows["adapter"]


def test_a_union_is_tuned_as_the_sources_are():
    suite = read_suite("mini")
    grid = Grid(suite, "lora", 7, Path("x"), {"tasks": suite.tasks()}, limit=9)
    union, sources = grid.step("weights", "Union").config, grid.step("sources").config
    for name in ("learning_rate_list", "bsz_list", *(one.name for one in fields(UpdateConfig))):
        assert getattr(union, name) == getattr(sources, name)
    assert union.train_iters == 9


def test_pemt_and_its_ablations_are_rows(here):
    """Beside another delta: each delta has only its own rows."""
    suite = (here.folder / "tiny.toml").read_text()
    words = here.folder / "words.tsv"
    words.write_text("".join(f"{task}\t{task} .\n" for task in MINI_TASKS))
    flags = f'stack = 1\noptimizer = "adamw"\nexpert_rank = 3\ntask_descriptions = "{words}"\n'
    (here.folder / "tiny.toml").write_text(f"{suite}[delta.pemt]\n{flags}")
    cells = here(delta=["adapter", "pemt"], init=["Random", *PEMT])
    assert {*cells["init"][cells["delta"] == "pemt"]} == {SOURCES, *PEMT}
    assert {*cells["init"][cells["delta"] == "adapter"]} == {SOURCES, "Random"}
    assert (cells.groupby(["delta", "init"])["task"].nunique() == 3).all() and cells["test"].notna().all()
    run = read_json(
        here.folder / "checkpoints" / cells["run"][cells["init"] == "PEMT_no_sparsity"].iloc[0] / "run.json"
    )
    weights = pd.read_csv(here.folder / "results/tiny/weights.tsv", sep="\t")
    assert weights.groupby(["init", "target"])["weight"].sum().to_numpy() == pytest.approx(1, abs=1e-4)
    compared = pd.read_csv(here.folder / "results/tiny/comparisons.tsv", sep="\t")
    assert "PEMT" in set(compared["init"][(compared["delta"] == "pemt") & (compared["baseline"] == "Random")])
    assert run["settings"]["sparsity"] == 0 and [name for name, _ in run["settings"]["built_on"]] == list(
        MINI_TASKS[1:]
    )
