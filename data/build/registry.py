"""All entries, in the order of task_list.py: the paper's 51, and with PEMT's."""

from data.build import answer, choice, classify, pemt
from data.build.entry import Entry
from pewe.errors import UserError
from pewe.flags import suggest
from task_list import TASK_LISTS, quan_task

_KNOWN = {entry.task: entry for module in (answer, choice, classify) for entry in module.ENTRIES}
ENTRIES: dict[str, Entry] = {task: _KNOWN[task] for task in quan_task if task in _KNOWN}  # not: a user's own task
ALL: dict[str, Entry] = ENTRIES | {entry.task: entry for entry in pemt.ENTRIES}
_BUILT = {name: [task for task in tasks if task in ALL] for name, tasks in TASK_LISTS.items()}
_LISTS = {name: tasks for name, tasks in _BUILT.items() if tasks}


def selected(names: list[str]) -> list[Entry]:
    """The entries of the named tasks, groups or lists; the paper's 51 where none is named. Raises UserError for others."""
    known = [*ALL, *_LISTS]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise UserError(f"--tasks: nothing builds {suggest(unknown[0], known)}")
    wanted = [task for name in names or ["quan_task"] for task in _LISTS.get(name, [name])]
    return [ALL[task] for task in dict.fromkeys(wanted)]
