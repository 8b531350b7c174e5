"""Every number of the report against the same by hand, in plain loops over few cells."""

import math
import statistics
import warnings
from dataclasses import replace
from itertools import groupby
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from conftest import ROOT

from pewe.grid.steps import SOURCES
from pewe.merging.overview import save_overview
from pewe.reporting import page as report
from pewe.reporting import stats
from pewe.reporting.pictures import higher_is_more_similar
from pewe.reporting.stored import Stored, read_stored, varied
from pewe.reporting.tables import best_by_dev

A, B, C = "mini_read_towns", "mini_read_people", "mini_yesno_towns"  # two of one group, one of another
SEEDS = (1, 2, 3)
TEST = {  # init -> task -> test score of each seed
    "Random": {A: (0.2, 0.4, 0.3), B: (0.5, 0.5, 0.2), C: (0.1, 0.9, 0.4)},
    "Average": {A: (0.3, 0.3, 0.3), B: (0.6, 0.4, 0.2), C: (0.2, 0.8, 0.7)},
    "Loss": {A: (0.4, 0.7, 0.6), B: (0.5, 0.6, 0.3), C: (0.3, 0.9, 0.5)},
    SOURCES: {A: (0.9, 0.8, 0.9), B: (0.9, 0.9, 0.9), C: (0.7, 0.8, 1.0)},
}


def cells(scores=TEST, delta="adapter") -> pd.DataFrame:
    """Two runs a cell: that of the better dev score has the test score, the other one a test score of 1."""
    rows = []
    for init, tasks in scores.items():
        for task, values in tasks.items():
            for seed, test in zip(SEEDS, values, strict=True):
                for rate, dev, own in ((1e-3, 0.5, test), (1e-2, 0.4, 1.0)):
                    rows.append((delta, init, seed, task, "p", rate, dev, own, 10.0))
    columns = ["delta", "init", "seed", "task", "prefix", "learning_rate", "dev", "test", "seconds"]
    return pd.DataFrame(rows, columns=columns)


def weights(delta="adapter", seeds=(1, 2), inits=("Loss", "EL2N")) -> pd.DataFrame:
    """Weights of three tasks on each other that differ by init, seed, target and source."""
    rows = []
    for k, init in enumerate(inits):
        for seed in seeds:
            for i, target in enumerate((A, B, C)):
                others = [source for source in (A, B, C) if source != target]
                first = 0.9 - 0.1 * k - 0.05 * seed - 0.15 * i
                for source, weight in zip((target, *others), (0.0, first, 1 - first), strict=True):
                    rows.append((delta, init, seed, target, source, weight))
    return pd.DataFrame(rows, columns=["delta", "init", "seed", "target", "source", "weight"])


def stored(folder: Path, **tables) -> Stored:
    empty = pd.DataFrame()
    found = {
        "cells": cells(),
        "weights": weights(),
        "similarities": empty,
        "curves": empty,
        "trace": empty,
        "about": {},
    }
    return Stored(folder, **{**found, **tables})


def by_seed(init: str) -> list[float]:
    """The mean over tasks of each seed's test scores."""
    return [statistics.fmean(TEST[init][task][k] for task in TEST[init]) for k in range(3)]


def test_the_run_with_the_best_dev_score_counts():
    scored = stats.scores(cells()).set_index(["init", "task", "seed"])["test"]
    for init, tasks in TEST.items():
        for task, values in tasks.items():
            assert [scored[init, task, seed] for seed in SEEDS] == list(values)


def test_prefixes_of_a_task_are_averaged():
    both = pd.concat([cells(), cells().assign(prefix="q", test=lambda table: table["test"] + 0.2)])
    scored = stats.scores(both).set_index(["init", "task", "seed"])["test"]
    assert scored["Random", A, 2] == pytest.approx(0.4 + 0.1)


