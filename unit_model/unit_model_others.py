"""Weight ensembling by a similarity matrix: Loss, KL-divergence, EL2N, Cosine of Logits and Labels, GraNd, block.

    theta_i = sum over sources j != i of w_ij theta_j,    w_i = softmax(orientation * S[i, j] / tem)

The orientation is the one that `config.json` beside the similarity table names; the original always takes lower as more
similar (`--as_original`, or `--orientation lower`).
"""

import pewe_environment  # noqa: F401

from dataclasses import dataclass
from pathlib import Path

from pewe.command import main

import pandas as pd

from pewe.cli import log, log_to
from pewe.errors import UserError
from pewe.flags import flag, suggest
from pewe.identity import file_digest
from pewe.merging.combine import Combiner
from pewe.merging.save import (
    Part,
    SoftmaxConfig,
    digests,
    ensemble_tasks,
    ensemble_weights,
    read_similarity,
    read_states,
    save,
)
from pewe.merging.weights import allowed_sources, as_tensor
from pewe.similarity.table import RESULT, similarity_frame

delta = "adapter"
tem = 0.1
origin_data_path = "checkpoints/adapter/similarity/Loss/result.tsv"
source_ckpt_path = "checkpoints/adapter/full_data"
save_ckpt_path = "checkpoints/adapter/Loss"


@dataclass(frozen=True)
class Config(SoftmaxConfig):
    """Flags; the constants above are their defaults."""

    delta: str = flag(delta, "adapter, lora or prefix")
    tem: float = flag(tem, "temperature of the softmax, in the unit of the similarity", above=0)
    origin_data_path: str = flag(
        origin_data_path, "result.tsv of a similarity, or its folder; all its scopes are done", decides=False
    )
    source_ckpt_path: str = flag(
        source_ckpt_path, "folder with <source>/checkpoint-best.pt, or a list of sources", decides=False
    )
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
    table, recorded = read_similarity(path)
    table = _selected(config, table, path)
    higher = _higher_is_more_similar(config, recorded, path)
    names = list(pd.unique(table["source"]))
    states = None if config.weights_only else read_states(config.source_ckpt_path, config.delta, names)
    combiner = None if states is None else Combiner(config, states, names, config.source_ckpt_path)
    scopes, parts, used = list(pd.unique(table["scope"])), [], {}
    for scope in scopes:
        frame = similarity_frame(table[table["scope"] == scope], str(path))
        if set(frame.columns) != set(names):
            raise UserError(f"{path}: scope {scope!r} has no source {min(set(names) - set(frame.columns))!r}")
        frame = frame[names]  # in the order of the states
        targets = list(frame.index)
        allowed = allowed_sources(targets, names)
        W, used[scope] = ensemble_weights(config, as_tensor(frame), config.tem, higher, allowed)
        title = f"{config.delta}: weights from {path.parent.name}, {scope}, tem {used[scope]:g}"
        merged = None if combiner is None else combiner.merge(W)
        parts.append(Part(targets, names, W, title, merged, scope if len(scopes) > 1 else ""))
    made_from = {
        "sources": {} if states is None else digests(names, states),
        "similarity": file_digest(path),
        "used_temperature": used,
        "higher_is_more_similar": higher,
        **({} if combiner is None else combiner.made_from()),
    }
    save(config, parts, made_from, {} if states is None else states.made_for, config.overview or parts[0].targets[:1])


def _selected(config: Config, table: pd.DataFrame, path: Path) -> pd.DataFrame:
    wanted = ensemble_tasks(config, [])
    there = {column: set(table[column]) for column in ("target", "source")}
    both = bool(there["target"] & there["source"])  # else the sources are no tasks
    asked = [(column, task) for task in config.overview for column in ("target", "source")[: 1 + both]]
    asked += [("target", task) for task in wanted] + [("source", name) for name in config.source_tasks]
    asked += [("source", task) for task in wanted if both and not config.source_tasks]
    for column, name in asked:
        if name not in there[column]:
            raise UserError(f"{path} has no {column} {suggest(name, pd.unique(table[column]))}")
    sources = config.source_tasks or (wanted if wanted and both else there["source"])
    return table[table["target"].isin(wanted or there["target"]) & table["source"].isin(sources)]


def _higher_is_more_similar(config: Config, recorded: bool | None, path: Path) -> bool:
    if config.as_original or config.orientation != "auto":
        return config.orientation == "higher" and not config.as_original
    if recorded is None:
        log.warning("%s: no config.json names the orientation; lower is taken as more similar (--orientation)", path)
    return bool(recorded)


if __name__ == "__main__":
    main(run, Config, __doc__)
