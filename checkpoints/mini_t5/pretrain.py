"""Pre-train the mini backbone: a small T5 v1.1 by span corruption on prose about the world of `data/mini_gym`.

The corpus is written by `data/mini_gym/world.py` (prose only, never the format of a task). One sequence in seven
has a random span masked, as in T5 (Raffel et al. 2020, arXiv:1910.10683); the others have content words masked, the
salient spans that make a T5 answer closed-book questions (Roberts et al. 2020, arXiv:2002.08910).

    python checkpoints/mini_t5/pretrain.py --output_dir checkpoints/mini_t5
"""

import io
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random

import numpy as np
import sentencepiece as spm
import torch
from tqdm import tqdm
from transformers import T5Config, T5ForConditionalGeneration

from pewe.backbone import own_head
from pewe.cli import ROOT, main
from pewe.flags import flag, seed_flag
from pewe.tokenizer_files import load_tokenizer

sys.path.insert(0, str(ROOT / "data" / "mini_gym"))
import world

N_SENTINELS = 100
# pieces that only the tasks need; every task shares them, none is a task's name
TASK_PIECES = ["[mini_", "read_", "choice_", "yesno_", "closed_", "animals]", "towns]", "people]", "(A)", "(B)", "(C)"]
PAD, EOS = 0, 1
Doc = list[tuple[list[int], bool]]  # one document: the token ids of each word, and whether it carries content


@dataclass(frozen=True)
class Config:
    """Size, data and training of the backbone."""

    output_dir: str = flag("checkpoints/mini_t5", "folder of the model and its tokenizer")
    steps: int = flag(6000, "updates", low=1)
    batch_size: int = flag(64, "documents of an update", low=1)
    lr: float = flag(2e-3, "peak learning rate of AdamW", above=0)
    warmup_steps: int = flag(200, "warm-up updates", low=1)
    docs: int = flag(50_000, "documents of the corpus; each pass masks them anew", low=1)
    max_length: int = flag(48, "tokens of a document", low=1)
    vocab_size: int = flag(1200, "SentencePiece pieces, without the 100 sentinels", low=1)
    d_model: int = flag(128, "width", low=1)
    d_ff: int = flag(256, "width of the feed-forward", low=1)
    num_heads: int = flag(4, "attention heads", low=1)
    num_layers: int = flag(4, "encoder blocks", low=1)
    num_decoder_layers: int = flag(3, "decoder blocks", low=1)
    minutes: float = flag(0.0, "stop early so as to end after this time (0: run all steps)", low=0)
    threads: int = flag(2, "threads of torch", low=1)
    init_from: str = flag("", "continue from the weights and the tokenizer of this folder")
    seed: int = seed_flag(42, "seed of corpus, masks and weights")
    device: str = flag("cuda" if torch.cuda.is_available() else "cpu", "cpu or cuda", choices=("cpu", "cuda"))


# ---- corpus and tokenizer


def document(rng: Random, max_words: int) -> str:
    """One to three paragraphs, as many as fit."""
    words: list[str] = []
    for _ in range(rng.choice((1, 1, 2))):
        more = world.paragraph(rng).split()
        if words and len(words) + len(more) > max_words:
            break
        words += more
    return " ".join(words)


def train_tokenizer(texts: list[str], vocab_size: int, folder: Path) -> None:
    """A BPE SentencePiece model (frequent words become pieces) with T5's special ids, and 100 sentinels at its end."""
    model = io.BytesIO()
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter([*texts, *question_words() * 500]),
        model_writer=model,
        vocab_size=vocab_size,
        model_type="bpe",
        user_defined_symbols=TASK_PIECES,
        character_coverage=1.0,
        required_chars="abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789[](){}_-.,:;?!'\"/",
        pad_id=PAD,
        eos_id=EOS,
        unk_id=2,
        bos_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "spiece.model").write_bytes(model.getvalue())
    about = {"tokenizer_class": "T5Tokenizer", "extra_ids": N_SENTINELS, "legacy": True, "model_max_length": 512}
    (folder / "tokenizer_config.json").write_text(json.dumps(about, indent=1) + "\n")


