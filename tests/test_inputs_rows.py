"""Files of rows on disk: no quoting where there is none, no row glued to another, faults with file and line."""

import gzip
import json

import pytest

from data.build.registry import ENTRIES
from data.build.rows import from_files, split_files
from pewe.errors import UserError

ENTRY = ENTRIES["boolq"]
HEADER = ("question", "passage", "answer")


def read(folder, name: str, content: bytes) -> list[list[str]]:
    """The cells of a file of the train split."""
    path = folder / name
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    return [[row[column] for column in HEADER] for row in from_files(ENTRY, folder, "train")]


def table(*rows: str, mark: str = "\t") -> bytes:
    return "".join(f"{line}\n" for line in (mark.join(HEADER), *rows)).encode()


ROWS = {
    "a quote opens a cell": ("train.tsv", table('"a\tb\tc', 'd\te"\tf'), [['"a', "b", "c"], ["d", 'e"', "f"]]),
    "quotes inside": ("train.tsv", table('5" pipe\tsaid "no"\t"'), [['5" pipe', 'said "no"', '"']]),
    "a quoted sentence": ("train.tsv", table('"Hello."\tb\t""'), [['"Hello."', "b", '""']]),
    "separators": ("train.tsv", table("a\u2028b\x85\x0c\tb\tc"), [["a\u2028b\x85\x0c", "b", "c"]]),
    "empty cells and lines": ("train.tsv", table("a\t\t", "", "b\tc\td"), [["a", "", ""], ["b", "c", "d"]]),
    "byte order mark": ("train.tsv", b"\xef\xbb\xbf" + table("a\tb\tc"), [["a", "b", "c"]]),
    "Windows": ("train.tsv", table("a\tb\tc").replace(b"\n", b"\r\n"), [["a", "b", "c"]]),
    "compressed": ("train.tsv.gz", table('"a\tb\tc', 'd\te"\tf'), [['"a', "b", "c"], ["d", 'e"', "f"]]),
    "CSV": ("train.csv", table('"a, ""b""\nc",d,e', mark=","), [['a, "b"\nc', "d", "e"]]),
    "CSV of an old Mac": ("train.csv", table("a,b,c", mark=",").replace(b"\n", b"\r"), [["a", "b", "c"]]),
    "only a header": ("train.tsv", table(), []),
    "empty": ("train.tsv", b"", []),
    "JSON lines": (
        "train.jsonl",
        json.dumps(dict.fromkeys(HEADER, "a\u2028b"), ensure_ascii=False).encode(),
        [["a\u2028b"] * 3],
    ),
    "JSON": ("train.json", b"\n\n" + json.dumps([dict.fromkeys(HEADER, "x")]).encode(), [["x"] * 3]),
}


@pytest.mark.parametrize("name", ROWS)
def test_rows_are_those_of_the_file(name, tmp_path):
    file, content, wanted = ROWS[name]
    assert read(tmp_path, file, content) == wanted


BAD = {
    "a row too short": (
        "train.tsv",
        table("a\tb\tc", "d\te"),
        "train.tsv, line 3: expected 3 cells as in the header, not 2",
    ),
    "a row too long": (
        "train.csv",
        table("a,b,c,d", mark=","),
        "train.csv, line 2: expected 3 cells as in the header, not 4",
    ),
    "CSV in a TSV": ("train.tsv", table('"say ""no"""\tb\tc'), "train.tsv, line 2: a cell is quoted as in CSV"),
    "a quote is never closed": (
        "train.csv",
        table('"a,b,c', "d,e,f", mark=","),
        "train.csv, line 3: unexpected end of data",
    ),
    "text behind a quote": ("train.csv", table('"a"x,b,c', mark=","), "train.csv, line 2: ',' expected after"),
    "a column twice": ("train.tsv", b"question\tquestion\n", "train.tsv: the header names column 'question' twice"),
    "latin-1": (
        "train.tsv",
        table("a\tb\tc") + "caf\xe9\tb\tc\n".encode("latin-1"),
        "train.tsv, line 3: not UTF-8 (byte 3)",
    ),
    "latin-1 CSV": ("train.csv", "é,b\né".encode() + b"\xe9", "train.csv, line 2: not UTF-8 (byte 2)"),
    "latin-1 JSON": ("train.jsonl", b'{"question": "\xe9"}\n', "train.jsonl, line 1: not UTF-8"),
    "no object": ("train.jsonl", b"[1]\n5\n", "train.jsonl, line 1: expected an object"),
    "no object in an array": ("train.json", b"[5]", "train.json, row 1: expected an object"),
    "no JSON": ("train.json", b"[1, 2", "train.json: not JSON"),
    "too deep": ("train.jsonl", b"[" * 100_000, "train.jsonl is damaged"),
    "not compressed": ("train.jsonl.gz", None, "train.jsonl.gz is damaged"),
    "cut off": ("train.tsv.gz", None, "train.tsv.gz is damaged"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_damaged_file_is_named(name, tmp_path):
    file, content, message = BAD[name]
    if content is None:
        packed = gzip.compress(b"question\tpassage\tanswer\n" * 1000)
        (tmp_path / file).write_bytes(packed[:-20] if file.endswith(".tsv.gz") else b"{}")
    with pytest.raises(UserError) as error:
        read(tmp_path, file, content) if content is not None else list(from_files(ENTRY, tmp_path, "train"))
    assert message in str(error.value) and str(tmp_path) in str(error.value)


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
def test_a_damaged_file_of_columns_is_named(suffix, tmp_path):
    pytest.importorskip("pyarrow", reason="Parquet and Arrow files need pyarrow (requirements-data.txt)")
    (tmp_path / f"train{suffix}").write_bytes(b"PAR1 but no more")
    with pytest.raises(UserError, match=f"train{suffix} is damaged"):
        list(from_files(ENTRY, tmp_path, "train"))


def test_hidden_files_and_folders_are_not_rows(tmp_path):
    for name in (
        "train.tsv",
        "._train.tsv",
        ".~lock.train.tsv",
        ".ipynb_checkpoints/train.tsv",
        "__MACOSX/._train.tsv",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(table("a\tb\tc"))
    assert split_files(ENTRY, tmp_path, "train") == [tmp_path / "train.tsv"]
