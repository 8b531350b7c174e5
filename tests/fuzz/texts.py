"""Malformed data: lines, bytes and files of task folders, domains, entity tags and data sets."""

import gzip
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random

from tests.fuzz.case import ANY, EITHER, FOUND, REFUSE, SAME, Box, Case, Variant, spoiled
from tests.fuzz.edits import Edit, instead, lines, whole
from tests.fuzz.places import FIRST

# command, the split that it reads of the first task
READ = (
    ("tune", "64_42_train"),
    ("tune", "64_42_dev"),
    ("tune", "64_42_test"),
    ("sources", "full_train"),
    ("Loss", "64_42_dev"),
    ("KL", "64_42_dev"),
    ("statistics", "full_train"),
    ("pemt", "64_42_train"),
    ("pairs", "64_42_dev"),
    ("experts", "full_train"),
    ("random", "64_42_test"),
)


def path_of(data: Path, split: str, task: str = FIRST) -> Path:
    """The file of a split."""
    return data / task / f"{task}_{split}.tsv"


def words(named) -> tuple[str, ...]:
    """What an edit says is to be named, where it does."""
    return tuple(one for one in named if isinstance(one, str)) if isinstance(named, tuple) else ()


def in_data(edit: Edit, right: str = REFUSE, reads=READ, checked: bool = False) -> Variant:
    """A file of a task folder that is spoiled, and a command that reads it; `checked`: or data.build.check, which finds it."""

    def make(box: Box) -> Case:
        command, split = box.rng.choice(
            (*reads, ("check", "64_42_dev"), ("check", "64_42_train")) if checked else reads
        )
        path = path_of(box.take("data"), split)
        more = edit(path, box.rng)
        wanted = {"check": FOUND if right == REFUSE else ANY}.get(command, right)
        if wanted == REFUSE and box.rng.random() < 0.5:
            box.earlier(command)
        return Case(box.words(command), wanted, (path.name, *words(more)), command)

    return make


def two_lines(path: Path, rng: Random) -> tuple[str, ...]:
    """Fewer lines than a batch."""
    path.write_bytes(b"\n".join(path.read_bytes().splitlines()[:2]) + b"\n")
    return (FIRST,)


def beside(name: str, content: bytes | None = b"\x00\x05\x16\x07 no\xff text") -> Edit:
    """Another file (or folder) in the folder of the file."""

    def edit(path: Path, rng: Random) -> tuple[str, ...]:
        other = path.parent / name.format(path.name)
        other.mkdir() if content is None else other.write_bytes(content)
        return (other.name, FIRST)

    return edit


def long_line(words: int, spaces: bool = True) -> Variant:
    """A text of many words is read as its beginning is: as far as the model reads."""

    def make(box: Box) -> Case:
        command, split = box.rng.choice(READ[:3])
        other = Box(box.world, box.folder / "like", box.rng)
        unit = b"word " if spaces else b"x"
        for one, count in ((box, words), (other, 400)):
            path = path_of(one.take("data"), split)
            found = path.read_bytes().splitlines()
            found[1] = unit * count + b"\t" + found[1].split(b"\t")[1]
            path.write_bytes(b"\n".join(found) + b"\n")
        return Case(box.words(command), EITHER, (path.name, "line 2"), command, like=(other, other.words(command)))

    return make


def with_columns(change: Callable[[list[bytes]], list[bytes]]) -> Edit:
    """The cells of one line changed."""
    return lines(lambda line: b"\t".join(change(line.split(b"\t"))))


def gold(task: str, answers: tuple[str, ...]) -> Variant:
    """An answer that the metric of a task cannot read: found by data.build.check, refused by tuning and scoring."""

    def make(box: Box) -> Case:
        path = path_of(box.take("data"), f"64_42_{box.rng.choice(('dev', 'test'))}", task)
        answer = box.rng.choice(answers)
        named = with_columns(lambda cells: [cells[0], answer.encode(), *cells[2:]])(path, box.rng)
        if box.rng.random() < 0.5:
            return Case(box.words("check"), FOUND, named, "check")
        return Case(box.words("tune", "--tasks", task), REFUSE, named, "tune")

    return make


def names_of_data(edit: Callable[[Path, Random], object], right: str = REFUSE) -> Variant:
    """The folder of the data changed."""

    def change(data: Path, rng: Random) -> tuple[str, ...]:
        edit(data, rng)
        return (FIRST, data.name, "--task_dir")

    return spoiled(("tune", "Loss", "statistics", "random"), "data", change, right)


