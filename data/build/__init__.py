"""Builds the paper's 51 tasks, and PEMT's 23, in CrossFit's text format: `python -m data.build --help`.

`entry.py` says what an entry is, `choice.py`, `answer.py` and `classify.py` hold one entry per task, `rows.py` reads rows
from the hub or from files on disk, `lines.py` turns them into lines, `sample.py` draws the few-shot lines, `task.py` builds
one task, `run.py` all of them, `summary.py` makes the tables and the picture, and `check.py` says what is wrong with a
folder, line by line. `pemt.py` holds PEMT's tasks, which have splits and draws of their own.
"""
