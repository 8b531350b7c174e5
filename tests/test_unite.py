"""Results of one experiment from two places: the tables of both, and what is refused."""

import dataclasses
import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
from conftest import ROOT

from pewe.errors import UserError
from pewe.files import read_table
from pewe.grid.config import Config as GridConfig
from pewe.reporting import unite
from pewe.reporting.contrasts import Config as ContrastsConfig
from pewe.reporting.contrasts import run as contrast
from pewe.reporting.stored import COLUMNS, read_stored
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


@pytest.mark.parametrize("turn", [1, -1])
def test_a_setting_that_came_later_is_as_if_it_had_not_been_given(turn, tmp_path):
    """As of the first seed of results/reference/real and one that is run today, in either order."""
    new = {"source_ckpt_path": "", "source_tasks": [], "limit_train_iters": 0}
    folders = [place(tmp_path / "seed_1", [1]), place(tmp_path / "seed_2", [2], **new)][::turn]
    unite.run(Config(folders=folders, out=str(tmp_path / "united")))
    assert json.loads((tmp_path / "united/provenance.json").read_text())["settings"] == {"suite": "real", **new}


@pytest.mark.parametrize("turn", [1, -1])
@pytest.mark.parametrize("new", [{"source_ckpt_path": "own/list.txt"}, {"tasks": ["liar"]}, {"limit_train_iters": 3}])
def test_a_setting_that_came_later_and_was_given_is_refused_by_name(new, turn, tmp_path):
    folders = [place(tmp_path / "seed_1", [1]), place(tmp_path / "seed_2", [2], **new)][::turn]
    (name,) = new
    with pytest.raises(UserError, match=rf"seed_\d is of another experiment than .*seed_\d: {name} is "):
        unite.run(Config(folders=folders, out=str(tmp_path / "out")))
    assert not (tmp_path / "out").exists()


def test_the_stored_seed_goes_with_one_of_today(tmp_path):
    stored = ROOT / "results/reference/real/seed_42"
    today = shutil.copytree(stored, tmp_path / "seed_43", ignore=shutil.ignore_patterns("*.png", "*.html"))
    for path in today.glob("*.tsv"):
        if path.stem in COLUMNS:
            path.write_text(path.read_text().replace("\t42\t", "\t43\t").replace("_42\t", "_43\t"))
    about = json.loads((today / "provenance.json").read_text())
    asked = dataclasses.asdict(GridConfig(suite="real", init=about["settings"]["init"], delta=["adapter"], seeds=[43]))
    assert asked.keys() > about["settings"].keys()
    (today / "provenance.json").write_text(json.dumps({**about, "settings": asked}))
    abouts = {str(folder): read_stored(folder).about for folder in (stored, today)}
    assert unite.alike(abouts)["suite"] == "real"


def with_lines(folder: str, lines: str, table: str = "") -> str:
    """All cells are of one sample, with these test lines; `table`: it has one of this name, too."""
    cells = pd.read_csv(Path(folder) / "cells.tsv", sep="\t")
    cells["prefix"] = cells["task"] + "_64_1"
    cells.assign(test_lines=lines).to_csv(Path(folder) / "cells.tsv", sep="\t", index=False)
    if table:
        rows = pd.DataFrame({"delta": ["adapter"], "init": "Loss", "seed": 1, "part": "init", "lines": 1, "updates": 1})
        rows.assign(seconds=1).to_csv(Path(folder) / f"{table}.tsv", sep="\t", index=False)
    return folder


def test_other_test_lines_are_no_other_seed(tmp_path):
    folders = [with_lines(place(tmp_path / f"seed_{seed}", [seed]), f"{seed:016x}") for seed in (1, 2)]
    wrong = "liar liar_64_1: the test lines of adapter Average 2 liar are not those of adapter Average 1 liar"
    with pytest.raises(UserError, match=wrong):
        unite.run(Config(folders=folders, out=str(tmp_path / "out")))
    assert not (tmp_path / "out").exists()
    with_lines(folders[1], f"{1:016x}")
    unite.run(Config(folders=folders, out=str(tmp_path / "out")))
    assert read_table(tmp_path / "out/cells.tsv", [])["test_lines"].unique().tolist() == ["0000000000000001"]


def test_a_table_that_one_folder_lacks_is_said_and_none_of_before_stays(tmp_path, caplog):
    folders = [place(tmp_path / f"seed_{seed}", [seed]) for seed in (1, 2)]
    with_lines(folders[0], "1", table="costs")
    config = Config(folders=folders, out=str(tmp_path / "out"))
    unite.run(config)
    assert f"costs.tsv is of the other folders alone: there is none in {folders[1]}" in caplog.text
    assert (tmp_path / "out/costs.tsv").is_file() and (tmp_path / "out/costs.md").is_file()
    (tmp_path / "seed_1/costs.tsv").unlink()
    unite.run(config)
    assert not (tmp_path / "out/costs.tsv").exists() and not (tmp_path / "out/costs.md").exists()


def test_places_that_are_none(tmp_path):
    first, second = (place(tmp_path / f"seed_{seed}", [seed]) for seed in (1, 2))
    with pytest.raises(UserError, match="two at least"):
        unite.run(Config(folders=[first], out=str(tmp_path / "out")))
    with pytest.raises(UserError, match="is one of --folders"):
        unite.run(Config(folders=[first, second], out=first))
    (tmp_path / "seed_2/provenance.json").unlink()
    with pytest.raises(UserError, match="does not say the settings"):
        unite.run(Config(folders=[first, second], out=str(tmp_path / "out")))
