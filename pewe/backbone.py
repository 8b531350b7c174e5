"""Load the frozen T5 and its tokenizer."""

import copy
import functools
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from safetensors import safe_open
from transformers import (
    AutoConfig,
    MT5ForConditionalGeneration,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    T5ForConditionalGeneration,
    UMT5ForConditionalGeneration,
)

from pewe.cli import log
from pewe.errors import UserError
from pewe.flags import check
from pewe.hardware import bfloat16_gain, device_of
from pewe.identity import model_digest
from pewe.model_files import AUTO, DTYPE_NAMES, BackboneConfig, check_folder, json_object, loading
from pewe.state import read_stored
from pewe.tokenizer_files import load_tokenizer

transformers.logging.set_verbosity_error()
torch.set_flush_denormal(True)  # numbers below 1e-38, as sharp attention has them, take a CPU many times longer than 0
MODELS = {  # by the model_type of config.json: ByT5 and Flan-T5 are t5; mT5 is built alike; umT5 has a position bias in each layer
    "t5": T5ForConditionalGeneration,
    "mt5": MT5ForConditionalGeneration,
    "umt5": UMT5ForConditionalGeneration,
}
HEAD = "lm_head.weight"
DTYPES = {name: getattr(torch, name) for name in DTYPE_NAMES}


def _by_5(version: object) -> bool:
    """Whether a version of transformers is 5 or later."""
    major = str(version).split(".")[0]
    return major.isdigit() and int(major) >= 5


def is_5() -> bool:
    """Whether transformers here is 5 or later."""
    return _by_5(transformers.__version__)


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
    """Load a fresh model, to which a delta can be attached, and its tokenizer; raises UserError where they do not fit."""
    check(config)
    device = device_of(config)
    if config.dtype == AUTO:  # a record would not say which it was
        raise UserError("dtype auto: take the configuration that pewe.hardware.settled gives")
    if config.dtype == "bfloat16" and (gain := bfloat16_gain(device.type)) < 1:
        log.warning(
            "--dtype bfloat16: its products take %.1f times as long as those of float32 on this machine", 1 / gain
        )
    tokenizer = t5_tokenizer(config)
    model = _load_model(config.model, DTYPES[config.dtype])
    _check_tokens(config.model, model, tokenizer)
    return Backbone(model.to(device), tokenizer, device)


def frozen_backbone(config: BackboneConfig) -> Backbone:
    """As `load_backbone`, with the weights that this process has loaded for an earlier call where they are the same ones.

    The modules are new, so that another delta can be attached; the weights, which are shared, may not be changed.
    """
    key = (config.model, config.tokenizer_path, config.device, config.dtype)
    key += (model_digest(config.model, config.tokenizer_path),)
    if key not in _kept:
        _kept.clear()  # one at a time
        _kept[key] = load_backbone(config)
    kept = _kept[key]
    shared = {id(weight): weight for weight in (*kept.model.parameters(), *kept.model.buffers())}
    return Backbone(copy.deepcopy(kept.model, shared), kept.tokenizer, kept.device)


_kept: dict[tuple, Backbone] = {}


def t5_tokenizer(config: BackboneConfig) -> PreTrainedTokenizerBase:
    """The tokenizer alone; raises UserError for a model that is no T5, or a tokenizer that is not one of a T5."""
    check_t5(config.model)
    if config.tokenizer_path:
        check_folder(config.tokenizer_path, "--tokenizer_path", needs="")
    return _t5_tokenizer(config.tokenizer_path or config.model)


def check_finite(name: str, model: PreTrainedModel) -> None:
    """Raise UserError that names the first weight which is not finite."""
    for tensor_name, tensor in model.named_parameters():
        if tensor.numel() and not torch.stack(tensor.aminmax()).isfinite().all():
            raise UserError(f"--model {name}: the weight {tensor_name} is not finite")


