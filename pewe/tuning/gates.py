"""PEMT's gates as tables and pictures.

    python -m pewe.tuning.gates --runs checkpoints/pemt/stage2_few_shot --weights Loss=checkpoints/adapter/Loss/final_weight.tsv

gathers the gates.tsv of all runs below a folder: mean gate weight by target and source and by layer and source, the weight
on the sources of the target's own group, and the rank correlation with the weights of similarity measures.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pewe.command import main

import pandas as pd

from pewe.cli import log
from pewe.deltas.kinds import GATES, KINDS
from pewe.errors import UserError
from pewe.files import check_out, numeric, read_record, read_table, within, write_config, write_table
from pewe.flags import flag, suggest
from pewe.identity import difference
from pewe.reporting import stats
from pewe.reporting.plots import heat_map
from pewe.scores import RECORD
from pewe.tuning.runs import folder_of, tables_print
from task_list import METRICS

GATED = [name for name, kind in KINDS.items() if "gates" in kind.tables]
CORRELATIONS = "rank_correlation.tsv"


@dataclass(frozen=True)
class GatesConfig:
    """Which runs, and what their gates are compared with."""

    runs: list[str] = flag(["checkpoints/pemt/stage2_few_shot"], "folders with the runs of stage 2 below them")
    weights: list[str] = flag([], "NAME=final_weight.tsv of a similarity measure, or the weights.tsv of an experiment")
    delta: str = flag("adapter", "the delta of weights.tsv whose measures are compared")
    out: str = flag("results/pemt_gates", "folder of the tables and pictures")


def read_gates(folder: Path) -> pd.DataFrame:
    """Rows (target, run, layer, source, weight) of every run below a folder. Raises UserError where there is none."""
    places = {path.parent for name in (RECORD, GATES) for path in folder.rglob(name)}
    gates = gates_of(sorted(places))
    if gates.empty:
        raise UserError(f"there is no {GATES} below {folder}; run scripts/pemt_stage2_few_shot.sh first")
    return gates


def gates_of(folders: Sequence[Path]) -> pd.DataFrame:
    """Rows (target, run, layer, source, weight) of these runs; a run of PEMT without a tested result is left out, which is said."""
    parts, settings = [pd.DataFrame(columns=["target", "run", "layer", "source", "weight"])], {}
    for folder in folders:
        record = read_record(folder / RECORD) or {}
        if within(record, "result", "gates", kind=str) or (folder / GATES).exists():
            parts.append(_gates_of_run(folder, record))
            own = {name: value for name, value in record["settings"].items() if name not in _OF_ONE_RUN}
            if why := difference(settings.setdefault(own["task"], own), own):
                log.warning("%s is of other settings than an earlier run of this target: %s", folder, why)
        elif within(record, "settings", "tune_method", kind=str) in GATED:
            log.warning("%s has no gates and is left out: it was interrupted, has failed, or was not tested", folder)
    return pd.concat(parts[1:] or parts, ignore_index=True)[list(parts[0])]


_OF_ONE_RUN = ("seed", "prefix", "data", "init", "built_on")  # of its settings, in which a repetition may differ


def _gates_of_run(folder: Path, record: dict) -> pd.DataFrame:
    """The gates that the result in a run's record is of. Raises UserError where those in the folder are others."""
    path, result = folder / GATES, within(record, "result") or {}
    if not result.get("gates") or tables_print(GATED[0], folder)["gates"] != result["gates"]:
        raise UserError(
            f"{path} is not of a result in {RECORD} beside it (of another run or version, changed, or lost); "
            "start that run again"
        )
    own = folder_of(Path(), result).parts
    if folder.resolve().parts[-len(own) :] != own:
        raise UserError(f"{path} is of the run {folder_of(Path(), result)}, which has its own folder")
    table = read_table(path, ["layer", "source", "weight"]).assign(target=result["task"], run=str(folder))
    for name in (result["task"], *table["source"]):
        if name not in METRICS:
            raise UserError(f"{path}: task {suggest(name, METRICS)}")
    return table.assign(weight=numeric(table, "weight", path))


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
    """Tables (target, source, weight) by the name of the measure, from NAME=FILE or all inits of a weights.tsv.

    Raises UserError for two measures of one name, and for a weights.tsv without this delta.
    """
    measures: dict[str, pd.DataFrame] = {}
    for given in files:
        name, _, path = given.rpartition("=")
        table = read_table(Path(path), ["target", "source", "weight", *([] if name else ["delta", "init"])])
        table["weight"] = numeric(table, "weight", Path(path))
        parts = [(name, table)] if name else table[table["delta"] == delta].groupby("init")
        found = {str(init): part for init, part in parts}
        if not found:
            raise UserError(f"{path} has no row of --delta {delta}")
        if twice := found.keys() & measures.keys():
            raise UserError(f"--weights gives two measures the name {min(twice)!r}; give them others: NAME=FILE")
        measures |= found
    return measures


def run(config: GatesConfig) -> None:
    """Read, print and write."""
    out = Path(config.out)
    check_out(out, config)
    if (out / RECORD).is_file():
        raise UserError(f"--out {out} is the folder of a run, whose {GATES} would be lost; give another folder")
    parts = [read_gates(Path(folder)) for folder in config.runs]
    places, gates = [Path(run).resolve() for part in parts for run in part["run"].unique()], pd.concat(parts)
    if twice := [place for place in places if places.count(place) > 1]:
        raise UserError(f"--runs names {twice[0]} twice")
    measures = read_measures(config.weights, config.delta)
    correlations = pd.DataFrame(rank_correlations(gates, measures)) if measures else None
    (out / CORRELATIONS).unlink(missing_ok=True)  # of other measures, or other runs
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
    if correlations is not None:
        write_table(out / CORRELATIONS, correlations)
        print(
            correlations.pivot_table(index="layer", columns="measure", values="spearman", sort=False)
            .round(3)
            .to_string()
        )
    write_config(out, config)


if __name__ == "__main__":
    main(run, GatesConfig, __doc__)
