"""Files as they are found and left: tables without quoting, JSON of any shape, temporary files, what cannot be written."""

import errno
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
from conftest import ROOT, small_files
from safetensors import SafetensorError

from pewe import files as results
from pewe.deltas.checkpoint import write_checkpoint
from pewe.errors import UserError
from pewe.files import numeric, provenance, read_json, read_table, replacing, write_table, write_text
from pewe.merging.store import write_tensors
from pewe.reporting.plots import heat_map

# ---- tables


def test_quotes_are_letters(tmp_path):
    """A quote at the beginning of a cell opens nothing: no row is glued to the next one."""
    names = ['"boolq', "sci'q", 'a "b" c', "a,b", "ñ 空", "nan", "NULL", "1e5"]
    table = pd.DataFrame({"target": names, "value": [float(n) for n in range(len(names))]})
    write_table(tmp_path / "t.tsv", table)
    assert (tmp_path / "t.tsv").read_text().splitlines()[1] == '"boolq\t0.0'
    pd.testing.assert_frame_equal(read_table(tmp_path / "t.tsv", ["target", "value"]), table, check_dtype=False)


@pytest.mark.parametrize("cell", ["a\tb", "a\nb", "a\rb"])
def test_a_cell_that_would_break_its_row_is_not_written(cell, tmp_path):
    write_text(tmp_path / "t.tsv", "before")
    for table in (pd.DataFrame({"a": ["x", cell]}), pd.DataFrame({cell: [1]})):
        with pytest.raises(UserError, match="there is a tab or a line break in"):
            write_table(tmp_path / "t.tsv", table)
    assert (tmp_path / "t.tsv").read_text() == "before"


HEAD = b"target\tsource\tscope\tvalue\n"
BAD_TABLES = {
    "short row": (HEAD + b"a\tb\tall\t1\na\tb\n", "line 3: 2 cells, expected 4"),
    "long row": (HEAD + b"a\tb\tall\t1\tx\n", "line 2: 5 cells, expected 4"),
    "every row long": (HEAD + b"a\tb\tall\t1\t2\nc\td\tall\t1\t2\n", "line 2: 5 cells"),
    "blank line": (HEAD + b"a\tb\tall\t1\n\na\tb\tall\t1\n", "line 3: 1 cells"),
    "column twice": (b"target\tsource\tscope\tvalue\tvalue\n", "a column stands twice"),
    "commas": (HEAD.replace(b"\t", b","), "column 'target' is missing"),
    "empty": (b"", "column 'target' is missing"),
    "utf-16": ("target\tsource\tscope\tvalue\n".encode("utf-16"), "is not a tab-separated table"),
    "empty name": (HEAD + b"\tb\tall\t1\n", "line 2: target must not be empty"),
    "scope above": (HEAD + b"a\tb\tall\t1\na\tb\t../../x\t1\n", "line 3: scope must be a plain name without slashes"),
    "absolute scope": (HEAD + b"a\tb\t/tmp/x\t1\n", "line 2: scope must be a plain name"),
    "target above": (HEAD + b"../../x\tb\tall\t1\n", "line 2: target must be a plain name"),
    "source above": (HEAD + b"a\t..\tall\t1\n", "line 2: source must be a plain name"),
    "NUL": (HEAD + b"a\0\tb\tall\t1\n", "line 2: target must be a plain name"),
}


@pytest.mark.parametrize("name", BAD_TABLES)
def test_a_table_of_another_shape_is_named_with_its_line(name, tmp_path):
    content, message = BAD_TABLES[name]
    (tmp_path / "t.tsv").write_bytes(content)
    with pytest.raises(UserError) as error:
        read_table(tmp_path / "t.tsv", ["target", "source", "scope", "value"])
    assert message in str(error.value) and "t.tsv" in str(error.value)


@pytest.mark.parametrize(
    "rewrite", [lambda b: b"\xef\xbb\xbf" + b, lambda b: b.replace(b"\n", b"\r\n"), lambda b: b[:-1]]
)
def test_a_byte_order_mark_and_line_ends_of_windows_do_not_matter(rewrite, tmp_path):
    (tmp_path / "t.tsv").write_bytes(rewrite(HEAD + b"a\tb\tall\t1.5\nc\td\tall\t\n"))
    table = read_table(tmp_path / "t.tsv", ["target", "value"])
    assert table["target"].tolist() == ["a", "c"]
    with pytest.raises(UserError, match=r"t\.tsv, line 3: value must be a number, not ''"):
        numeric(table, "value", tmp_path / "t.tsv")
    assert numeric(table[:1], "value", tmp_path / "t.tsv").tolist() == [1.5]


