"""Whole models in folders: loaded with their checks, and how long a text may be for them."""

import re
from pathlib import Path

import torch
from torch import nn
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from pewe import tokenizer_files
from pewe.backbone import as_stored, check_finite, check_vocabulary, is_5, start_with_pad
from pewe.cli import log
from pewe.errors import UserError
from pewe.model_files import check_folder, loading

POSITIONS = re.compile(r"(.*\.)?(position_embeddings|embed_positions|wpe)")
A_LAYER = re.compile(r".*\.\d+\.")  # a name with a number: one of several layers


def load_tokenizer(model: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a local model folder. Raises UserError where there is none."""
    if not (Path(model) / "config.json").is_file():
        raise UserError(f"--model {model} is no model folder: expected config.json, *.safetensors and a tokenizer")
    check_folder(model)
    return tokenizer_files.load_tokenizer(model)


def model_config(model: str) -> PretrainedConfig:
    """The configuration in a model folder."""
    with loading(repr(model)):
        return AutoConfig.from_pretrained(model, trust_remote_code=False)


def load_model(kind: type, folder: str, new_head: bool = False, **settings) -> PreTrainedModel:
    """The model in a folder, in float32; `settings` take the place of those in its config.json.

    With `new_head` the head, and a pooler that the folder does not have, are random. Raises UserError for weights that are
    damaged, are not finite or do not fit the configuration, and for what this version of transformers computes otherwise.
    """
    with loading(repr(folder)):
        model, report = as_stored(kind, folder, dtype=torch.float32, **settings)
    if is_5() and model.config.model_type == "mt5" and model.config.tie_word_embeddings:
        raise UserError(f"{folder}: an mT5 with tie_word_embeddings, which transformers 5 does not scale; 4 is needed")
    body = f"{model.base_model_prefix}."
    missing = [
        name for name in report["missing_keys"] if not new_head or (name.startswith(body) and "pooler" not in name)
    ]
    dropped = [
        name for name in report["unexpected_keys"] if A_LAYER.match(name) and "num_hidden_layers" not in settings
    ]
    if wrong := [*missing, *dropped, *report["mismatched_keys"]]:
        raise UserError(f"{folder}: the weights do not fit config.json, e.g. {wrong[0]}")
    check_finite(folder, model)
    start_with_pad(folder, model.config)
    return model


def positions(model: nn.Module) -> int | None:
    """Tokens that a model with learned positions can read at most; None where there is no such limit."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding) and POSITIONS.fullmatch(name):
            return module.num_embeddings - (0 if module.padding_idx is None else module.padding_idx + 1)
    return None


def text_length(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, wanted: int) -> int:
    """Tokens of a text at most: as many as wanted, or as the model has positions for, which is said.

    Raises UserError where a text would have no token of its own, and for a tokenizer that the model does not fit.
    """
    check_vocabulary(model.name_or_path, model, tokenizer)
    if tokenizer.pad_token_id is None:
        raise UserError(f"--model {model.name_or_path}: its tokenizer has no token for padding")
    special = tokenizer.num_special_tokens_to_add()
    if wanted <= special:
        raise UserError(
            f"--max_length must be at least {special + 1}, not {wanted}: {special} tokens of it are special"
        )
    limit = positions(model) or wanted
    if limit < wanted:
        log.info("texts are cut to %d tokens, as many as the model has positions for (--max_length %d)", limit, wanted)
    return min(limit, wanted)
