"""The default world of every command: its backbone, its data, its tasks. The flags that name one of them read this place.

    PEWE_SETTING=paper                     T5-base and the 32 question-answering tasks; else the embedded default
    MODEL=DIR DATA_DIR=DIR TASKS=LIST      one part of it instead
    PEWE_LIMIT_TRAIN_ITERS=N               at most so many updates in every run: a reduced experiment, as its records say

are environment variables of scripts and Python commands alike.
"""

import os
import sys
from dataclasses import dataclass, replace

from pewe.flags import suggest


@dataclass(frozen=True)
class Setting:
    """A folder or a hub id, a folder of tasks, and a list of task_list.py."""

    model: str
    task_dir: str
    task_list: str


SETTINGS = {
    "embedded": Setting("checkpoints/mini_t5", "data/mini_gym", "mini_task_list"),
    "paper": Setting("google/t5-base-lm-adapt", "data/crossfit", "QA_task_list"),
}
VARIABLES = {"MODEL": "model", "DATA_DIR": "task_dir", "TASKS": "task_list"}


def _stop(line: str) -> None:
    """It is read while modules are imported, before any command can catch an error."""
    print(f"error: {line}", file=sys.stderr)
    sys.exit(2)


def chosen() -> Setting:
    """The setting that the environment names."""
    name = os.environ.get("PEWE_SETTING") or "embedded"
    if name not in SETTINGS:
        _stop(f"PEWE_SETTING cannot be {suggest(name, SETTINGS)}")
    parts = {part: value for variable, part in VARIABLES.items() if (value := os.environ.get(variable))}
    return replace(SETTINGS[name], **parts)


def limit() -> int:
    """Updates at most in every run; 0: no limit."""
    text = os.environ.get("PEWE_LIMIT_TRAIN_ITERS") or "0"
    if not text.isdecimal():
        _stop(f"PEWE_LIMIT_TRAIN_ITERS must be a whole number, not {text!r}")
    return int(text)


SETTING = chosen()
TASK_LIST = SETTING.task_list  # of a script of unit_model/ unless --task_list or --tasks say otherwise
LIMIT_TRAIN_ITERS = limit()
