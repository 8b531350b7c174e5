"""What a task's entry says, and the text helpers that the entries share.

An entry is a declaration: where the rows are, which splits play which role, and a function from a row to (input, output).
The text is CrossFit's (Ye, Lin and Ren 2021), to the last space: where it joins two parts without a space, so do the entries.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pewe.errors import UserError
from task_list import METRICS

Row = Mapping[str, Any]
Mapped = (
    tuple[str, Any] | None
)  # input and output (or outputs, or a label of the data set); None: the row has no answer
LETTERS = "ABCDEFGHIJ"
_BREAKS = re.compile("\r\n|[\0\t\n\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029]")


@dataclass(frozen=True)
class Entry:
    """One task: its source, the roles of the splits, the mapping of a row, its labels and its licence."""

    task: str
    hub: str  # name on the Hugging Face hub today; empty where the rows are nowhere to be had
    columns: tuple[str, ...]  # the columns that `convert` reads
    convert: Callable[[Row], Mapped]
    licence: str
    non_commercial: bool | None = None  # None: the source does not say
    config: str = ""
    train: str = "train"
    test: str = "validation"  # empty: the train split is dealt, 80 % to train and 20 % to test, as CrossFit does
    test_share: float = 1.0  # the part of the test split that CrossFit keeps
    test_lines: int = 0  # the number of lines of it that CrossFit keeps; 0: all
    labels: tuple[str, ...] = ()  # label words in the data set's order; none: text to text
    label_names: tuple[str, ...] = field(default=())  # the data set's own names, where they differ from the words
    scripted: bool = False  # the hub has a loading script, which nothing runs today, and its own Parquet conversion
    shares_hub: bool = False  # other tasks are configurations of the same data set
    note: str = ""  # what differs from CrossFit's source

    @property
    def kind(self) -> str:
        """CrossFit's two kinds, which are sampled in different ways."""
        return "classification" if self.labels else "text to text"

    @property
    def metric(self) -> str:
        """The metric that task_list.py gives the task."""
        return METRICS[self.task]

    def splits(self) -> tuple[str, ...]:
        """The splits that are read: the train split, and the test split where there is one."""
        return (self.train, self.test) if self.test else (self.train,)

    def line(self, row: Row) -> tuple[str, tuple[str, ...]] | None:
        """A row as CrossFit's line: the cleaned input and the acceptable outputs; None where the row has no answer."""
        missing = [column for column in self.columns if column not in row]
        if missing:
            raise UserError(f"task {self.task!r}: the rows have no column {missing[0]!r}; they have: {', '.join(row)}")
        mapped = self.convert({column: "" if row[column] is None else row[column] for column in self.columns})
        if not mapped:
            return None
        text, output = mapped
        if self.labels:
            output = label_word(output, self.labels, self.label_names)
            if output is None:
                return None
        outputs = [output] if isinstance(output, str) else output
        return clean(text), tuple(dict.fromkeys(filter(None, map(clean, outputs))))


def clean(text: str) -> str:
    """The text on one line: each tab, line break and NUL becomes a space, the ends are stripped; broken characters become "?"."""
    return _BREAKS.sub(" ", str(text)).encode("utf-8", "replace").decode().strip()


def squeeze(text: str) -> str:
    """`clean`, with every run of white space as one space; an escaped line break is one too. For the tasks that
    CrossFit cleans in this way: ELI5, SAMSum, TweetEval and CommonsenseQA."""
    return " ".join(clean(text.replace("\\n", " ")).split())


def nested(value: Any) -> Any:
    """A list or dict that a CSV file can only hold as JSON text."""
    return json.loads(value) if isinstance(value, str) and value[:1] in "[{" else value


def options(texts: Iterable[str], labels: Sequence[str] = LETTERS) -> str:
    """CrossFit's options: " (A) first (B) second", with the leading space."""
    return "".join(f" ({label}) {text}" for label, text in zip(labels, texts, strict=False))


def pick(texts: Sequence[str], index: Any) -> str | None:
    """The option with this number, given as a number or its text; None where the row does not say (hidden answers)."""
    text = str(index).strip()
    return texts[int(text)] if text.isdigit() and int(text) < len(texts) else None


def choices(value: Any) -> tuple[list[str], list[str]]:
    """Labels and texts of a `choices` column, {"label": [...], "text": [...]} or a list of such pairs."""
    value = nested(value)
    if isinstance(value, Mapping):
        return list(value["label"]), list(value["text"])
    return [item["label"] for item in value], [item["text"] for item in value]


def label_word(value: Any, words: Sequence[str], names: Sequence[str] = ()) -> str | None:
    """The label word for a label's number, truth value, name or word; None for a missing label ("" or -1).

    Raises UserError for a label that the entry does not know.
    """
    text = str(value).strip()
    if text in ("", "-1", "-", "None"):
        return None
    if re.fullmatch(r"\d+(\.0)?", text) and int(float(text)) < len(words):
        return words[int(float(text))]
    known = {_plain(word): word for word in words}
    known |= {_plain(name): word for name, word in zip(names, words, strict=False)}
    if len(words) == 2:
        known = {"false": words[0], "true": words[1]} | known
    if _plain(text) not in known:
        raise UserError(f"unknown label {text!r}; known: 0 to {len(words) - 1} or {', '.join(names or words)}")
    return known[_plain(text)]


def _plain(text: str) -> str:
    return re.sub(r"[\s_-]", "", text).lower()


def digest(*parts: str) -> int:
    """64 bits of SHA-256 of the parts: what every draw is made from, equal on any machine and Python."""
    return int.from_bytes(hashlib.sha256("\t".join(parts).encode()).digest()[:8], "big")


def shuffled(texts: Iterable[str], key: str) -> list[str]:
    """The texts in an order that depends on nothing but them and the key."""
    return sorted(texts, key=lambda text: (digest("order", key, text), text))
