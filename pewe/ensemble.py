"""What every unit_model/unit_model_*.py does once it has its weights: merge, save, draw.

<save_ckpt_path>/without_<target>_checkpoint.pt   the initialisation for each target
<save_ckpt_path>/final_weight.tsv                 target, source, weight
<save_ckpt_path>/hot_pic_all.png                  targets down, sources across, effective number of sources at the side
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from pewe.checkpoint import (
    ensemble_checkpoint,
    read_checkpoint,
    shapes_of_state,
    state_digest,
    task_checkpoint,
    write_checkpoint,
)
from pewe.cli import UserError, flag, log, suggest
from pewe.deltas import TUNE_METHODS, DeltaState
from pewe.merge import merge
from pewe.plots import heat_map
from pewe.results import write_config, write_table
from pewe.weights import effective_numbers
from task_list import METRICS, TASK_LISTS


@dataclass
class EnsembleConfig:
    """Settings that the unit_model scripts share; each script gives its own defaults from its constants."""

    delta: str = flag("adapter", "adapter, lora or prefix")
    source_ckpt_path: str = flag("checkpoints/adapter/full_data", "folder with <source>/checkpoint-best.pt")
    save_ckpt_path: str = flag("checkpoints/adapter/ensemble", "folder of the ensembles")
    task_list: str = flag("", "list of task_list.py: targets and sources (default: the script's constant)")
    tasks: list[str] = flag([], "task names instead of a list")


def ensemble_tasks(config: EnsembleConfig, default: Sequence[str]) -> list[str]:
    """The tasks that an ensemble script works on. Raises UserError for an unknown delta, list or task."""
    if config.delta not in TUNE_METHODS:
        raise UserError(f"unknown --delta {suggest(config.delta, TUNE_METHODS)}")
    if config.task_list and config.task_list not in TASK_LISTS:
        raise UserError(f"unknown --task_list {suggest(config.task_list, TASK_LISTS)}")
    for task in config.tasks:
        if task not in METRICS:
            raise UserError(f"task {suggest(task, METRICS)}")
    return list(config.tasks or TASK_LISTS.get(config.task_list, default))


def read_states(folder: str, delta: str, tasks: Sequence[str]) -> list[DeltaState]:
    """The deltas of these tasks in a folder, all with the tensors of the first."""
    states: list[DeltaState] = []
    for task in tasks:
        hint = f"run scripts/{delta}.sh --full_train --output_dir {folder}"
        shapes = shapes_of_state(states[0]) if states else None
        states.append(read_checkpoint(task_checkpoint(Path(folder), task), delta, shapes, hint))
    return states


def save_weights(config: EnsembleConfig, targets: Sequence[str], sources: Sequence[str], W: Tensor, title: str) -> Path:
    """Write `final_weight.tsv`, `config.json` and the heat map; returns the folder."""
    folder = Path(config.save_ckpt_path)
    frame = pd.DataFrame(W.numpy(), index=list(targets), columns=list(sources))
    write_table(
        folder / "final_weight.tsv",
        frame.rename_axis("target").reset_index().melt("target", var_name="source", value_name="weight"),
    )
    write_config(folder, config)
    effective = pd.Series(effective_numbers(W).numpy(), index=list(targets))
    heat_map(frame, folder / "hot_pic_all.png", title, effective, "effective\nsources")
    log.info(
        "%s: weights of %d targets, effective number of sources: median %.1f",
        folder,
        len(targets),
        np.median(effective),
    )
    return folder


def save_ensembles(config: EnsembleConfig, targets: Sequence[str], states: Sequence[DeltaState], W: Tensor) -> None:
    """Merge the states by the weights (T, n) and write the checkpoint of every target."""
    folder = Path(config.save_ckpt_path)
    args = {"sources": [state_digest(state) for state in states], **dataclasses.asdict(config)}
    for target, state, row in zip(targets, merge(states, W), W, strict=True):
        write_checkpoint(ensemble_checkpoint(folder, target), config.delta, state, {**args, "weights": row.tolist()})
    log.info("%s: %d checkpoints without_<task>_checkpoint.pt", folder, len(targets))


def as_tensor(frame: pd.DataFrame) -> Tensor:
    """The values of a matrix as float64, 0 on the diagonal where it is missing."""
    return torch.tensor(frame.fillna(0.0).to_numpy(dtype=float))