@pytest.mark.parametrize("cell", ["", " ", "abc", "1,5", "0x10", "True", "1_000", "--1", "NULL"])
def test_what_is_no_number_is_named_with_its_line(cell, tmp_path):
    (tmp_path / "t.tsv").write_text(f"a\tvalue\nx\t1\ny\t{cell}\n")
    table = read_table(tmp_path / "t.tsv", ["value"])
    with pytest.raises(UserError, match=r"t\.tsv, line 3: value must be a number"):
        numeric(table, "value", tmp_path / "t.tsv")


def test_not_defined_is_a_number_unless_it_has_to_be_defined(tmp_path):
    (tmp_path / "t.tsv").write_text("a\tvalue\nx\t1\ny\tnan\nz\tNaN\n")
    table = read_table(tmp_path / "t.tsv", ["value"])
    assert numeric(table, "value", tmp_path / "t.tsv").isna().tolist() == [False, True, True]
    with pytest.raises(UserError, match=r"t\.tsv, line 3: value must be a number, not 'nan'"):
        numeric(table, "value", tmp_path / "t.tsv", defined=True)


@pytest.mark.parametrize("cell", ["inf", "-Infinity", "1e400"])
def test_what_is_infinite_is_named_with_its_line(cell, tmp_path):
    (tmp_path / "t.tsv").write_text(f"a\tvalue\nx\tnan\ny\t{cell}\n")
    with pytest.raises(UserError, match=r"t\.tsv, line 3: value must be finite, not -?inf"):
        numeric(read_table(tmp_path / "t.tsv", ["value"]), "value", tmp_path / "t.tsv")


def test_a_column_of_truth_values_is_no_column_of_numbers(tmp_path):
    (tmp_path / "t.tsv").write_text("a\tvalue\nx\tTrue\ny\tFalse\n")
    with pytest.raises(UserError, match="line 2: value must be a number"):
        numeric(read_table(tmp_path / "t.tsv", ["value"]), "value", tmp_path / "t.tsv")


def test_every_table_is_read_and_written_in_one_place():
    """What reads its tables elsewhere has neither the quoting nor the checks; a CSV for others is no table of ours."""
    elsewhere = [
        str(path.relative_to(ROOT))
        for path in ROOT.rglob("*.py")
        if path.relative_to(ROOT).parts[0] not in ("tests", ".venv", "build")
        and path.name != "files.py"
        and (
            "read_csv" in path.read_text(encoding="utf-8")
            or "to_csv(temporary, sep=" in path.read_text(encoding="utf-8")
        )
    ]
    assert elsewhere == []


# ---- JSON


@pytest.mark.parametrize(
    "text", ["[]", "5", '"x"', "null", "", "{", "NaN", "[" * 100_000, '{"a": 1' + "0" * 5000 + "}", "\0"]
)
def test_json_of_another_shape_counts_as_absent(text, tmp_path):
    (tmp_path / "run.json").write_text(text)
    assert read_json(tmp_path / "run.json") is None
    assert results.read_record(tmp_path / "run.json") is None


def test_json_that_is_no_file_counts_as_absent(tmp_path):
    assert read_json(tmp_path) is None and read_json(tmp_path / "none.json") is None
    (tmp_path / "file").write_text("x")
    assert read_json(tmp_path / "file" / "run.json") is None
    (tmp_path / "latin.json").write_bytes(b'{"a": "\xff"}')
    assert read_json(tmp_path / "latin.json") is None


def test_what_stands_within_an_object():
    within, content = results.within, {"settings": {"task": "boolq", "seed": 1}, "result": [1]}
    assert (
        within(content, "settings", "task", kind=str) == "boolq" and within(content, "settings") == content["settings"]
    )
    assert (
        within(content, "settings", "seed", kind=str) is None
        and within(content, "result", "history", kind=list) is None
    )
    assert within(None, "settings") is None and within({}, "settings", "task", kind=str) is None


# ---- writing


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob(".*.tmp"))


def test_what_a_killed_writer_left_is_swept(tmp_path):
    dead = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True, check=True
    )
    host, process = results._HOST, dead.stdout.strip()
    stay = [
        f".a.pt.{host}.{os.getppid()}.tmp",
        f".a.pt.another.{process}.tmp",
        f".x.{host}.y.tmp",
        f"a.{host}.{process}.tmp",
    ]
    gone = [f".resume.pt.{host}.{process}.tmp", f".[x] y.pt.{host}.{process}.tmp"]
    for name in (*gone, *stay):
        (tmp_path / name).mkdir()
        (tmp_path / name / "resume.pt").write_text("x")
    write_text(tmp_path / "log.txt", "y")
    assert not any((tmp_path / name).exists() for name in gone) and all((tmp_path / name).is_dir() for name in stay)
    deep = tmp_path / "a" / "b" / gone[0]
    deep.mkdir(parents=True)
    with results.hold(tmp_path):
        assert not deep.exists()


