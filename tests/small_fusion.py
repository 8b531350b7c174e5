"""A tiny random encoder, domains of a few sentences and a small experiment on them."""

from pathlib import Path

import numpy as np
import torch
from transformers import BertConfig, BertModel, BertTokenizerFast

from pewe.fusion.cells import Config

WORDS = ["we", "they", "saw", "lost", "glad", "sad", "angry", "river", "tower", "in", "Ana", "Bo", "Ulm", "Kiel"]
TEXTS = {"a": ("glad", "sad"), "b": ("sad", "angry"), "c": ("glad", "angry")}  # every label is known to two domains
TAGS = {"n1": ("PER", "Ana"), "n2": ("LOC", "Ulm")}


def small_encoder(folder: Path) -> Path:
    """A BERT of two layers and 16 positions, and its tokenizer."""
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]) + "\n")
    BertTokenizerFast(str(folder / "vocab.txt"), do_lower_case=False).save_pretrained(folder)
    torch.manual_seed(0)
    settings = {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "initializer_range": 0.2,
    }
    BertModel(BertConfig(vocab_size=5 + len(WORDS), max_position_embeddings=16, **settings)).save_pretrained(folder)
    return folder


def small_domains(folder: Path) -> Path:
    """Three small domains of sentences and two of tagged words."""
    rng = np.random.default_rng(0)
    for name, labels in TEXTS.items():
        for split in ("train", "test"):
            rows = [f"{rng.choice(WORDS[:4])} {label} {rng.choice(WORDS[7:9])}\t{label}\n" for label in labels * 8]
            (folder / name).mkdir(exist_ok=True)
            (folder / name / f"{name}_{split}.tsv").write_text("".join(rows))
    for name, (kind, word) in TAGS.items():
        for split in ("train", "test"):
            text = f"we\tO\nsaw\tO\n{word}\tB-{kind}\nBo\tI-{kind}\n\nthey\tO\nlost\tO\n\n" * 6
            (folder / name).mkdir(exist_ok=True)
            (folder / name / f"{name}_{split}.txt").write_text(text)
    return folder


def small_experiment(encoder: Path, data: Path, zoo: Path, **changes) -> Config:
    """The settings of an experiment of seconds; its results lie below the current folder."""
    settings = {
        "domains": ["a", "b"],
        "held_out": ["c"],
        "seeds": [1, 2],
        "updates": 4,
        "batch_size": 4,
        "ridge": 1e-3,
        "learning_rate": 1e-2,
        "name": "tiny",
        "quiet": True,
    }
    return Config(model=str(encoder), data_dir=str(data), zoo=str(zoo), **{**settings, **changes})