def question_words() -> list[str]:
    """The words of the world's questions, which the prose uses little."""
    relations = [rel for domain in world.DOMAINS for rel in domain.facts + domain.scenes]
    phrases = [phrase for rel in relations for phrase in (*rel.asks, rel.checks)]
    return sorted(
        {word for phrase in phrases for word in phrase.split() if "{" not in word}
        | {"?", "which", "true", "that", "yes", "no"}
    )


def encode(texts: list[str], pieces: spm.SentencePieceProcessor, max_length: int) -> list[Doc]:
    """Token ids word by word (SentencePiece never crosses a space), cut to `max_length` tokens."""
    salient, cache, docs = world.salient_words(), {}, []
    for text in tokenizer_words(texts):
        doc, length = [], 0
        for word in text:
            if word not in cache:
                cache[word] = (pieces.encode(" " + word), word in salient)
            length += len(cache[word][0])
            if length > max_length:
                break
            doc.append(cache[word])
        docs.append(doc)
    return docs


def tokenizer_words(texts: list[str]) -> Iterator[list[str]]:
    """The words of each text."""
    return (text.split() for text in texts)


# ---- span corruption


def random_span(doc: Doc, rng: np.random.Generator) -> np.ndarray:
    """Which words are masked: one span of 1 to 5 words."""
    masked = np.zeros(len(doc), dtype=bool)
    start = rng.integers(len(doc))
    masked[start : start + rng.integers(1, 6)] = True
    return masked


def salient_spans(doc: Doc, rng: np.random.Generator) -> np.ndarray:
    """Which words are masked: two to four content words, in two of three cases words that have occurred before."""
    places = [i for i, (_, salient) in enumerate(doc) if salient]
    if rng.random() < 0.67:
        seen = [tuple(ids) for ids, _ in doc]
        places = [i for i in places if seen[i] in seen[:i]] or places
    masked = np.zeros(len(doc), dtype=bool)
    masked[rng.choice(places, min(len(places), rng.integers(2, 5)), replace=False)] = True
    return masked


def corrupt(doc: Doc, first_sentinel: int, rng: np.random.Generator) -> tuple[list[int], list[int]]:
    """Input and target: each masked span becomes a sentinel, the target lists sentinels and spans."""
    masked = (salient_spans if rng.random() < 0.85 else random_span)(doc, rng)
    source, target, sentinel, inside = [], [], first_sentinel, False
    for (ids, _), hide in zip(doc, masked, strict=True):
        if hide and not inside:
            source.append(sentinel)
            target.append(sentinel)
            sentinel -= 1  # <extra_id_0> has the highest id
        (target if hide else source).extend(ids)
        inside = bool(hide)
    return [*source, EOS], [*target, sentinel, EOS]


def pad(rows: list[list[int]], value: int) -> torch.Tensor:
    """Rows of ids as one tensor, padded to the longest."""
    width = max(map(len, rows))
    return torch.tensor([row + [value] * (width - len(row)) for row in rows])


def batches(docs: list[Doc], size: int, first_sentinel: int, seed: int) -> Iterator[dict[str, torch.Tensor]]:
    """Endless batches of freshly masked documents of similar length."""
    rng = np.random.default_rng(seed)
    while True:
        order = rng.permutation(len(docs))
        for start in range(0, len(order) - 16 * size + 1, 16 * size):
            pool = sorted(order[start : start + 16 * size], key=lambda i: len(docs[i]))
            for k in rng.permutation(16):
                pairs = [corrupt(docs[i], first_sentinel, rng) for i in pool[k * size : (k + 1) * size]]
                inputs = pad([source for source, _ in pairs], PAD)
                yield {
                    "input_ids": inputs,
                    "attention_mask": (inputs != PAD).long(),
                    "labels": pad([target for _, target in pairs], -100),
                }


# ---- model and training


