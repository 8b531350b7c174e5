"""Full fine-tuning seen through the interface of a delta: a stack of one, whose tensors are the backbone's own."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from pewe.deltas.config import DeltaConfig
from pewe.deltas.tunable import Tunable
from pewe.errors import UserError
from pewe.state import DeltaState


class FullModel(Tunable):
    """`--tune_method model`. The tensors have no leading axis, so the stack is always 1."""

    stacked = False

    def __init__(self, model: PreTrainedModel, config: DeltaConfig, stack: int):
        if stack != 1:
            raise UserError("--tune_method model tunes the backbone itself: --stack must be 1")
        super().__init__(model)
        self.delta_config, self.built_on = config, {}
        model.requires_grad_(True)
        self.named = dict(model.named_parameters())
        self._start = {name: parameter.detach().clone() for name, parameter in self.named.items()}

    def initialise(self, seeds: Sequence[str]) -> None:
        """Back to the pre-trained weights, whatever the seed."""
        self.load([self._start])

    @torch.no_grad()
    def load(self, states: Sequence[DeltaState]) -> None:
        """Copy one state into the backbone."""
        (state,) = states
        for name, parameter in self.named.items():
            parameter.copy_(state[name])

    def states(self) -> list[DeltaState]:
        """One copy of the backbone's parameters, on the CPU."""
        return [{name: parameter.detach().cpu().clone() for name, parameter in self.named.items()}]

    def keep(self, members: Tensor) -> None:
        """A stack of one has nothing to drop."""