def test_a_dev_score_that_is_not_defined_is_the_worst():
    table = pd.DataFrame(
        {"task": ["a", "a", "a", "b"], "dev": [0.1, float("nan"), -0.5, float("nan")], "test": range(4)}
    )
    assert best_by_dev(table, ["task"])["test"].tolist() == [0, 3]


def test_of_equal_dev_scores_the_last_counts():
    table = pd.DataFrame({"task": ["a", "a", "b"], "dev": [0.5, 0.5, 0.1], "test": [1, 2, 3]})
    assert best_by_dev(table, ["task"])["test"].tolist() == [2, 3]


def test_score_table():
    mean, spread = report.score_table(cells(), "adapter")
    assert list(mean.columns) == ["mean", A, B, C] and list(mean.index) == list(TEST)
    for init, tasks in TEST.items():
        assert mean.loc[init, "mean"] == pytest.approx(statistics.fmean(by_seed(init)))
        assert spread[init] == f"{statistics.stdev(by_seed(init)):.3f} (3)"  # of the seeds that there are
        for task, values in tasks.items():
            assert mean.loc[init, task] == pytest.approx(statistics.fmean(values))


def test_a_task_missing_in_a_seed_makes_no_mean_of_the_others():
    table = cells()
    mean, _ = report.score_table(
        table[~((table["task"] == C) & (table["init"] == "Loss") & (table["seed"] == 2))], "adapter"
    )
    expected = statistics.fmean([by_seed("Loss")[0], by_seed("Loss")[2]])
    assert mean.loc["Loss", "mean"] == pytest.approx(expected)


def means(init: str) -> list[float]:
    """The mean over seeds of each task's test scores."""
    return [statistics.fmean(TEST[init][task]) for task in (A, B, C)]


def test_comparisons_are_over_tasks_with_seeds_averaged_first(tmp_path):
    table = report.comparisons(stored(tmp_path)).set_index(["init", "baseline"])
    assert set(table.index) == {("Average", "Random"), ("Loss", "Random"), ("Loss", "Average")}
    for (init, baseline), row in table.iterrows():
        differences = [round(own - other, 12) for own, other in zip(means(init), means(baseline), strict=True)]
        assert row["units"] == 3 and row["difference"] == pytest.approx(statistics.fmean(differences))
        assert row["better"] == sum(d > 0 for d in differences) and row["worse"] == sum(d < 0 for d in differences)
        base = statistics.fmean(means(baseline))
        share = 100 / base
        for name in ("difference", "low", "high"):
            assert row[f"{name}_percent"] == pytest.approx(share * row[name])
        assert row["p"] == pytest.approx(scipy.stats.wilcoxon(differences).pvalue)
        assert row["low"] < row["difference"] < row["high"]
        plain = scipy.stats.bootstrap((np.array(differences),), np.mean, method="BCa", confidence_level=0.95, rng=0)
        assert (row["low"], row["high"]) == pytest.approx(plain.confidence_interval, abs=0.02)
    against = table.xs("Random", level="baseline")
    assert against["p_holm"].tolist() == pytest.approx(stats.holm(against["p"].to_numpy()).tolist())


def test_means_of_the_same_scores_are_no_difference(tmp_path):
    """0.2, 0.4, 0.3 and 0.3, 0.3, 0.3 differ by a rounding error, which is neither better nor worse, and has no rank."""
    one = {"Random": {A: (0.1, 0.2, 0.3)}, "Loss": {A: (0.3, 0.1, 0.2)}}
    (row,) = report.comparisons(stored(tmp_path, cells=cells(one))).to_dict("records")
    assert row["better"] == row["worse"] == row["difference"] == 0 and math.isnan(row["p"])


