"""Statistics over the cells of an experiment: scores by row, contrasts, rank correlations, effective numbers.

`cells` has the columns delta, init, seed, task, prefix, dev, test, ...; `weights` and `similarities` the columns delta,
init, seed, target, source and weight or value.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import scipy  # its parts are loaded where they are used

from pewe.reporting.tables import best_by_dev
from task_list import GROUP_OF

OUTCOMES = ("test", "log_likelihood")  # of a point of --trace_test


def scores(cells: pd.DataFrame) -> pd.DataFrame:
    """One test score per delta, init, task and seed: of the run with the best dev score, averaged over the data's prefixes."""
    best = best_by_dev(cells, ["delta", "init", "task", "seed", "prefix"])
    return best.groupby(["delta", "init", "task", "seed"], sort=False)["test"].mean().reset_index()


def outcome(trace: pd.DataFrame, what: str, point: str) -> pd.Series:
    """One outcome (test or log_likelihood) at one point of --trace_test, by delta, init, task and seed; named by both.

    Of several runs of a cell that of the best dev score; averaged over the data's prefixes.
    """
    best = best_by_dev(trace[trace["point"] == point], ["delta", "init", "task", "seed", "prefix"])
    return best.groupby(["delta", "init", "task", "seed"], sort=False)[what].mean().rename(f"{what} {point}")


def by_task(values: pd.Series, pair: tuple[str, str]) -> pd.DataFrame:
    """The two inits of a pair over tasks, each the mean over the seeds that both have; of one delta's `outcome`."""
    frame = values.unstack("init", sort=False).reindex(columns=list(pair)).dropna()
    return frame.groupby(level="task", sort=False).mean()


def contrasts(values: pd.Series, pairs: Sequence[tuple[str, str]], unit: str = "task", seed: int = 0) -> pd.DataFrame:
    """First minus second init of each pair, over tasks or groups as units, seeds averaged first; of one delta's `outcome`.

    Mean difference with a 95 % bootstrap interval over units (BCa, 9,999 resamples), the same in percent of the second's
    mean (nan where that is not above 0), and for tasks the two-sided p of Wilcoxon's signed-rank test (nan without any
    difference), plain and by Holm's method over the pairs. Differences are taken to 12 digits: means of equal scores are equal.
    """
    rows = []
    for first, second in pairs:
        frame = by_task(values, (first, second))
        if unit == "group":
            frame = frame.groupby(frame.index.map(GROUP_OF), sort=False).mean()
        difference, base = (frame[first] - frame[second]).round(12).to_numpy(), frame[second].mean()
        found = {
            "first": first,
            "second": second,
            "unit": unit,
            "units": len(frame),
            "difference": difference.mean(),
            **_interval(difference, seed),
        }
        share = 100 / base if base > 0 else np.nan
        found |= {f"{name}_percent": share * found[name] for name in ("difference", "low", "high")}
        tested = unit == "task" and difference.any()
        p = float(scipy.stats.wilcoxon(difference).pvalue) if tested else np.nan
        rows.append({**found, "better": int((difference > 0).sum()), "worse": int((difference < 0).sum()), "p": p})
    table = pd.DataFrame(rows)
    return table.assign(p_holm=holm(table["p"].to_numpy()))


def holm(p: np.ndarray) -> np.ndarray:
    """p values corrected by Holm's method; nan stays nan and does not count as a test."""
    corrected, known = np.full(len(p), np.nan), np.flatnonzero(~np.isnan(p))
    order = known[np.argsort(p[known], kind="stable")]
    factors = np.arange(len(order), 0, -1)
    corrected[order] = np.minimum(1.0, np.maximum.accumulate(p[order] * factors))
    return corrected


def variances(values: pd.Series, pair: tuple[str, str]) -> tuple[float, float]:
    """Variance of a contrast between tasks and between the seeds of a task: t2 and s2 of a random-effects model.

    s2 is the mean over tasks of the variance over seeds, t2 the variance over tasks of the mean over m seeds less the mean
    over tasks of s2 / m, at least 0. Both are nan where no task has two seeds, t2 where there is one task.
    """
    frame = values.unstack("init", sort=False)
    by_seed = (frame[pair[0]] - frame[pair[1]]).dropna().unstack("seed")
    s2 = float(by_seed.var(axis=1, ddof=1).mean())
    t2 = by_seed.mean(axis=1).var(ddof=1) - s2 * (1 / by_seed.count(axis=1)).mean()
    return float(np.maximum(0.0, t2)), s2


