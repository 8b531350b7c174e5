"""Contrasts over tasks, Holm's method, variances and power: by hand, by brute force, by another library's way."""

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from conftest import ROOT

from pewe.errors import UserError
from pewe.reporting import contrasts, stats
from pewe.reporting.contrasts import Config

TASKS = ("liar", "health_fact", "glue-mrpc", "glue-qqp", "qasc", "codah")  # of three groups
GAIN = dict(zip(TASKS, (0.10, 0.20, 0.05, 0.15, -0.02, 0.12), strict=True))


def trace(seeds=(1, 2)) -> pd.DataFrame:
    """Loss is above Random by GAIN, by half of that at the start; a run with a worse dev score does not count."""
    rows = []
    for init, factor in (("Random", 0.0), ("Loss", 1.0)):
        for seed in seeds:
            for number, task in enumerate(TASKS):
                for point, share in (("0", 0.5), ("best", 1.0)):
                    test = 0.3 + 0.01 * number + factor * share * (GAIN[task] + 0.04 * (seed - 1.5))
                    rows.append(("adapter", init, seed, task, f"p_{seed}", 0.5, point, 0, test, test - 2))
                    rows.append(("adapter", init, seed, task, f"p_{seed}", 0.4, point, 0, 0.9, -9.0))
    columns = ["delta", "init", "seed", "task", "prefix", "dev", "point", "updates", "test", "log_likelihood"]
    return pd.DataFrame(rows, columns=columns)


def values(what="test", point="best", **flags) -> pd.Series:
    return stats.outcome(trace(**flags), what, point).droplevel("delta")


def test_a_contrast_over_tasks_by_hand():
    (row,) = stats.contrasts(values(), [("Loss", "Random")]).to_dict("records")
    gains = list(GAIN.values())
    assert row["units"] == 6 and row["better"] == 5 and row["worse"] == 1
    assert row["difference"] == pytest.approx(np.mean(gains)) and row["low"] < row["difference"] < row["high"]
    assert row["difference_percent"] == pytest.approx(100 * np.mean(gains) / 0.325)
    assert row["p"] == pytest.approx(2 * 2 / 2**6)  # the one that is worse is the smallest: rank sum 1
    (start,) = stats.contrasts(values(point="0"), [("Loss", "Random")]).to_dict("records")
    assert start["difference"] == pytest.approx(np.mean(gains) / 2)
    (likely,) = stats.contrasts(values("log_likelihood"), [("Loss", "Random")]).to_dict("records")
    assert likely["difference"] == pytest.approx(np.mean(gains)) and np.isnan(likely["difference_percent"])


def test_groups_as_units_weigh_the_same():
    (row,) = stats.contrasts(values(), [("Loss", "Random")], unit="group").to_dict("records")
    assert row["units"] == 3 and row["difference"] == pytest.approx(np.mean([0.15, 0.10, 0.05])) and np.isnan(row["p"])


def test_only_the_seeds_that_both_have_count():
    one = trace()
    one = one[(one["init"] == "Loss") | (one["seed"] == 1)]
    (row,) = stats.contrasts(stats.outcome(one, "test", "best").droplevel("delta"), [("Loss", "Random")]).to_dict(
        "records"
    )
    assert row["difference"] == pytest.approx(np.mean(list(GAIN.values())) - 0.02)


def test_holm_by_hand():
    assert stats.holm(np.array([0.04, 0.01, 0.03])).tolist() == pytest.approx([0.06, 0.03, 0.06])
    found = stats.holm(np.array([0.9, np.nan, 0.4]))
    assert found[[0, 2]].tolist() == pytest.approx([0.9, 0.8]) and np.isnan(found[1])


def test_variances_by_hand_and_of_a_simulation():
    between, within = stats.variances(values(), ("Loss", "Random"))
    assert within == pytest.approx(0.04**2 / 2)
    assert between == pytest.approx(np.var(list(GAIN.values()), ddof=1) - within / 2)
    generator = np.random.default_rng(0)
    effects = generator.normal(0, 0.3, (4000, 1)) + generator.normal(0, 0.5, (4000, 3))
    index = pd.MultiIndex.from_product([range(4000), range(3)], names=["task", "seed"])
    both = pd.DataFrame({"Loss": effects.ravel(), "Random": 0.0}, index=index).rename_axis(columns="init").stack()
    assert stats.variances(both, ("Loss", "Random")) == pytest.approx((0.09, 0.25), rel=0.08)


def test_variances_where_the_tasks_have_unequal_seeds():
    one = trace(seeds=(1, 2, 3))
    one = one[(one["seed"] < 3) | (one["task"] == TASKS[0])]
    found = stats.outcome(one, "test", "best").droplevel("delta")
    between, within = stats.variances(found, ("Loss", "Random"))
    gains = [GAIN[task] + (0.02 if task == TASKS[0] else 0.0) for task in TASKS]
    assert within == pytest.approx((0.04**2 + 5 * 0.04**2 / 2) / 6)
    assert between == pytest.approx(np.var(gains, ddof=1) - within * (1 / 3 + 5 / 2) / 6)