def build_model(args: Config, vocab_size: int) -> T5ForConditionalGeneration:
    """A T5 v1.1: gated GELU, output layer not tied to the embeddings, no dropout. Random weights, or `--init_from`."""
    if args.init_from:
        return T5ForConditionalGeneration.from_pretrained(args.init_from, trust_remote_code=False)
    config = T5Config(
        vocab_size=vocab_size,
        d_model=args.d_model,
        d_kv=args.d_model // args.num_heads,
        d_ff=args.d_ff,
        num_layers=args.num_layers,
        num_decoder_layers=args.num_decoder_layers,
        num_heads=args.num_heads,
        dropout_rate=0.0,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
        decoder_start_token_id=PAD,
        pad_token_id=PAD,
        eos_token_id=EOS,
    )
    model = own_head(T5ForConditionalGeneration(config))
    torch.nn.init.normal_(model.shared.weight, std=0.3)
    model.lm_head.weight.data = model.shared.weight / (0.3 * args.d_model**0.5)  # copying is easy
    for name, module in model.named_modules():
        if name.endswith("Attention"):  # queries equal keys, so that a token first attends to its like
            torch.nn.init.normal_(module.q.weight, std=2 * (args.d_model * config.d_kv) ** -0.5)
            module.k.weight.data = module.q.weight.data.clone()
            if name.endswith("SelfAttention"):  # but not in the heads that start with near tokens
                module.q.weight.data[: 3 * config.d_kv] *= 0.2
    for stack in (model.encoder, model.decoder):
        start_local(stack.block[0].layer[0].SelfAttention.relative_attention_bias.weight.data)
    return model


def start_local(bias: torch.Tensor) -> None:
    """Let three heads start with the token before, the token after, and the few before; (32 buckets, heads).

    T5 knows positions only from this small table, which from random values takes thousands of steps to grow.
    """
    bias.zero_()
    bias[1, 0] = 5.0  # bucket 1 is the distance -1, in the decoder too
    bias[17, 1] = 5.0  # in the encoder, bucket 16 + n is the distance n
    bias[1:4, 2] = 4.0


def train(model: T5ForConditionalGeneration, stream: Iterator, args: Config) -> tuple[float, int]:
    """AdamW with linear warm-up and linear decay; returns the mean loss of the last steps and their number."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, betas=(0.9, 0.98), weight_decay=0.01)
    start, losses = time.time(), []
    bar = tqdm(range(args.steps), desc="pre-train", mininterval=5)
    for step in bar:
        done = step / args.steps
        if args.minutes:
            done = max(done, (time.time() - start) / (60 * args.minutes))
        if done >= 1:
            break
        for group in optimizer.param_groups:
            group["lr"] = args.lr * min((step + 1) / args.warmup_steps, 1 - done + 1e-3)
        loss = model(**{name: tensor.to(args.device) for name, tensor in next(stream).items()}).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if step % 1000 == 999:
            model.save_pretrained(args.output_dir)
        if step % 50 == 0:
            bar.set_postfix(loss=f"{np.mean(losses[-50:]):.3f}")
    return float(np.mean(losses[-100:])), len(losses)


def run(args: Config) -> None:
    """Write the corpus, train the tokenizer, train the model, save all."""
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    print(json.dumps(asdict(args), indent=1))
    rng = Random(f"corpus {args.seed}")
    texts = [document(rng, args.max_length) for _ in tqdm(range(args.docs), desc="corpus")]
    if not args.init_from:
        train_tokenizer(texts[:20_000], args.vocab_size, Path(args.output_dir))
    folder = Path(args.init_from or args.output_dir)
    tokenizer = load_tokenizer(str(folder))
    docs = encode(texts, spm.SentencePieceProcessor(model_file=str(folder / "spiece.model")), args.max_length)
    model = build_model(args, len(tokenizer)).to(args.device)
    print(f"{len(tokenizer)} tokens, {sum(p.numel() for p in model.parameters()):,} parameters; {texts[0]!r}")
    stream = batches(docs, args.batch_size, tokenizer.convert_tokens_to_ids("<extra_id_0>"), args.seed)
    start = time.time()
    loss, steps = train(model.train(), stream, args)
    model.eval().cpu().save_pretrained(args.output_dir)
    print(f"{steps} steps in {(time.time() - start) / 60:.1f} minutes, final loss {loss:.4f}")


if __name__ == "__main__":
    main(run, Config, __doc__)