LINES: dict[str, Variant] = {
    "line without a tab": in_data(lines(b"no tab"), checked=True),
    "line without an input": in_data(lines(b"\tanswer"), checked=True),
    "line without an output": in_data(lines(b"text\t"), checked=True),
    "line of spaces": in_data(lines(b"   \t  "), checked=True),
    "line is empty": in_data(lines(b""), checked=True),
    "an output is empty": in_data(with_columns(lambda cells: [*cells, b"", b"more"]), checked=True),
    "output of no-break spaces": in_data(with_columns(lambda cells: [cells[0], "\u00a0\u3000".encode()]), checked=True),
    "not UTF-8": in_data(lines(lambda line: line.replace(b"\t", b"\xff\xfe\t")), checked=True),
    "Latin-1": in_data(lines("h\u00e9\t\u00f6".encode("latin1")), checked=True),
    "surrogates": in_data(lines(b"a\xed\xa0\x80b\tc"), checked=True),
    "overlong UTF-8": in_data(lines(b"a\xc0\x80b\tc"), checked=True),
    "NUL": in_data(lines(lambda line: line.replace(b"\t", b"\x00\t")), ANY, checked=True),
    "only NUL": in_data(lines(b"\x00\t\x00"), ANY, checked=True),
    "control characters": in_data(lines(lambda line: b"\x0b\x0c\x1b[31m" + line), ANY, checked=True),
    "separators inside a text": in_data(
        lines(lambda line: "a\u2028b\u2029c\u0085d\u001ce ".encode() + line), ANY, checked=True
    ),
    "byte order mark in the middle": in_data(lines(lambda line: b"\xef\xbb\xbf" + line), ANY),
    "zero width": in_data(lines("\u200b\t\u200b\u200d".encode()), ANY, checked=True),
    "markers of the tokenizer": in_data(lines(b"<pad> </s> <extra_id_0> <unk>\t</s><pad><extra_id_1>"), ANY),
    "thousand outputs": in_data(with_columns(lambda cells: [*cells, *[b"a"] * 1000]), ANY),
    "quotes": in_data(lines(b'"a "quoted" text\t"answer'), ANY),
    "long line": long_line(300_000),
    "long word": long_line(1_000_000, spaces=False),
    "byte order mark": in_data(whole(lambda text: b"\xef\xbb\xbf" + text), SAME),
    "two byte order marks": in_data(whole(lambda text: b"\xef\xbb\xbf" * 2 + text), EITHER),
    "line ends of Windows": in_data(whole(lambda text: text.replace(b"\n", b"\r\n")), SAME),
    "line ends of old Macs": in_data(whole(lambda text: text.replace(b"\n", b"\r")), EITHER),
    "no end of the last line": in_data(whole(bytes.rstrip), SAME),
    "spaces at the ends": in_data(whole(lambda text: text.replace(b"\t", b" \t  ").replace(b"\n", b"  \n")), SAME),
    "blank line at the end": in_data(whole(lambda text: text + b"\n\n"), EITHER),
    "UTF-16": in_data(whole(lambda text: text.decode().encode("utf-16"))),
    "UTF-32": in_data(whole(lambda text: text.decode().encode("utf-32-be"))),
    "compressed": in_data(whole(gzip.compress)),
    "random bytes": in_data(lambda path, rng: path.write_bytes(rng.randbytes(300))),
    "cut off": in_data(whole(lambda text: text[: text.rindex(b"\t")])),
    "commas instead of tabs": in_data(whole(lambda text: text.replace(b"\t", b","))),
    "empty": in_data(whole(lambda text: b""), checked=True),
    "only line ends": in_data(whole(lambda text: b"\n\n\n"), checked=True),
    "only a byte order mark": in_data(whole(lambda text: b"\xef\xbb\xbf")),
    "too few lines": in_data(two_lines, reads=(READ[0], READ[3], READ[9])),
    "missing": in_data(instead(lambda path: None)),
    "a folder": in_data(instead(Path.mkdir)),
    "a pipe": in_data(instead(os.mkfifo)),
    "a link to nothing": in_data(instead(lambda path: path.symlink_to("/nowhere"))),
    "a link to itself": in_data(instead(lambda path: path.symlink_to(path.name))),
    "hidden files beside": in_data(beside("._{}"), SAME),
    "an editor's files beside": in_data(beside(".~lock.{}#"), SAME),
    "a backup beside": in_data(beside("{}.bak"), SAME),
    "another prefix without splits": in_data(beside(f"{FIRST}_16_7_train.tsv", b"a\tb\n" * 8), reads=READ[:3]),
    "a folder with a split's name": in_data(beside(f"{FIRST}_16_7_train.tsv", None), EITHER, reads=READ[:3]),
    "Pearson of no number": gold("pemt-stsb", ("n/a", "", "nan", "inf", "3,5", "high", "1.5 points")),
    "MultiRC of no truth value": gold("pemt-superglue-multirc", ("true", "yes", "1", "TRUE", "Maybe")),
    "no data folder": names_of_data(lambda data, rng: shutil.rmtree(data)),
    "data folder is a file": names_of_data(lambda data, rng: (shutil.rmtree(data), data.write_text("x"))),
    "task folder is a file": names_of_data(
        lambda data, rng: (shutil.rmtree(data / FIRST), (data / FIRST).write_text("x"))
    ),
    "task folder is empty": names_of_data(lambda data, rng: [path.unlink() for path in (data / FIRST).iterdir()]),
    "no task folder": names_of_data(lambda data, rng: shutil.rmtree(data / FIRST)),
    "task folder links to itself": names_of_data(
        lambda data, rng: (shutil.rmtree(data / FIRST), (data / FIRST).symlink_to(FIRST))
    ),
    "description is missing": spoiled(
        ("experts", "pemt"),
        "descriptions.tsv",
        lambda path, rng: (path.write_text(re.sub(rf"(?m)^{FIRST}\t.*\n", "", path.read_text())), FIRST, path.name)[1:],
    ),
    "description twice": spoiled(
        ("experts", "pemt"),
        "descriptions.tsv",
        lambda path, rng: (path.write_text(path.read_text() + f"{FIRST}\tonce more\n"), path.name)[1:],
    ),
    "descriptions are no text": spoiled(
        ("experts", "pemt"), "descriptions.tsv", lambda path, rng: (path.write_bytes(rng.randbytes(200)), path.name)[1:]
    ),
    "descriptions with a byte order mark": spoiled(
        ("experts", "pemt"),
        "descriptions.tsv",
        lambda path, rng: (path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes()), path.name)[1:],
        EITHER,
    ),
}


