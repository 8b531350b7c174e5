"""Random small changes of the code behind the headline table, and whether its tests notice them (docs/mutation.md).

    python tests/mutate.py --count 5 --seed 1 pewe/reporting/stats.py pewe/merging/average.py

makes `count` changes in each file, at most one a line, in a copy of the repository, and prints those that no test notices.
"""

import argparse
import contextlib
import importlib
import multiprocessing
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator, operator_names

ROOT = Path(__file__).resolve().parent.parent
FORK = multiprocessing.get_context("fork")
STEPS, ENSEMBLES = ("test_steps", "test_reproduce"), ("test_ensemble_record", "test_weights", "test_unit_model")
TESTS = {  # file -> the tests that should notice
    "pewe/tuning/tune.py": ("test_runs", "test_train"),
    "pewe/tuning/runs.py": ("test_runs", "test_steps"),
    "pewe/deltas/checkpoint.py": ("test_checkpoint", "test_ensemble_record", "test_weights", "test_runs"),
    "pewe/grid/steps.py": STEPS,
    "pewe/grid/step.py": STEPS,
    "pewe/grid/run.py": STEPS,
    "pewe/grid/gather.py": STEPS,
    "pewe/grid/schedule.py": STEPS,
    "pewe/reporting/page.py": ("test_stats", "test_report"),
    "pewe/reporting/stats.py": ("test_stats",),
    "pewe/reporting/tables.py": ("test_stats", "test_report", "test_errors"),
    "pewe/merging/weights.py": ("test_weights", "test_temperature", "test_ensemble_record"),
    "pewe/merging/average.py": ENSEMBLES,
    "pewe/merging/save.py": (*ENSEMBLES, "test_stats"),
}


# operators that do more than raise an error wherever they are applied
TELLING = re.compile(
    r"/(Number|ReplaceTrue|ReplaceFalse|ReplaceAnd|ReplaceOr|AddNot|ReplaceBreak|ReplaceContinue|ZeroIteration|"
    r"ReplaceUnaryOperator_(USub|Delete_Not)|ReplaceBinaryOperator_(Add_Sub|Sub_Add|Mul_Add|FloorDiv_Mul)|"
    r"ReplaceComparisonOperator_(Eq_NotEq|NotEq_Eq|Lt_|LtE_|Gt_|GtE_|Is_IsNot|IsNot_Is$)(Lt|LtE|Gt|GtE)?$)"
)


def changed_lines(code: str, other: str) -> list[tuple[int, str]]:
    """Number and new text of the lines that differ."""
    pairs = zip(code.splitlines(), other.splitlines(), strict=False)
    return [(number, new) for number, (old, new) in enumerate(pairs, start=1) if old != new]


def changes(code: str, generator: random.Random) -> Iterator[tuple[str, int, str, str]]:
    """(operator, line, its new text, new code) in random order, one a line."""
    tree, found, seen = get_ast(code), [], set()
    for name in filter(TELLING.search, operator_names()):
        kind = get_operator(name)
        places = [place for node in ast_nodes(tree) for place in kind().mutation_positions(node)]
        found += [(place[0][0], name, occurrence) for occurrence, place in enumerate(places)]
    generator.shuffle(found)
    for line, name, occurrence in found:
        if line in seen:
            continue
        seen.add(line)
        new = mutate_code(code, get_operator(name)(), occurrence)
        if new and (lines := changed_lines(code, new)):
            yield name.split("/")[1], *lines[0], new


def preload() -> None:
    """Import what all tests import but the suite itself, so that the tests of a change begin at once."""
    os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", MPLBACKEND="Agg", TOKENIZERS_PARALLELISM="false")
    for name in ("torch.utils.tensorboard", "scipy.stats", "matplotlib.pyplot", "jinja2"):
        importlib.import_module(name)
    transformers = importlib.import_module("transformers")
    for name in ("AutoTokenizer", "T5TokenizerFast", "T5ForConditionalGeneration", "BertForSequenceClassification"):
        getattr(transformers, name)


def noticed(copy: Path, tests: tuple[str, ...], seconds: int) -> str:
    """The first of these tests that fails in a fork of this process, or that they do not end; empty where all pass."""
    receiver, sender = FORK.Pipe(duplex=False)
    child = FORK.Process(target=run_tests, args=(copy, tests, sender))
    child.start()
    sender.close()
    child.join(seconds)
    if child.is_alive():
        os.killpg(child.pid, signal.SIGKILL)
        child.join()
        return "no end"
    with contextlib.suppress(EOFError):
        return receiver.recv()
    return f"exit code {child.exitcode}" if child.exitcode else ""


class FirstFailure:
    """A plugin of pytest: sends the name of each test that fails."""

    def __init__(self, sender: Connection):
        self.sender = sender

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.sender.send(report.nodeid.removeprefix("tests/"))

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.sender.send(f"{report.nodeid.removeprefix('tests/')} cannot be imported")


def run_tests(copy: Path, tests: tuple[str, ...], sender: Connection) -> None:
    """In a process of its own: the tests of the copy, in this order, up to the first that fails."""
    os.setsid()
    os.chdir(copy)
    sys.path[:] = [str(copy), *(path for path in sys.path if not Path(path).resolve().is_relative_to(ROOT / "tests"))]
    sys.dont_write_bytecode = True
    os.environ.update(PYTHONPATH=str(copy), PYTHONDONTWRITEBYTECODE="1")
    for number in (1, 2):
        os.dup2(os.open(os.devnull, os.O_WRONLY), number)
    files = [f"tests/{name}.py" for name in tests]
    os._exit(pytest.main(["-x", "-q", "-p", "no:cacheprovider", *files], plugins=[FirstFailure(sender)]))


def main() -> None:
    """Make the changes one after the other, and count."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", default=list(TESTS))
    parser.add_argument("--count", type=int, default=3, help="changes in each file")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=int, default=900, help="at most for the tests of one change")
    parser.add_argument("--known_good", action="store_true", help="do not run the tests without a change first")
    given = parser.parse_args()
    total, survived, sound = 0, 0, set(TESTS.values()) if given.known_good else set()
    preload()
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy"
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".git", ".venv", "__pycache__", "benchmarks"))
        for name in given.files:
            code = (copy / name).read_text(encoding="utf-8")
            if TESTS[name] not in sound and (failing := noticed(copy, TESTS[name], given.seconds)):
                sys.exit(f"the tests of {name} fail without a change: {failing}")
            sound.add(TESTS[name])
            made = changes(code, random.Random(f"{given.seed}/{name}"))
            for operator, line, text, new in (next(made) for _ in range(given.count)):
                (copy / name).write_text(new, encoding="utf-8")
                began, found = time.monotonic(), noticed(copy, TESTS[name], given.seconds)
                total, survived = total + 1, survived + (not found)
                print(f"{'noticed ' if found else 'SURVIVED'} {name}:{line} {operator}: {text.strip()}", flush=True)
                print(f"         {time.monotonic() - began:.0f} s, {found or 'all pass'}", flush=True)
            (copy / name).write_text(code, encoding="utf-8")
    print(f"{survived} of {total} changes survived")


if __name__ == "__main__":
    main()
