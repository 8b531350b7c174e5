"""From a model and flags to a stack of deltas."""

from transformers import PreTrainedModel

from pewe.backbone import MODELS, Backbone, frozen_backbone, load_backbone
from pewe.deltas.config import MethodConfig
from pewe.deltas.kinds import KINDS
from pewe.deltas.tunable import Tunable
from pewe.errors import UserError
from pewe.flags import check


def attached(config: MethodConfig, stack: int = 1) -> tuple[Backbone, Tunable]:
    """The backbone of a configuration (a BackboneConfig too), and `stack` deltas of its kind on it, as `attach_delta`.

    Backbones of one process that no delta changes share their weights.
    """
    backbone = (frozen_backbone if KINDS[config.tune_method].frozen else load_backbone)(config)
    return backbone, attach_delta(backbone.model, config, stack)


def attach_delta(model: PreTrainedModel, config: MethodConfig, stack: int = 1) -> Tunable:
    """Freeze `model` and insert `stack` deltas of this kind (all zero until `initialise` or `load`).

    Raises UserError for flags that are not allowed or contradict each other, or a model that is not a T5.
    """
    check(config)
    for method in ("adapter", "lora", "prefix"):
        if getattr(config, f"apply_{method}") and config.tune_method != method:
            raise UserError(f"--apply_{method} contradicts --tune_method {config.tune_method}")
    if getattr(model.config, "model_type", "") not in MODELS:
        raise UserError(f"the backbone must be a T5, not {getattr(model.config, 'model_type', type(model).__name__)!r}")
    return KINDS[config.tune_method].load()(model, config, stack)