def test_every_reference_of_the_run_is_compared_with_once(tmp_path):
    run = {**TEST, "Manual": TEST["Average"], "TextEmb": TEST["Average"], "Best_source": TEST["Random"]}
    table = report.comparisons(stored(tmp_path, cells=cells(run)))
    found = {baseline: list(part["init"]) for baseline, part in table.groupby("baseline", sort=False)}
    assert found == {
        "Random": ["Average", "Loss", "Manual", "TextEmb", "Best_source"],
        "Average": ["Loss", "Manual", "TextEmb", "Best_source"],
        "Best_source": ["Loss", "Manual", "TextEmb"],
        "TextEmb": ["Loss", "Manual"],
        "Manual": ["Loss"],
    }
    said = report.headline(table)
    assert len(said) == 5
    assert said[0].startswith(
        "adapter: 1 of 1 of the paper's rows end above Best_source, a copy of the single best source, over 3"
    )
    assert said[1].startswith(
        "adapter: 1 of 1 of the paper's rows end above TextEmb, sources found by their texts alone, over"
    )
    assert [sentence.split(" over ")[0].split(" above ")[-1] for sentence in said[2:]] == [
        "Random",
        "Average",
        "Manual",
    ]
    untold = report.headline(table[table["baseline"] != "Best_source"])
    assert untold[0] == (
        "adapter: the paper's rows against a copy of the single best source (Best_source) were not measured together."
    )


def test_pemt_is_compared_with_the_baselines_of_the_adapter(tmp_path):
    both = pd.concat([cells(), cells({"PEMT": TEST["Loss"]}, "pemt")], ignore_index=True)
    table = report.comparisons(stored(tmp_path, cells=both)).set_index(["delta", "init", "baseline"])
    assert table.loc[("pemt", "PEMT", "Random"), "difference"] == table.loc[("adapter", "Loss", "Random"), "difference"]


def test_the_headline_names_the_highest_and_counts_what_is_shown(tmp_path):
    low = {"EL2N": {task: tuple(value / 2 for value in values) for task, values in TEST["Loss"].items()}}
    table = report.comparisons(stored(tmp_path, cells=cells(TEST | low)))
    *missing, first, second = report.headline(table)
    assert all("not measured" in sentence for sentence in missing) and len(missing) == 2
    loss, random = (statistics.fmean(by_seed(init)) for init in ("Loss", "Random"))
    assert first.startswith("adapter: 1 of 2 rows end above Random over 3 tasks, 0 of them shown (p below 0.05")
    assert f"0 shown to end below; the highest, Loss, by {100 * (loss - random):+.1f} points (" in first
    assert f", {100 * (loss - random) / random:+.1f} % (" in first and first.endswith(", p = 0.750.")
    assert "above Average" in second
    fewer = table.assign(units=[2 if init == "EL2N" else 3 for init in table["init"]])
    assert "end above Random over 2 to 3 tasks, " in report.headline(fewer)[2]
    sure = table.assign(p_holm=[0.04] * len(table))
    assert "1 of them shown" in report.headline(sure)[2] and "1 shown to end below" in report.headline(sure)[2]


def test_nothing_is_tested_where_nothing_differs(tmp_path):
    same = cells({"Random": TEST["Random"], "Loss": TEST["Random"]})
    table = report.comparisons(stored(tmp_path, cells=same))
    (row,) = table.to_dict("records")
    assert math.isnan(row["p"]) and math.isnan(row["low"]) and row["better"] == row["worse"] == 0
    (shown,) = report.compared_table(table).to_dict("records")
    assert shown["points (95 % interval)"] == "+0.0" and shown["p, Holm"] == "–"


def test_two_tasks_have_an_interval_and_one_has_none(tmp_path):
    two = {name: {A: TEST[name][A], B: TEST[name][B]} for name in ("Random", "Loss")}
    (row,) = report.comparisons(stored(tmp_path, cells=cells(two))).to_dict("records")
    assert row["units"] == 2 and row["low"] <= row["difference"] <= row["high"] and row["low"] < row["high"]
    one = cells(two)
    (row,) = report.comparisons(stored(tmp_path, cells=one[one["task"] == A])).to_dict("records")
    assert row["units"] == 1 and math.isnan(row["low"]) and math.isnan(row["high"])


