"""What one step will take: runs, updates, seconds, memory and disk, from its configuration, the backbone and the data."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import pandas as pd
import torch

from get_similarity import MEASURES
from pewe.backbone import load_tokenizer, without_numbers
from pewe.data import SPLITS, task_names
from pewe.deltas.attach import attach_delta
from pewe.deltas.config import DeltaConfig
from pewe.deltas.tunable import Tunable
from pewe.errors import UserError
from pewe.flags import LARGEST
from pewe.grid import cost
from pewe.grid.step import Step
from pewe.grid.steps import Grid
from pewe.identity import model_folder, part
from pewe.merging import collect_deltas
from pewe.merging.few_shot import FewShotConfig
from pewe.model_files import check_folder
from pewe.reporting.stored import SOURCES
from pewe.similarity.config import SimilarityConfig
from pewe.similarity.tasks import TasksConfig
from pewe.tuning.config import TuneConfig, UpdateConfig
from pewe.tuning.memory import Shape, generation_bytes, update_bytes
from unit_model import ENSEMBLES

STATES = 3  # of a delta in a resume file: where it stands, its best, statistics of the optimiser
UNMEASURED = 0.5  # of the speed that the model assumes, on a device on which nothing was measured


@dataclass(frozen=True)
class Estimate:
    """Of a step. `how` says where the seconds come from."""

    runs: int = 0
    updates: int = 0
    seconds: float = 0.0
    memory: float = 0.0  # bytes at the peak, of one device
    disk: float = 0.0  # bytes that it will write
    how: str = ""


@dataclass(frozen=True)
class Timings:
    """Seconds of the runs of earlier calls, and whether they were made on a device like this one."""

    rows: pd.DataFrame
    device: str

    def seconds(self, delta: str, row: str) -> float | None:
        """Of a run of this kind, on average; None where there is none."""
        like = (self.rows["delta"] == delta) & ((self.rows["init"] == SOURCES) == (row == SOURCES))
        mean = self.rows["seconds"][like].mean()  # nan of none
        return float(mean) if mean >= 0 else None


def estimate(grid: Grid, step: Step, known: Timings) -> Estimate:
    """Of one step. Raises UserError for what is missing."""
    config = step.config
    if isinstance(config, TuneConfig):
        return of_tuning(grid, step, known)
    if isinstance(config, UpdateConfig):
        return of_unions(grid, step, known)
    if isinstance(config, SimilarityConfig):
        return of_similarity(step)
    flop, tasks = flop_of_lines(config), len(getattr(config, "tasks", ()))
    speed, how = device_speed() if flop else (1.0, "merging: 0.2 seconds a target")
    disk = tasks * state_bytes(tuning_of(grid))
    return Estimate(seconds=0.2 * tasks + flop / speed, memory=weights(config) if flop else 0.0, disk=disk, how=how)


def tuning_of(grid: Grid) -> TuneConfig:
    """The configuration of the tuning of a grid's sources."""
    return grid.step("sources").config


def updates_of(step: Step) -> int:
    """Of all runs of a step that tunes."""
    return step.cells * step.config.train_iters * step.config.do_train


def of_tuning(grid: Grid, step: Step, known: Timings) -> Estimate:
    """Of a step that tunes, or scores deltas as they are."""
    config, shapes, tasks = step.config, shapes_of(step.config), task_names(step.config)
    each = step.cells // len(tasks)
    splits = {task: {split: lines(config, task, split) for split in SPLITS} for task in tasks}
    timed = known.seconds(grid.delta, step.row) if step.row else None
    members = min(config.largest_stack, step.cells)
    seconds, how = step.cells * (timed or 0.0), f"finished runs of {grid.delta}, {known.device}"
    if timed is None:
        speed, how = device_speed()
        works = (cost.of_run(shapes, config, splits[task], size) for task in tasks for size in config.bsz_list)
        seconds = each / len(config.bsz_list) * sum(work.seconds(speed, members) for work in works)
    size = state_bytes(config)
    kept = max(held(config, members, splits[task]) for task in tasks)
    disk = step.cells * size * (1 + STATES)
    return Estimate(step.cells, updates_of(step), seconds, weights(config) + kept, disk, how)


def of_unions(grid: Grid, step: Step, known: Timings) -> Estimate:
    """Of deltas that a script of unit_model/ tunes itself, one for each target: as the sources, but no line of dev or test."""
    config = step.config
    own = vars(part(config, UpdateConfig))
    unseen = {"do_predict": False, "start_is_candidate": False, "trace_test": [], "valid_interval": LARGEST}
    about = replace(tuning_of(grid), **own, **unseen, bsz_list=config.bsz_list[:1], stack=config.stack)
    return of_tuning(grid, replace(step, config=about, cells=len(task_names(about)), row=""), known)


