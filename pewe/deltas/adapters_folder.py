"""Adapters as the library `adapters` (AdapterHub) stores them: `adapter_config.json` beside `pytorch_adapter.bin`.

Its bottleneck behind a sub-layer of a T5, with biases of zero and a scale of one, is ours: x + f(x A) B. In training, dropout comes
before it, ours behind it. Its prefix of a T5 is another function: keys move by the prefix's length, queries do not, so that the
relative bias sees other distances.
"""

import io
import json
import re
from pathlib import Path

import torch

from pewe.deltas.adapter import TYPES
from pewe.errors import UserError
from pewe.state import DeltaState

CONFIG, WEIGHTS = "adapter_config.json", "pytorch_adapter.bin"
PLACES = {"SelfAttention": "mh_adapter", "EncDecAttention": "cross_adapter", "DenseReluDense": "output_adapter"}
SIDES = {  # the sub-layers of a block
    "encoder": ("SelfAttention", "DenseReluDense"),
    "decoder": ("SelfAttention", "EncDecAttention", "DenseReluDense"),
}
TENSOR = re.compile(r"(encoder|decoder)\.block\.(\d+)\.layer\.\d\.adapter\.adapter_[AB]")
NAME = "pewe"  # of the adapter in the model
VERIFIED = "adapters.1.3.0"  # with which the function was found to be the same


def check_sites(state: DeltaState, kind: str, path: Path) -> None:
    """Raises UserError that names the first tensor that a block of this T5 lacks, or that this type has not."""
    blocks = dict.fromkeys(SIDES, 1)
    for name in state:
        if not (match := TENSOR.fullmatch(name)):
            raise UserError(f"{path}: tensor {name} is none of an adapter's")
        blocks[match[1]] = max(blocks[match[1]], int(match[2]) + 1)
    wanted = {
        f"{side}.block.{number}.layer.{place}.adapter.adapter_{letter}"
        for side, count in blocks.items()
        for number in range(count)
        for place in places(side, kind)
        for letter in "AB"
    }
    if lacking := sorted(wanted - state.keys()):
        raise UserError(f"{path} has no tensor {lacking[0]}; a {kind} adapter has one there in every block")
    if odd := sorted(state.keys() - wanted):
        raise UserError(f"{path} has a tensor {odd[0]}, where a {kind} adapter has none")


def places(side: str, kind: str) -> list[int]:
    """The sub-layers of a block of the encoder or decoder that have an adapter of this type."""
    return [place for place, name in enumerate(SIDES[side]) if name in TYPES[kind].sites]


def adapter_files(state: DeltaState, kind: str, model: str | None) -> dict[str, bytes]:
    """The two files of an adapter of this type and backbone."""
    content = io.BytesIO()
    torch.save(adapter_tensors(state), content)
    d, r = next(tensor for key, tensor in state.items() if key.endswith("adapter_A")).shape
    settings = adapter_config(kind, d, r, model)
    return {CONFIG: (json.dumps(settings, indent=2) + "\n").encode(), WEIGHTS: content.getvalue()}


def adapter_tensors(state: DeltaState) -> DeltaState:
    """A (d, r) and B (r, d) as weights of linear layers, whose biases are zero."""
    made = {}
    for key, tensor in state.items():
        place, _, which = key.rpartition(".adapter.")
        layer = f"{place}.adapters.{NAME}.{'adapter_down.0' if which == 'adapter_A' else 'adapter_up'}"
        made[f"{layer}.weight"] = tensor.mT.contiguous()
        made[f"{layer}.bias"] = torch.zeros(tensor.shape[1])
    return made


def adapter_config(kind: str, d: int, r: int, model: str | None) -> dict:
    """`adapter_config.json`. The library takes floor(d / reduction_factor) as the bottleneck."""
    about = TYPES[kind]
    own = {
        **{flag: site in about.sites for site, flag in PLACES.items()},
        "non_linearity": about.activation.__name__,
        "reduction_factor": d / (r + 0.5),
        "original_ln_before": False,
        "original_ln_after": True,
        "residual_before_ln": True,
        "adapter_residual_before_ln": False,
        "ln_before": False,
        "ln_after": False,
        "is_parallel": False,
        "scaling": 1.0,
        "dropout": 0.0,
    }
    return {
        "config": own,
        "hidden_size": d,
        "model_class": "T5ForConditionalGeneration",
        "model_name": model,
        "model_type": "t5",
        "name": NAME,
        "version": VERIFIED,
    }
