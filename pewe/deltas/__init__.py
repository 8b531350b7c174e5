"""The paper's three deltas, each holding K stacked members on one frozen stock T5; PEMT; full fine-tuning."""

from transformers import PreTrainedModel

from pewe.cli import UserError, check
from pewe.deltas.adapter import HoulsbyAdapter, PfeifferAdapter
from pewe.deltas.base import ADAPTER_TYPES, TUNE_METHODS, Delta, DeltaConfig, DeltaState, unread_flags
from pewe.deltas.full import FullModel
from pewe.deltas.lora import Lora
from pewe.deltas.pemt import Pemt, PemtSource
from pewe.deltas.prefix import Prefix

__all__ = [
    "ADAPTER_TYPES",
    "TUNE_METHODS",
    "Delta",
    "DeltaConfig",
    "DeltaState",
    "Pemt",
    "PemtSource",
    "attach_delta",
    "describing_flags",
    "unread_flags",
]

ADAPTER_TYPES.update(houlsby=HoulsbyAdapter, pfeiffer=PfeifferAdapter)
TUNE_METHODS.update(adapter=None, lora=Lora, prefix=Prefix, pemt_source=PemtSource, pemt=Pemt, model=FullModel)


def describing_flags(tune_method: str) -> tuple[str, ...]:
    """The flags of DeltaConfig by which equal tensors of this kind compute something else: scale, type and sizes."""
    kind = TUNE_METHODS[tune_method] or HoulsbyAdapter
    return tuple(name for name in kind.flags if name not in kind.tensors_show)


def attach_delta(model: PreTrainedModel, config: DeltaConfig, stack: int = 1) -> Delta:
    """Freeze `model` and insert `stack` deltas of this kind (all zero until `initialise` or `load`).

    Raises UserError for flags that are not allowed or contradict each other, or a model that is not a T5.
    """
    check(config)
    for method in ("adapter", "lora", "prefix"):
        if getattr(config, f"apply_{method}") and config.tune_method != method:
            raise UserError(f"--apply_{method} contradicts --tune_method {config.tune_method}")
    if getattr(model.config, "model_type", "") != "t5":
        raise UserError(f"the backbone must be a T5, not {getattr(model.config, 'model_type', type(model).__name__)!r}")
    kind = TUNE_METHODS[config.tune_method] or ADAPTER_TYPES[config.adapter_type]
    return kind(model, config, stack)