# ---- domains of the fusion experiments


def domain(
    edit: Edit, right: str = REFUSE, splits: tuple[str, ...] = ("train", "test"), more: tuple[str, ...] = ()
) -> Variant:
    """A file of a domain that is spoiled."""

    def change(folder: Path, rng: Random) -> tuple[str, ...]:
        path = folder / "market" / f"market_{rng.choice(splits)}.tsv"
        return (path.name, "market", *words(edit(path, rng)))

    def make(box: Box) -> Case:
        named = change(box.take("emotions"), box.rng)
        return Case(box.words("fusion", "--data_dir", box.place("emotions"), *more), right, named, "fusion")

    return make


def tags(edit: Edit, right: str = REFUSE) -> Variant:
    """A file of word TAB tag that is spoiled; a sound variant must give the scores of the sound file."""

    def make(box: Box) -> Case:
        more = ("--kind", "tokens", "--fisher", "empirical")
        path = box.take("tags") / "market" / f"market_{box.rng.choice(('train', 'test'))}.txt"
        named = (path.name, "market", *words(edit(path, box.rng)))
        other = Box(box.world, box.folder / "like", box.rng)
        like = other, other.words("fusion", *more, "--data_dir", other.place("tags"))
        return Case(box.words("fusion", *more, "--data_dir", box.place("tags")), right, named, "fusion", like)

    return make


def zoo_data_error(content: bytes) -> Variant:
    """Training data of `pewe.merging.collect`."""
    return spoiled("collect", "local", lambda local, rng: ((local / "a.tsv").write_bytes(content), "a.tsv")[1:])


