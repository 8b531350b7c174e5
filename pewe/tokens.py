"""Texts to token ids, of which only the first few are kept: no more of a very long text is read than they need."""

import functools
import json
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ROOM = 32  # characters that are tokenised for each token that may be kept, at first; words of real text have about 5
GROWTH = 64  # times the room where that was too little
LONGEST_TOKEN = 64  # characters; a vocabulary with longer ones is not cut within a word
MARGIN = 8  # characters beside a cut, with which those at it could be composed
_BREAK = re.compile(r"[!-/:-@\[-`{-~\u4e00-\u9fff]")  # what BERT makes a word of its own wherever it stands


def tokenise(
    tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str], length: int, room: int = ROOM
) -> list[list[int]]:
    """The first `length` token ids of each text, its end token among them; equal to those of the whole text.

    A long text is cut before a space, which changes no token before the cut, since no token of such a vocabulary goes on
    behind a space; or, where that leaves too few, within a word; or it is read again with more room.
    """
    cut = [_cut(tokenizer, text, room * length) for text in texts]
    ids = tokenizer(cut, truncation=True, max_length=length)["input_ids"]
    for number, (text, own) in enumerate(zip(texts, ids, strict=True)):
        if len(cut[number]) < len(text) and len(own) < length:
            ids[number] = (
                _within_a_word(tokenizer, text, length, room * length)
                or (tokenise(tokenizer, [text], length, GROWTH * room)[0])
            )
    return ids


def _cut(tokenizer: "PreTrainedTokenizerBase", text: str, most: int) -> str:
    """The text, or its words within the first `most` characters where that changes none of their tokens."""
    if len(text) <= most or not words_stand_alone(tokenizer):
        return text
    return text[: max(text.rfind(" ", 0, most), 0)].rstrip()


@functools.cache
def words_stand_alone(tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Whether no token has a space (in SentencePiece written as U+2581) behind its first character."""
    return not any(" " in token[1:] or "\u2581" in token[1:] for token in tokenizer.get_vocab())


def _within_a_word(tokenizer: "PreTrainedTokenizerBase", text: str, length: int, most: int) -> list[int] | None:
    """The first ids of a text cut within a word, or None where that could change them or leaves too few.

    Tokens before a place where the whole text has a border between two tokens are those of the text cut there: neither BPE,
    whose merges never crossed it, nor the best path of a unigram model, nor BERT's longest piece first looks beyond it. One of
    as many places in a row as the longest token has characters is such a border, so where all of them agree the whole does.
    """
    places, found = _places(tokenizer, text, most), None
    for place in places:
        ids = tokenizer([text[:place]], truncation=True, max_length=length)["input_ids"][0]
        if len(ids) < length or found not in (None, ids):
            return None
        found = ids
    return found


def _places(tokenizer: "PreTrainedTokenizerBase", text: str, most: int) -> Sequence[int]:
    """Places to cut before within the first `most` characters, at one of which the whole text has a border of tokens."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    longest = _longest_token(tokenizer)
    if backend is None or longest > LONGEST_TOKEN or most <= longest + MARGIN:
        return ()
    kind, words = type(backend.model).__name__, _word_rules(backend)
    if kind == "WordPiece" and words == {"BertPreTokenizer"}:
        places = [match.start() for match in _BREAK.finditer(text, 0, most)][-1:]
        added = tokenizer.get_added_vocab()
        inside = [t for place in places for t in added if t in text[max(0, place - len(t) + 1) : place + len(t) - 1]]
        return () if inside else places
    joined = getattr(backend.model, "end_of_word_suffix", None) or getattr(backend.model, "dropout", None)
    if kind not in ("BPE", "Unigram") or joined or not words <= {"Metaspace", "WhitespaceSplit"}:
        return ()
    window = text[most - longest - MARGIN : most + MARGIN]
    same = backend.normalizer is None or backend.normalizer.normalize_str(window) == window
    return range(most, most - longest, -1) if same and not any(map(str.isspace, window)) else ()


@functools.cache
def _longest_token(tokenizer: "PreTrainedTokenizerBase") -> int:
    return max(map(len, tokenizer.get_vocab()))


def _word_rules(backend) -> set[str]:
    """The kinds of rules by which a tokenizer of `tokenizers` parts a text into words."""
    rules = json.loads(backend.pre_tokenizer.__getstate__()) if backend.pre_tokenizer else {"type": "none"}
    return {rule["type"] for rule in rules.get("pretokenizers", [rules])}
