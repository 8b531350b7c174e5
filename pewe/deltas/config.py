"""The flags of the deltas."""

from dataclasses import dataclass, fields

from pewe.deltas.kinds import KINDS, SCORED
from pewe.flags import OriginalConfig, flag


def _flags_of(kinds: tuple[str, ...]) -> list[type]:
    """The classes of the flags of these kinds as bases, of which the last one's fields come first."""
    return list(dict.fromkeys(KINDS[kind].flags for kind in reversed(kinds)))


@dataclass(frozen=True)
class MethodConfig(OriginalConfig):
    """Which kind of delta."""

    tune_method: str = flag(
        "adapter",
        "adapter, lora, prefix, pemt_source and pemt (its two stages), or model (full fine-tuning)",
        choices=KINDS,
        also="delta",  # its name in unit_model/ and in the tables; `tune_method` stands in checkpoints and records
    )
    apply_adapter: bool = flag(False, "same as --tune_method adapter (the original's scripts give both)", hidden=True)
    apply_lora: bool = flag(False, "same as --tune_method lora", hidden=True)
    apply_prefix: bool = flag(False, "same as --tune_method prefix", hidden=True)


@dataclass(frozen=True)
class DeltaConfig(*_flags_of(tuple(KINDS)), MethodConfig):
    """Kind and size of a delta; the defaults are the paper's (1,105,920 parameters each on T5-base)."""


@dataclass(frozen=True)
class SizeConfig(*_flags_of(SCORED)):
    """Sizes of the kinds that similarities and ensembles are of."""


@dataclass(frozen=True)
class ScoredDeltaConfig(SizeConfig, MethodConfig):
    """Kind and size of such a delta."""


def unread_flags(tune_method: str) -> set[str]:
    """The flags of DeltaConfig that no record of this kind of delta holds: no result depends on them."""
    return {one.name for one in fields(DeltaConfig)} - {"tune_method", "as_original", *KINDS[tune_method].deciding()}
