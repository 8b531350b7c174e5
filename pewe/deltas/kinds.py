"""The kinds of delta by the name of their `--tune_method`: a new one is a module beside this file, its flags, an entry here.

The module of a kind is imported where a delta is attached, not before: merges and tables need none.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module

ADAPTER_TYPES = ("houlsby", "pfeiffer")


@dataclass(frozen=True)
class Kind:
    """What is known of a kind before it is attached."""

    maker: str  # "module:callable" of (model, config, stack) -> Delta
    flags: tuple[str, ...] = ()  # of DeltaConfig, those that this kind reads: a run does not depend on the others
    describing: tuple[str, ...] = ()  # of `flags`, those by which equal tensors compute something else
    papers: bool = True  # tuned by the paper, so that --as_original restores the quirks of its trainer
    scored: bool = True  # similarities and ensembles are of this kind
    sources: str = ""  # the kind of its source deltas, where that is another
    inits: Mapping[str, Mapping] = field(
        default_factory=dict
    )  # rows that only this kind has, in place of all others: flags

    def load(self) -> Callable:
        """The callable that attaches a delta of this kind."""
        module, _, name = self.maker.partition(":")
        return getattr(import_module(module), name)


_STAGE_2 = ("target_adapter_size", "sparsity", "prompt_dropout", "pemt_gate", "pemt_prompt", "pemt_adapter")
_PEMT = ("expert_rank", *_STAGE_2, "task_descriptions")
_PEMT_INITS = {  # the whole of stage 2, and without one of its parts
    "PEMT": {},
    "PEMT_no_gate": {"pemt_gate": False},
    "PEMT_no_sparsity": {"sparsity": 0.0},
    "PEMT_no_prompt": {"pemt_prompt": False},
    "PEMT_no_adapter": {"pemt_adapter": False},
}

KINDS = {
    "adapter": Kind("pewe.deltas.adapter:adapter", *2 * [("adapter_type", "adapter_size")]),
    "lora": Kind("pewe.deltas.lora:Lora", *2 * [("lora_r", "lora_alpha")]),
    "prefix": Kind("pewe.deltas.prefix:Prefix", *2 * [("prefix_num", "prefix_r")]),
    "pemt_source": Kind("pewe.deltas.pemt:PemtSource", _PEMT, papers=False, scored=False),
    "pemt": Kind("pewe.deltas.pemt:Pemt", _PEMT, papers=False, scored=False, sources="pemt_source", inits=_PEMT_INITS),
    "model": Kind("pewe.deltas.full:FullModel", scored=False),
}
