"""Pre-train the mini encoder: a small BERT by masked words on the prose of `data/mini_emotions`.

python checkpoints/mini_bert/pretrain.py
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch
from tqdm import tqdm
from transformers import BertConfig, BertForMaskedLM, BertTokenizerFast

from pewe.cli import ROOT, main
from pewe.flags import flag

sys.path.insert(0, str(ROOT / "data" / "mini_emotions"))
import generate

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
MASK = 4
IGNORED = -100


def write_tokenizer(folder: Path) -> BertTokenizerFast:
    """A tokenizer with one token per word of the mini emotions."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(SPECIAL + generate.vocabulary()) + "\n", encoding="utf-8")
    tokenizer = BertTokenizerFast(str(folder / "vocab.txt"), do_lower_case=False, model_max_length=48)
    tokenizer.save_pretrained(folder)
    return tokenizer


def masked(batch: dict[str, torch.Tensor], rng: torch.Generator) -> dict[str, torch.Tensor]:
    """Every fifth word becomes [MASK] and is to be predicted."""
    ids = batch["input_ids"]
    hidden = (torch.rand(ids.shape, generator=rng) < 0.2) & (ids > MASK)
    return {**batch, "input_ids": ids.masked_fill(hidden, MASK), "labels": ids.masked_fill(~hidden, IGNORED)}


@dataclass(frozen=True)
class Config:
    """Where to, and how long."""

    output_dir: str = flag("checkpoints/mini_bert", "folder of the model and its tokenizer")
    steps: int = flag(3000, "updates", low=1)
    lr: float = flag(1e-3, "peak learning rate of AdamW", above=0)


def run(args: Config) -> None:
    """Write tokenizer and encoder."""
    torch.manual_seed(0)
    tokenizer, rng, order = write_tokenizer(Path(args.output_dir)), Random("prose"), torch.Generator().manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=512,
        max_position_embeddings=48,
        type_vocab_size=1,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    model = BertForMaskedLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.lr, total_steps=args.steps, pct_start=0.06)
    bar = tqdm(range(args.steps), desc="pre-train", mininterval=5)
    for _ in bar:
        texts = [generate.prose(rng) for _ in range(64)]
        batch = masked(dict(tokenizer(texts, padding=True, return_tensors="pt")), order)
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        bar.set_postfix(loss=f"{loss.item():.3f}")
    model.bert.save_pretrained(args.output_dir)


if __name__ == "__main__":
    main(run, Config, __doc__)
