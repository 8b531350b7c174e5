"""LoRA of the library PEFT in and out: the same function, the same numbers."""

import pytest
import torch
from conftest import random_batch, tiny_t5

from pewe.deltas.attach import attach_delta
from pewe.deltas.config import DeltaConfig
from pewe.deltas.peft_folder import targets_of

peft = pytest.importorskip("peft")

SHAPES = {
    "q and v": {},
    "rsLoRA": {"use_rslora": True},
    "all layers": {"target_modules": ["q", "k", "v", "o", "wi_0", "wi_1", "wo"], "r": 2},
    "mixed ranks": {"rank_pattern": {"encoder.*v": 5}, "alpha_pattern": {"decoder.*q": 1, "v": 3}},
    "a pattern": {"target_modules": r".*(SelfAttention|EncDecAttention)\.[qv]"},
}


def make_peft(out, seed=0, model=None, **changes):
    """A folder of PEFT with a random LoRA on the tiny T5."""
    settings = {"task_type": "SEQ_2_SEQ_LM", "r": 3, "lora_alpha": 5, "target_modules": ["q", "v"], **changes}
    made = peft.get_peft_model(model or tiny_t5(), peft.LoraConfig(**settings))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if "lora_" in name:
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    made.peft_config["default"].base_model_name_or_path = None
    made.save_pretrained(out)
    return out


def logits_of_peft(folder):
    """PEFT's own."""
    model = peft.PeftModel.from_pretrained(tiny_t5(), folder).eval()
    with torch.no_grad():
        return model(**random_batch(4)).logits


def logits_of(state, args):
    """Ours, on the stock model."""
    model = tiny_t5()
    targets = targets_of(state)
    config = DeltaConfig(tune_method="lora", lora_r=args["lora_r"], lora_alpha=args["lora_alpha"], lora_targets=targets)
    delta = attach_delta(model, config)
    delta.load([state])
    with torch.no_grad():
        return model(**random_batch(4)).logits


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A folder for each of the shapes."""
    out = tmp_path_factory.mktemp("peft")
    return {name: make_peft(out / name, **changes) for name, changes in SHAPES.items()}
