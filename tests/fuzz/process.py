"""Run a command of the suite in a fork of this process, which has imported everything: a few milliseconds to start.

The child works in a folder of its own: where a command would take the repository for its root, it takes that folder.
"""

import contextlib
import importlib
import os
import runpy
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "MPLBACKEND": "Agg",
    "CUDA_VISIBLE_DEVICES": "",
    "TQDM_DISABLE": "",
}
PACKAGES = ("pewe", "pewe.fusion", "pewe.deltas", "get_similarity", "unit_model", "data.build")
TIMEOUT = "timeout"  # the exit code of a command that was stopped


@dataclass(frozen=True)
class Outcome:
    """What a command did."""

    code: int | str
    out: str
    err: str
    seconds: float

    @property
    def errors(self) -> list[str]:
        """The lines of stderr that begin with "error:"."""
        return [line for line in self.err.splitlines() if line.startswith("error:")]

    @property
    def traceback(self) -> bool:
        """Whether Python's traceback was printed."""
        return "Traceback (most recent call last)" in self.err


def preload() -> None:
    """Import all modules of the suite once; one thread, no network, no GPU."""
    os.environ.update(ENVIRONMENT)
    sys.path.insert(0, str(ROOT))
    import torch

    torch.set_num_threads(1)
    for package in PACKAGES:
        folder = ROOT / package.replace(".", "/")
        for path in sorted(folder.glob("*.py")):
            if path.stem not in ("__init__", "__main__"):
                importlib.import_module(f"{package}.{path.stem}")
    for name in (
        "AutoTokenizer",
        "T5TokenizerFast",
        "T5ForConditionalGeneration",
        "BertForSequenceClassification",
        "BertForTokenClassification",
        "BertTokenizerFast",
    ):
        getattr(importlib.import_module("transformers"), name)
    importlib.import_module("matplotlib.pyplot")


def start(words: Sequence, folder: Path, out: Path, err: Path, prepare: Callable[[], None] | None = None) -> int:
    """Fork; the child calls `prepare`, then runs like `python WORDS` (none: ends) with `folder` as the repository's root.

    Returns its process id.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    if pid := os.fork():
        with contextlib.suppress(OSError):
            os.setpgid(pid, pid)
        return pid
    os._exit(_child([str(word) for word in words], folder, out, err, prepare))


def _child(words: list[str], folder: Path, out: Path, err: Path, prepare: Callable[[], None] | None) -> int:
    code = 1
    try:
        os.setpgid(0, 0)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for number, path, mode in ((0, os.devnull, os.O_RDONLY), (1, out, _WRITE), (2, err, _WRITE)):
            os.dup2(os.open(path, mode, 0o644), number)
        sys.stdout = sys.__stdout__ = open(1, "w", buffering=1, encoding="utf-8", closefd=False)  # noqa: SIM115
        sys.stderr = sys.__stderr__ = open(2, "w", buffering=1, encoding="utf-8", closefd=False)  # noqa: SIM115
        warnings.simplefilter("ignore")
        os.chdir(folder)
        _run_as_main(words, folder, prepare)
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(BaseException):
            stream.flush()
    return code


_WRITE = os.O_WRONLY | os.O_CREAT | os.O_TRUNC


def _run_as_main(words: list[str], folder: Path, prepare: Callable[[], None] | None) -> None:
    from pewe import cli

    cli.ROOT = folder
    if prepare:
        prepare()
    if not words:
        return
    sys.argv = words[1:] if words[0] == "-m" else [str(ROOT / words[0]), *words[1:]]
    if words[0] == "-m":
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(sys.argv[0], run_name="__main__")


def wait(pid: int, timeout: float | None = None) -> int | None:
    """The exit code of a process, or None where it still runs after `timeout` seconds."""
    began, pause = time.monotonic(), 0.002
    while True:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if timeout is not None and time.monotonic() - began > timeout:
            return None
        time.sleep(pause)
        pause = min(0.02, pause * 1.2)


def kill(pid: int) -> None:
    """SIGKILL to a process that `start` began, and what it began."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    wait(pid)


def run(words: Sequence, folder: Path, timeout: float = 60.0, prepare: Callable[[], None] | None = None) -> Outcome:
    """Run a command to its end, or stop it after `timeout` seconds."""
    with tempfile.TemporaryDirectory() as place:
        out, err = Path(place, "out"), Path(place, "err")
        began = time.monotonic()
        pid = start(words, folder, out, err, prepare)
        code = wait(pid, timeout)
        if code is None:
            kill(pid)
        texts = [path.read_text(encoding="utf-8", errors="replace") for path in (out, err)]
        return Outcome(TIMEOUT if code is None else code, *texts, time.monotonic() - began)
