"""What an experiment will take (`--dry_run`): runs, updates, hours, memory and disk of every step, and what is missing for it."""

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pandas as pd
import torch
from transformers import AutoConfig, T5ForConditionalGeneration

from get_similarity import MEASURES
from pewe.backbone import load_tokenizer
from pewe.data import SPLITS, sampled_prefixes, task_names
from pewe.deltas.attach import attach_delta
from pewe.deltas.config import DeltaConfig
from pewe.deltas.tunable import Tunable
from pewe.errors import UserError
from pewe.files import provenance, read_json, within
from pewe.grid import cost
from pewe.grid.experiment import Experiment
from pewe.grid.gather import known_rows
from pewe.grid.simulate import in_time
from pewe.grid.step import Step
from pewe.grid.steps import Grid, plan
from pewe.identity import cached_folder, part
from pewe.model_files import check_folder
from pewe.reporting.stored import SOURCES
from pewe.similarity.config import SimilarityConfig
from pewe.tuning.config import TuneConfig
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


def show_plan(experiment: Experiment) -> None:
    """Print every step with its state and what it will take, the whole, and what is missing before it can start."""
    known, todo, missing = timings(experiment), {}, set()
    for grid in experiment.todo:
        for step in plan(grid, experiment.config.init):
            why, stamp = step.missing(), step.stamp()
            about = ""
            if why:
                try:
                    todo[step.folder] = found = estimate(grid, step, known)
                    about = f", {described(found)}"
                except UserError as error:
                    missing.add(str(error))
                    todo[step.folder] = Estimate(step.cells, updates_of(step)) if step.row else Estimate()
            reason = f"  ({why})" if why and stamp else ""
            print(f"{'to do  ' if why else 'done   '} {step.name}  {step.cells} cells{about}{reason}")
    print(f"\nthe whole: {described(total(todo.values()))}")
    for how in sorted({found.how for found in todo.values() if found.how}):
        print(f"times: {how}")
    for line in sorted(missing | missing_data(experiment)):
        print(f"missing: {line}")
    if experiment.config.devices and all(found.how for found in todo.values()):
        show_devices(experiment, todo)


def missing_data(experiment: Experiment) -> set[str]:
    """What is wrong with the folders of the tasks, and with sources of one's own."""
    found = set(experiment.lacking())
    for config in {grid.delta: tuning_of(grid) for grid in experiment.todo}.values():
        for task in task_names(config):
            try:
                sampled_prefixes(config, task)
            except UserError as error:
                found.add(str(error))
    return found


def described(found: Estimate) -> str:
    """In words."""
    parts = [f"{found.runs} runs, {found.updates} updates"] * bool(found.runs)
    parts += [
        f"{hours(found.seconds)} of one device, peak {found.memory / 2**30:.1f} GiB, disk {found.disk / 2**30:.2f} GiB"
    ]
    return ", ".join(parts)


def hours(seconds: float) -> str:
    """A duration in the unit that fits."""
    return f"{seconds / 3600:.1f} hours" if seconds >= 3600 else f"{seconds / 60:.1f} minutes"


def total(found: Iterable[Estimate]) -> Estimate:
    """Of all steps; the memory is the largest."""
    found = list(found)
    memory = max((one.memory for one in found), default=0.0)
    sums = {name: sum(getattr(one, name) for one in found) for name in ("runs", "updates", "seconds", "disk")}
    return Estimate(**sums, memory=memory)


def show_devices(experiment: Experiment, todo: dict[Path, Estimate]) -> None:
    """The critical path, and the expected time on 1, 8, 64 and the devices that are asked for."""
    steps = [step for step in experiment.steps() if step.folder in todo]
    took = {step.folder: (max(1, parts_of(step)), todo[step.folder].seconds) for step in steps}
    longest, path = in_time(steps, took, 10**9)
    print(f"critical path: {hours(longest)}: {' > '.join(step.name for step in path)}")
    asked = [int(experiment.config.devices)] if experiment.config.devices.isdecimal() else []
    for devices in sorted({1, 8, 64, *asked}):
        print(f"on {devices} device{'s' * (devices > 1)}: {hours(in_time(steps, took, devices)[0])}")


def parts_of(step: Step) -> int:
    """The parts of a step; those of blocks or layers, which are not known before the ensemble is made, count as one."""
    try:
        return len(step.parts.names(step.config))
    except TypeError:
        return 1


# ---- one step


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


def timings(experiment: Experiment) -> Timings:
    """Of the stored results of the experiment; none where they are of another device."""
    known = known_rows(experiment.out / "cells.tsv", ["delta", "init", "seconds"])
    known["seconds"] = pd.to_numeric(known["seconds"], errors="coerce")
    device = within(read_json(experiment.out / "provenance.json"), "provenance", "device", kind=str)
    return Timings(known if device in (None, provenance()["device"]) else known[:0], provenance()["device"])


def estimate(grid: Grid, step: Step, known: Timings) -> Estimate:
    """Of one step. Raises UserError for what is missing."""
    config = step.config
    if isinstance(config, TuneConfig):
        return of_tuning(grid, step, known)
    if isinstance(config, SimilarityConfig):
        return of_similarity(step)
    tasks = len(getattr(config, "tasks", ()))
    return Estimate(seconds=0.2 * tasks, disk=tasks * state_bytes(tuning_of(grid)), how="merging: 0.2 seconds a target")


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
    return Estimate(step.cells, updates_of(step), seconds, weights(config, shapes) + kept, disk, how)


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
        flop += len(config.source_tasks or tasks) * count * shapes.forward(dev) * (2 if measure.gradients else 1)
    speed, how = device_speed()
    return Estimate(seconds=flop / speed, memory=weights(config, shapes), disk=100.0 * len(tasks) ** 2, how=how)


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
    folder = Path(model) if Path(model).is_dir() else cached_folder(model)
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
        with torch.device("meta"):
            backbone = T5ForConditionalGeneration(
                AutoConfig.from_pretrained(folder_of(config.model), trust_remote_code=False)
            )
        _deltas[config.model, repr(kind)] = attach_delta(backbone, kind)
    return _deltas[config.model, repr(kind)]


_deltas: dict[tuple[str, str], Tunable] = {}


def weights(config, shapes: cost.Shapes) -> float:
    """Bytes of the backbone."""
    return shapes.parameters * (2.0 if config.dtype == "bfloat16" else 4.0)
