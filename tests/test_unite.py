"""Results of one experiment from two places: the tables of both, and what is refused."""

import json
from pathlib import Path

import pandas as pd
import pytest

from pewe.errors import UserError
from pewe.files import read_table
from pewe.reporting import unite
from pewe.reporting.contrasts import Config as ContrastsConfig
from pewe.reporting.contrasts import run as contrast
from pewe.reporting.unite import Config

TASKS = ("liar", "health_fact", "glue-mrpc", "glue-qqp")
SCORES = {"Random": 0.3, "Average": 0.4, "Loss": 0.5, "Full data": 0.6}


def place(folder: Path, seeds: list[int], suite: str = "real", **settings) -> str:
    """What the grid leaves of these seeds."""
    rows = [
        ("adapter", init, seed, task, f"{task}_64_{seed}", 0.5, score + 0.01 * seed + 0.02 * number, 1.0)
        for init, score in SCORES.items()
        for seed in seeds
        for number, task in enumerate(TASKS)
    ]
    folder.mkdir(parents=True)
    columns = ["delta", "init", "seed", "task", "prefix", "dev", "test", "seconds"]
    pd.DataFrame(rows, columns=columns).to_csv(folder / "cells.tsv", sep="\t", index=False)
    about = {"title": "Real", "settings": {"suite": suite, "seeds": seeds, **settings}, "provenance": {"commit": "x"}}
    (folder / "provenance.json").write_text(json.dumps(about))
    return str(folder)


def test_two_seeds_are_as_one_experiment(tmp_path):
    apart = [place(tmp_path / f"seed_{seed}", [seed]) for seed in (1, 2)]
    whole = place(tmp_path / "whole", [1, 2])
    unite.run(Config(folders=apart, out=str(tmp_path / "united")))
    united, expected = (read_table(folder / "cells.tsv", []) for folder in (tmp_path / "united", Path(whole)))
    order = ["init", "seed", "task"]
    pd.testing.assert_frame_equal(*(t.sort_values(order, ignore_index=True) for t in (united, expected)))
    assert "Loss" in (tmp_path / "united/table.md").read_text() and (tmp_path / "united/report.html").is_file()
    assert set(json.loads((tmp_path / "united/provenance.json").read_text())["provenance"]) == set(apart)
    for folder in (str(tmp_path / "united"), whole):
        contrast(ContrastsConfig(folder=folder, pairs=["Loss:Random"]))
    assert (tmp_path / "united/contrasts.tsv").read_text() == (tmp_path / "whole/contrasts.tsv").read_text()


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"seeds": [1, 2]}, "has adapter Random 1, as .*seed_1 has"),
        ({"seeds": [2], "suite": "mini"}, "is of another experiment than .*: suite is 'mini', not 'real'"),
        ({"seeds": [2], "limit_train_iters": 3}, "limit_train_iters is 3, not None"),
    ],
)
def test_what_does_not_belong_together(other, message, tmp_path):
    first = place(tmp_path / "seed_1", [1], limit_train_iters=None)
    with pytest.raises(UserError, match=message):
        unite.run(Config(folders=[first, place(tmp_path / "other", **other)], out=str(tmp_path / "out")))
    assert not (tmp_path / "out").exists()


def test_places_that_are_none(tmp_path):
    first, second = (place(tmp_path / f"seed_{seed}", [seed]) for seed in (1, 2))
    with pytest.raises(UserError, match="two at least"):
        unite.run(Config(folders=[first], out=str(tmp_path / "out")))
    with pytest.raises(UserError, match="is one of --folders"):
        unite.run(Config(folders=[first, second], out=first))
    (tmp_path / "seed_2/provenance.json").unlink()
    with pytest.raises(UserError, match="does not say the settings"):
        unite.run(Config(folders=[first, second], out=str(tmp_path / "out")))
