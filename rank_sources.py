"""My sources, my target: rank N deltas for one target task, and merge them into a start for its tuning.

    pewe rank --sources DIR --target DATA/my_task
    python rank_sources.py --sources DIR --target DATA/my_task --measures Loss GraNd --model FOLDER

Sources are `<source>/checkpoint-best.pt`, or a folder of PEFT, in DIR, or a list as `pewe similarity` takes it; their kind and
size are those of the first. The target needs no metric and
no test lines: only its dev lines are read (and train lines, by which its prefix is found). Writes

    <output_dir>/rank.tsv                                  source, measure, scope, value, rank, weight, mean_rank
    <output_dir>/rank.png                                  weights, best source on top, one column for each measure
    <output_dir>/<measure>/without_<target>_checkpoint.pt  the ensemble to start from: --train_checkpoint <output_dir>/<measure>
    <output_dir>/similarity/<measure>/result.tsv           what the weights were made of

The temperature is the one at which the effective number of sources is `--effective`, or half of the choice where there are
few sources. A source with the name of the target is left out.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path

from pewe.command import main

import pandas as pd

from get_similarity import MEASURES
from pewe.cli import log, log_to
from pewe.deltas.kinds import KINDS
from pewe.errors import UserError
from pewe.files import read_table, write_table
from pewe.flags import flag
from pewe.merging.save import WEIGHTS
from pewe.reporting.plots import heat_map
from pewe.reporting.stats import effective_numbers
from pewe.similarity.config import TargetConfig
from pewe.similarity.table import COLUMNS, RESULT

EFFECTIVE = 3.0


@dataclass(frozen=True)
class Config(TargetConfig):
    """Which sources, which target, which measures; the rest is as for a similarity."""

    source_ckpt_path: str = flag(
        "checkpoints/adapter/full_data",
        "folder with <source>/checkpoint-best.pt, or a list of sources",
        decides=False,
        also="sources",
    )
    source_tasks: list[str] = flag([], "names of the sources (default: all that are there)", unique=True)
    target: str = flag("", "folder of the target's data, DIR/my_task, with <prefix>_train.tsv and <prefix>_dev.tsv")
    measures: list[str] = flag(
        ["Loss", "EL2N", "Cosine_of_Logits_and_Labels"], "of get_similarity/", choices=MEASURES, unique=True
    )
    tune_method: str = flag("", "kind of the deltas (default: that of the first source)", choices=KINDS, also="delta")
    effective: float = flag(EFFECTIVE, "effective number of sources of the ensembles", above=1)
    output_dir: str = flag("results/rank", "folder of the table, the picture and the ensembles", decides=False)


def sources_of(config: Config) -> dict[str, Path]:
    """Name -> place of the sources: those of the flag, else all that are there, without the target."""
    from pewe.deltas.checkpoint import BEST
    from pewe.deltas.sources import all_sources, source_files

    given, target = config.source_ckpt_path, Path(config.target).name
    if "," not in given and "/" not in given and not Path(given).exists():
        raise UserError(f"--sources {given}: there is no such folder; expected {given}/<source>/{BEST}")
    found = source_files(given, config.source_tasks) if config.source_tasks else all_sources(given)
    others = {name: path for name, path in found.items() if name != target}
    if len(others) < 2:
        raise UserError(
            f"--sources {given}: at least two sources <source>/{BEST} beside the target are ranked, not {len(others)}"
        )
    return others


def settled(config: Config) -> Config:
    """The flags with what the data folder and the first source say."""
    from pewe.deltas.checkpoint import Checkpoints, kind_of
    from pewe.deltas.projections import targets_of
    from pewe.deltas.sources import first_files
    from pewe.inputs import check_files

    target = Path(config.target)
    if not config.target or not target.is_dir():
        raise UserError(
            f"--target names the folder of the target's data, DIR/my_task; there is no folder {config.target!r}"
        )
    sources = sources_of(config)
    check_files(first_files(sources), "sources", f"--sources {config.source_ckpt_path}")
    kind, _ = kind_of(next(iter(sources.values())), config.tune_method)
    states = Checkpoints(list(sources.values()), kind)
    own = {name: value for name, value in states.made_for.items() if name in KINDS[kind].describing}
    return replace(
        config,
        tune_method=kind,
        lora_targets=targets_of(states[0]) or config.lora_targets,
        task_dir=str(target.parent),
        tasks=[target.name],
        source_tasks=list(sources),
        effective=min(config.effective, (1 + len(sources)) / 2),
        **own,
    )


def measured(config: Config, name: str) -> pd.DataFrame:
    """Rows (source, measure, scope, value, rank, weight) of one measure; its ensembles are written."""
    from pewe.similarity import loop
    from unit_model import unit_model_others

    measure, out = MEASURES[name], Path(config.output_dir)
    known = {one.name for one in fields(measure.config)}
    flags = {one.name: getattr(config, one.name) for one in fields(config) if one.name in known}
    table = out / "similarity" / name
    loop.run(measure, measure.config(**{**flags, "output_dir": str(table), "pictures": False}))
    ensembles = unit_model_others.Config(
        delta=config.tune_method,
        origin_data_path=str(table),
        source_ckpt_path=config.source_ckpt_path,
        save_ckpt_path=str(out / name),
        effective=config.effective,
        quiet=True,
    )
    unit_model_others.run(ensembles)
    log_to(None, config.quiet)
    values = read_table(table / RESULT, COLUMNS)
    return pd.concat(_with_weights(values, out / name), ignore_index=True).assign(measure=name)


def _with_weights(values: pd.DataFrame, folder: Path) -> Iterator[pd.DataFrame]:
    """The values of each scope with the weights that were made of them."""
    scopes = values["scope"].unique()
    for scope in scopes:
        own = values[values["scope"] == scope].drop(columns="target")
        weights = read_table((folder / scope if len(scopes) > 1 else folder) / WEIGHTS, ["source", "weight"])
        made = own.merge(weights[["source", "weight"]], on="source")
        yield made.assign(rank=made["weight"].rank(ascending=False, method="min").astype(int))


def run(config: Config) -> pd.DataFrame:
    """Rank, write and print; returns the table."""
    log_to(None, config.quiet)
    config = settled(config)
    rows = pd.concat([measured(config, name) for name in config.measures], ignore_index=True)
    rows["mean_rank"] = rows.groupby("source")["rank"].transform("mean")
    rows = rows.sort_values("mean_rank", kind="stable")
    rows = rows[["source", "measure", "scope", "value", "rank", "weight", "mean_rank"]]
    out, target = Path(config.output_dir), config.tasks[0]
    write_table(out / "rank.tsv", rows)
    rows["column"] = rows["measure"] + rows["scope"].map(lambda scope: "" if scope == "all" else f"/{scope}")
    wide = {name: rows.pivot(index="source", columns="column", values=name) for name in ("value", "weight", "rank")}
    order, columns = rows["source"].unique(), list(rows["column"].unique())
    weight = wide["weight"].loc[order, columns]
    effective = pd.Series(effective_numbers(weight.to_numpy().T), index=columns)
    title = f"weights of the sources for {target}"
    heat_map(weight.T, out / "rank.png", title, effective, "effective\nsources", down="measure")
    print(shown(rows, wide, effective))
    size = " ".join(f"--{name} {getattr(config, name)}" for name in KINDS[config.tune_method].describing)
    log.info(
        "start from it: bash scripts/%s.sh %s --task_dir %s --tasks %s --train_checkpoint %s --output_dir DIR",
        config.tune_method,
        size,
        config.task_dir,
        target,
        out / config.measures[0],
    )
    return rows.drop(columns="column")


def shown(rows: pd.DataFrame, wide: dict[str, pd.DataFrame], effective: pd.Series) -> str:
    """The table as text: best source first; of each measure the value, and the weight in brackets."""
    order = rows.drop_duplicates("source").set_index("source")["mean_rank"]
    cells = {
        name: [
            f"{wide['value'].at[source, name]:.4g} ({wide['weight'].at[source, name]:.2f})" for source in order.index
        ]
        for name in effective.index
    }
    table = pd.DataFrame({"mean rank": order.map("{:.1f}".format), **cells}, index=order.index)
    table.loc["effective sources"] = ["", *effective.map("{:.1f}".format)]
    return table.rename_axis(None).to_string()


if __name__ == "__main__":
    main(run, Config, __doc__)
