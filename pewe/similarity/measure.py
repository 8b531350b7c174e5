"""What a measure is."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from pewe.data import Batch
from pewe.similarity.scoring import Sources


@dataclass(frozen=True)
class Measure:
    """What the loop must know about a measure besides its score."""

    name: str
    score: Callable[[Sources, Batch], dict[str, Tensor]]
    higher_is_more_similar: bool
    max_batches: Callable[[str], int | None] = lambda task: 1  # the original's budget for a target; None: all batches
    gradients: bool = False  # goes backwards: keeps the activations of every layer
    needs_target: bool = False  # compares with a delta tuned on the target: member 0 of the stack