def test_what_the_seeds_vary_is_read_from_the_data():
    one = cells()
    assert "not the few-shot sample: all seeds share one" in varied(one)
    own = one.assign(prefix=[f"p_{seed}" for seed in one["seed"]])
    assert varied(own).endswith("and the few-shot sample.")
    both = pd.concat([one, one.assign(prefix="q")])
    assert "all seeds share one" in varied(both)  # every seed has both


def test_one_seed_has_no_deviation(tmp_path):
    one = cells()
    report.tables(stored(tmp_path, cells=one[one["seed"] == 1]))
    assert "| – (1) |" in (tmp_path / "table.md").read_text() and "nan" not in (tmp_path / "summary.md").read_text()


def spread_of(rows: pd.DataFrame) -> float:
    """The sample deviation of the weights of the other tasks, averaged over targets and seeds."""
    groups = rows[rows["target"] != rows["source"]].groupby(["seed", "target"])["weight"]
    return statistics.fmean(statistics.stdev(group) for _, group in groups)


def test_importance_of_modules(tmp_path):
    table = weights(inits=("GraNd_block/encoder.block.0", "GraNd_block/encoder.block.1", "Loss"))
    found = stats.importance(table).set_index("init")["spread"]
    assert list(found.index) == ["GraNd_block/encoder.block.0", "GraNd_block/encoder.block.1"]
    for init, spread in found.items():
        assert spread == pytest.approx(spread_of(table[table["init"] == init]))
    scoped = cells(dict.fromkeys(found.index, TEST["Loss"]))
    modules = report.module_table(stored(tmp_path, cells=pd.concat([cells(), scoped]), weights=table)).set_index("init")
    assert modules["spread"].tolist() == pytest.approx(found.tolist())
    assert modules["test"].tolist() == pytest.approx([statistics.fmean(by_seed("Loss"))] * 2)


def test_importance_of_the_scopes_of_an_ensemble(tmp_path):
    frames = {}
    for init in ("Loss", "EL2N"):
        own = weights(seeds=(1,))
        frames[init] = own[own["init"] == init].pivot(index="target", columns="source", values="weight")
    save_overview(tmp_path, "adapter", frames, [A])
    found = pd.read_csv(tmp_path / "importance.tsv", sep="\t").set_index("scope")["spread"]
    own = weights(seeds=(1,))
    for init in frames:
        assert found[init] == pytest.approx(spread_of(own[own["init"] == init]))


def test_own_group(tmp_path):
    """Of A and B half of the others are of their group; C is alone in its own and left out."""
    text = report.own_group_table(stored(tmp_path), tmp_path)
    for init in ("Loss", "EL2N"):
        table = weights()
        own = table[(table["init"] == init) & table["target"].isin([A, B]) & table["source"].isin([A, B])]
        seeds = [statistics.fmean(own[(own["seed"] == seed) & (own["weight"] > 0)]["weight"]) for seed in (1, 2)]
        assert text.loc[init, "adapter"] == f"{statistics.fmean(seeds):.3f} ± {statistics.stdev(seeds):.3f}"
        assert (statistics.fmean(seeds) > 0.5) is True
    assert text.loc["above chance", "adapter"] == "2 of 2"
    assert "at most 2 seeds; chance is 0.500" in (tmp_path / "own_group.md").read_text()


def test_weights_of_any_sum_count_by_their_share_in_the_own_group():
    """As those of LoraHub: -0.2 and 0.6, 1.5 and 0, 0 and 0."""
    rows = [(A, B, -0.2), (A, C, 0.6), (B, A, 1.5), (B, C, 0.0), (C, A, 0.1), (C, B, 0.1)]
    table = pd.DataFrame(rows, columns=["target", "source", "weight"]).assign(delta="adapter", init="LoraHub", seed=1)
    (found,) = stats.own_group(table).to_dict("records")
    assert found["own_group"] == pytest.approx((0.25 + 1.0) / 2) and found["chance"] == 0.5
    (none,) = stats.own_group(table.assign(weight=0.0)).to_dict("records")
    assert none["own_group"] == 0.0


