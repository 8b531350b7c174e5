"""PEMT's six sources and seventeen targets with the text, the splits and the few-shot draw of its release (Lin et al. 2024).

Train, dev and test are the original's train, validation and test. A task without a test set of its own halves its
validation split; a large one gives the first 1,000 rows of the permuted train split to dev. Rows are permuted by torch's
generator with seed 42, few-shot rows are the first k of each class after Python's shuffle, as in the release.
"""

import random
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TextIO

import torch

from data.build.entry import Entry, Mapped, Row, nested, pick
from data.build.lines import Counts, Rows, SeenRows, Settings, Splits, as_text, read, told
from pewe.data import Example
from pewe.errors import UserError

SEED = 42  # of the original's splits
HELD_OUT = 1000  # train rows that are dev, where the task is large
PREFIX = "pemt-"


@dataclass(frozen=True)
class PemtEntry(Entry):
    """An entry with PEMT's splits. Without `dev` and `held_out`, the test split is halved into dev and test."""

    dev: str = ""  # the split that is dev
    held_out: int = 0  # rows of the train split that are dev
    max_train: int = 0  # rows of the train split that are trained on; 0: all
    group: Callable[[Row], str] | None = None  # what a row is scored together with

    def splits(self) -> tuple[str, ...]:
        """Train, test, and dev where it has a split of its own."""
        return tuple(filter(None, (*super().splits(), self.dev)))

    def line(self, row: Row) -> tuple[str, tuple[str, ...]] | None:
        """As of any entry; the group stands behind the answer."""
        line = super().line(row)
        return line if line is None or self.group is None else (line[0], (*line[1], self.group(row)))

    def spread(self, example: Example, scored: bool) -> Iterator[Example]:
        """A line for each answer. A scored one (dev, test) has the other answers, or the group, behind it."""
        for answer in example.outputs[:1] if self.group else example.outputs:
            others = tuple(other for other in example.outputs if other != answer) if scored else ()
            yield Example(example.input, (answer, *others))


# ---- splits


def permutation(size: int) -> list[int]:
    """The original's order of a split's rows."""
    return torch.randperm(size, generator=torch.Generator().manual_seed(SEED)).tolist()


def few_shot(classes: Sequence[str | None], shots: int, seed: int) -> list[int]:
    """The first `shots` rows of each class in Python's shuffled order; rows of class None are not taken."""
    order = list(range(len(classes)))
    random.Random(seed).shuffle(order)
    taken: Counter = Counter()
    chosen = []
    for index in order:
        if classes[index] is not None and taken[classes[index]] < shots:
            taken[classes[index]] += 1
            chosen.append(index)
    return chosen


def deal(
    entry: PemtEntry, rows: Rows, settings: Settings, spool: TextIO, seen_rows: SeenRows
) -> tuple[Splits, dict[str, int], Counts]:
    """The original's splits, without regard to inputs that are repeated. No few-shot line is a dev line."""
    if not entry.test:
        raise UserError(f"task {entry.task!r} keeps the splits of its data set: --one_split cannot deal them")
    counts = Counts()
    found = {split: list(told(read(entry, rows(split), counts), counts, seen_rows)) for split in entry.splits()}
    train, test = found[entry.train], found[entry.test]
    order, tested = permutation(len(train)), permutation(len(test))
    held, order = order[: entry.held_out], order[entry.held_out :]
    if entry.dev:
        dev = found[entry.dev]
    elif entry.held_out:
        dev = _at(train, held)
    else:
        half = len(test) // 2
        dev, tested = _at(test, tested[:half]), tested[half:]
    splits: Splits = []
    free = [None if example is None else example.outputs[0] if entry.labels else "" for example in train]
    for index in held:
        free[index] = None
    for seed in settings.seeds:
        chosen = few_shot(free, settings.shots_per_class, seed)
        splits += [
            (seed, "train", _texts(entry, _at(train, chosen), scored=False)),
            (seed, "dev", _texts(entry, dev, scored=True)),
            (seed, "test", _texts(entry, _at(test, tested), scored=True, most=settings.max_test)),
        ]
    limit = min(filter(None, (entry.max_train, settings.max_full)), default=0) or len(order)
    splits.append((None, "train", _texts(entry, _at(train, order[:limit]), scored=False)))
    sizes = Counter(name for name in free if name is not None)
    short = {name: sizes[name] for name in entry.labels or ("",) if sizes[name] < settings.shots_per_class}
    return splits, short, counts


