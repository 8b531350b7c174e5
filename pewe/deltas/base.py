"""A delta is a stack: K delta modules of one kind over one frozen T5.

Every tensor of a delta has a leading axis K. One forward of the shared backbone (`pewe/forward.py`) serves all K: the tokens
of all members stand in one line (N, d), and member k sees its own segment of it. K = 1 is the ordinary case.

opendelta attaches the sites to the stock model too: there an input of K*B sequences is read as (K, B, ...), rows
[k*B, (k+1)*B) go through member k. A site's formula is written once, for lines.

Symbols: K stacked deltas, N tokens, B sequences per member, S tokens of each, d = d_model, r the bottleneck,
h = num_heads * d_kv.
"""

import hashlib
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from pewe.deltas.compat import DeltaBase
from pewe.deltas.config import DeltaConfig
from pewe.deltas.tunable import Tunable
from pewe.errors import UserError
from pewe.state import DeltaState

Initialiser = Callable[[torch.Size, torch.Generator], Tensor]


def normal(std: float) -> Initialiser:
    """N(0, std^2)."""
    return lambda shape, generator: torch.randn(shape, generator=generator) * std


def kaiming_uniform(shape: torch.Size, generator: torch.Generator) -> Tensor:
    """Kaiming uniform with a = sqrt(5) on a matrix (out, in): U(-1/sqrt(in), 1/sqrt(in))."""
    return (torch.rand(shape, generator=generator) * 2 - 1) / math.sqrt(shape[1])


def zeros(shape: torch.Size, generator: torch.Generator) -> Tensor:
    """All zeros; the generator is not used."""
    return torch.zeros(shape)


class Delta(DeltaBase, Tunable):
    """Base of the paper-exact deltas. A subclass creates its sites in `update_module` and names their tensors.

    `named` maps each original parameter name to a parameter of shape (K, *original shape). Parameters are fp32 whatever
    the dtype of the backbone, and are cast to the dtype of the activations where they are used.
    """

    sites: tuple[str, ...] = ()  # endings of the names of the modules that receive a delta

    def __init__(self, model: PreTrainedModel, config: DeltaConfig, stack: int):
        DeltaBase.__init__(self, model, modified_modules=list(self.sites))
        self.delta_config, self._stack = config, stack
        self.delta_modules = nn.ModuleList()
        self.at: dict[str, nn.Module] = {}  # name of a module of the backbone -> its site
        self.named: dict[str, nn.Parameter] = {}
        self.initialisers: dict[str, Initialiser] = {}
        self.built_on: dict[str, str] = {}  # frozen deltas that this one needs, name -> fingerprint
        self.prepare(model.config)
        training = model.training
        self.add_all_delta_to_backbone(model, self.modified_modules)
        model.train(training)
        model.requires_grad_(False)
        for parameter in self.named.values():
            parameter.requires_grad_(True)
        self._check_sites(model.config)

    def _pseudo_data_to_instantiate(self, backbone: nn.Module | None = None) -> None:
        """opendelta would run a dummy forward here to find sizes (and hide its errors); ours come from the config."""

    def prepare(self, config: PretrainedConfig) -> None:
        """What a subclass needs before its sites are created."""

    def expected_tensors(self, config: PretrainedConfig) -> int:
        """The number of delta tensors that this kind has on a T5 with this config."""
        raise NotImplementedError

    def _check_sites(self, config: PretrainedConfig) -> None:
        expected = self.expected_tensors(config)
        if len(self.named) != expected:
            raise UserError(
                f"{self.delta_config.tune_method}: {len(self.named)} delta tensors were attached to this "
                f"{config.model_type} model, {expected} expected; only T5 v1.0 and v1.1 are supported"
            )

    def new_parameter(self, name: str, shape: Sequence[int], initialiser: Initialiser) -> nn.Parameter:
        """A parameter (K, *shape) under its original name, filled by `initialise` or `load`."""
        device = self.backbone_model.device
        parameter = nn.Parameter(torch.zeros(self._stack, *shape, device=device, dtype=torch.float32))
        self.named[name], self.initialisers[name] = parameter, initialiser
        return parameter

    @property
    def stack(self) -> int:
        """K, the number of deltas that this module holds now."""
        return next(iter(self.named.values())).shape[0]

    def initialise(self, seeds: Sequence[str]) -> None:
        """Random init."""
        generators = [torch.Generator().manual_seed(_number(seed)) for seed in seeds]
        for name, parameter in self.named.items():
            members = [self.initialisers[name](parameter.shape[1:], generator) for generator in generators]
            self._set(parameter, torch.stack(members).to(parameter.device))

    def load(self, states: Sequence[DeltaState]) -> None:
        """Fill the stack, whose size becomes `len(states)`."""
        for name, parameter in self.named.items():
            stacked = torch.stack([state[name].to(torch.float32) for state in states])
            self._set(parameter, stacked.to(parameter.device))

    def states(self) -> list[DeltaState]:
        """A copy on the CPU of each member's state, under the original names."""
        stacked = {name: parameter.detach().cpu() for name, parameter in self.named.items()}
        return [{name: tensor[k].clone() for name, tensor in stacked.items()} for k in range(self.stack)]

    def keep(self, members: Tensor) -> None:
        """Drop all members but these (indices into the stack)."""
        for parameter in self.named.values():
            self._set(parameter, parameter.detach()[members].clone())

    @staticmethod
    def _set(parameter: nn.Parameter, value: Tensor) -> None:
        parameter.grad = None
        parameter.data = value


def _number(seed: str) -> int:
    return int.from_bytes(hashlib.sha256(seed.encode()).digest()[:7], "big")


def equal_counts(hidden: Tensor, stack: int) -> list[int]:
    """The tokens of each member where all have as many, of (..., d)."""
    return [hidden.shape[:-1].numel() // stack] * stack


def layer_name(key: str) -> str:
    """`encoder.block.3.layer.1.DenseReluDense` -> `encoder.block.3.layer.1`."""
    return key.rsplit(".", 1)[0]
