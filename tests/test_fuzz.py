"""A short part of the drivers in tests/fuzz: malformed inputs, flipped bits, and (slow) killed processes."""

import random
import subprocess
import sys
from types import SimpleNamespace

import pytest
from conftest import ROOT

from tests.fuzz.case import EITHER, REFUSE, SAME, Box, Case, judge
from tests.fuzz.process import TIMEOUT, Outcome


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(["tests.fuzz"], id="inputs and flips"),
        pytest.param(["tests.fuzz.kills", "--count", "30", "--pairs", "10"], id="kills", marks=pytest.mark.slow),
    ],
)
def test_all_is_well(words, tmp_path):
    words = [sys.executable, "-m", *words, "--world", str(tmp_path)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


TRACEBACK = 'Traceback (most recent call last):\n  File "x", line 1, in y\nKeyError: 1\n'
NAMED, UNNAMED = "error: result.tsv, line 2: no number\n", "error: something is wrong\n"
CASES = {
    "refused": (REFUSE, 2, NAMED, "0.5", "clean"),
    "refused without a name": (REFUSE, 2, UNNAMED, "0.5", "unclear"),
    "refused twice": (REFUSE, 2, NAMED + NAMED, "0.5", "unclear"),
    "refused though sound": (SAME, 2, NAMED, "0.5", "unclear"),
    "accepted": (REFUSE, 0, "", "0.5", "silent"),
    "accepted, equal": (EITHER, 0, "", "0.5", "accepted_same"),
    "accepted, another number": (EITHER, 0, "", "0.51", "silent"),
    "traceback": (EITHER, 1, TRACEBACK, "0.5", "traceback"),
    "other exit code": (EITHER, 3, "", "0.5", "unclear"),
    "no end": (EITHER, TIMEOUT, "", "0.5", "hang"),
}


@pytest.mark.parametrize("name", CASES)
def test_the_judgement(name, tmp_path):
    right, code, err, value, expected = CASES[name]
    world = SimpleNamespace(clean=lambda command: tmp_path / "clean")
    box = Box(world, tmp_path / "box", random.Random(0))
    for root, number in ((tmp_path / "clean", "0.5"), (box.root, value)):
        (root / "out").mkdir(parents=True)
        (root / "out" / "result.tsv").write_text(f"target\tvalue\tseconds\na\t{number}\t{random.random()}\n")
    case = Case([], right, ("result.tsv",), "tune")
    assert judge(case, box, Outcome(code, "", err, 0.0))[0] == expected


def test_what_lies_elsewhere_is_no_good(tmp_path):
    box = Box(SimpleNamespace(), tmp_path / "box", random.Random(0))
    (tmp_path / "box" / "evil").mkdir()
    assert judge(Case([], REFUSE, ("x",)), box, Outcome(2, "", "error: x\n", 0.0))[0] == "silent"