def held(config: TuneConfig, members: int, splits: Mapping[str, cost.Lines]) -> float:
    """Bytes of a stack beside the weights, at its peak: an update of the longest lines, or answers to them."""
    delta = on_meta(config)

    def shape(split: str, rows: int) -> Shape:
        (inputs, answers), rows = splits[split].longest, members * min(rows, splits[split].count)
        return Shape.of([inputs] * rows, [answers] * rows)

    update = shape("train", min(max(config.bsz_list), config.micro_batch_size))
    answers = shape("test", config.predict_batch_size)
    return max(
        update_bytes(delta, update, members) if config.do_train else 0,
        generation_bytes(delta, answers, config.max_output_length),
    )


def of_similarity(step: Step) -> Estimate:
    """Of a similarity: every source on the lines of every target that its measure takes; of memory, what is free."""
    config, shapes, tasks = step.config, shapes_of(step.config), task_names(step.config)
    measure = next(MEASURES[one.measure] for name, one in ENSEMBLES.items() if name == step.folder.name)
    flop = 0.0
    for task in tasks:
        dev = lines(config, task, "dev")
        batches = config.max_batches or measure.max_batches(config, task) or -1
        count = dev.count if batches < 0 else min(dev.count, batches * config.predict_batch_size)
        each = shapes.update(dev) if measure.gradients else shapes.forward(dev)
        flop += len(config.source_tasks or tasks) * count * each
    speed, how = device_speed()
    return Estimate(seconds=flop / speed, memory=weights(config), disk=100.0 * len(tasks) ** 2, how=how)


def flop_of_lines(config) -> float:
    """Of the lines that a step reads beside tuning and similarities: texts of tasks, statistics, searches for weights."""
    tasks = list(getattr(config, "tasks", ()))
    sources = list(getattr(config, "source_tasks", ())) or tasks
    if isinstance(config, TasksConfig):
        found = [*(lines(config, task, "dev") for task in tasks), *(lines(config, task, "train") for task in sources)]
        counts = [config.forwards * min(one.count, config.text_lines) for one in found]
    elif isinstance(config, FewShotConfig):
        found = [lines(config, task, config.reads) for task in tasks]
        counts = [config.forwards(one.count, len(sources) - 1) for one in found]
    elif isinstance(config, collect_deltas.Config):
        found = [lines(config, task, "train") for task in tasks]
        counts = [2 * min(one.count, config.examples) for one in found]
    else:
        return 0.0
    return sum(count * shapes_of(config).forward(one) for count, one in zip(counts, found, strict=True))


def device_speed() -> tuple[float, str]:
    """FLOP/s that the model of the cost assumes here, and where that is from."""
    peak, name = device_peak()
    share = 1.0 if name == "cpu" else UNMEASURED
    said = "" if name == "cpu" else f"{share:.0%} (assumed, nothing was measured on such a device) of "
    return share * peak, f"a model, {said}{peak / 1e9:.0f} GFLOP/s of a matrix product here, {name}"


@cache
def device_peak() -> tuple[float, str]:
    """FLOP/s of a large product of float32 on the device that a run would take, and its name; takes a tenth of a second."""
    cuda = torch.cuda.is_available()
    size, device = (4096, "cuda") if cuda else (1024, "cpu")
    a, best = torch.randn(size, size, device=device), float("inf")
    for _ in range(8):
        start = time.perf_counter()
        (a @ a)[0, 0].item()
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best, torch.cuda.get_device_name() if cuda else "cpu"


# ---- what is looked at once


def folder_of(model: str) -> Path:
    """Where a backbone lies. Raises UserError where it is not on this machine; nothing is downloaded."""
    check_folder(model)
    folder = model_folder(model)
    if folder is None:
        raise UserError(f"--model {model}: not on this machine; the first run would download it")
    return folder


def shapes_of(config) -> cost.Shapes:
    """Of the backbone."""
    return cost.shapes_in(folder_of(config.model))


_tokenizer = cache(load_tokenizer)


def lines(config, task: str, split: str) -> cost.Lines:
    """Of a split of a task. Raises UserError where it is not there."""
    return cost.split_lines(config, _tokenizer(config.tokenizer_path or str(folder_of(config.model))), task, split)


def state_bytes(config: TuneConfig) -> float:
    """Of one delta in float32."""
    return 4.0 * sum(tensor.numel() for tensor in on_meta(config).named.values())


def on_meta(config: TuneConfig) -> Tunable:
    """A delta of this kind on a backbone without numbers."""
    kind = part(config, DeltaConfig)
    if (config.model, repr(kind)) not in _deltas:
        _deltas[config.model, repr(kind)] = attach_delta(without_numbers(str(folder_of(config.model))), kind)
    return _deltas[config.model, repr(kind)]


_deltas: dict[tuple[str, str], Tunable] = {}


def weights(config) -> float:
    """Bytes of the backbone."""
    return shapes_of(config).parameters * (2.0 if config.dtype == "bfloat16" else 4.0)
