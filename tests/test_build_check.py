"""The checking command: each fault and remark with file and line, and the exit code."""

import subprocess
import sys

import pytest

from data.build.check import CheckConfig, check_task, run, with_flag
from pewe.cli import ROOT
from pewe.errors import UserError

GOOD = {
    "train": "".join(f"question: is {n} odd [SEP] context: some are\t{('no', 'yes')[n % 2]}\n" for n in range(8)),
    "dev": "question: is 91 odd [SEP] context: it is\tyes\n",
    "test": "question: is 92 odd [SEP] context: it is not\tno\n",
}


def folder_of(tmp_path, task="boolq", **files):
    """A task's folder with these files (by split, or by name), good ones for the rest."""
    folder = tmp_path / task
    folder.mkdir()
    for split, text in {**GOOD, **files}.items():
        if text is None:
            continue
        name = split.replace("__", ".") if "__" in split else f"{task}_64_42_{split}.tsv"
        (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return folder


def told(folder):
    """What the check says, without the folder."""
    return [str(finding).replace(f"{folder}/", "") for finding in check_task(folder)[0]]


def test_a_good_folder_has_no_findings(tmp_path):
    assert check_task(folder_of(tmp_path)) == ([], 3, 10)


CASES = {
    "no tab": (
        {"dev": "a\tyes\nno tab here\n"},
        "boolq_64_42_dev.tsv, line 2: no TAB; expected input TAB output [TAB further outputs]",
    ),
    "empty input": ({"dev": "\tyes\n"}, "boolq_64_42_dev.tsv, line 1: empty input"),
    "empty output": ({"dev": "a\t \n"}, "boolq_64_42_dev.tsv, line 1: empty output in column 2"),
    "empty further output": ({"dev": "a\tyes\t\tno\n"}, "boolq_64_42_dev.tsv, line 1: empty output in column 3"),
    "not UTF-8": ({"test": b"a\tyes\n\xff\tno\n"}, "boolq_64_42_test.tsv, line 2: not UTF-8 (byte 0)"),
    "unknown label": (
        {"test": "a\tmaybe\n"},
        "boolq_64_42_test.tsv, line 1: unknown label 'maybe'; the task has: no, yes",
    ),
    "empty file": ({"test": ""}, "boolq_64_42_test.tsv: the file is empty"),
    "missing split": (
        {"test": None},
        "boolq_64_42_test.tsv: the file is missing; every prefix needs train, dev and test",
    ),
    "leak": (
        {"test": "x\tno\n" + GOOD["dev"]},
        "boolq_64_42_test.tsv, line 2: the same input as line 1 of boolq_64_42_dev.tsv",
    ),
    "leak into full": (
        {"boolq_full_train__tsv": GOOD["test"]},
        "boolq_full_train.tsv, line 1: the same input as line 1 of boolq_64_42_test.tsv",
    ),
    "repeated": ({"dev": 2 * GOOD["dev"]}, "boolq_64_42_dev.tsv, line 2: remark: the same input as line 1"),
    "few lines": (
        {"train": "a\tno\nb\tyes\n"},
        "boolq_64_42_train.tsv: remark: 2 training lines are fewer than one batch of 8; give --bsz_list 2 or less",
    ),
    "uneven": ({"train": GOOD["train"] + "a\tno\n"}, "boolq_64_42_train.tsv: remark: uneven labels: 5 no, 4 yes"),
}


@pytest.mark.parametrize("name", CASES)
def test_each_finding_names_file_and_line(name, tmp_path):
    files, message = CASES[name]
    assert told(folder_of(tmp_path, **files)) == [message]


def test_an_answer_must_be_an_option(tmp_path):
    split = {
        "train": "".join(f"What is {n}? (A) ice{n} (B) tin\tice{n}\n" for n in range(8)),
        "dev": "q (A) a (B) b\tc\n",
        "test": "x (A) a\ta\n",
    }
    folder = folder_of(tmp_path, "sciq", **split)
    assert told(folder) == ["sciq_64_42_dev.tsv, line 1: the answer 'c' is not among the options of the input"]


def test_an_output_must_suit_the_metric(tmp_path):
    lines = {"train": "".join(f"summarize: {n}\ts{n}\n" for n in range(8)), "dev": "a\t...\n", "test": "b\tc\n"}
    assert told(folder_of(tmp_path, "xsum", **lines)) == [
        "xsum_64_42_dev.tsv, line 1: Rouge-L is not defined for an output of dots only"
    ]


def test_a_new_task_is_told_where_to_be_added(tmp_path, forgotten):
    folder = folder_of(tmp_path, "my_task")
    place = f'A task of your own is declared in {tmp_path / "tasks.toml"}: [my_task] metric = "ACC"'
    assert told(folder) == [f"{folder}: unknown task 'my_task'. {place} (docs/your_own_task.md)"]
    (tmp_path / "tasks.toml").write_text('[my_task]\nmetric = "ACC"\n')
    assert told(folder) == []
    bad = folder_of(tmp_path, "my_labels", test="a\tperhaps\n")
    assert told(bad)[1:] == [
        "my_labels_64_42_test.tsv, line 1: remark: the label 'perhaps' is not in my_labels_64_42_train.tsv"
    ]


def test_a_folder_without_train_files_says_what_is_expected(tmp_path):
    folder = tmp_path / "boolq"
    folder.mkdir()
    (folder / "x.tsv").write_text("a\tb\n")
    assert "has no <prefix>_train.tsv, e.g. boolq_64_42_train.tsv" in told(folder)[0]
    with pytest.raises(UserError, match="has no folder for task 'sciq'"):
        run(CheckConfig(folders=[str(tmp_path)], tasks=["sciq"]))
    with pytest.raises(UserError, match="there is no folder /nowhere"):
        run(CheckConfig(folders=["/nowhere"]))
    with pytest.raises(UserError, match="name a folder"):
        run(CheckConfig())
    assert with_flag(["a", "--show", "1"]) == ["--folders", "a", "--show", "1"] and with_flag(["--show", "1"]) == [
        "--show",
        "1",
    ]


def test_long_lists_are_cut(tmp_path, capsys):
    folder = folder_of(tmp_path, dev="x\n" * 30)
    with pytest.raises(SystemExit) as stop:
        run(CheckConfig(folders=[str(folder)], show=3))
    out = capsys.readouterr().out.splitlines()
    assert stop.value.code == 1
    assert len(out) == 5 and out[3].endswith("27 more (--show 0 shows all)")
    assert out[4] == "boolq: 3 files, 9 lines, 30 faults, 0 remarks"


def test_the_command(tmp_path):
    def check(*args):
        return subprocess.run(
            [sys.executable, "-m", "data.build.check", *args], cwd=ROOT, capture_output=True, text=True
        )

    folder = folder_of(tmp_path)
    assert check(str(tmp_path)).returncode == 0
    (folder / "boolq_64_42_dev.tsv").write_text("broken\n")
    done = check(str(tmp_path), "--tasks", "boolq")
    assert done.returncode == 1 and "line 1: no TAB" in done.stdout and "Traceback" not in done.stderr
    done = check("/nowhere")
    assert done.returncode == 2 and done.stderr == "error: there is no folder /nowhere\n"