def detectable(deviation: float, units: int, alpha: float, power: float) -> float:
    """The smallest mean difference of so many units with this standard deviation that a two-sided paired t test at `alpha`
    shows, in its own direction, with this power; nan where that is beyond what the distribution is computed for."""
    free = units - 1
    limit = scipy.stats.t.ppf(1 - alpha / 2, free)

    def beyond(shift: float) -> float:
        return float(scipy.stats.nct.sf(limit, free, shift)) - power

    most = limit + 10
    while beyond(most) < 0:  # of few units
        most *= 2
    shift = scipy.optimize.brentq(beyond, 0.0, most) if beyond(most) >= 0 else np.nan
    return deviation / units**0.5 * shift


def _interval(values: np.ndarray, seed: int) -> dict[str, float]:
    if len(values) < 2 or np.ptp(values) == 0:
        return {"low": np.nan, "high": np.nan}
    found = scipy.stats.bootstrap((values,), np.mean, rng=np.random.default_rng(seed)).confidence_interval
    return {"low": float(found.low), "high": float(found.high)}


def rank_correlations(weights: pd.DataFrame) -> pd.DataFrame:
    """Spearman's correlation of the weights of two inits over the sources of a target, averaged over all targets.

    Equal weights have none.
    """
    others = weights[weights["target"] != weights["source"]]
    frame = others.pivot_table(index=["delta", "seed", "target", "source"], columns="init", values="weight", sort=False)
    targets = (part for _, part in frame.groupby(level=["delta", "seed", "target"]))
    by_target = [part.loc[:, part.nunique() > 1].corr("spearman") for part in targets]
    found = pd.concat(by_target).groupby(level=0, sort=False).mean()
    return found.reindex(index=frame.columns, columns=frame.columns)


def effective(weights: pd.DataFrame) -> pd.DataFrame:
    """Median over targets and seeds of the effective number of sources, inits down and deltas across."""
    frame = weights.pivot_table(
        index=["delta", "init", "seed", "target"], columns="source", values="weight", sort=False
    )
    numbers = pd.Series(effective_numbers(frame.fillna(0.0).to_numpy()), index=frame.index)
    return numbers.groupby(level=["init", "delta"], sort=False).median().unstack("delta")


def own_group(weights: pd.DataFrame) -> pd.DataFrame:
    """Weight on the sources of the target's own group and their share of the sources (chance), averaged over the targets.

    One row per delta, init and seed. Targets that are alone in their group are left out. Weights that may be negative, or have
    another sum than 1, count by their share of all absolute values; where all are 0, no source has any.
    """
    others = weights[weights["target"] != weights["source"]]
    own = others["source"].map(GROUP_OF) == others["target"].map(GROUP_OF)
    sizes = others["weight"].abs()
    sums = sizes.groupby([others[key] for key in ("delta", "init", "seed", "target")]).transform("sum")
    marked = others.assign(own_group=(sizes / sums.where(sums > 0, 1.0)).where(own, 0.0), chance=own)
    targets = marked.groupby(["delta", "init", "seed", "target"], sort=False).agg(
        {"own_group": "sum", "chance": "mean"}
    )
    in_company = targets[targets["chance"] > 0]
    return in_company.groupby(level=["delta", "init", "seed"], sort=False).mean().reset_index()


def importance(weights: pd.DataFrame) -> pd.DataFrame:
    """Spread of the weights of each block or layer: sample deviation over the sources, averaged over targets and seeds.

    Of one source it is 0.
    """
    scoped = weights[(weights["init"].str.contains("/")) & (weights["target"] != weights["source"])]
    spread = scoped.groupby(["delta", "init", "seed", "target"], sort=False)["weight"].std(ddof=1).fillna(0.0)
    return spread.groupby(level=["delta", "init"], sort=False).mean().rename("spread").reset_index()


def effective_numbers(W: np.ndarray) -> np.ndarray:
    """exp(entropy) of each row of weights (T, n), (T,): 1 if one source has all the weight, n if n share it equally.

    Weights below 0, or beyond a sum of 1, count by their share of all absolute values.
    """
    if (W < 0).any() or (W.sum(1) > 1.001).any():
        W = np.abs(W) / np.maximum(np.abs(W).sum(1, keepdims=True), np.finfo(float).tiny)
    return np.exp(scipy.special.entr(W).sum(1))
