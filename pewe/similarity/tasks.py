"""Measures that compare two tasks by their lines and need no source delta: the table is target by source as for the others.

A task becomes something (`Reader`), of its dev lines as a target, of the first training lines as a source (`--full_train`,
the default: of its full training file); the measure says how alike these are. Lines are those that tuning sees, with the
task's name in front.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from pewe.backbone import BackboneConfig
from pewe.cli import log_settings, log_to
from pewe.data import Encoded, TaskConfig, load_split, sampled_prefixes, split_digest, task_names
from pewe.deltas.config import unread_flags
from pewe.files import hold, provenance
from pewe.flags import check, flag
from pewe.identity import deciding, model_digest
from pewe.meter import Work
from pewe.similarity.config import SimilarityConfig
from pewe.similarity.matrix import Matrix
from pewe.similarity.measure import Measure

TEXTS_OF = {"dev": "tasks", "train": "source_tasks"}  # split -> the flag that names its tasks


@dataclass(frozen=True)
class TasksConfig(BackboneConfig, TaskConfig):
    """Similarity of the texts of two tasks."""

    ignored = SimilarityConfig
    forwards: ClassVar[int] = 1  # of each line that is read; a backward pass counts as one
    source_tasks: list[str] = flag([], "names of the sources (default: the targets)", unique=True)
    output_dir: str = flag("checkpoints/adapter/similarity/TextEmb", "folder of result.tsv", decides=False)
    full_train: bool = flag(True, "the sources' texts are those of <task>_full_train.tsv, not of the few-shot file")
    text_lines: int = flag(100, "lines of a task at most, of the beginning of the file", low=1)
    predict_batch_size: int = flag(50, "lines per forward", decides=False, low=1)
    pictures: bool = flag(True, "draw a heat map", decides=False)
    quiet: bool = flag(False, "warnings only", decides=False)


@dataclass
class Reader:
    """What reads a task's lines: the tokenizer, and what a task becomes."""

    tokenizer: PreTrainedTokenizerBase
    read: Callable[[Encoded], Any]


@dataclass(frozen=True)
class OfTasks:
    """What is particular to a measure of this kind. `compare` gets what T targets and n sources became, returns (T, n)."""

    name: str
    higher_is_more_similar: bool
    config: type[TasksConfig]
    reader: Callable[[Any], Reader]
    compare: Callable[[Mapping[str, Any], Mapping[str, Any]], Tensor]
    unread: tuple[str, ...] = ()  # flags that it does not look at

    def measure(self) -> Measure:
        """Its entry in the registry."""
        matrix = partial(matrix_of_tasks, self)
        return Measure(self.name, None, self.higher_is_more_similar, config=self.config, matrix=matrix)


def matrix_of_tasks(about: OfTasks, config: TasksConfig) -> pd.DataFrame:
    """Compute the similarity matrix and write it; returns the table."""
    check(config)
    out = Path(config.output_dir)
    with hold(out):
        log_to(out / "log.txt", config.quiet)
        log_settings(config)
        reader = about.reader(config)
        texts = {
            split: {task: _split(reader, config, task, split) for task in task_names(config, flag, scored=False)}
            for split, flag in TEXTS_OF.items()
        }
        record = {
            "settings": identity(about, config, texts),
            "measure": about.name,
            "higher_is_more_similar": about.higher_is_more_similar,
            "provenance": provenance(),
        }
        rows = Matrix(out, record, list(texts["dev"]), list(texts["train"]))
        rows.spent = Work()  # all of it is made anew
        targets, sources = ({task: reader.read(encoded) for task, encoded in own.items()} for own in texts.values())
        for target, row in zip(texts["dev"], about.compare(targets, sources).tolist(), strict=True):
            rows.add(target, list(texts["train"]), {"all": row})
        return rows.finish(config.pictures)


def _split(reader: Reader, config: TasksConfig, task: str, split: str) -> Encoded:
    return load_split(reader.tokenizer, config, task, sampled_prefixes(config, task)[0], split)


def identity(about: OfTasks, config: TasksConfig, texts: Mapping[str, Mapping[str, Encoded]]) -> dict:
    """What decides a value of the matrix."""
    told = {"tasks", "source_tasks", "sample", "seed", "full_train", *about.unread}  # by the digests, or not read
    told |= unread_flags(config.tune_method) if hasattr(config, "tune_method") else set()
    return {
        "measure": about.name,
        **{flag: value for flag, value in deciding(config).items() if flag not in told},
        "backbone": model_digest(config.model, config.tokenizer_path),
        **{split: {task: split_digest(encoded) for task, encoded in own.items()} for split, own in texts.items()},
    }
