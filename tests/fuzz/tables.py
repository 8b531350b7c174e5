"""Malformed tables of results that another command reads: similarities, scores, gates, the tables of a report."""

from collections.abc import Callable
from pathlib import Path
from random import Random

from tests.fuzz.case import ANY, EITHER, REFUSE, Box, Case, Variant
from tests.fuzz.edits import DAMAGES, Edit, a_name, a_number, box_of, cells, entries, every_name, others, text, whole
from tests.fuzz.places import FIRST, TASKS
from tests.fuzz.records import TABLE_SHAPES, torn

RESULTS = "suite:results/fuzz"
# command, place, file
SIMILARITIES = (("Loss_weights", "Loss", "result.tsv"), ("GraNd_weights", "GraNd", "result.tsv"))
SCORES = (
    ("Performance", "pairs", "result.tsv"),
    ("Performance", "zero_shot", "result.tsv"),
    ("tables", "tune", "result.tsv"),
    ("tables", "from_ensemble", "result.tsv"),
)
CELLS = (("report", RESULTS, "cells.tsv"),)
REPORTED = (*CELLS, *(("report", RESULTS, f"{name}.tsv") for name in ("weights", "similarities", "curves", "trace")))
GATES = (("gates", "pemt", f"{FIRST}/*/*/gates.tsv"),)
NEEDED = (*SIMILARITIES, *SCORES, *CELLS)
HARMLESS = ("header only", "a row twice", "a cell more", "torn")  # for some of the readers


def in_table(
    edit: Edit,
    right: str = REFUSE,
    files=NEEDED,
    check: Callable[[Box, str], str] | None = None,
    more: tuple[str, ...] = (),
) -> Variant:
    """A table that is spoiled, and a command that reads it; a report of fewer rows has other numbers."""

    def make(box: Box) -> Case:
        command, place, pattern = box.rng.choice(files)
        path = next(iter(sorted(box.take(place).glob(pattern))))
        edit(path, box.rng)
        wanted = ANY if command == "report" and right == EITHER else right
        return Case(box.words(command, *more), wanted, (path.name, path.parent.name, *more), command, check=check)

    return make


def weights_are_sound(box: Box, command: str) -> str:
    """Weights are finite, sum to 1, and no target helps itself."""
    for path in (box.root / "out").rglob("final_weight.tsv"):
        rows = [line.split("\t") for line in path.read_text().splitlines()[1:]]
        for target in {row[0] for row in rows}:
            total = sum(float(row[2]) for row in rows if row[0] == target)
            if not abs(total - 1) < 1e-6:
                return f"the weights of {target} sum to {total}"
        if own := [row for row in rows if row[0] == row[1] and float(row[2])]:
            return f"{own[0][0]} helps itself"
    return ""


def no_markup(box: Box, command: str) -> str:
    """Nothing of the input stands in a page or a Markdown table as markup."""
    pages = [path for path in (box.root / "out").iterdir() if path.suffix in (".html", ".md")]
    bad = [path.name for path in pages if "<script>alert" in path.read_text()]
    return f"{bad[0]} has the input's markup" if bad else ""


def absolute_scope(path: Path, rng: Random) -> None:
    """A scope that is the name of a folder elsewhere."""

    def change(rows: list[list[str]], rng: Random) -> None:
        place = rows[0].index("scope")
        old = rows[1][place]
        for row in rows[1:]:
            row[place] = str(box_of(path) / "evil") if row[place] == old else row[place]

    cells(change)(path, rng)


def pair_missing(rows: list[list[str]], rng: Random) -> None:
    """A row less, of a target and another source."""
    rows.remove(rng.choice(others(rows)))


def pair_twice(rows: list[list[str]], rng: Random) -> None:
    """A row twice, of a target and another source."""
    rows.append(rng.choice(others(rows)))


def orientation(edit: Edit) -> Variant:
    """The record beside a similarity table, which says what is more similar."""

    def make(box: Box) -> Case:
        path = box.take("Loss") / "config.json"
        edit(path, box.rng)
        return Case(box.words("Loss_weights"), EITHER, (path.name, "orientation"), "Loss_weights")

    return make


def provenance(content: str) -> Variant:
    """The note beside the tables of a report."""

    def make(box: Box) -> Case:
        path = box.take(RESULTS) / "provenance.json"
        path.write_text(content)
        return Case(box.words("report"), ANY, (path.name,), "report", check=no_markup)

    return make


def rows_flag(rows: Callable[[Box], list[str]], names: tuple[str, ...], right: str = REFUSE, check=None) -> Variant:
    """The flag --rows of pewe.reporting.tables."""
    return lambda box: Case(box.words("tables", "--rows", *rows(box)), right, names, "tables", check=check)