def _at(examples: Sequence[Example | None], indices: Iterable[int]) -> list[Example | None]:
    return [examples[index] for index in indices]


def _texts(entry: PemtEntry, examples: Iterable[Example | None], scored: bool, most: int = 0) -> Iterator[str]:
    """The lines of a file; of rows with an answer, `most` at most."""
    known = [example for example in examples if example is not None]
    for example in known[: most or None]:
        yield from map(as_text, entry.spread(example, scored))


# ---- text


def _fields(output: str, *columns: str, **renamed: str) -> Callable[[Row], Mapped]:
    """ "column: value column: value ..."; `renamed` are columns with another name in the text."""
    named = {column: column for column in columns} | renamed
    return lambda row: (" ".join(f"{name}: {row[column]}" for column, name in named.items()), row[output])


def pad_punctuation(text: str) -> str:
    """A space on both sides of each character that is no letter, number, mark, underscore or white space."""
    padded = re.sub(
        r"[^\w\s]", lambda found: found[0] if unicodedata.category(found[0])[0] == "M" else f" {found[0]} ", text
    )
    return re.sub(r"\s+", " ", padded)


def _reading(answer: Callable[[Row], str | None]) -> Callable[[Row], Mapped]:
    """Question and context with padded punctuation. Their own last spaces stay, so that two may follow one another."""

    def convert(row: Row) -> Mapped:
        text, question, context = answer(row), pad_punctuation(row["question"]), pad_punctuation(row["context"])
        return text and (f"question: {question} context: {context}", pad_punctuation(text))

    return convert


def _first_answer(row: Row) -> str | None:
    return next(iter(nested(row["answers"])["text"]), None)


def _record(row: Row) -> Mapped:
    """The highlights become sentences of the passage; every answer is acceptable."""
    passage = re.sub(r"([.?!\"'])\n@highlight\n", r"\1 ", row["passage"]).replace("\n@highlight\n", ". ")
    answers, entities = nested(row["answers"]), ", ".join(nested(row["entities"]))
    return answers and (f"record query: {row['query']} entities: {entities} passage: {passage}", answers)


def _stsb(row: Row) -> Mapped:
    """The score, 0 to 5, with one decimal."""
    text, score = _fields("label", "sentence1", "sentence2")(row)
    known = str(score).strip() not in ("", "-1", "-1.0")
    return (text, str(round(float(score), 1))) if known else None


def _wsc(row: Row) -> Mapped:
    """The noun stands between " * ", the pronoun between " # "; indices count words."""
    first, second = int(row["span1_index"]), int(row["span2_index"])
    text = _marked(row["text"], row["span1_text"], first, "*")
    text = _marked(text, row["span2_text"], second + 2 * (first < second), "#")  # two more words stand before it now
    return f"text: {text}", row["label"]


def _marked(text: str, span: str, index: int, mark: str) -> str:
    pattern = rf"^((?:\S+\s){{{index}}})({re.escape(span)})"
    return re.sub(pattern, lambda found: f"{found[1]}{mark} {found[2]} {mark}", text)


def _multirc(row: Row) -> Mapped:
    """Without the HTML."""
    row = {name: re.sub("</?b>", "", str(value).replace("<br>", " ")) for name, value in row.items()}
    return _fields("label", "question", "answer", "paragraph")(row)


def _winogrande(row: Row) -> Mapped:
    """The output is the option's text."""
    text, answer = _fields("answer", "sentence", "option1", "option2")(row)
    option = pick(["", row["option1"], row["option2"]], answer)
    return option and (text, option)


# ---- entries


def _glue(name: str, labels: tuple[str, ...], *columns: str, licence: str = "not stated", **more) -> PemtEntry:
    """A task of GLUE."""
    more = {"convert": _fields("label", *columns), "config": name} | more
    return PemtEntry(
        PREFIX + name, "nyu-mll/glue", (*columns, "label"), licence=licence, shares_hub=True, labels=labels, **more
    )


