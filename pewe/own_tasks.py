"""Tasks of one's own: `tasks.toml` in the data folder says what `task_list.py` says of the paper's.

    [my_task]
    metric = "ACC"
    group = "my_group"     # a list of tasks too; own_tasks where it is not given

A declared task is known to every command that is given the folder.
"""

import difflib
from collections.abc import Iterable
from pathlib import Path

from pewe import metrics
from pewe.cli import read_toml
from pewe.errors import UserError
from pewe.files import write_text
from pewe.flags import name_fault, suggest
from task_list import GROUP_OF, METRICS, TASK_LISTS

FILE = "tasks.toml"
OWN_GROUP = "own_tasks"
_declared: dict[str, Path] = {}  # task -> the file


def declare(folder: str | Path) -> None:
    """Make the tasks of a data folder known. Raises UserError that names the file, the task and what was expected."""
    path = Path(folder) / FILE
    if not path.is_file():
        return
    for task, about in read_toml(path).items():
        _check(path, task, about)
        if task in METRICS and task not in _declared and METRICS[task] != about["metric"]:
            raise UserError(
                f"{path}: {task!r} stands in task_list.py with the metric {METRICS[task]}; give yours another name"
            )
        _add(
            task,
            about["metric"],
            GROUP_OF[task] if task in METRICS and task not in _declared else about.get("group", OWN_GROUP),
        )
        _declared[task] = path


def _check(path: Path, task: str, about: object) -> None:
    if not isinstance(about, dict):
        raise UserError(f'{path}: expected a section [{task}] with metric = "ACC", not {about!r}')
    if fault := name_fault(task):
        raise UserError(f"{path}: the task {fault}")
    for key, value in about.items():
        if key not in ("metric", "group"):
            raise UserError(f"{path}, [{task}]: unknown key {suggest(key, ('metric', 'group'))}")
        if not isinstance(value, str) or not value:
            raise UserError(f"{path}, [{task}]: {key} must be a name, not {value!r}")
    if about.get("metric") not in metrics.METRICS:
        raise UserError(f"{path}, [{task}]: the metric cannot be {suggest(about.get('metric', ''), metrics.METRICS)}")


def _add(task: str, metric: str, group: str) -> None:
    if (before := GROUP_OF.get(task)) not in (None, group):
        TASK_LISTS[before].remove(task)
    METRICS[task], GROUP_OF[task] = metric, group
    if task not in TASK_LISTS.setdefault(group, []):
        TASK_LISTS[group].append(task)


def unknown_task(task: str, folder: str | Path = "") -> str:
    """What to say of a name that is no task: the nearest ones, and how to declare it."""
    near = difflib.get_close_matches(task, METRICS, n=3)
    hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else "."
    place = Path(folder) / FILE if str(folder) else f"{FILE} of the data folder"
    return f'unknown task {task!r}{hint} A task of your own is declared in {place}: [{task}] metric = "ACC" (docs/your_own_task.md)'


def write_declared(folder: Path, tasks: Iterable[str]) -> None:
    """Write those of the tasks that were declared into a folder of results, which can then be read without their data."""
    sections = [
        f'[{task}]\nmetric = "{METRICS[task]}"\ngroup = "{GROUP_OF[task]}"\n' for task in tasks if task in _declared
    ]
    if sections:
        write_text(folder / FILE, "\n".join(sections))