def test_one_seed_says_nothing_of_either_variance():
    assert np.isnan(stats.variances(values(seeds=(1,)), ("Loss", "Random"))).all()


@pytest.mark.parametrize(("units", "power"), [(2, 0.8), (2, 0.999), (3, 0.05)])
def test_the_detectable_difference_of_few_tasks(units, power):
    found = stats.detectable(1.0, units, 0.05, power) * units**0.5
    limit = scipy.stats.t.ppf(0.975, units - 1)
    assert scipy.stats.nct.sf(limit, units - 1, found) == pytest.approx(power, abs=1e-6)


def test_the_detectable_difference_by_simulation():
    found = stats.detectable(0.06, 18, 0.05 / 3, 0.8)
    draws = np.random.default_rng(1).normal(found, 0.06, (20_000, 18))
    assert (scipy.stats.ttest_1samp(draws, 0, axis=1).pvalue < 0.05 / 3).mean() == pytest.approx(0.8, abs=0.01)


def test_the_command(tmp_path, capsys):
    whole = trace()
    whole.to_csv(tmp_path / "trace.tsv", sep="\t", index=False)
    cells = whole[whole["point"] == "best"].assign(seconds=1.0)
    cells.to_csv(tmp_path / "cells.tsv", sep="\t", index=False)
    for flags, said in (
        ({"pairs": ["Loss:Loss"]}, "--pairs Loss:Loss: expected two inits"),
        ({"pairs": ["Loss:Random", "Random:Loss"]}, "--pairs Random:Loss: expected two inits that no other pair has"),
        ({"pairs": ["Loss:Random"], "without": list(TASKS)}, "--pairs Loss:Random: no task .--without. and seed"),
        ({"pairs": ["Loss:Random"], "alpha": 0.9, "power": 0.1}, "--power 0.1: chance alone shows that"),
    ):
        with pytest.raises(UserError, match=said):
            contrasts.run(Config(folder=str(tmp_path), **flags))
    config = Config(folder=str(tmp_path), pairs=["Loss:Random"], without=["qasc"])
    contrasts.run(config)
    table = pd.read_csv(tmp_path / "contrasts.tsv", sep="\t")
    assert len(table) == 2 * 2 * 2 and set(table["units"]) == {5, 3} and "power" in capsys.readouterr().out
    power = pd.read_csv(tmp_path / "power.tsv", sep="\t").set_index(["outcome", "point"])
    assert power.loc[("test", "best"), "variance_seeds"] == pytest.approx(0.0008)
    with pytest.raises(UserError, match="--pairs Los:Random: an init cannot be 'Los'; did you mean 'Loss'"):
        contrasts.run(Config(folder=str(tmp_path), pairs=["Los:Random"]))


def test_a_row_that_the_trace_does_not_have_is_named(tmp_path, caplog):
    whole = trace()
    cells = whole[whole["point"] == "best"].assign(seconds=1.0)
    for told, seeds in ((False, [1, 2]), (True, [1])):
        whole[whole["seed"].isin(seeds)].to_csv(tmp_path / "trace.tsv", sep="\t", index=False)
        cells.to_csv(tmp_path / "cells.tsv", sep="\t", index=False)
        contrasts.run(Config(folder=str(tmp_path), pairs=["Loss:Random"]))
        assert ("nothing of adapter Loss 2, adapter Random 2, which are in no contrast" in caplog.text) == told


def test_without_a_trace_the_test_scores_of_the_cells_are_compared(tmp_path, capsys):
    """The numbers that results/reference/mini_seeds/README.md gives of Loss against the single best source."""
    contrasts.run(
        Config(folder=str(ROOT / "results/reference/mini_seeds"), out=str(tmp_path), pairs=["Loss:Best_source"])
    )
    table = pd.read_csv(tmp_path / "contrasts.tsv", sep="\t").query("unit == 'task'").set_index("delta")
    for delta, expected in {
        "adapter": [-0.027, -0.057, 0.007],
        "lora": [-0.078, -0.167, -0.033],
        "prefix": [-0.198, -0.288, -0.118],
    }.items():
        assert table.loc[delta, ["difference", "low", "high"]].tolist() == pytest.approx(expected, abs=6e-4)
    assert table["units"].eq(12).all() and table["outcome"].eq("test").all() and table.loc["adapter", "p"] > 0.05


def test_a_delta_or_point_without_an_init_has_no_row_of_it(tmp_path, capsys):
    one = trace()
    other = one[one["init"] == "Random"].assign(delta="lora")
    late = one[(one["init"] == "Random") | (one["point"] == "best")]
    cells = one[one["point"] == "best"].assign(seconds=1.0)
    cells.to_csv(tmp_path / "cells.tsv", sep="\t", index=False)
    for content, points in ((pd.concat([one, other]), ["0", "best"]), (late, ["best"])):
        content.to_csv(tmp_path / "trace.tsv", sep="\t", index=False)
        contrasts.run(Config(folder=str(tmp_path), pairs=["Loss:Random"]))
        for name in ("contrasts", "power"):
            table = pd.read_csv(tmp_path / f"{name}.tsv", sep="\t", dtype={"point": str})
            assert set(table["delta"]) == {"adapter"} and sorted(set(table["point"])) == points
