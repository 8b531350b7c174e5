"""What each row of the table has cost: work that the steps have noted with their results, so that no call counts twice."""

import dataclasses
from collections.abc import Iterator

import pandas as pd

from pewe.files import read_record
from pewe.grid.step import Step
from pewe.identity import PROVENANCE
from pewe.meter import UNKNOWN, WORK, Work
from pewe.reporting.stored import INIT, SOURCES, TUNING
from pewe.scores import RECORD


def costs_of(step: Step) -> pd.DataFrame:
    """Rows init, part, lines, updates, seconds of a step that tunes: of its tuning, and of all that its init is made from.

    The sources, which every row shares, have a row of their own. What several rows share counts in each of them. A
    part whose cost is not known, as of an earlier version, has no row.
    """
    parts = {TUNING: work_of(step)}
    if step.row != SOURCES:
        parts[INIT] = sum((work_of(need) for need in needed(step)), Work())
    rows = [{"init": step.row, "part": part, **dataclasses.asdict(work)} for part, work in parts.items()]
    return pd.DataFrame(rows).dropna()


def needed(step: Step) -> list[Step]:
    """The steps that a step needs, and those that they need, each once; without the sources."""

    def below(one: Step) -> Iterator[Step]:
        for need in one.needs:
            if need.row != SOURCES:
                yield need
                yield from below(need)

    return list({need.folder: need for need in below(step)}.values())


def work_of(step: Step) -> Work:
    """What a step that holds has cost: as its stamp says, and the records of its runs."""
    stamp = step.stamp() or {}
    noted = stamp.get(PROVENANCE, {}).get(WORK)
    runs = [read_record(step.folder / name) or {} for name in stamp.get("files", {}) if name.endswith(f"/{RECORD}")]
    return sum(map(_of_run, runs), UNKNOWN if noted is None else Work(**noted))


def _of_run(record: dict) -> Work:
    if "result" not in record:
        return UNKNOWN
    measured = record[PROVENANCE].get("measured", {})
    lines, seconds = (measured.get(name, UNKNOWN.lines) for name in ("lines", "seconds"))
    return Work(lines, record["result"]["updates"], seconds)
