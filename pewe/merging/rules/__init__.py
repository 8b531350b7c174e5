"""The combiners, by name: from the states of N sources and their weights to one state.

A new one is a file in this folder with one pure function (its equation and where it comes from in its docstring), and an
entry below:

    rule(states, weights, flags[, statistics]) -> state

`states` are mappings name -> tensor with the same names and shapes, which may read a tensor when it is asked for; `weights`
are (n,), float64, one per source; `flags` is an instance of the entry's class of flags. What is combined (whole models,
LoRA's products, a prefix's rows) is said in `models.py`, `deltas.py` and `combine.py`; a rule knows none of it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from pewe.merging.rules.average import average
from pewe.merging.rules.core_space import CoreSpaceFlags, core_space
from pewe.merging.rules.dare import DareFlags, dare
from pewe.merging.rules.fisher import FisherFlags, fisher
from pewe.merging.rules.knots import KnotsFlags, knots
from pewe.merging.rules.regmean import RegMeanFlags, regmean
from pewe.merging.rules.svd import SvdFlags, svd
from pewe.merging.rules.task_arithmetic import TaskArithmeticFlags, task_arithmetic
from pewe.merging.rules.ties import TiesFlags, ties
from pewe.merging.statistics import FISHER, GRAM, Statistics
from pewe.state import DeltaState


@dataclass(frozen=True)
class NoFlags:
    """The flags of a rule that has none."""


@dataclass(frozen=True)
class Rule:
    """A combiner, and what it works on."""

    merge: Callable[..., DeltaState]
    flags: type = NoFlags  # a dataclass of `flag`s with defaults
    statistics: str = ""  # the statistics of every source that it takes as a fourth argument: GRAM, FISHER, "" none
    differences: bool = False  # takes and gives differences from a common base, tau_i = theta_i - theta_0
    by_tensor: bool = True  # tensor by tensor is the same as all at once (not so for a threshold over all of them)
    kinds: tuple[str, ...] = ()  # of deltas that it has a meaning for; empty: all, and whole models

    def apply(
        self, states: Sequence[DeltaState], weights: Tensor, flags: object, statistics: Sequence[Statistics] = ()
    ) -> DeltaState:
        """The merged state; the statistics are handed on if the rule takes any."""
        return self.merge(states, weights, flags, *([statistics] if self.statistics else []))


RULES = {
    "average": Rule(average),
    "fisher": Rule(fisher, FisherFlags, statistics=FISHER),
    "regmean": Rule(regmean, RegMeanFlags, statistics=GRAM),
    "task_arithmetic": Rule(task_arithmetic, TaskArithmeticFlags, differences=True),
    "ties": Rule(ties, TiesFlags, differences=True, by_tensor=False),
    "dare": Rule(dare, DareFlags, differences=True, by_tensor=False),
    "svd": Rule(svd, SvdFlags, by_tensor=False, kinds=("lora",)),
    "core_space": Rule(core_space, CoreSpaceFlags, by_tensor=False, kinds=("lora",)),
    "knots": Rule(knots, KnotsFlags, by_tensor=False, kinds=("lora",)),
}