TEMPERATURE = ("--effective", "0", "--tem", "1e-300")
MARKUP = "<script>alert(1)</script>"
BAD_SIMILARITIES: dict[str, Variant] = {
    "text": in_table(a_number("abc", "1;5"), files=SIMILARITIES),
    "empty": in_table(a_number(""), files=SIMILARITIES),
    "infinite": in_table(a_number("inf", "-inf"), files=SIMILARITIES),
    "NaN": in_table(a_number("nan"), files=SIMILARITIES),
    "huge": in_table(a_number("1e308", "-1e308", "1e200"), ANY, SIMILARITIES, weights_are_sound),
    "tiny temperature": in_table(lambda path, rng: None, ANY, SIMILARITIES, weights_are_sound, TEMPERATURE),
    "pair twice": in_table(cells(pair_twice), files=SIMILARITIES),
    "pair missing": in_table(cells(pair_missing), files=SIMILARITIES),
    "a scope leads outside": in_table(every_name("scope", "../../../evil"), ANY, SIMILARITIES),
    "one scope leads outside": in_table(a_name("../../evil"), files=SIMILARITIES[1:]),
    "absolute scope": in_table(absolute_scope, files=SIMILARITIES[1:]),
    "target leads outside": in_table(every_name("target", "../../../evil"), files=SIMILARITIES),
    "unknown name": in_table(a_name("zzz"), files=SIMILARITIES),
    "name of a missing value": in_table(a_name("nan"), files=SIMILARITIES),
    "quotation mark": in_table(a_name('"'), files=SIMILARITIES),
    "in another order": in_table(
        cells(lambda rows, rng: rows.__setitem__(slice(1, None), rows[:0:-1])), ANY, SIMILARITIES, weights_are_sound
    ),
}
ORIENTATIONS: dict[str, Edit] = {
    "a text": entries(lambda found, rng: found.update(higher_is_more_similar="yes")),
    "null": entries(lambda found, rng: found.update(higher_is_more_similar=None)),
    "missing": entries(lambda found, rng: found.pop("higher_is_more_similar")),
    "a list": text("[]"),
    "a number": text("5"),
    "no JSON": text("{"),
}
REPORTS: dict[str, Variant] = {
    **{
        name: in_table(TABLE_SHAPES[name], files=REPORTED)
        for name in ("torn", "a text for a number", "a cell more", "no header", "not UTF-8", "binary")
    },
    "markup of a name": in_table(a_name(MARKUP), ANY, CELLS, no_markup),
    "delta leads outside": in_table(every_name("delta", "../../../evil"), ANY, REPORTED[:3]),
    "init leads outside": in_table(every_name("init", "../../../evil/x"), ANY, REPORTED[1:3]),
    "unknown init": in_table(every_name("init", "zzz"), ANY, REPORTED),
    "text of a seed": in_table(every_name("seed", "one"), ANY, CELLS),
    "provenance is a list": provenance("[]"),
    "provenance is a number": provenance("5"),
    "provenance is no JSON": provenance("{"),
    "title of other shape": provenance('{"title": ["<script>alert(1)"]}'),
    "markup of a title": provenance('{"title": "<script>alert(1)</script>", "x": "</pre><script>alert(2)"}'),
}
GROUPS: dict[str, dict[str, Variant]] = {
    "tables": {
        **{name: in_table(edit, EITHER if name in HARMLESS else REFUSE) for name, edit in TABLE_SHAPES.items()},
        "missing": in_table(DAMAGES["missing"]),
        "byte order mark": in_table(whole(lambda found: b"\xef\xbb\xbf" + found), EITHER),
        "line ends of Windows": in_table(whole(lambda found: found.replace(b"\n", b"\r\n")), EITHER),
        **{f"similarity: {name}": make for name, make in BAD_SIMILARITIES.items()},
        **{f"orientation: {name}": orientation(edit) for name, edit in ORIENTATIONS.items()},
        "scores: empty": in_table(a_number(""), files=SCORES),
        "scores: infinite": in_table(a_number("inf"), files=SCORES),
        "scores: NaN": in_table(a_number("nan"), ANY, SCORES),
        "scores: pair missing": in_table(cells(pair_missing), files=SCORES[:2]),
        "gates: text": in_table(a_number("x"), files=GATES),
        "gates: NaN": in_table(a_number("nan"), files=GATES),
        "gates: unknown source": in_table(every_name("source", "zzz"), files=GATES),
        "gates: torn": in_table(cells(torn), files=GATES),
        "gates: empty": in_table(text(""), files=GATES),
        "rows: no name": rows_flag(lambda box: ["x"], ("--rows",)),
        "rows: twice": rows_flag(lambda box: [f"A={box.place('tune')}"] * 2, ("--rows", "A")),
        "rows: other tasks": rows_flag(lambda box: [f"A={box.place('tune')}", f"B={box.place('random')}"], TASKS),
        "rows: markup": rows_flag(lambda box: [f"{MARKUP}|={box.place('tune')}"], ("--rows",), ANY, no_markup),
    },
    "reports": REPORTS,
}