def test_effective_numbers_and_correlations():
    table = weights()
    found = stats.effective(table)["adapter"]
    for init in ("Loss", "EL2N"):
        numbers = [
            math.exp(-sum(w * math.log(w) for w in group if w > 0))
            for _, group in table[table["init"] == init].groupby(["seed", "target"])["weight"]
        ]
        assert found[init] == pytest.approx(statistics.median(numbers))
    reversed_ = weights(inits=("Loss",)).assign(init="Reversed", weight=lambda rows: 1 - rows["weight"])
    equal = weights(inits=("Loss",)).assign(init="Average", weight=0.5)
    with warnings.catch_warnings(action="error"):
        correlations = stats.rank_correlations(pd.concat([table, reversed_, equal]))
    assert correlations["Average"].isna().all() and correlations.loc["Average"].isna().all()
    assert correlations.loc["Loss", "Reversed"] == pytest.approx(-1) and correlations.loc["Loss", "Loss"] == 1


def test_a_row_of_one_delta_has_its_place_in_the_summary(tmp_path):
    of_one = stored(tmp_path)
    ours, sources = (part for _, part in of_one.cells.groupby(of_one.cells["init"] == SOURCES))
    other = ours[ours["init"] == "Loss"].assign(delta="lora", init="Arrow")
    report.tables(replace(of_one, cells=pd.concat([ours, other, sources])))
    rows = [
        line.split("|")[1].strip()
        for line in (tmp_path / "summary.md").read_text().splitlines()
        if line.startswith("|")
    ]
    assert rows[2:] == [*ours["init"].unique(), "Arrow", SOURCES]


def test_a_similarity_that_is_equal_for_all_sources_has_no_orientation(tmp_path):
    table = weights(inits=("Loss",))
    one = table["target"] == table["target"].iloc[0]
    for values, higher in ((-table["weight"], False), (table["weight"], True)):
        similarities = table.assign(value=values.where(~one, 1.0)).drop(columns="weight")
        with warnings.catch_warnings(action="error"):
            found = higher_is_more_similar(
                stored(tmp_path, weights=table, similarities=similarities), "adapter", "Loss", 1
            )
        assert found == higher


def test_rows_with_a_combiner_stand_together():
    inits = list(read_stored(ROOT / "results/reference/mini_seeds").cells["init"])
    assert [name for name, _ in groupby(inits)] == list(dict.fromkeys(inits)) and "Loss+ties" in inits


def test_tables_of_a_folder(tmp_path):
    """Bold is the best of our rows, not the sources; the deviation is of the seeds."""
    report.tables(stored(tmp_path))
    lines = (tmp_path / "table.md").read_text().splitlines()
    (loss,) = [line for line in lines if line.startswith("| Loss")]
    mean, deviation = statistics.fmean(by_seed("Loss")), statistics.stdev(by_seed("Loss"))
    cells_of = [cell.strip() for cell in loss.strip("|").split("|")]
    assert cells_of[1:3] == [f"**{mean:.3f}**", f"{deviation:.3f} (3)"]
    (sources,) = [line for line in lines if line.startswith(f"| {SOURCES}")]
    assert "**" not in sources
    assert f"**{mean:.3f}** ± {deviation:.3f} (3)" in (tmp_path / "summary.md").read_text()
    csv = pd.read_csv(tmp_path / "table.csv").set_index("init")
    assert (
        csv.loc["Loss", A] == pytest.approx(statistics.fmean(TEST["Loss"][A])) and csv.loc["Loss", "delta"] == "adapter"
    )
