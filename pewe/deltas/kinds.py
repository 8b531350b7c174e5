"""The kinds of delta by the name of their `--tune_method`: a new one is a module beside this file, its flags, an entry here.

The module of a kind is imported where a delta is attached, not before: merges and tables need none.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from importlib import import_module

from pewe.deltas.flags import AdapterFlags, LoraFlags, NoFlags, PemtFlags, PrefixFlags

GATES = "gates.tsv"  # of a run of PEMT: layer, source, weight


@dataclass(frozen=True)
class Kind:
    """What is known of a kind before it is attached."""

    maker: str  # "module:callable" of (model, config, stack) -> Tunable
    flags: type = NoFlags  # those that this kind reads: a run does not depend on those of the others
    describing: tuple[str, ...] = ()  # of `flags`, those by which equal tensors compute something else
    by_content: tuple[str, ...] = ()  # of `flags`, those that name deltas, of which a record holds the fingerprints
    texts: tuple[str, ...] = ()  # of `flags`, those that name a file of text which is read
    papers: bool = True  # tuned by the paper, so that --as_original restores the quirks of its trainer
    frozen: bool = True  # does not change the weights of the backbone
    scored: bool = True  # similarities and ensembles are of this kind
    stacks: bool = True  # several states at once
    sources: str = ""  # the kind of its source deltas, where that is another
    inits: Mapping[str, Mapping] = field(default_factory=dict)  # rows that only this kind has, instead of others: flags
    tables: Mapping[str, str] = field(
        default_factory=dict
    )  # beside a tested run's record: entry of their print -> name
    shown: tuple[str, ...] = ()  # further files there, to look at

    def load(self) -> Callable:
        """The callable that attaches a delta of this kind."""
        module, _, name = self.maker.partition(":")
        return getattr(import_module(module), name)

    def deciding(self) -> set[str]:
        """The flags of this kind by which a record knows it."""
        return {one.name for one in fields(self.flags)} - {*self.by_content}


_PEMT = {"stacks": False, "flags": PemtFlags, "by_content": ("experts", "expert_path"), "texts": ("task_descriptions",)}
_PEMT_INITS = {  # the whole of stage 2, and without one of its parts
    "PEMT": {},
    "PEMT_no_gate": {"pemt_gate": False},
    "PEMT_no_sparsity": {"sparsity": 0.0},
    "PEMT_no_prompt": {"pemt_prompt": False},
    "PEMT_no_adapter": {"pemt_adapter": False},
}

KINDS = {
    "adapter": Kind("pewe.deltas.adapter:adapter", AdapterFlags, ("adapter_type", "adapter_size")),
    "lora": Kind("pewe.deltas.lora:Lora", LoraFlags, ("lora_r", "lora_alpha")),
    "prefix": Kind("pewe.deltas.prefix:Prefix", PrefixFlags, ("prefix_num", "prefix_r")),
    "pemt_source": Kind(
        "pewe.deltas.pemt:PemtSource", **_PEMT, papers=False, scored=False, shown=("test_metrics.txt",)
    ),
    "pemt": Kind(
        "pewe.deltas.pemt:Pemt",
        **_PEMT,
        papers=False,
        scored=False,
        sources="pemt_source",
        inits=_PEMT_INITS,
        tables={"gates": GATES},
        shown=("gates.png", "test_metrics.txt"),
    ),
    "model": Kind("pewe.deltas.full:FullModel", frozen=False, scored=False, stacks=False),
}
SCORED = tuple(name for name, kind in KINDS.items() if kind.scored)
