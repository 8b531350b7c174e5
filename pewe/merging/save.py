"""What every unit_model/unit_model_*.py does once it has its weights: merge, save, draw.

<save_ckpt_path>/without_<target>_checkpoint.pt   the initialisation for each target
<save_ckpt_path>/final_weight.tsv                 target, source, weight
<save_ckpt_path>/layer_weight.tsv                 target, layer, source, weight, where every layer has its own
<save_ckpt_path>/hot_pic_all.png                  targets down, sources across, effective number of sources at the side
<save_ckpt_path>/config.json                      what they were made from: flags, digests of sources, tables, ...; its files

and, of a similarity by block or layer, whose ensembles lie in a folder per scope:

<save_ckpt_path>/overview_<target>.png            scopes down, sources across
<save_ckpt_path>/importance.tsv, .png             scope, spread of its weights
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from pewe.cli import log
from pewe.deltas.checkpoint import (
    MODEL,
    Checkpoints,
    check_made_for,
    ensemble_checkpoint,
    sources_hint,
    write_checkpoint,
)
from pewe.deltas.kinds import KINDS
from pewe.deltas.sources import source_files, source_names
from pewe.errors import UserError
from pewe.files import hold, numeric, provenance, read_json, read_record, read_table, write_record, write_table
from pewe.flags import check, default_of, flag, suggest
from pewe.identity import SEAL, deciding, file_digest, state_digest, unsealed
from pewe.merging.average import MEMORY
from pewe.merging.combine import CombineConfig
from pewe.merging.overview import save_overview
from pewe.merging.weights import softmax_weights, temperature_for, top_sources, warn_of_collapse
from pewe.own_tasks import declare, unknown_task
from pewe.reporting.plots import heat_map
from pewe.reporting.stats import effective_numbers
from pewe.setting import SETTING, TASK_LIST
from pewe.similarity.table import COLUMNS
from pewe.state import DeltaState, check_state
from task_list import METRICS, TASK_LISTS


@dataclass(frozen=True)
class EnsembleConfig(CombineConfig):
    """Settings that the unit_model scripts share; each script gives its own defaults from its constants."""

    delta: str = flag("adapter", "adapter, lora or prefix", choices=KINDS)
    source_ckpt_path: str = flag(
        "checkpoints/adapter/full_data", "folder with <source>/checkpoint-best.pt, or a list of sources", decides=False
    )
    save_ckpt_path: str = flag("checkpoints/adapter/ensemble", "folder of the ensembles", decides=False)
    task_list: str = flag(
        "",
        f"list of task_list.py: targets and sources (default: the script's TASK_LIST, {TASK_LIST} unless edited)",
        decides=False,
        choices=TASK_LISTS,
    )
    tasks: list[str] = flag([], "task names instead of a list", unique=True)
    source_tasks: list[str] = flag(
        [], "names of the sources (default: those of a list, else the tasks)", decides=False, unique=True
    )
    task_dir: str = flag(SETTING.task_dir, "data folder, whose tasks.toml declares tasks of one's own", decides=False)
    quiet: bool = flag(False, "warnings only", decides=False)

    def __post_init__(self) -> None:
        declare(self.task_dir)


@dataclass(frozen=True)
class SoftmaxConfig(EnsembleConfig):
    """What the scripts share whose weights are a softmax of similarities; the others have no such flags."""

    effective: float = flag(0.0, "choose the temperature so that the median effective number of sources is this", low=0)
    top_k: int = flag(
        0,
        "of weights from a similarity keep the largest K of each target, made to sum to 1; 1: the best source; 0: all",
        low=0,
    )


def ensemble_tasks(config: EnsembleConfig, default: Sequence[str] | str) -> list[str]:
    """The tasks that an ensemble script works on: those of its flags, else `default`, tasks or the name of a list.

    Raises UserError for a flag that is not allowed, an unknown task or list.
    """
    check(config)
    named = config.task_list or (default if isinstance(default, str) else "")
    if named and named not in TASK_LISTS:
        raise UserError(f"unknown list of tasks {suggest(named, TASK_LISTS)}")
    tasks = list(config.tasks or TASK_LISTS.get(named, default))
    for task in tasks:
        if task not in METRICS:
            raise UserError(unknown_task(task, config.task_dir))
        if tasks.count(task) > 1:
            raise UserError(f"{task!r} is named twice (--tasks, --task_list): a source would count twice in every mean")
    return tasks


def ensemble_sources(config: EnsembleConfig, tasks: Sequence[str]) -> list[str]:
    """The sources of an ensemble script, which need not be tasks."""
    return source_names(config.source_ckpt_path, config.source_tasks, tasks)


def read_states(folder: str, delta: str, tasks: Sequence[str], like: Checkpoints | None = None) -> Checkpoints:
    """The deltas of these sources in a folder or a list, all of the same kind, size and backbone; read one by one where large.

    A task may be a pair, TARGET/SOURCE. Raises UserError also where they are not like those that they are compared with.
    """
    paths = list(source_files(folder, tasks).values())
    states = Checkpoints(paths, delta, sources_hint(delta, folder)).loaded(MEMORY)
    if like is not None:
        known = {name: value for name, value in like.made_for.items() if name != MODEL and name in states.made_for}
        check_made_for(states.made_for, known, paths[0], f"they are compared with {like.paths[0]}, and must be like it")
        check_state(states[0], like.shapes, paths[0])
    return states


def ensemble_weights(
    config: SoftmaxConfig, S: Tensor, temperature: float, higher: bool, allowed: Tensor
) -> tuple[Tensor, float]:
    """Softmax weights (T, n) and the temperature used: the given one, or that of `--effective`. Warns of a collapse.

    `--top_k` leaves the temperature as it is: the softmax is then taken over the most similar sources alone.
    """
    if config.effective:
        own = {one.name: default_of(one) for one in fields(config)}
        if temperature != own.get("tem", own.get("temperature", temperature)):
            raise UserError(f"--effective chooses the temperature: {temperature:g} would not be used; give one of both")
        temperature = temperature_for(S, config.effective, higher, allowed)
    W = softmax_weights(S, temperature, higher, allowed)
    if config.effective:
        found = np.median(effective_numbers(W.numpy()))
        level = logging.WARNING if abs(found - config.effective) > 0.01 * config.effective else logging.INFO
        log.log(level, "temperature %.3g gives an effective number of sources of %.3g", temperature, found)
    if config.top_k:
        return softmax_weights(S, temperature, higher, top_sources(S, config.top_k, higher, allowed)), temperature
    warn_of_collapse(S, W, temperature, higher, allowed)
    return W, temperature


WEIGHTS, LAYER_WEIGHTS, RECORD = "final_weight.tsv", "layer_weight.tsv", "config.json"


def digests(tasks: Sequence[str], states: Sequence[DeltaState]) -> dict[str, str]:
    """Task -> fingerprint of its delta: an entry of what an ensemble was made from."""
    return {task: state_digest(state) for task, state in zip(tasks, states, strict=True)}


def read_similarity(path: Path) -> tuple[pd.DataFrame, bool | None]:
    """The table of a similarity, and whether higher is more similar where the `config.json` beside it says so.

    A table without one is a user's own. Raises UserError where it is not the table that the record is of, or not finished.
    """
    table = read_table(path, COLUMNS)
    table["value"] = numeric(table, "value", path)
    empty = [*table[COLUMNS[:3]].isna().any(axis=1), not len(table)]
    if any(empty):
        raise UserError(f"{path}, line {empty.index(True) + 2}: expected a target, a source, a scope and a value")
    for folder in (path.parent, path.parent.parent):  # a scope's folder lies in the measure's
        about = _about(folder / RECORD, path)
        if about is not None:
            return table, about
    return table, None


def _about(beside: Path, table: Path) -> bool | None:
    """The orientation in a record, checked against the table; None where there is none, or it is of something else."""
    content = read_json(beside) if beside.is_file() else {}
    record = unsealed(content)
    way_out = (
        "make the matrix again with its script, or copy the table alone into another folder and give --orientation"
    )
    if not isinstance(content, dict) or (record is None and {SEAL, "measure"} & content.keys()):
        raise UserError(f"{beside} is damaged, or of an earlier version: {way_out}")
    higher = content.get("higher_is_more_similar")
    if record and higher is not None:
        name = table.relative_to(beside.parent).as_posix()
        if not record["finished"]:
            raise UserError(f"{table} is not finished: start its script again")
        if file_digest(table) not in record["tables"].get(name, []):
            raise UserError(f"{table} is not the table that {beside} is of: {way_out}")
    if higher is not None and not isinstance(higher, bool):
        raise UserError(f"{beside}: higher_is_more_similar must be true or false, not {higher!r}")
    return higher


@dataclass
class Part:
    """The ensembles of one scope of the similarity: weights W (T, n), and the merged states in the order of the targets.

    `layers` are weights of each layer (T, n), where these differ: W is then their mean. `merged` may make the states when
    they are asked for; it is None where only the weights are wanted. `scope` is the folder of its files, empty where there
    is one scope only.
    """

    targets: Sequence[str]
    sources: Sequence[str]
    W: Tensor
    title: str
    merged: Iterable[DeltaState] | None
    scope: str = ""
    layers: Mapping[str, Tensor] = field(default_factory=dict)

    def frame(self) -> pd.DataFrame:
        """The weights by name, targets down and sources across."""
        return pd.DataFrame(self.W.numpy(), index=list(self.targets), columns=list(self.sources))

    def long(self, W: Tensor) -> pd.DataFrame:
        """Weights (T, n) as rows target, source, weight."""
        frame = pd.DataFrame(W.numpy(), index=pd.Index(list(self.targets), name="target"), columns=list(self.sources))
        return frame.reset_index().melt("target", var_name="source", value_name="weight")

    def files(self) -> list[str]:
        """Names of its files, from the folder of the ensemble."""
        targets = self.targets if self.merged is not None else []
        layers = [LAYER_WEIGHTS] if self.layers else []
        names = [WEIGHTS, *layers, "hot_pic_all.png", *(ensemble_checkpoint(Path(), target).name for target in targets)]
        return [f"{self.scope}/{name}" if self.scope else name for name in names]


def save(
    config: EnsembleConfig, parts: Sequence[Part], made_from: Mapping, made_for: Mapping, overview: Sequence[str] = ()
) -> None:
    """Write weights, pictures and checkpoints of every part, and the record of all of them.

    `made_from` is what decides them beside the flags, `made_for` what their sources were made for. What an earlier call
    left in the folder is removed first: no ensemble of other tasks, or of a call that was interrupted, stays there.
    """
    folder, files = Path(config.save_ckpt_path), [name for part in parts for name in part.files()]
    for part in parts:
        bad = part.frame()[~torch.isfinite(part.W).all(1).numpy()]
        if len(bad):
            raise UserError(f"the weights of target {bad.index[0]!r} are not finite numbers (the temperature?)")
    if len(parts) > 1:
        files += ["importance.tsv", "importance.png", *(f"overview_{target}.png" for target in overview)]
    for path in (folder / name for name in (*files, RECORD)):
        if path.is_dir():
            raise UserError(f"{path} is a folder; a file is to be written there")
    args = {**deciding(config), **made_from, **made_for}
    record = {"settings": args, "scopes": [part.scope for part in parts], "provenance": provenance()}
    with hold(folder, flag="--save_ckpt_path"):
        remove_earlier(folder)
        write_record(folder / RECORD, {**record, "finished": False, "files": dict.fromkeys(files)})
        for part in parts:
            _save_part(config, folder / part.scope, part, args)
        if len(parts) > 1:
            save_overview(folder, config.delta, {part.scope: part.frame() for part in parts}, overview)
        files = {name: file_digest(folder / name) for name in files}
        write_record(folder / RECORD, {**record, "finished": True, "files": files})


def remove_earlier(folder: Path) -> None:
    """Remove the files that the record of an earlier call lists, and any ensemble in the folder itself."""
    listed = (read_record(folder / RECORD) or {}).get("files", {})
    inside = [folder / name for name in listed if ".." not in Path(name).parts]
    checkpoints = [*inside, *folder.glob(ensemble_checkpoint(Path(), "*").name)]
    removed = {path for path in checkpoints if path.is_file() and path.is_relative_to(folder)}
    for path in removed:
        path.unlink()
    if removed:
        log.info("%s: removed %d files of an earlier call", folder, len(removed))


def _save_part(config: EnsembleConfig, folder: Path, part: Part, args: Mapping) -> None:
    """The files of one part, in its folder."""
    frame = part.frame()
    write_table(folder / WEIGHTS, part.long(part.W))
    if part.layers:
        rows = [part.long(W).assign(layer=layer) for layer, W in part.layers.items()]
        write_table(folder / LAYER_WEIGHTS, pd.concat(rows)[["target", "layer", "source", "weight"]])
    effective = pd.Series(effective_numbers(part.W.numpy()), index=frame.index)
    heat_map(frame, folder / "hot_pic_all.png", part.title, effective, "effective\nsources")
    log.info(
        "%s: weights of %d targets, effective number of sources: median %.1f", folder, len(frame), np.median(effective)
    )
    if part.merged is None:
        return
    for target, state, row in zip(part.targets, part.merged, part.W, strict=True):
        own = {**args, "weights": row.tolist()}
        write_checkpoint(ensemble_checkpoint(folder, target), config.delta, state, own)
    log.info("%s: %d checkpoints without_<task>_checkpoint.pt", folder, len(part.targets))
