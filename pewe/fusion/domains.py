"""Domains: data sets of one kind of task, each with labels of its own, as rows of one model's tokens and labels.

single    <data_dir>/<name>/<name>_{train,test}.tsv    text TAB label, trained by softmax
multi     the same, TAB further labels; trained label by label, as the emotions of Jin et al. (2023)
yesno     the same files; a T5 is asked for every label and answers yes or no (pewe/fusion/yesno.py)
tokens    <data_dir>/<name>/<name>_{train,test}.txt    word TAB tag, a blank line after each sentence (NER, IOB tags)

A folder of CrossFit is a domain too: <name>_full_train.tsv and the <prefix>_test.tsv of its first prefix.

All domains share one head, whose rows are the labels of all of them. A label that a domain's training data does not have
is unknown to it, not absent: with several labels per sentence it carries -100 there.

NAME#0 and NAME#1 are two unlike parts of the training data of one domain (the non-iid partitions of Jin et al. 2023): part 0 has
80 % of the sentences with one label, drawn at random, and 20 % of the others, part 1 the rest. Both are tested on all of it.
"""

import contextlib
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from pewe.batches import IGNORED
from pewe.data import find_prefixes, read_examples, split_path
from pewe.errors import UserError
from pewe.flags import suggest
from pewe.fusion import yesno
from pewe.fusion.voting import entity_f1, label_f1
from pewe.identity import digest
from pewe.merging.collect import Batch
from pewe.texts import read_lines, visible
from pewe.tokens import tokenise

SUFFIX = {"single": "tsv", "multi": "tsv", "yesno": "tsv", "tokens": "txt"}
BY_LABEL = ("multi", "yesno")  # a decision for every label, not one among all
Texts = list[tuple[list[str], list[str]]]  # words (or one text) and labels of each sentence
# token ids (S,), and labels: single (1,) a number; multi (C,) of 0, 1, -100; tokens (S,) tag numbers and -100;
# yesno (T,) token ids of the answer, in the test set (C,) as multi
Row = tuple[list[int], list[int]]


@dataclass(frozen=True)
class Domain:
    """A domain's rows for one model, and the numbers of the labels that it knows."""

    name: str
    train: list[Row]
    test: list[Row]
    known: frozenset[int]
    fingerprints: dict[str, str]  # of train and test


def read_domains(
    folder: Path,
    names: Sequence[str],
    kind: str,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    limits: dict[str, int],
    renamed: Mapping[str, str],
) -> tuple[dict[str, Domain], list[str]]:
    """The domains by name, and all their labels, sorted. `limits` is the number of rows of train and test (0: all);
    `renamed` maps labels, or entity types, to those that stand for them.

    Raises UserError for an unknown kind or domain, naming what there is, and for a file that is not of its kind.
    """
    if kind not in SUFFIX:
        raise UserError(f"--kind {suggest(kind, SUFFIX)}")
    read = {(name, split): _read(folder, name, split, kind) for name in names for split in limits}
    check_renamed(folder, renamed, read.values(), kind)
    texts: dict[str, dict[str, Texts]] = {name: {} for name in names}
    for (name, split), own in read.items():
        texts[name][split] = _part(own, name, split, kind, renamed)[: limits[split] or None]
    labels = sorted({label for own in texts.values() for _, found in own["train"] for label in found})
    numbers = {label: number for number, label in enumerate(labels)}
    encode = dict.fromkeys(limits, {"single": _single_rows, "multi": _multi_rows, "tokens": _token_rows}.get(kind))
    if kind == "yesno":
        encode = {"train": yesno.training_rows, "test": yesno.question_rows}
    domains = {}
    for name, splits in texts.items():
        known = frozenset(numbers[label] for _, found in splits["train"] for label in found)
        rows = {split: encode[split](own, tokenizer, max_length, numbers, known) for split, own in splits.items()}
        rows["test"].sort(key=lambda row: len(row[0]))
        prints = {split: digest([own, sorted(known)]) for split, own in rows.items()}
        domains[name] = Domain(name, rows["train"], rows["test"], known, prints)
    return domains, labels


