"""Weight ensembling by a similarity matrix: Loss, KL-divergence, EL2N, Cosine of Logits and Labels, GraNd, block.

    theta_i = sum over sources j != i of w_ij theta_j,    w_i = softmax(orientation * S[i, j] / tem)

The orientation is the one that `config.json` beside the similarity table names; the original always takes lower as more
similar (`--as_original`, or `--orientation lower`).
"""

from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from pewe.cli import UserError, flag, log, log_to, main, suggest
from pewe.ensemble import (
    EnsembleConfig,
    as_tensor,
    ensemble_tasks,
    ensemble_weights,
    read_states,
    save_ensembles,
    save_overview,
    save_weights,
)
from pewe.results import numeric, read_json, read_table
from pewe.weights import COLUMNS, RESULT, allowed_sources, similarity_frame

delta = "adapter"
tem = 0.1
origin_data_path = "checkpoints/adapter/similarity/Loss/result.tsv"
source_ckpt_path = "checkpoints/adapter/full_data"
save_ckpt_path = "checkpoints/adapter/Loss"


@dataclass
class Config(EnsembleConfig):
    """Flags; the constants above are their defaults."""

    delta: str = flag(delta, "adapter, lora or prefix")
    tem: float = flag(tem, "temperature of the softmax, in the unit of the similarity", above=0)
    origin_data_path: str = flag(
        origin_data_path, "result.tsv of a similarity, or its folder; all its scopes are done", decides=False
    )
    source_ckpt_path: str = flag(source_ckpt_path, "folder with <source>/checkpoint-best.pt", decides=False)
    save_ckpt_path: str = flag(save_ckpt_path, "folder of the ensembles", decides=False)
    orientation: str = flag(
        "auto",
        "auto (as config.json beside the table says, else lower), lower or higher is more similar",
        choices=("auto", "lower", "higher"),
    )
    overview: list[str] = flag(
        [], "targets of the overview pictures by block or layer (default: the first)", decides=False, unique=True
    )
    weights_only: bool = flag(False, "weights and heat map only; no checkpoints are needed")
    as_original: bool = flag(False, "lower is more similar for every measure, as in the original")


def run(config: Config) -> None:
    """Weights, checkpoints and heat map for each scope of the table."""
    log_to(None, config.quiet)
    path = Path(config.origin_data_path)
    path = path / RESULT if path.is_dir() else path
    table = read_table(path, COLUMNS)
    table["value"] = numeric(table, "value", path)
    table = _selected(config, table, path)
    higher = _higher_is_more_similar(config, path)
    states = None
    if not config.weights_only:
        states = read_states(config.source_ckpt_path, config.delta, list(pd.unique(table["source"])))
    scopes, weights = list(pd.unique(table["scope"])), {}
    for scope in scopes:
        folder = Path(config.save_ckpt_path) / (scope if len(scopes) > 1 else "")
        rows, of_scope = table[table["scope"] == scope], replace(config, save_ckpt_path=str(folder))
        weights[scope] = _one_scope(of_scope, rows, scope, path, higher, states)
    if len(scopes) > 1:
        save_overview(config, weights, config.overview or list(weights[scopes[0]].index[:1]))


def _selected(config: Config, table: pd.DataFrame, path: Path) -> pd.DataFrame:
    wanted = ensemble_tasks(config, [])
    for task in [*wanted, *config.overview]:
        if task not in set(table["target"]) & set(table["source"]):
            raise UserError(f"{path} has no row for {suggest(task, pd.unique(table['target']))}")
    return table[table["target"].isin(wanted) & table["source"].isin(wanted)] if wanted else table


def _higher_is_more_similar(config: Config, path: Path) -> bool:
    if config.as_original or config.orientation != "auto":
        return config.orientation == "higher" and not config.as_original
    for folder in (path.parent, path.parent.parent):  # a scope's folder lies in the measure's
        if (stored := read_json(folder / "config.json")) and "higher_is_more_similar" in stored:
            return stored["higher_is_more_similar"]
    log.warning("%s: no config.json names the orientation; lower is taken as more similar (--orientation)", path)
    return False


def _one_scope(config: Config, rows: pd.DataFrame, scope: str, path: Path, higher: bool, states) -> pd.DataFrame:
    frame = similarity_frame(rows, str(path))
    targets, sources = list(frame.index), list(frame.columns)
    allowed, S = allowed_sources(targets, sources), as_tensor(frame)
    W, tem = ensemble_weights(config, S, config.tem, higher, allowed)
    title = f"{config.delta}: weights from {path.parent.name}, {scope}, tem {tem:g}"
    weights = save_weights(config, targets, sources, W, title)
    if states is not None:
        save_ensembles(config, targets, states, W)
    return weights


if __name__ == "__main__":
    main(run, Config, __doc__)
