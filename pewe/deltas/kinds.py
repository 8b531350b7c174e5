"""The kinds of delta by the name of their `--tune_method`: a new one is a module beside this file, its flags, an entry here.

The module of a kind is imported where a delta is attached, not before: merges and tables need none.
"""

from collections.abc import Callable
from dataclasses import dataclass
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

    def load(self) -> Callable:
        """The callable that attaches a delta of this kind."""
        module, _, name = self.maker.partition(":")
        return getattr(import_module(module), name)


_STAGE_2 = ("target_adapter_size", "sparsity", "prompt_dropout", "pemt_gate", "pemt_prompt", "pemt_adapter")
_PEMT = ("expert_rank", *_STAGE_2, "task_descriptions")

KINDS = {
    "adapter": Kind("pewe.deltas.adapter:adapter", *2 * [("adapter_type", "adapter_size")]),
    "lora": Kind("pewe.deltas.lora:Lora", *2 * [("lora_r", "lora_alpha")]),
    "prefix": Kind("pewe.deltas.prefix:Prefix", *2 * [("prefix_num", "prefix_r")]),
    "pemt_source": Kind("pewe.deltas.pemt:PemtSource", _PEMT, papers=False, scored=False),
    "pemt": Kind("pewe.deltas.pemt:Pemt", _PEMT, papers=False, scored=False),
    "model": Kind("pewe.deltas.full:FullModel", scored=False),
}
