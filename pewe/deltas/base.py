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
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pewe.cli import OriginalConfig, UserError, flag
from pewe.deltas.compat import DeltaBase
from pewe.packing import Layout

DeltaState = dict[str, Tensor]  # original parameter names, no leading axis
WIDEST = 2**16  # of a bottleneck, rank or prefix: more than any T5's width
TUNE_METHODS: dict[str, type | None] = {}  # both are filled where the kinds are known, in pewe/deltas/__init__.py
ADAPTER_TYPES: dict[str, type] = {}
Initialiser = Callable[[torch.Size, torch.Generator], Tensor]


@dataclass
class DeltaConfig(OriginalConfig):
    """Kind and size of a delta; the defaults are the paper's (1,105,920 parameters each on T5-base)."""

    tune_method: str = flag(
        "adapter",
        "adapter, lora, prefix, pemt_source and pemt (its two stages), or model (full fine-tuning)",
        choices=TUNE_METHODS,
    )
    adapter_type: str = flag(
        "houlsby", "houlsby (after every sub-layer) or pfeiffer (after the feed-forward only)", choices=ADAPTER_TYPES
    )
    adapter_size: int = flag(12, "bottleneck r of an adapter", low=1, high=WIDEST)
    lora_r: int = flag(10, "rank of LoRA", low=1, high=WIDEST)
    lora_alpha: float = flag(16.0, "LoRA's scale is alpha / r", above=0)
    prefix_num: int = flag(120, "number of prefix vectors P", low=1, high=WIDEST)
    prefix_r: int = flag(24, "bottleneck of the prefix network", low=1, high=WIDEST)
    apply_adapter: bool = flag(False, "same as --tune_method adapter (the original's scripts give both)")
    apply_lora: bool = flag(False, "same as --tune_method lora")
    apply_prefix: bool = flag(False, "same as --tune_method prefix")
    expert_rank: int = flag(64, "PEMT, stage 1: rank of an expert", low=1, high=WIDEST)
    expert_path: str = flag(
        "checkpoints/pemt/stage1", "PEMT, stage 2: folder with <source>/checkpoint-best.pt", decides=False
    )
    experts: list[str] = flag(
        [],
        "PEMT, stage 2: names or lists of the sources, in order (default: all tasks but the target)",
        unique=True,
        name=True,
    )
    target_adapter_size: int = flag(
        0, "PEMT: bottleneck of the target adapter (0: d_model / 16, as the original)", low=0, high=WIDEST
    )
    sparsity: float = flag(0.1, "PEMT: coefficient of the sparsity loss; 0: without", low=0)
    prompt_dropout: float = flag(
        0.1, "PEMT: dropout of the target prompt's attention to the sources' prompts", low=0, high=1
    )
    pemt_gate: bool = flag(True, "PEMT: gates; without, every expert has the same weight")
    pemt_prompt: bool = flag(True, "PEMT: prompts; without, a gate reads the mean of the input's positions")
    pemt_adapter: bool = flag(True, "PEMT: target adapters")
    task_descriptions: str = flag("data/task_descriptions.tsv", "PEMT: file with task TAB sentence: the prompts' text")


def unread_flags(delta) -> set[str]:
    """The flags of DeltaConfig that this kind of delta does not read: no result depends on them."""
    return {field.name for field in fields(DeltaConfig)} - {"tune_method", "as_original", *delta.flags}


def normal(std: float) -> Initialiser:
    """N(0, std^2)."""
    return lambda shape, generator: torch.randn(shape, generator=generator) * std


def kaiming_uniform(shape: torch.Size, generator: torch.Generator) -> Tensor:
    """Kaiming uniform with a = sqrt(5) on a matrix (out, in): U(-1/sqrt(in), 1/sqrt(in))."""
    return (torch.rand(shape, generator=generator) * 2 - 1) / math.sqrt(shape[1])


def zeros(shape: torch.Size, generator: torch.Generator) -> Tensor:
    """All zeros; the generator is not used."""
    return torch.zeros(shape)


class NoDelta:
    """What a forward asks of a delta; this one changes nothing. Names are those of the model's modules."""

    stack = 1
    counts_padding = False  # padding must stand in the line, because something counts it

    def __init__(self, model: PreTrainedModel):
        self.backbone_model = model

    def project(self, name: str, x: Tensor, y: Tensor, layout: Layout) -> Tensor:
        """What becomes of y = x W^T of the linear layer `name`; lines (N, d_in), (N, d_out)."""
        return y

    def after(self, name: str, hidden: Tensor, layout: Layout) -> Tensor:
        """What becomes of the output of the sub-layer `name` (an attention or a feed-forward), a line (N, d)."""
        return hidden

    def prefix(self, side: str, layer: int) -> tuple[Tensor, Tensor] | None:
        """Keys and values in front of those of a self-attention, (K, heads, P, d_kv) each."""
        return None

    def prompt(self) -> Tensor | None:
        """Positions (P, d) in front of the encoder's input."""
        return None

    def start(self, layout: Layout, prompt: int) -> None:
        """Is told of the layout that the encoder works on, `prompt` positions of each row being the prompt's."""

    def encoded(self, hidden: Tensor) -> None:
        """Is told of the encoder's output on that layout, (N, d)."""


class Delta(DeltaBase, NoDelta):
    """Base of the paper-exact deltas. A subclass creates its sites in `update_module` and names their tensors.

    `named` maps each original parameter name to a parameter of shape (K, *original shape). Parameters are fp32 whatever
    the dtype of the backbone, and are cast to the dtype of the activations where they are used.
    """

    sites: tuple[str, ...] = ()  # endings of the names of the modules that receive a delta
    stacked = True  # tensors have the leading axis K
    flags: tuple[str, ...] = ()  # of DeltaConfig, those that this kind reads: a run does not depend on the others
    tensors_show: tuple[
        str, ...
    ] = ()  # of `flags`, those that do not change what given tensors compute, or that these show
    papers_trainer = True  # the paper tuned this kind, so that --as_original restores the quirks of its trainer

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

    def prepare(self, config) -> None:
        """What a subclass needs before its sites are created."""

    def expected_tensors(self, config) -> int:
        """The number of delta tensors that this kind has on a T5 with this config."""
        raise NotImplementedError

    def _check_sites(self, config) -> None:
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
        """Random init of a stack of `len(seeds)`: member k from `seeds[k]` alone (a text such as "42/boolq")."""
        generators = [torch.Generator().manual_seed(_number(seed)) for seed in seeds]
        for name, parameter in self.named.items():
            members = [self.initialisers[name](parameter.shape[1:], generator) for generator in generators]
            self._set(parameter, torch.stack(members).to(parameter.device))

    def load(self, states: Sequence[DeltaState]) -> None:
        """Fill the stack with these states; its size becomes `len(states)`. The states must have been checked."""
        for name, parameter in self.named.items():
            stacked = torch.stack([state[name].to(torch.float32) for state in states])
            self._set(parameter, stacked.to(parameter.device))

    def extra_loss(self) -> Tensor | float:
        """What this kind adds to the losses of its members, (K,) or a scalar, from the last forward."""
        return 0.0

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
