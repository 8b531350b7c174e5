"""PEMT's six sources and seventeen targets with the text of its release (Lin et al. 2024)."""

import re
import unicodedata
from collections.abc import Callable

from data.build.entry import Mapped, Row, nested, pick
from data.build.pemt_splits import HELD_OUT, PemtEntry

PREFIX = "pemt-"


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
