"""The similarity matrix of every measure: the plain way (benchmarks/plain.py) against get_similarity/, files to files.

    python -m benchmarks.scoring                                                            mini T5, 12 tasks of the mini gym
    python -m benchmarks.scoring --model FOLDER --task_dir FOLDER --task_list QA_task_list --name scoring_reference ...

The deltas are random, which costs the same as tuned ones. The values of both ways are compared.
"""

import contextlib
import io
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from statistics import median

import numpy as np
import torch

from benchmarks import measure, plain
from benchmarks.roofline import Config as Roofline
from benchmarks.roofline import flops, peaks_of
from get_similarity import MEASURES
from pewe.backbone import load_backbone
from pewe.batches import IGNORED
from pewe.cli import main
from pewe.data import find_prefixes, load_split, task_names
from pewe.deltas.attach import attach_delta
from pewe.deltas.checkpoint import task_checkpoint, write_checkpoint
from pewe.flags import flag
from pewe.similarity.config import SimilarityConfig, TargetConfig
from pewe.similarity.loop import budgeted_batches, run
from pewe.similarity.measure import Measure
from pewe.similarity.table import similarity_frame


@dataclass(frozen=True)
class Config(measure.Embedded, TargetConfig):
    """Flags of the similarity, with the embedded default, and of the benchmark."""

    predict_batch_size: int = flag(5, "dev lines per batch")
    as_original: bool = flag(True, "the same numbers as the plain way")
    pictures: bool = flag(False, "draw the heat maps, which the plain way does not have")
    measures: list[str] = flag(list(plain.SCORES), "measures")
    name: str = flag("scoring", "name of the result file")


@contextlib.contextmanager
def random_deltas(config: Config) -> Iterator[Config]:
    """The same flags with a random delta for every task as sources and references, every tensor N(0, 0.1^2)."""
    delta = attach_delta(load_backbone(config).model, config, 1)
    with tempfile.TemporaryDirectory() as folder:
        for number, task in enumerate(task_names(config)):
            generator = torch.Generator().manual_seed(number)
            shapes = {name: tensor.shape[1:] for name, tensor in delta.named.items()}
            state = {name: torch.randn(shape, generator=generator) * 0.1 for name, shape in shapes.items()}
            write_checkpoint(task_checkpoint(Path(folder), task), config.tune_method, state, {})
        yield replace(config, source_ckpt_path=folder, random_tuned_ckpt_path=folder)


def own_flags(measure: Measure, config: Config, **changes) -> SimilarityConfig:
    """The configuration of a measure from those flags that it has."""
    names = [field.name for field in fields(measure.config) if hasattr(config, field.name)]
    return measure.config(**{name: getattr(config, name) for name in names} | changes)


def needed(config: Config, tasks: list[str], measure: Measure) -> float:
    """FLOP that the matrix of a measure needs on real tokens: every source on the batches of every target."""
    backbone, total = load_backbone(config), 0.0
    for task in tasks:
        encoded = load_split(backbone.tokenizer, config, task, find_prefixes(Path(config.task_dir), task)[0], "dev")
        for batch in budgeted_batches(measure, own_flags(measure, config), backbone.pad, encoded):
            inputs, labels = batch.attention_mask.sum(1).tolist(), (batch.labels != IGNORED).sum(1).tolist()
            lines = [(range(n), range(m)) for n, m in zip(inputs, labels, strict=True)]
            found = flops(backbone.model.config, lines, config.adapter_size)
            total += found.update if measure.gradients else found.forward
    return len(tasks) * total


def bound(config: Config, tasks: list[str], ours: Measure, times: dict[str, list[float]]) -> dict[str, float]:
    """The ratio, were our time that of the products alone at the peak of this machine; for adapters without a reference only."""
    if ours.needs_target or config.tune_method != "adapter":
        return {}
    peak = peaks_of(Roofline(device=config.device, clock=config.clock))[config.dtype]
    return {"bound": round(median(times["plain"]) * peak() / needed(config, tasks, ours), 1)}


def compare(name: str, config: Config, folder: Path) -> dict:
    """Both ways in turns on one measure, into a fresh folder each time."""
    tasks, values, turns = task_names(config), {}, iter(range(1000))
    ours = MEASURES[name]

    def plain_way() -> None:
        values["plain"] = plain.matrix(name, config, tasks)

    def our_way() -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            table = run(ours, own_flags(ours, config, output_dir=f"{folder}/{name}_{next(turns)}"))
        summed = table.groupby(["target", "source"], sort=False)["value"].sum().reset_index()
        values["ours"] = similarity_frame(summed).loc[tasks, tasks].to_numpy()

    times = measure.in_turns({"plain": plain_way, "ours": our_way}, config.repeats, config.clock)
    error = np.abs(values["plain"] - values["ours"]).max() / np.abs(values["plain"]).max()
    more = bound(config, tasks, ours, times)
    return measure.row(name, times, largest_relative_difference=float(f"{error:.1e}"), **more)


def bench(config: Config) -> None:
    """All measures."""
    rows: list[dict] = []
    with random_deltas(config) as ready, tempfile.TemporaryDirectory() as folder:
        for name in config.measures:
            rows.append(compare(name, ready, Path(folder)))
            measure.write(config.name, config, rows)


if __name__ == "__main__":
    main(bench, Config, __doc__)
