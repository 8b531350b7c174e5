"""The tokenizer of a model's folder: the same token ids under transformers 4 and 5.

What turns a text into ids is read here: tokenizer.json as it stands, else the pieces of a T5 (spiece.model) as the kind of
model that they are. The classes of transformers 5 build their own instead, and a Unigram of every T5's pieces.
"""

from pathlib import Path

from sentencepiece.sentencepiece_model_pb2 import ModelProto
from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE, Unigram
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.models.auto.tokenization_auto import get_tokenizer_config
from transformers.utils import cached_file

from pewe.errors import UserError
from pewe.model_files import loading

UNIGRAM, BYTE_PAIRS = 1, 2  # trainer_spec.model_type of sentencepiece
CONTROL, USER_DEFINED = 3, 4  # the type of a piece
SPACE = "\u2581"
T5_CLASSES = (
    "T5Tokenizer",
    "MT5Tokenizer",
    "t5",
    "mt5",
    "umt5",
)  # by tokenizer_class, or where none is named by model_type


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder or of a hub's model, saved by transformers 4 or 5."""
    with loading(f"a tokenizer from {name!r}"):
        saved = get_tokenizer_config(name)
        if not isinstance(saved, dict):
            raise ValueError("tokenizer_config.json is not a JSON object")
        of_t5 = _class(name, saved).removesuffix("Fast") in T5_CLASSES
        settings = _special_tokens(saved, of_t5)
        if backend := _backend(name, saved, of_t5):
            settings["tokenizer_object"] = backend
        plain = of_t5 or saved.get("tokenizer_class") == "TokenizersBackend"
        kind = (
            PreTrainedTokenizerFast if plain else AutoTokenizer
        )  # the class of a T5 in transformers 5 cannot have BPE
        if plain and not saved:
            return kind(**settings)
        tokenizer = kind.from_pretrained(name, trust_remote_code=False, **settings)
        if not isinstance(tokenizer, PreTrainedTokenizerBase):  # False for a vocabulary that transformers 4 cannot read
            raise ValueError("its files hold no tokenizer")
        if not tokenizer.get_vocab().keys() - set(tokenizer.all_special_tokens):  # what 5 makes where there is no file
            raise ValueError("there is no vocabulary")
        return tokenizer


def _special_tokens(saved: dict, of_t5: bool) -> dict:
    """The settings of a tokenizer_config.json to be read otherwise, or that a T5's has where it does not name them.

    transformers 5 saves as extra_special_tokens the list that 4 calls additional_special_tokens, and reads both.
    """
    listed, extra = saved.get("additional_special_tokens"), saved.get("extra_special_tokens")
    settings = {}
    if isinstance(extra, list):
        listed = listed or extra
        settings = {"extra_special_tokens": {}, "additional_special_tokens": listed}
    if of_t5:
        sentinels = [] if any("<extra_id_" in str(token) for token in listed or ()) else _sentinels(saved)
        settings["additional_special_tokens"] = [*(listed or ()), *sentinels]
        settings["model_input_names"] = ["input_ids", "attention_mask"]
        named = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
        settings |= {key: token for key, token in named.items() if not saved.get(key)}
    return settings


def _sentinels(saved: dict) -> list[str]:
    return [f"<extra_id_{number}>" for number in range(saved.get("extra_ids", 100))]


def _backend(name: str, saved: dict, of_t5: bool) -> Tokenizer | None:
    """What turns texts into ids; None where only transformers knows (bytes, or the vocabulary of another model)."""
    if file := _file(name, "tokenizer.json"):
        return Tokenizer.from_file(str(file))
    if not of_t5:
        return None
    if file := _file(name, "spiece.model"):
        return from_pieces(file, saved)
    raise ValueError("there is neither tokenizer.json nor spiece.model")


def _file(name: str, file: str) -> Path | None:
    found = cached_file(name, file, _raise_exceptions_for_missing_entries=False)
    return found and Path(found)


def _class(name: str, saved: dict) -> str:
    if kind := saved.get("tokenizer_class"):
        if not isinstance(kind, str):
            raise ValueError(f"tokenizer_class is {kind!r} in tokenizer_config.json, not a name")
        return kind
    config = AutoConfig.from_pretrained(name, trust_remote_code=False)
    return getattr(config, "tokenizer_class", None) or config.model_type


# ---- the pieces of a T5


def from_pieces(path: Path, saved: dict) -> Tokenizer:
    """The tokenizer of a spiece.model (sentencepiece, Unigram or BPE) with T5's sentinels behind its pieces and T5's end.

    `saved` is its tokenizer_config.json. The ids are those of transformers 4. Raises UserError for a file that is neither kind.
    """
    model = ModelProto()
    model.ParseFromString(path.read_bytes())
    if not model.pieces:
        raise UserError(f"{path} holds no pieces")
    scores = {piece.piece: piece.score for piece in model.pieces}
    scores |= dict.fromkeys(reversed(_sentinels(saved)), 0.0)
    tokenizer = Tokenizer(_model(path, model.trainer_spec, scores))
    tokenizer.add_tokens(
        [
            AddedToken(piece.piece, normalized=False, special=piece.type == CONTROL)
            for piece in model.pieces
            if piece.type in (CONTROL, USER_DEFINED)
        ]
    )
    characters = model.normalizer_spec.precompiled_charsmap
    tokenizer.normalizer = normalizers.Sequence(
        [
            *([normalizers.Precompiled(characters)] if characters else []),
            normalizers.Strip(left=False, right=True),
            normalizers.Replace(Regex(" {2,}"), SPACE),
        ]
    )
    spaces = _spaces(saved)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(SPACE, prepend_scheme=spaces)
    tokenizer.decoder = decoders.Metaspace(SPACE, prepend_scheme=spaces)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=["$A", "</s>"],
        pair=["$A", "</s>", "$B", "</s>"],
        special_tokens=[("</s>", tokenizer.token_to_id("</s>"))],
    )
    return tokenizer


def _model(path: Path, spec, scores: dict[str, float]) -> Unigram | BPE:
    if spec.model_type == UNIGRAM:
        return Unigram(list(scores.items()), unk_id=spec.unk_id)
    if spec.model_type == BYTE_PAIRS:
        ids = {piece: number for number, piece in enumerate(scores)}
        return BPE(ids, _merges(scores), unk_token=spec.unk_piece, fuse_unk=True)
    raise UserError(f"{path} holds neither a Unigram nor a BPE model")


def _merges(scores: dict[str, float]) -> list[tuple[str, str]]:
    """All pairs of pieces that make a piece; first those of the best piece, of one piece first that with the longest left part."""
    cuts = [(piece[:cut], piece[cut:]) for piece in scores for cut in range(1, len(piece))]
    pairs = [(left, right) for left, right in cuts if left in scores and right in scores]
    return sorted(pairs, key=lambda pair: (-scores["".join(pair)], -len(pair[0]), -len(pair[1])))


def _spaces(saved: dict) -> str:
    """Where a space is put in front: of every text between special tokens ("always", as T5 was trained), or of the first."""
    if not saved.get("add_prefix_space", True):
        return "never"
    return "always" if saved.get("legacy") in (None, True) else "first"