def test_what_earlier_versions_left_is_swept_when_it_is_old(tmp_path):
    """They wrote `.NAME.PID.tmp`, without the machine whose process it is."""
    dead, day = 2**22 + 1, 86_400  # no process has a number beyond 2^22
    ages = {
        f".resume.pt.{dead}.tmp": 2 * day,
        f".a.tsv.{dead}.tmp": 60,
        f".b.tsv.{os.getpid()}.tmp": 2 * day,
        f"c.tsv.{dead}.tmp": 2 * day,
        ".d.tsv.old.tmp": 2 * day,
    }
    for name, age in ages.items():
        (tmp_path / name).write_text("x")
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    write_text(tmp_path / "log.txt", "y")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*list(ages)[1:], "log.txt"])


def test_a_writer_that_is_killed_leaves_the_old_file_and_the_next_one_cleans_up(tmp_path):
    write_text(tmp_path / "t.txt", "old")
    code = (
        "import os, sys, pathlib; from pewe.files import replacing\n"
        "with replacing(pathlib.Path(sys.argv[1])) as t: t.write_text('new'); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path / "t.txt"], check=False)
    assert (tmp_path / "t.txt").read_text() == "old" and len(left(tmp_path)) == 1
    write_text(tmp_path / "other.txt", "x")
    assert left(tmp_path) == []


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
WRITE_FAULTS = {
    "system": (FULL, "No space left on device"),
    "torch": (RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 4736 vs 4630"), "No space left"),
    "torch stream": (
        RuntimeError("PytorchStreamWriter failed writing file data/1: file write failed"),
        "No space left",
    ),
    "safetensors": (
        SafetensorError("Error while serializing: I/O error: File too large (os error 27)"),
        "File too large",
    ),
}


@pytest.mark.parametrize("name", WRITE_FAULTS)
def test_what_cannot_be_written_is_named_and_the_old_file_stays(name, tmp_path):
    fault, message = WRITE_FAULTS[name]
    write_text(tmp_path / "checkpoint-best.pt", "old")
    with pytest.raises(UserError, match=rf"cannot write .*checkpoint-best\.pt: {message}"):  # noqa: SIM117
        with replacing(tmp_path / "checkpoint-best.pt") as temporary:
            temporary.write_text("half")
            raise fault
    assert (tmp_path / "checkpoint-best.pt").read_text() == "old" and not left(tmp_path)


@pytest.mark.parametrize(
    "bug", [RuntimeError("mat1 and mat2 shapes cannot be multiplied"), FileNotFoundError(2, "No", "/input")]
)
def test_an_error_that_is_not_of_the_file_passes(bug, tmp_path):
    with pytest.raises(type(bug)), replacing(tmp_path / "x"):
        raise bug


def test_no_folder_and_a_folder_in_the_place_of_the_file(tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "t.tsv").mkdir()
    for path, message in (
        (tmp_path / "file" / "t.tsv", "File exists|Not a directory"),
        (tmp_path / "t.tsv", "Is a directory"),
    ):
        with pytest.raises(UserError, match=rf"cannot write .*t\.tsv: ({message})"):
            write_text(path, "x")


def test_every_kind_of_file_is_named_where_the_disk_is_full(tmp_path):
    """Text, table, JSON, picture, torch's and safetensors' files; those of before stay, and nothing temporary is left."""
    tensors = {"a": torch.zeros(100_000)}
    writers = {
        "text.md": lambda path: write_text(path, "x" * 10_000),
        "table.tsv": lambda path: write_table(path, pd.DataFrame({"a": range(10_000)})),
        "config.json": lambda path: results.write_json(path, {"a": "x" * 10_000}),
        "heat.png": lambda path: heat_map(pd.DataFrame([[1.0, 2.0]]), path, "title"),
        "checkpoint-best.pt": lambda path: write_checkpoint(path, "adapter", tensors, {}),
        "s.safetensors": lambda path: write_tensors(path, tensors, {}),
    }
    for name, write in writers.items():
        (tmp_path / name).write_text("before")
        message = rf"cannot write .*{name}: (File too large|No space left on device\?)$"
        with pytest.raises(UserError, match=message), small_files():
            write(tmp_path / name)
        assert (tmp_path / name).read_text() == "before"
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(writers)


def test_provenance_without_git_and_without_a_package(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(
        results.importlib.metadata,
        "version",
        lambda name: (_ for _ in ()).throw(results.importlib.metadata.PackageNotFoundError(name)),
    )
    found = provenance()
    assert found["commit"] == "unknown" and set(found["versions"].values()) == {"unknown"}
    assert json.dumps(found) and found["python"] == platform.python_version()
