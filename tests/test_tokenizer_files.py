"""Tokenizers read from their files: the ids of sentencepiece itself, the same under every version of transformers."""

import io
import json
import shutil
from pathlib import Path

import pytest
import sentencepiece
from conftest import ROOT
from transformers import AutoTokenizer

from pewe.backbone import BackboneConfig, is_5, load_backbone
from pewe.errors import UserError
from pewe.tokenizer_files import from_pieces, load_tokenizer

MINI = ROOT / "checkpoints" / "mini_t5"
TEXTS = [
    "Which town does Rolund live in?",
    "[task] ﬁve ½ cups of ＴＥＡ, naïve é and e\u0301; 日本語\u2028x",
    "two  spaces,   three, a\ttab and an end ",
    "",
]


def pieces(path, kind: str) -> sentencepiece.SentencePieceProcessor:
    """A spiece.model of this kind with T5's special ids, trained on this page, and the oracle that reads it."""
    model, lines = io.BytesIO(), Path(__file__).read_text(encoding="utf-8").splitlines()
    ids = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}
    how = {
        "vocab_size": 200,
        "model_type": kind,
        "hard_vocab_limit": False,
        "minloglevel": 2,
        "character_coverage": 0.98,
    }
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(lines), model_writer=model, **ids, **how)
    path.write_bytes(model.getvalue())
    return sentencepiece.SentencePieceProcessor(model_file=str(path))


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
@pytest.mark.parametrize("about", [{}, {"tokenizer_class": "T5Tokenizer", "extra_ids": 100, "legacy": True}])
def test_ids_are_those_of_sentencepiece(kind, about, tmp_path):
    """Of a folder with spiece.model, with and without a tokenizer_config.json; T5's sentinels lie behind its pieces."""
    oracle = pieces(tmp_path / "spiece.model", kind)
    (tmp_path / "config.json").write_text('{"model_type": "t5"}')
    if about:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(about))
    tokenizer = load_tokenizer(str(tmp_path))
    assert tokenizer(TEXTS)["input_ids"] == [[*oracle.encode(text), 1] for text in TEXTS]
    assert len(tokenizer) == len(oracle) + 100 and tokenizer("x")["attention_mask"]
    assert tokenizer.convert_tokens_to_ids(["<extra_id_99>", "<extra_id_0>"]) == [len(oracle), len(oracle) + 99]
    assert [tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id] == [0, 1, 2]
    assert "token_type_ids" not in tokenizer("x")


def test_ids_of_the_embedded_tokenizer():
    """As transformers 4 has them: (A) is a piece of its own wherever it stands."""
    texts = ["Which town does Rolund live in? (A) Siwick (B) <extra_id_0>", "[task] naïve  é 日本 1.5"]
    assert load_tokenizer(str(MINI))(texts)["input_ids"] == [
        [186, 1131, 654, 546, 1127, 666, 812, 172, 222, 117, 1165, 11, 779, 12, 1299, 1],
        [1120, 1195, 1125, 348, 1196, 306, 1124, 2, 222, 1120, 2, 1120, 2, 1120, 1175, 1130, 1179, 1],
    ]


def test_a_saved_tokenizer_gives_the_same_ids(tmp_path):
    """Saved by this version of transformers, which writes tokenizer.json."""
    tokenizer = load_tokenizer(str(MINI))
    tokenizer.save_pretrained(tmp_path)
    texts = [*TEXTS, "<extra_id_0> and</s> <extra_id_99>"]
    again = load_tokenizer(str(tmp_path))
    assert (
        again(texts)["input_ids"] == tokenizer(texts)["input_ids"]
        and again.all_special_ids == tokenizer.all_special_ids
    )
    assert AutoTokenizer.from_pretrained(tmp_path)(texts)["input_ids"] == tokenizer(texts)["input_ids"]


@pytest.mark.skipif(is_5(), reason="transformers 5 reads every T5's pieces as a Unigram's")
@pytest.mark.parametrize("about", [{}, {"legacy": False}, {"add_prefix_space": False}])
def test_pieces_are_read_as_transformers_4_reads_them(about, tmp_path):
    shutil.copytree(MINI, tmp_path, dirs_exist_ok=True)
    saved = json.loads((tmp_path / "tokenizer_config.json").read_text()) | about
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(saved))
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert load_tokenizer(str(tmp_path)).backend_tokenizer.to_str() == theirs.backend_tokenizer.to_str()


def test_pieces_of_another_kind_are_refused(tmp_path):
    pieces(tmp_path / "spiece.model", "char")
    with pytest.raises(UserError, match=r"spiece\.model holds neither a Unigram nor a BPE model"):
        from_pieces(tmp_path / "spiece.model", {})


def test_a_folder_without_a_vocabulary_has_no_tokenizer(tmp_path):
    """Of which transformers 5 would make one of special tokens alone."""
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(UserError, match="cannot load a tokenizer from"):
        load_tokenizer(str(tmp_path))


def test_a_model_is_read_without_a_bar(tiny_backbone, capfd):
    load_backbone(BackboneConfig(model=str(tiny_backbone), device="cpu"))
    assert "it/s" not in "".join(capfd.readouterr())
