"""What a measure is."""

from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd
from torch import Tensor

from pewe.batches import Batch
from pewe.similarity.config import SimilarityConfig
from pewe.similarity.scoring import Sources


@dataclass(frozen=True)
class Measure:
    """What the loop must know about a measure besides its score."""

    name: str
    score: Callable[[Sources, Batch], dict[str, Tensor]] | None
    higher_is_more_similar: bool
    max_batches: Callable[[SimilarityConfig, str], int | None] = lambda config, task: 1  # the original's; None: all
    gradients: bool = False  # goes backwards: keeps the activations of every layer
    random: bool = False  # depends on the seed
    needs_target: bool = False  # compares with a delta tuned on the target: member 0 of the stack
    config: type[SimilarityConfig] = SimilarityConfig  # the flags of its command
    matrix: Callable[[SimilarityConfig], pd.DataFrame] | None = None  # computes it alone, without any delta
