"""The numbers that the documentation quotes of the stored results of the mini gym are those of their tables."""

import re

import pandas as pd
import pytest
from conftest import ROOT

from pewe.grid.steps import SOURCES

REFERENCE = ROOT / "results/reference"
THREE = (42, 43, 44)
TWO_SKILLS = ["mini_read_choice_animals", "mini_closed_yesno_towns", "mini_closed_choice_people"]
DELTAS = ("adapter", "lora", "prefix")


def cells(name):
    return pd.read_csv(REFERENCE / name / "cells.tsv", sep="\t")


def quoted(document):
    """Init and cells of every row of a table with a deviation in it, without bold; and whether its label is a number of sources."""
    rows = []
    for line in (ROOT / document).read_text(encoding="utf-8").splitlines():
        if line.startswith("| ") and "±" in line:
            label, *values = [cell.strip() for cell in line.replace("**", "").strip("|").split("|")]
            named = re.search(r"`(\w+)`", label)
            init = named[1] if named else f"Loss_{label}" if label.isdigit() else label.removesuffix(" (greedy)")
            rows.append((init, init != label and "greedy" not in label, values))
    return rows


def with_deviation(scores):
    """The mean over seeds of the mean over tasks, and its sample deviation, as the tables show them."""
    by_seed = scores.groupby("seed")["test"].mean()
    return f"{by_seed.mean():.3f} ± {by_seed.std(ddof=1):.3f}"


def of_deltas(stored, init):
    rows = stored[stored["init"] == init]
    return [with_deviation(part) if len(part := rows[rows["delta"] == delta]) else "" for delta in DELTAS]


@pytest.mark.parametrize("document", ["README.md", "README.zh.md"])
def test_the_first_table(document):
    stored, rows = cells("mini_seeds"), quoted(document)
    assert len(rows) == 15
    for init, _, values in rows:
        assert values == of_deltas(stored, init)
    minutes = stored[stored["init"].isin([init for init, _, _ in rows])]["seconds"].sum() / 60
    assert f" {minutes:.0f} " in (ROOT / document).read_text(encoding="utf-8")


def test_the_tables_of_the_mini_gym():
    """Of the effective number all five seeds, of the field's rows three."""
    stored, rows = cells("mini_seeds"), quoted("results/reference/mini_seeds/README.md")
    assert len(rows) == 6 + 15
    for init, by_number, values in rows:
        assert values == of_deltas(stored if by_number else stored[stored["seed"].isin(THREE)], init)
    whole = stored.groupby("init")["seed"].transform("nunique") == 5
    text = (REFERENCE / "mini_seeds/README.md").read_text()
    for part in (stored, stored[whole]):
        assert f"{part['seconds'].sum() / 60:.0f} " in text
    weights = pd.read_csv(REFERENCE / "mini_seeds/weights.tsv", sep="\t").query("init == 'Soup' and weight > 0")
    single = weights.groupby(["delta", "seed", "target"]).size() == 1
    assert f"one source for {single.sum()} of {len(single)} targets (adapter {single['adapter'].sum()} of 36)" in text


def test_the_table_of_two_skills():
    stored, rows = cells("mini_overlap"), quoted("results/reference/mini_overlap/README.md")
    own = stored["task"].isin(TWO_SKILLS)
    assert len(rows) == stored["init"].nunique() and SOURCES in [init for init, _, _ in rows]
    for init, _, values in rows:
        these, others = (stored[part & (stored["init"] == init)] for part in (own, ~own))
        by_task = these.groupby("task")["test"].mean()
        assert values[:3] == [f"{by_task[task]:.3f}" for task in TWO_SKILLS]
        assert values[3:] == [with_deviation(these), f"{others['test'].mean():.3f}"]


@pytest.mark.parametrize(
    ("init", "target", "skills"),
    [
        ("Loss", "mini_closed_choice_people", {"mini_closed": 0.91, "mini_choice": 0.05}),
        ("Loss", "mini_closed_yesno_towns", {"mini_yesno": 1.0}),
        ("Loss", "mini_read_choice_animals", {"mini_read": 0.80}),
        ("Gradient", "mini_closed_choice_people", {"mini_closed": 0.48, "mini_choice": 0.28}),
        ("Gradient", "mini_read_choice_animals", {"mini_read": 0.48, "mini_choice": 0.15}),
    ],
)
def test_the_weights_of_two_skills(init, target, skills):
    """Of the tasks of one skill alone."""
    weights = pd.read_csv(REFERENCE / "mini_overlap/weights.tsv", sep="\t")
    weights = weights[(weights["init"] == init) & (weights["target"] == target) & ~weights["source"].isin(TWO_SKILLS)]
    for skill, weight in skills.items():
        found = weights[weights["source"].str.startswith(skill)].groupby("seed")["weight"].sum().mean()
        assert found == pytest.approx(weight, abs=0.005 + 1e-9)