def check_vocabulary(name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise UserError for token ids that the model has no embedding of."""
    rows = model.get_input_embeddings().num_embeddings
    if beyond := {token: number for token, number in tokenizer.get_vocab().items() if number >= rows}:
        some = ", ".join(sorted(beyond, key=beyond.get)[:5])
        raise UserError(f"--model {name} has embeddings of {rows} tokens, its tokenizer {len(beyond)} more: {some}")


# ---- a T5 and its tokenizer


@functools.lru_cache(maxsize=2)
def _t5_tokenizer(name: str) -> PreTrainedTokenizerBase:
    tokenizer = load_tokenizer(name)
    if tokenizer.convert_tokens_to_ids("<extra_id_0>") in (None, tokenizer.unk_token_id):
        raise UserError(f"the tokenizer {name!r} has no token <extra_id_0>; is it a T5 tokenizer?")
    return tokenizer


def check_t5(name: str) -> str:
    """Its model_type, by a folder or a hub's name without its weights. Raises UserError where it is no T5."""
    check_folder(name)
    with loading(f"the model {name!r}"):
        kind = AutoConfig.from_pretrained(name, trust_remote_code=False).model_type
        if kind not in MODELS:
            raise UserError(f"--model {name}: a T5 is needed ({', '.join(MODELS)}), this is a {kind!r} model")
    return kind


def _load_model(name: str, dtype: torch.dtype) -> T5ForConditionalGeneration:
    kind = check_t5(name)
    with loading(f"the model {name!r}"):
        _check_embedding(name)
        model, report = as_stored(
            MODELS[kind], name, dtype=dtype, ignore_mismatched_sizes=True, attn_implementation="eager"
        )
    for problem in ("mismatched", "missing", "unexpected"):
        if wrong := sorted(key if isinstance(key, str) else key[0] for key in report[f"{problem}_keys"]):
            raise UserError(
                f"--model {name}: config.json does not fit the weights, {len(wrong)} of which are {problem}, e.g. {wrong[0]}"
            )
    _check_head(Path(name), model)
    check_finite(name, model)
    return model.eval()


def as_stored(kind: type, name: str, **settings) -> tuple[PreTrainedModel, dict]:
    """`kind.from_pretrained` and its report; of a T5 config.tie_word_embeddings is whether the decoder's output is scaled.

    As in transformers 4, where that decides whether the head is the embedding too. transformers 5 says of every T5 that it is,
    loads a head of its own all the same, and leaves it out where it is the embedding. Whether the output is scaled it writes as
    scale_decoder_outputs, which 4 does not know.
    """
    stored, _ = PretrainedConfig.get_config_dict(name)
    of_t5 = stored.get("model_type") in MODELS
    if of_t5 and not is_5():
        settings["tie_word_embeddings"] = _scaled(stored)  # 5 ties encoder and decoder by it
    if Path(name).is_dir():  # a download has a bar
        transformers.logging.disable_progress_bar()
    model, report = kind.from_pretrained(name, output_loading_info=True, trust_remote_code=False, **settings)
    if of_t5:
        model.config.update(dict.fromkeys(("tie_word_embeddings", "scale_decoder_outputs"), _scaled(stored)))
        if not _scaled(stored) and hasattr(model, "lm_head"):
            report["missing_keys"] = _head_as_stored(model, Path(name), stored, set(report["missing_keys"]))
    return model, report


def _head_as_stored(model: PreTrainedModel, folder: Path, stored: dict, missing: set[str]) -> set[str]:
    """Give a T5 v1.1 a head of its own, where transformers 5 has left it out the embedding; the weights that are missing."""
    tied = model.lm_head.weight is model.shared.weight  # by 5, which does not say what is missing
    absent = HEAD in missing or (tied and folder.is_dir() and _stored(folder, HEAD)[1] is None)
    left_out = absent and _by_5(stored.get("transformers_version"))
    if left_out:
        model.lm_head.weight = model.shared.weight
    own_head(model)
    return missing | {HEAD} if absent and not left_out else missing - {HEAD}


def own_head(model: PreTrainedModel) -> PreTrainedModel:
    """A new T5 v1.1 with an output head of its own, which transformers 5 makes the embedding whatever its configuration says."""
    if model.lm_head.weight is model.shared.weight:
        model.lm_head.weight = torch.nn.Parameter(model.shared.weight.detach().clone())
    model.config.tie_word_embeddings = False
    return model


def without_numbers(name: str) -> T5ForConditionalGeneration:
    """A T5 of the sizes of this folder or hub's model, its weights on the device meta."""
    stored, _ = PretrainedConfig.get_config_dict(name)
    with torch.device("meta"):
        model = T5ForConditionalGeneration(AutoConfig.from_pretrained(name, trust_remote_code=False))
        return model if _scaled(stored) else own_head(model)


def _scaled(stored: dict) -> bool:
    """Whether a config.json says, or leaves it so, that the decoder's output is scaled before the head.

    transformers 4 says it by tie_word_embeddings, of which an mT5 that says nothing has none; 5 scales no mT5.
    """
    scaled, tied = stored.get("scale_decoder_outputs"), stored.get("tie_word_embeddings")
    if scaled is None and (stored["model_type"] != "mt5" or not _by_5(stored.get("transformers_version"))):
        scaled = stored["model_type"] != "mt5" if tied is None else tied
    return bool(scaled)


def _check_embedding(name: str) -> None:
    """Raise UserError for embeddings that are not of the size that config.json says, which not every version can name."""
    config = AutoConfig.from_pretrained(name, trust_remote_code=False)
    wanted = (config.vocab_size, config.d_model)
    path, table = _stored(Path(name), "shared.weight")
    if table is not None and table.shape != wanted:
        raise UserError(f"--model {name}: config.json says {wanted}, shared.weight of {path} is {tuple(table.shape)}")


def _check_head(folder: Path, model: T5ForConditionalGeneration) -> None:
    """Raise UserError where the weights have an output head of their own that config.json ties to the embedding."""
    if not model.config.tie_word_embeddings:
        return
    path, head = _stored(folder, HEAD)
    if head is not None and not head.to(model.dtype).equal(model.shared.weight):
        raise UserError(
            f"{path} has a lm_head.weight of its own, but config.json says (or leaves it so) tie_word_embeddings"
        )


def _stored(folder: Path, tensor: str) -> tuple[Path, torch.Tensor | None]:
    """A tensor of a folder's weights, whole or in shards, as they lie there, and its file; None where they have none."""
    for name in ("model.safetensors", "pytorch_model.bin"):  # in the order in which transformers looks for them
        path, index = folder / name, folder / f"{name}.index.json"
        if not path.is_file() and index.is_file():
            path = folder / json_object(index)["weight_map"].get(tensor, "")
        elif not path.is_file():
            continue
        if not path.is_file():
            return path, None
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                return path, file.get_tensor(tensor) if tensor in file.keys() else None  # noqa: SIM118
        return path, read_stored(path, mapped=True).get(tensor)
    return folder, None


def _check_tokens(name: str, model: T5ForConditionalGeneration, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise UserError for token ids that the model has no embedding of, and where both mean other special tokens."""
    check_vocabulary(name, model, tokenizer)
    config, rows = model.config, model.get_input_embeddings().num_embeddings
    for special in ("pad_token_id", "eos_token_id"):
        own, wanted = getattr(config, special), getattr(tokenizer, special)
        if own is None or own != wanted:
            raise UserError(f"--model {name}: {special} is {own} in config.json, {wanted} in the tokenizer")
    start_with_pad(name, config)
    if not 0 <= config.decoder_start_token_id < rows:
        raise UserError(
            f"--model {name}: decoder_start_token_id {config.decoder_start_token_id} is no token of the model"
        )


def start_with_pad(name: str, config: PretrainedConfig) -> None:
    """Give a configuration of an encoder-decoder that does not say it a T5's decoder_start_token_id: pad."""
    if config.is_encoder_decoder and getattr(config, "decoder_start_token_id", None) is None:
        log.warning(
            "%s: config.json has no decoder_start_token_id; a T5 starts with pad (%s)", name, config.pad_token_id
        )
        config.decoder_start_token_id = config.pad_token_id
