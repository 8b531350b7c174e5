"""The table of a matrix under construction, and what an interrupted command left of it."""

import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import pandas as pd

from pewe.cli import log
from pewe.files import read_record, read_table, replacing, write_record, write_table
from pewe.identity import PROVENANCE, difference, file_digest
from pewe.meter import UNKNOWN, WORK, Work, so_far
from pewe.reporting.plots import heat_map
from pewe.similarity.table import COLUMNS, RESULT, similarity_frame

BY_TARGET = ("dev", "tuned")  # entries of the settings that have one for each target


def previous_rows(out: Path, settings: dict) -> pd.DataFrame:
    """The rows that an interrupted run left, made from the same; any other matrix is set aside."""
    path = out / RESULT
    if not path.is_file():
        return pd.DataFrame(columns=COLUMNS)
    saved = read_record(out / "config.json")
    why = difference((saved or {}).get("settings"), settings)
    if not why and file_digest(path) not in saved.get("tables", {}).get(RESULT, []):
        why = "it was changed after it was written"
    if not why:
        return read_table(path, COLUMNS)
    path.replace(out / "result.previous.tsv")
    log.warning("%s is now result.previous.tsv, and computed anew: %s", path, why)
    return pd.DataFrame(columns=COLUMNS)


def spent_on(out: Path) -> Work:
    """What a stored matrix has cost, as its record says; not a number where it does not say so."""
    found = (read_record(out / "config.json") or {}).get(PROVENANCE, {}).get(WORK)
    return UNKNOWN if found is None else Work(**found)


class Matrix:
    """The table under construction: knows which pairs are there, and writes at most every two seconds.

    The record beside it is written first: it names the table that is there and the one that takes its place.
    """

    def __init__(self, out: Path, record: dict, targets: Sequence[str], sources: Sequence[str]):
        self.rows: dict[tuple[str, str, str], float] = {}
        self.pairs: set[tuple[str, str]] = set()
        self.spent, self.began = Work(), so_far()  # on the rows that were there, and since when on others
        self._take(out, record["settings"])
        self.out, self.targets, self.sources = out, list(targets), list(sources)
        there = [file_digest(out / RESULT)] if (out / RESULT).is_file() else []
        self.record = {**record, "finished": False, "tables": {RESULT: there}}
        self.written = time.monotonic()

    def _take(self, out: Path, settings: dict) -> None:
        table = previous_rows(out, settings)
        if not set(zip(table["target"], table["source"], strict=True)) <= self.pairs:
            self.spent += spent_on(out)
        self.rows |= {(r.target, r.source, r.scope): r.value for r in table.itertuples()}
        self.pairs |= {(target, source) for target, source, _ in self.rows}

    def adopt(self, parts: Path) -> None:
        """Take over the matrices of some of the targets that lie below this folder, as far as they are made from the same."""
        settings = self.record["settings"]
        for part in sorted(parts.glob("*")):
            saved = (read_record(part / "config.json") or {}).get("settings", {})
            own = {name: {t: v for t, v in settings[name].items() if t in saved.get(name, ())} for name in BY_TARGET}
            self._take(part, {**settings, **own})

    def has(self, target: str, sources: Sequence[str]) -> bool:
        return all((target, source) in self.pairs for source in sources)

    def add(self, target: str, sources: Sequence[str], values: dict[str, list[float]]) -> None:
        for scope, column in values.items():
            for source, value in zip(sources, column, strict=True):
                self.rows[target, source, scope] = value
        self.pairs.update((target, source) for source in sources)
        if time.monotonic() - self.written > 2:
            self.write(self.table())
            self.written = time.monotonic()

    def write(self, table: pd.DataFrame) -> None:
        tables = self.record["tables"]
        with replacing(self.out / RESULT) as temporary:
            write_table(temporary, table)
            tables[RESULT] = [*tables[RESULT][-1:], file_digest(temporary)]
            self._note_work()
            write_record(self.out / "config.json", self.record)

    def _note_work(self) -> None:
        """In the record, what the rows that it is of have cost."""
        spent = asdict(self.spent + (so_far() - self.began))
        self.record[PROVENANCE] = {**self.record[PROVENANCE], WORK: spent}

    def table(self) -> pd.DataFrame:
        scopes = list(dict.fromkeys(scope for _, _, scope in self.rows))
        order = [
            (t, s, scope) for t in self.targets for s in self.sources for scope in scopes if (t, s, scope) in self.rows
        ]
        return pd.DataFrame([(*key, self.rows[key]) for key in order], columns=COLUMNS)

    def finish(self, pictures: bool) -> pd.DataFrame:
        table = self.table()
        self.write(table)
        tables = {RESULT: self.record["tables"][RESULT][-1:]}
        scopes = list(table["scope"].unique())
        for scope in scopes:
            part, folder = table[table["scope"] == scope], self.out / scope if len(scopes) > 1 else self.out
            if len(scopes) > 1:
                write_table(folder / RESULT, part)
                tables[f"{scope}/{RESULT}"] = [file_digest(folder / RESULT)]
            if pictures:
                title = f"{self.out.name}, {scope}"
                higher = self.record["higher_is_more_similar"]
                scale = f"value, {'higher' if higher else 'lower'} is more similar"
                cut = (5, 100) if higher else (0, 95)
                frame = similarity_frame(part)
                heat_map(frame, folder / "similarity.png", title, percentiles=cut, scale=scale, higher=higher)
        write_record(self.out / "config.json", {**self.record, "finished": True, "tables": tables})
        log.info("%s: %d pairs, %d scopes", self.out / RESULT, len(self.pairs), len(scopes))
        return table