DOMAIN_FILES: dict[str, Variant] = {
    "line without a tab": domain(lines(b"no tab")),
    "line without a label": domain(lines(b"text\t")),
    "not UTF-8": domain(lines(b"\xff\tjoy")),
    "byte order mark": domain(whole(lambda text: b"\xef\xbb\xbf" + text), SAME),
    "line ends of Windows": domain(whole(lambda text: text.replace(b"\n", b"\r\n")), SAME),
    "empty": domain(whole(lambda text: b"")),
    "missing": domain(instead(lambda path: None)),
    "a folder": domain(instead(Path.mkdir)),
    "one label only": domain(whole(lambda text: b"a\tjoy\n" * 12), ANY, ("train",)),
    "labels that nobody knows": domain(whole(lambda text: b"a\tzzz\n" * 12), ANY, ("test",)),
    "two labels where there is one": domain(lines(b"text\tjoy\tanger"), ANY),
    "label of markup": domain(lines(b"text\t<script>"), ANY, ("train",)),
    "label is a number": domain(lines(b"text\t7"), ANY, ("train",)),
    "longer than the positions": domain(lines(b"word " * 300 + b"\tjoy"), ANY, more=("--max_length", "128")),
    "one line": domain(whole(lambda text: text.splitlines()[0] + b"\n"), ANY),
    "tags: no tab": tags(lines(b"word")),
    "tags: unknown kind": tags(lines(b"word\tX-PER")),
    "tags: type without a name": tags(lines(b"word\tB-"), ANY),
    "tags: three columns": tags(lines(b"word\tNN\tO")),
    "tags: spaces for tabs": tags(whole(lambda text: text.replace(b"\t", b" "))),
    "tags: byte order mark": tags(whole(lambda text: b"\xef\xbb\xbf" + text), EITHER),
    "tags: line ends of Windows": tags(whole(lambda text: text.replace(b"\n", b"\r\n")), EITHER),
    "tags: separator inside a word": tags(lines("wo\u2028rd\u0085s\tO".encode()), ANY),
    "tags: not UTF-8": tags(lines(b"h\xe9\tO")),
    "tags: empty": tags(whole(lambda text: b"")),
    "tags: blank lines only": tags(whole(lambda text: b"\n \n\t\n")),
    "tags: no O": tags(whole(lambda text: text.replace(b"\tO", b"\tB-PER")), ANY),
    "tags: word of spaces": tags(lines(b" \tO"), ANY),
    "collect: unknown label": zoo_data_error(b"a\tnot a label\n" * 8),
    "collect: no label": zoo_data_error(b"a\n" * 8),
    "collect: empty": zoo_data_error(b""),
    "collect: no text": zoo_data_error(b"\xff\xfe\x00"),
}


# ---- data sets' own files


def raw(edit: Edit, right: str = REFUSE) -> Variant:
    """A data set's own file that is spoiled."""

    def change(folder: Path, rng: Random) -> tuple[str, ...]:
        path = folder / "boolq" / f"{rng.choice(('train', 'validation'))}.tsv"
        return (path.name, "boolq", *words(edit(path, rng)))

    return spoiled("build", "raw", change, right, earlier=False)


def quoted(box: Box) -> Case:
    """A quotation mark is a character like any other: no row swallows the next."""
    path = box.take("raw") / "boolq" / "train.tsv"
    found = path.read_text().splitlines()
    found[3] = '"' + found[3]
    path.write_text("\n".join(found) + "\n")

    def check(box: Box, command: str) -> str:
        texts = "".join(file.read_text() for file in (box.root / "out").rglob("*.tsv"))
        glued = [line for line in texts.splitlines() if line.count("passage") > 1]
        return f"rows are glued together: {glued[0][:80]!r}" if glued else ""

    return Case(box.words("build"), ANY, (path.name, "boolq"), "build", check=check)


RAW_FILES: dict[str, Variant] = {
    "quotation mark": quoted,
    "column is missing": raw(whole(lambda text: text.replace(b"passage\t", b"passages\t", 1))),
    "label is unknown": raw(lines(b"question\tpassage\tperhaps")),
    "cells are missing": raw(lines(b"question"), ANY),
    "cells are too many": raw(lines(b"a\tb\t1\tc\td"), ANY),
    "not UTF-8": raw(lines(b"\xff\xfe\tb\t1")),
    "NUL": raw(lines(b"a\x00\tb\t1"), ANY),
    "empty": raw(whole(lambda text: b"")),
    "header only": raw(whole(lambda text: text.splitlines()[0] + b"\n"), ANY),
    "missing": raw(instead(lambda path: None)),
    "compressed without saying so": raw(whole(gzip.compress)),
    "byte order mark": raw(whole(lambda text: b"\xef\xbb\xbf" + text), SAME),
    "line ends of Windows": raw(whole(lambda text: text.replace(b"\n", b"\r\n")), SAME),
}
GROUPS = {"data": LINES, "domains": DOMAIN_FILES, "raw": RAW_FILES}
