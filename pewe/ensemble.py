"""What every unit_model/unit_model_*.py does once it has its weights: merge, save, draw.

<save_ckpt_path>/without_<target>_checkpoint.pt   the initialisation for each target
<save_ckpt_path>/final_weight.tsv                 target, source, weight
<save_ckpt_path>/hot_pic_all.png                  targets down, sources across, effective number of sources at the side

and, of a similarity by block or layer, whose ensembles lie in a folder per scope:

<save_ckpt_path>/overview_<target>.png            scopes down, sources across
<save_ckpt_path>/importance.tsv, .png             scope, spread of its weights
"""

import dataclasses
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from pewe.checkpoint import Checkpoints, ensemble_checkpoint, task_checkpoint, write_checkpoint
from pewe.cli import UserError, check, flag, log, suggest
from pewe.deltas import TUNE_METHODS, DeltaState
from pewe.identity import state_digest
from pewe.merge import MEMORY, merge
from pewe.plots import bars, heat_map
from pewe.results import write_config, write_table
from pewe.weights import effective_numbers, softmax_weights, temperature_for
from task_list import METRICS, TASK_LISTS


@dataclass
class EnsembleConfig:
    """Settings that the unit_model scripts share; each script gives its own defaults from its constants."""

    delta: str = flag("adapter", "adapter, lora or prefix", choices=TUNE_METHODS)
    source_ckpt_path: str = flag(
        "checkpoints/adapter/full_data", "folder with <source>/checkpoint-best.pt", decides=False
    )
    save_ckpt_path: str = flag("checkpoints/adapter/ensemble", "folder of the ensembles", decides=False)
    task_list: str = flag(
        "",
        "list of task_list.py: targets and sources (default: the script's constant)",
        decides=False,
        choices=TASK_LISTS,
    )
    tasks: list[str] = flag([], "task names instead of a list", unique=True)
    quiet: bool = flag(False, "warnings only", decides=False)
    effective: float = flag(0.0, "choose the temperature so that the median effective number of sources is this", low=0)


def ensemble_tasks(config: EnsembleConfig, default: Sequence[str]) -> list[str]:
    """The tasks that an ensemble script works on. Raises UserError for a flag that is not allowed or an unknown task."""
    check(config)
    for task in config.tasks:
        if task not in METRICS:
            raise UserError(f"task {suggest(task, METRICS)}")
    return list(config.tasks or TASK_LISTS.get(config.task_list, default))


def read_states(folder: str, delta: str, tasks: Sequence[str]) -> Sequence[DeltaState]:
    """The deltas of these tasks in a folder, all with the tensors of the first; read one by one where they are large."""
    paths = [task_checkpoint(Path(folder), task) for task in tasks]
    return Checkpoints(paths, delta, f"run scripts/{delta}.sh --full_train --output_dir {folder}").loaded(MEMORY)


def ensemble_weights(
    config: EnsembleConfig, S: Tensor, temperature: float, higher: bool, allowed: Tensor
) -> tuple[Tensor, float]:
    """Softmax weights (T, n) and the temperature used: the given one, or that of `--effective`. Warns of a collapse."""
    if config.effective:
        temperature = temperature_for(S, config.effective, higher, allowed)
    W = softmax_weights(S, temperature, higher, allowed)
    if config.effective:
        found = effective_numbers(W).quantile(0.5).item()
        level = logging.WARNING if abs(found - config.effective) > 0.01 * config.effective else logging.INFO
        log.log(level, "temperature %.3g gives an effective number of sources of %.3g", temperature, found)
    collapsed = effective_numbers(W) < 1.5
    if collapsed.float().mean() > 0.5 and allowed.sum(1).median() > 3:
        advice = temperature_for(S, 3, higher, allowed)
        log.warning("with tem %g, %d of %d targets take almost all their weight from one source; tem %.3g would give an "
                    "effective number of 3 (--effective 3)", temperature, collapsed.sum(), len(collapsed), advice)  # fmt: skip
    return W, temperature


def save_weights(
    config: EnsembleConfig, targets: Sequence[str], sources: Sequence[str], W: Tensor, title: str
) -> pd.DataFrame:
    """Write `final_weight.tsv`, `config.json` and the heat map; returns the weights, targets down and sources across."""
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
    return frame


def save_overview(config: EnsembleConfig, weights: dict[str, pd.DataFrame], targets: Sequence[str]) -> None:
    """Draw the weights of each of these targets in every scope, and the importance of the scopes.

    The importance of a scope is the spread of its weights: their standard deviation over the sources other than the
    target, averaged over the targets. Equal weights everywhere have spread 0: the scope does not tell sources apart.
    """
    folder = Path(config.save_ckpt_path)
    for target in targets:
        rows = pd.DataFrame({scope: frame.loc[target] for scope, frame in weights.items()}).T
        title = f"{config.delta}: weights for {target}"
        heat_map(rows, folder / f"overview_{target}.png", title, down="scope")
    spread = pd.Series({scope: _spread(frame) for scope, frame in weights.items()}, name="spread")
    write_table(folder / "importance.tsv", spread.rename_axis("scope").reset_index())
    bars(spread, folder / "importance.png", f"{config.delta}: importance", "spread of the weights (standard deviation)")
    log.info("%s: overview of %s, and the importance of %d scopes", folder, ", ".join(targets), len(spread))


def _spread(frame: pd.DataFrame) -> float:
    """Mean over targets of the standard deviation of the weights of the other tasks."""
    return float(np.mean([row.drop(target, errors="ignore").std(ddof=0) for target, row in frame.iterrows()]))


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
