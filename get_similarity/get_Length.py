"""Length: how near the mean lengths of the inputs of two tasks are. The trivial rival: nothing of what a text says counts.

    S[i, j] = | l_i - l_j |,    l = mean over lines of the tokens of the input      lower is more similar

l_i is of the dev inputs of target i, l_j of the first training inputs of source j (`--full_train`, the default: of its
full training file). Inputs are those that tuning sees: with the task's name in front, and cut (`--max_input_length`).
"""

import pewe_environment  # noqa: F401

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from pewe.command import main

import torch
from torch import Tensor

from pewe.backbone import t5_tokenizer
from pewe.data import Encoded
from pewe.flags import flag
from pewe.similarity.loop import run
from pewe.similarity.tasks import OfTasks, Reader, TasksConfig


@dataclass(frozen=True)
class LengthConfig(TasksConfig):
    """Similarity of the lengths of two tasks."""

    forwards: ClassVar[int] = 0
    output_dir: str = flag("checkpoints/adapter/similarity/Length", "folder of result.tsv", decides=False)


def mean_length(lines: int, encoded: Encoded) -> float:
    """Tokens of an input, on average over the first lines."""
    inputs = encoded.inputs[:lines]
    return sum(map(len, inputs)) / len(inputs)


def reader(config: LengthConfig) -> Reader:
    """A task as its mean length; only the tokenizer is loaded."""
    return Reader(t5_tokenizer(config), partial(mean_length, config.text_lines))


def distances(targets: Mapping[str, float], sources: Mapping[str, float]) -> Tensor:
    """|l_i - l_j| of T targets and n sources in tokens, (T, n)."""
    of = [torch.tensor(list(lengths.values()), dtype=torch.float64) for lengths in (targets, sources)]
    return (of[0][:, None] - of[1]).abs()


MEASURE = OfTasks("Length", False, LengthConfig, reader, distances, unread=("max_output_length", "dtype")).measure()

if __name__ == "__main__":
    main(partial(run, MEASURE), MEASURE.config, __doc__)
