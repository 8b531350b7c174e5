"""PEMT's gates as tables and pictures.

    python -m pewe.reporting.gates --runs checkpoints/pemt/stage2_few_shot --weights Loss=checkpoints/adapter/Loss/final_weight.tsv

gathers the gates.tsv of all runs below a folder: mean gate weight by target and source and by layer and source, the weight
on the sources of the target's own group, and the rank correlation with the weights of similarity measures.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from pewe.cli import UserError, flag, main, suggest
from pewe.files import numeric, read_record, read_table, within, write_config, write_table
from pewe.reporting import stats
from pewe.reporting.plots import heat_map
from task_list import METRICS

GATES = "gates.tsv"  # layer, source, weight: in the folder of a run


@dataclass
class GatesConfig:
    """Which runs, and what their gates are compared with."""

    runs: list[str] = flag(["checkpoints/pemt/stage2_few_shot"], "folders with the runs of stage 2 below them")
    weights: list[str] = flag([], "NAME=final_weight.tsv of a similarity measure, or the weights.tsv of an experiment")
    delta: str = flag("adapter", "the delta of weights.tsv whose measures are compared")
    out: str = flag("results/pemt_gates", "folder of the tables and pictures")


def read_gates(folder: Path) -> pd.DataFrame:
    """Rows (target, run, layer, source, weight) of every run below a folder."""
    parts = []
    for path in sorted(folder.rglob(GATES)):
        target = within(read_record(path.parent / "run.json"), "settings", "task", kind=str)
        if target not in METRICS:
            raise UserError(
                f"{path.parent}: run.json names no task of task_list.py; was the run killed? Start it again"
            )
        table = read_table(path, ["layer", "source", "weight"]).assign(target=target, run=str(path.parent))
        if unknown := [source for source in table["source"] if source not in METRICS]:
            raise UserError(f"{path}: source {suggest(unknown[0], METRICS)}")
        parts.append(table.assign(weight=numeric(table, "weight", path)))
    if not parts:
        raise UserError(f"there is no {GATES} below {folder}; run scripts/pemt_stage2_few_shot.sh first")
    return pd.concat(parts, ignore_index=True)[["target", "run", "layer", "source", "weight"]]


def mean_gates(gates: pd.DataFrame) -> pd.DataFrame:
    """Rows (target, source, weight): the mean over layers and runs."""
    return gates.groupby(["target", "source"], sort=False)["weight"].mean().reset_index()


def own_group(gates: pd.DataFrame) -> pd.DataFrame:
    """By layer: mean over runs of the weight on the sources of the target's own group, and what chance would give."""
    runs = gates.rename(columns={"layer": "delta", "run": "seed"}).assign(init=GATES)
    shares = stats.own_group(runs).groupby("delta", sort=False)[["own_group", "chance"]].mean()
    return shares.rename_axis("layer")


def rank_correlations(gates: pd.DataFrame, measures: dict[str, pd.DataFrame]) -> Iterator[dict]:
    """Spearman correlation over the sources of a target's gate weights, of each layer and of all, with each measure's.

    nan where all weights of a measure or a gate are equal. Raises UserError where a measure lacks a pair.
    """
    everything = pd.concat([gates, gates.assign(layer="all")])
    for (target, layer), rows in everything.groupby(["target", "layer"], sort=False):
        mean = rows.groupby("source")["weight"].mean()
        for name, table in measures.items():
            other = table[table["target"] == target].groupby("source")["weight"].mean().reindex(mean.index)
            if other.isna().any():
                missing = other.index[other.isna()][0]
                raise UserError(f"--weights {name}: no weight of target {target!r}, source {missing!r}")
            known = mean.nunique() > 1 and other.nunique() > 1
            spearman = mean.corr(other, method="spearman") if known else float("nan")
            yield {"target": target, "layer": layer, "measure": name, "spearman": spearman}


def read_measures(files: Sequence[str], delta: str) -> dict[str, pd.DataFrame]:
    """Tables (target, source, weight) by the name of the measure, from NAME=FILE or all inits of a weights.tsv."""
    measures: dict[str, pd.DataFrame] = {}
    for given in files:
        name, _, path = given.rpartition("=")
        table = read_table(Path(path), ["target", "source", "weight", *([] if name else ["delta", "init"])])
        table["weight"] = numeric(table, "weight", Path(path))
        parts = [(name, table)] if name else table[table["delta"] == delta].groupby("init")
        measures |= {str(init): part for init, part in parts}
    return measures


def run(config: GatesConfig) -> None:
    """Read, print and write."""
    gates, out = pd.concat([read_gates(Path(folder)) for folder in config.runs]), Path(config.out)
    write_table(out / GATES, gates)
    for down in ("target", "layer"):
        frame = gates.pivot_table(index=down, columns="source", values="weight", sort=False)
        frame = frame[sorted(frame, key=list(METRICS).index)]
        if down == "target":
            frame = frame.loc[sorted(frame.index, key=list(METRICS).index)]
        heat_map(frame, out / f"gates_by_{down}.png", "mean gate weight", down=down)
    own = own_group(gates)
    write_table(out / "own_group.tsv", own.reset_index())
    print(own.round(3).to_string())
    print(f"above chance in {int((own['own_group'] > own['chance']).sum())} of {len(own)} layers")
    if measures := read_measures(config.weights, config.delta):
        table = pd.DataFrame(rank_correlations(gates, measures))
        write_table(out / "rank_correlation.tsv", table)
        print(table.pivot_table(index="layer", columns="measure", values="spearman", sort=False).round(3).to_string())
    write_config(out, config)


if __name__ == "__main__":
    main(run, GatesConfig, __doc__)