def _superglue(name: str, labels: tuple[str, ...], *columns: str, **more) -> PemtEntry:
    """A task of SuperGLUE."""
    more = {"convert": _fields("label", *columns), "config": name, "columns": (*columns, "label")} | more
    return PemtEntry(
        f"{PREFIX}superglue-{name.replace('.', '-')}",
        "aps/super_glue",
        licence="not stated (see super.gluebenchmark.com)",
        labels=labels,
        scripted=True,
        shares_hub=True,
        **more,
    )


def _mrqa(name: str, config: str) -> PemtEntry:
    """A task of MRQA, of which each row has one answer."""
    return PemtEntry(
        PREFIX + name,
        "tau/mrqa",
        ("question", "context", "answer"),
        _reading(lambda row: row["answer"]),
        "not stated",
        config=config,
        scripted=True,
        shares_hub=True,
        held_out=HELD_OUT,
    )


_NLI, _YES = ("entailment", "not_entailment"), ("False", "True")

ENTRIES = (
    _glue(
        "mnli",
        ("entailment", "neutral", "contradiction"),
        "premise",
        "hypothesis",
        dev="validation_mismatched",
        test="validation_matched",
    ),
    _glue("qnli", _NLI, "question", "sentence", held_out=HELD_OUT),
    _glue(
        "qqp",
        ("not_duplicate", "duplicate"),
        "question1",
        "question2",
        held_out=HELD_OUT,
        licence="Quora's terms, no commercial use",
        non_commercial=True,
    ),
    _glue("sst2", ("negative", "positive"), "sentence", held_out=HELD_OUT),
    PemtEntry(
        f"{PREFIX}squad",
        "rajpurkar/squad",
        ("question", "context", "answers"),
        _reading(_first_answer),
        "CC BY-SA 4.0",
        False,
        config="plain_text",
        held_out=HELD_OUT,
    ),
    _superglue("record", (), columns=("passage", "query", "entities", "answers"), convert=_record, held_out=HELD_OUT),
    _glue("cola", ("unacceptable", "acceptable"), "sentence"),
    _glue("rte", _NLI, "sentence1", "sentence2"),
    _glue("mrpc", ("not_equivalent", "equivalent"), "sentence1", "sentence2", licence="Microsoft Research licence"),
    _glue("stsb", (), "sentence1", "sentence2", convert=_stsb),
    _superglue("cb", ("entailment", "contradiction", "neutral"), "premise", "hypothesis"),
    _superglue("wic", _YES, "sentence1", "sentence2", "word"),
    _superglue("wsc.fixed", _YES, "text", "span1_text", "span1_index", "span2_text", "span2_index", convert=_wsc),
    _superglue("boolq", _YES, "question", "passage"),
    _superglue(
        "multirc",
        _YES,
        columns=("paragraph", "question", "answer", "idx", "label"),
        convert=_multirc,
        group=lambda row: str(nested(row["idx"])["question"]),
    ),
    _mrqa("nq", "natural_questions"),
    _mrqa("newsqa", "newsqa"),
    _mrqa("hotpotqa", "hotpotqa"),
    _mrqa("searchqa", "searchqa"),
    PemtEntry(
        f"{PREFIX}scitail",
        "allenai/scitail",
        ("sentence1", "sentence2", "gold_label"),
        _fields("gold_label", sentence1="premise", sentence2="hypothesis"),
        "not stated",
        config="snli_format",
        labels=("entailment", "neutral"),
        scripted=True,
        note="its own test split is never used, as in the original",
    ),
    PemtEntry(
        f"{PREFIX}yelp_polarity",
        "fancyzhx/yelp_polarity",
        ("text", "label"),
        _fields("label", text="sentence"),
        "Yelp's terms",
        config="plain_text",
        test="test",
        labels=("0", "1"),
        held_out=HELD_OUT,
        max_train=100_000,
    ),
    PemtEntry(
        f"{PREFIX}winogrande",
        "allenai/winogrande",
        ("sentence", "option1", "option2", "answer"),
        _winogrande,
        "CC BY (code: Apache-2.0)",
        False,
        config="winogrande_xl",
        held_out=HELD_OUT,
    ),
    PemtEntry(
        f"{PREFIX}paws",
        "google-research-datasets/paws",
        ("sentence1", "sentence2", "label"),
        _fields("label", "sentence1", "sentence2"),
        "free use, with acknowledgement",
        config="labeled_final",
        dev="validation",
        test="test",
        labels=("0", "1"),
    ),
)
