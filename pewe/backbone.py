"""Load the frozen T5 and its tokenizer."""

import functools
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from transformers import (
    AutoConfig,
    AutoTokenizer,
    PreTrainedTokenizerBase,
    T5ForConditionalGeneration,
)

from pewe.cli import UserError, flag, suggest

transformers.logging.set_verbosity_error()
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass
class BackboneConfig:
    """The frozen model and where it runs."""

    model: str = flag(
        "google/t5-base-lm-adapt", "T5 v1.0 or v1.1: a folder or a hub id (the paper's is the default)", decides=False
    )
    tokenizer_path: str = flag("", "folder or hub id of the tokenizer (default: the model's)", decides=False)
    device: str = flag("auto", "auto, cpu or cuda", decides=False)
    dtype: str = flag("float32", "dtype of the backbone: float32 or bfloat16")


@dataclass
class Backbone:
    """The model, its tokenizer and its device."""

    model: T5ForConditionalGeneration
    tokenizer: PreTrainedTokenizerBase
    device: torch.device

    @property
    def pad(self) -> int:
        """Token id of the padding."""
        return self.model.config.pad_token_id


def load_backbone(config: BackboneConfig) -> Backbone:
    """Load a fresh model, to which a delta can be attached, and its tokenizer."""
    if config.dtype not in DTYPES:
        raise UserError(f"unknown --dtype {suggest(config.dtype, DTYPES)}")
    if config.device not in ("auto", "cpu", "cuda"):
        raise UserError(f"unknown --device {suggest(config.device, ('auto', 'cpu', 'cuda'))}")
    if config.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: no CUDA device is available (use --device cpu)")
    device = torch.device("cuda" if config.device != "cpu" and torch.cuda.is_available() else "cpu")
    _check_folder(config.model)
    tokenizer = _load_tokenizer(config.tokenizer_path or config.model)
    model = _load_model(config.model, DTYPES[config.dtype]).to(device)
    if len(tokenizer) > model.config.vocab_size + 100:
        raise UserError(
            f"the tokenizer has {len(tokenizer)} tokens, the model {config.model} only {model.config.vocab_size}"
        )
    return Backbone(model, tokenizer, device)


def _check_folder(name: str) -> None:
    if Path(name).exists() and not (Path(name) / "config.json").is_file():
        raise UserError(f"--model {name}: not a transformers folder, there is no config.json in it")
    if not Path(name).exists() and name.count("/") > 1:
        raise UserError(f"--model {name}: there is no such folder")


@functools.lru_cache(maxsize=2)
def _load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot load a tokenizer from {name!r}: {_first_line(error)}") from None
    if tokenizer.convert_tokens_to_ids("<extra_id_0>") in (None, tokenizer.unk_token_id):
        raise UserError(f"the tokenizer {name!r} has no token <extra_id_0>; is it a T5 tokenizer?")
    return tokenizer


def _load_model(name: str, dtype: torch.dtype) -> T5ForConditionalGeneration:
    try:
        kind = AutoConfig.from_pretrained(name).model_type
        if kind != "t5":
            raise UserError(f"--model {name}: a T5 is needed, this is a {kind!r} model")
        model, report = T5ForConditionalGeneration.from_pretrained(
            name, dtype=dtype, output_loading_info=True, attn_implementation="eager"
        )
    except UserError:
        raise
    except Exception as error:  # damaged files raise many kinds of errors in transformers
        raise UserError(f"cannot load the model {name!r}: {_first_line(error)}") from None
    wrong = [*report["missing_keys"], *report["mismatched_keys"]]
    if wrong:
        raise UserError(f"--model {name}: the weights do not fit config.json, e.g. {wrong[0]}")
    return model.eval()


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