def check_renamed(folder: Path, renamed: Mapping[str, str], read: Iterable[Texts], kind: str) -> None:
    """Raises UserError for a label, or an entity type, to rename that no domain has: none of those read, nor another here.

    A file of flags may be meant for more domains than those that one call names.
    """
    there = {name for texts in read for name in _names(texts, kind)}
    others = set() if renamed.keys() <= there else set(_names_of_others(folder, kind))
    for old, new in renamed.items():
        if old not in there | others:
            raise UserError(f"--rename {old}={new}: no domain has {old!r}; there are {', '.join(sorted(there))}")


def _names(texts: Texts, kind: str) -> Iterator[str]:
    """What a renaming may name: the labels, or the entity types."""
    for _, labels in texts:
        yield from (label[2:] for label in labels if label != "O") if kind == "tokens" else labels


def _names_of_others(folder: Path, kind: str) -> Iterator[str]:
    """Those of all domains of a folder, as far as they can be read."""
    for name in sorted({path.parent.name for path in visible(folder.glob(f"*/*_train.{SUFFIX[kind]}"))}):
        with contextlib.suppress(UserError):
            yield from _names(_read(folder, name, "train", kind), kind)


def _part(texts: Texts, name: str, split: str, kind: str, renamed: Mapping[str, str]) -> Texts:
    """A domain's sentences with their new labels; of one of its parts, those of the part."""
    if kind == "tokens":
        texts = [(words, [tag[:2] + renamed.get(tag[2:], tag[2:]) for tag in tags]) for words, tags in texts]
    else:
        texts = [(words, [renamed.get(label, label) for label in labels]) for words, labels in texts]
    name, _, part = name.partition("#")
    return unlike_part(texts, name, part) if part and split == "train" else texts


def _read(folder: Path, name: str, split: str, kind: str) -> Texts:
    """The sentences of a domain as they are."""
    name, _, _ = name.partition("#")
    path = folder / name / f"{name}_{split}.{SUFFIX[kind]}"
    if not path.is_file() and (folder / name / f"{name}_full_train.tsv").is_file():
        path = split_path(folder, name, find_prefixes(folder, name)[0], split, full_train=True)
    if not path.is_file():
        present = sorted(found.parent.name for found in visible(folder.glob(f"*/*_{split}.{SUFFIX[kind]}")))
        hint = f" Domains in {folder}: {', '.join(present) or 'none'}"
        raise UserError(f"domain {name!r}: there is no file {path}.{hint}")
    if kind == "tokens":
        return read_tags(path)
    texts = [([example.input], list(example.outputs)) for example in read_examples(path)]
    for number, (_, found) in enumerate(texts, start=1):
        if kind == "single" and len(found) > 1:
            raise UserError(
                f"{path}, line {number}: {len(found)} labels; --kind single has one per text, multi several"
            )
    return texts


def unlike_part(texts: Texts, name: str, part: str) -> Texts:
    """Part 0 or 1 of a domain's training data. Raises UserError for another part."""
    if part not in ("0", "1"):
        raise UserError(f"domain {name}#{part}: the parts of a domain are #0 and #1")
    labels = sorted({label for _, labels in texts for label in labels} - {"O"})
    if not labels:
        raise UserError(f"domain {name}#{part}: no label but O is in its training data, by which it could be parted")
    rng = Random(f"parts of {name}")
    main = rng.choice(labels)
    in_first = [rng.random() < (0.8 if main in labels else 0.2) for _, labels in texts]
    return [text for text, first in zip(texts, in_first, strict=True) if first == (part == "0")]


def read_tags(path: Path) -> Texts:
    """The sentences of a file of `word TAB tag` lines. Raises UserError with file and line for anything else."""
    sentences: Texts = []
    words: list[str] = []
    tags: list[str] = []
    for number, line in itertools.chain(read_lines(path), [(0, "")]):
        *before, tag = line.split("\t")
        cells = [*before, tag.strip(" ")]  # "B-PER " is no type of its own
        if line.strip() and not (len(cells) == 2 and cells[0] and re.fullmatch("O|[BI]-.+", cells[1])):
            wanted = "expected word TAB tag, the tag O, B-TYPE or I-TYPE"
            raise UserError(f"{path}, line {number}: {wanted}, not {line[:60]!r}")
        if line.strip():
            words.append(cells[0])
            tags.append(cells[1])
        elif words:
            sentences.append((words, tags))
            words, tags = [], []
    if not sentences:
        raise UserError(f"{path} is empty")
    return sentences


