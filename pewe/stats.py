"""Statistics over the cells of an experiment: scores by row, paired comparisons, rank correlations, effective numbers.

`cells` has the columns delta, init, seed, task, prefix, dev, test, ...; `weights` and `similarities` the columns delta,
init, seed, target, source and weight or value.
"""

import numpy as np
import pandas as pd
import scipy.stats
import torch

from pewe.tables import best_by_dev
from pewe.weights import effective_numbers
from task_list import GROUP_OF


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


def paired(scored: pd.DataFrame, baseline: str, seed: int = 0) -> pd.DataFrame:
    """Every init against a baseline, paired over tasks and seeds, for each delta.

    Mean difference of the test scores with a 95 % bootstrap interval (BCa, 9,999 resamples), the two-sided p of Wilcoxon's
    signed-rank test (nan without any difference), and the relative improvement of the mean score in percent.
    """
    rows = []
    for delta, part in scored.groupby("delta", sort=False):
        frame = part.pivot_table(index=["task", "seed"], columns="init", values="test", sort=False)
        if baseline not in frame:
            continue
        for init in [name for name in part["init"].unique() if name != baseline]:
            both = frame[[init, baseline]].dropna()
            difference = (both[init] - both[baseline]).to_numpy()
            base = both[baseline].mean()
            rows.append({
                "delta": delta, "init": init, "baseline": baseline, "pairs": len(both), "difference": difference.mean(),
                **_interval(difference, seed), "better": int((difference > 0).sum()), "worse": int((difference < 0).sum()),
                "wilcoxon_p": float(scipy.stats.wilcoxon(difference).pvalue) if difference.any() else np.nan,
                "improvement_percent": 100 * difference.mean() / base if base else np.nan,
            })  # fmt: skip
    return pd.DataFrame(rows)


def _interval(values: np.ndarray, seed: int) -> dict[str, float]:
    if len(values) < 2 or np.ptp(values) == 0:
        return {"low": np.nan, "high": np.nan}
    found = scipy.stats.bootstrap((values,), np.mean, rng=np.random.default_rng(seed)).confidence_interval
    return {"low": float(found.low), "high": float(found.high)}


def rank_correlations(weights: pd.DataFrame) -> pd.DataFrame:
    """Spearman's correlation of the weights of two inits over the sources of a target, averaged over all targets."""
    others = weights[weights["target"] != weights["source"]]
    frame = others.pivot_table(index=["delta", "seed", "target", "source"], columns="init", values="weight", sort=False)
    by_target = [part.corr("spearman") for _, part in frame.groupby(level=["delta", "seed", "target"])]
    return pd.concat(by_target).groupby(level=0, sort=False).mean().loc[frame.columns, frame.columns]


def effective(weights: pd.DataFrame) -> pd.DataFrame:
    """Median over targets and seeds of the effective number of sources, inits down and deltas across."""
    frame = weights.pivot_table(
        index=["delta", "init", "seed", "target"], columns="source", values="weight", sort=False
    )
    numbers = pd.Series(effective_numbers(torch.tensor(frame.fillna(0.0).to_numpy())).numpy(), index=frame.index)
    return numbers.groupby(level=["init", "delta"], sort=False).median().unstack("delta")


def own_group(weights: pd.DataFrame) -> pd.DataFrame:
    """Weight on the sources of the target's own group and their share of the sources (chance), averaged over the targets.

    One row per delta, init and seed. Targets that are alone in their group are left out.
    """
    others = weights[weights["target"] != weights["source"]]
    own = others["source"].map(GROUP_OF) == others["target"].map(GROUP_OF)
    marked = others.assign(own_group=others["weight"].where(own, 0.0), chance=own)
    targets = marked.groupby(["delta", "init", "seed", "target"], sort=False).agg(
        {"own_group": "sum", "chance": "mean"}
    )
    in_company = targets[targets["chance"] > 0]
    return in_company.groupby(level=["delta", "init", "seed"], sort=False).mean().reset_index()


def importance(weights: pd.DataFrame) -> pd.DataFrame:
    """Spread of the weights of each block or layer: standard deviation over the sources, averaged over targets and seeds."""
    scoped = weights[(weights["init"].str.contains("/")) & (weights["target"] != weights["source"])]
    spread = scoped.groupby(["delta", "init", "seed", "target"], sort=False)["weight"].std(ddof=0)
    return spread.groupby(level=["delta", "init"], sort=False).mean().rename("spread").reset_index()
