"""Rules by hand."""

import torch

from pewe.merging.rules import RULES
from pewe.merging.statistics import Statistics


def merge_maps(rule: str, maps, found, weights, name: str = "q", **flags) -> torch.Tensor:
    """A rule applied to one map of every source, and its Grams or Fishers."""
    one = RULES[rule]
    statistics = [Statistics({one.statistics + name: tensor}, {}) for tensor in found]
    return one.apply([{name: M} for M in maps], torch.as_tensor(weights), one.flags(**flags), statistics)[name]