def _single_rows(texts: Texts, tokenizer, max_length: int, numbers: dict[str, int], known: frozenset[int]) -> list[Row]:
    ids = tokenise(tokenizer, [text for (text,), _ in texts], max_length)
    return [(tokens, [numbers.get(found[0], IGNORED)]) for tokens, (_, found) in zip(ids, texts, strict=True)]


def _multi_rows(texts: Texts, tokenizer, max_length: int, numbers: dict[str, int], known: frozenset[int]) -> list[Row]:
    ids = tokenise(tokenizer, [text for (text,), _ in texts], max_length)
    rows = []
    for tokens, (_, found) in zip(ids, texts, strict=True):
        rows.append((tokens, [int(label in found) if n in known else IGNORED for label, n in numbers.items()]))
    return rows


def _token_rows(texts: Texts, tokenizer, max_length: int, numbers: dict[str, int], known: frozenset[int]) -> list[Row]:
    """The tag of a word stands at its first token; a tag that no training data has counts as O."""
    encoded = tokenizer([words for words, _ in texts], is_split_into_words=True, truncation=True, max_length=max_length)
    rows = []
    for number, (_, tags) in enumerate(texts):
        places = encoded.word_ids(number)
        first = [place is not None and place not in places[:i] for i, place in enumerate(places)]
        own = [numbers.get(tag, numbers.get("O", IGNORED)) for tag in tags]
        labels = [own[place] if begins else IGNORED for place, begins in zip(places, first, strict=True)]
        rows.append((encoded["input_ids"][number], labels))
    return rows


def collate(rows: Sequence[Row], pad: int, kind: str) -> Batch:
    """Rows as a batch: input_ids and attention_mask (B, S), labels (B,), (B, C), (B, S) or (B, T)."""
    ids, labels = [ids for ids, _ in rows], _padded([own for _, own in rows], IGNORED)
    return {
        "input_ids": _padded(ids, pad),
        "attention_mask": _padded([[1] * len(own) for own in ids], 0),
        "labels": labels.flatten() if kind == "single" else labels,
    }


def _padded(lines: Sequence[list[int]], value: int) -> Tensor:
    width = max(map(len, lines))
    return torch.tensor([line + [value] * (width - len(line)) for line in lines])


# ---- scores, over the labels that the domain and the models know


def decide(logits: Tensor, known: Sequence[int], kind: str) -> Tensor:
    """Answers of a model that knows these labels: the numbers (R,) of the highest logits (R, C), or (R, C) logits > 0."""
    mask = torch.zeros(logits.shape[1], dtype=torch.bool)
    mask[list(known)] = True
    return (logits > 0) & mask if kind in BY_LABEL else logits.masked_fill(~mask, -torch.inf).argmax(1)


def score(
    answers: Tensor, rows: Sequence[Row], known: Sequence[int], labels: Sequence[str], kind: str, accuracy: bool = False
) -> float:
    """Percent: macro F1 of the known labels over sentences, or micro F1 of entities of known types; answers of `decide`.

    Where the answer is one label per sentence, sentences without a known label are left out, and `accuracy` is an alternative;
    nan where no sentence is left.
    """
    if kind == "tokens":
        return _entity_score(answers, rows, known, labels)
    predicted, gold = answers.numpy().astype(int), np.array([own for _, own in rows])
    if kind == "single":
        kept, one_hot = np.isin(gold[:, 0], list(known)), np.eye(len(labels), dtype=int)
        if not kept.any():
            return float("nan")
        if accuracy:
            return 100 * float(np.mean(predicted[kept] == gold[kept, 0]))
        predicted, gold = one_hot[predicted[kept]], one_hot[gold[kept, 0]]
    gold[:, [number for number in range(len(labels)) if number not in known]] = IGNORED
    return 100 * float(np.mean(list(label_f1(predicted, gold).values())))


def _entity_score(answers: Tensor, rows: Sequence[Row], known: Sequence[int], labels: Sequence[str]) -> float:
    gold = [[labels[tag] if tag in known else "O" for tag in row if tag != IGNORED] for _, row in rows]
    found = iter(answers.tolist())
    predicted = [[labels[next(found)] for _ in line] for line in gold]
    return entity_f1(predicted, gold)["f1"]
