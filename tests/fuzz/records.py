"""Stored results that are damaged or of other shape: the command that wrote them is repeated, and makes them again or refuses."""

import shutil
from collections.abc import Callable

import torch

from tests.fuzz.case import EITHER, Box, Case, Variant
from tests.fuzz.edits import (
    DAMAGES,
    Edit,
    a_number,
    an_entry,
    cells,
    column_renamed,
    content,
    evil,
    saved,
    text,
    whole,
    without_result,
)
from tests.fuzz.process import run

# command that is repeated, a pattern of what it left and may read again
JSON_FILES = (
    ("tune_two", "out/*/*/*/run.json"),
    ("tune", "out/*/*/*/run.json"),
    ("pairs", "out/*/*/*/*/run.json"),
    ("pemt", "out/*/*/*/run.json"),
    ("tune", "out/config.json"),
    ("Loss", "out/config.json"),
    ("GraNd", "out/config.json"),
    ("suite", "checkpoints/**/step.json"),
    ("suite", "checkpoints/**/run.json"),
    ("suite", "checkpoints/**/config.json"),
    ("suite", "results/fuzz/provenance.json"),
    ("fusion", "out/zoo/scores/*.json"),
    ("fusion", "out/zoo/*/config.json"),
    ("fusion", "out/zoo/*/recipe.json"),
    ("build", "out/*/*.json"),
    ("build", "out/checksums.json"),
)
TABLES = (
    ("tune_two", "out/result.tsv"),
    ("pairs", "out/result.tsv"),
    ("Loss", "out/result.tsv"),
    ("GraNd", "out/result.tsv"),
    ("GraNd", "out/*/result.tsv"),
    ("suite", "results/fuzz/cells.tsv"),
    ("suite", "results/fuzz/weights.tsv"),
    ("suite", "checkpoints/**/result.tsv"),
    ("suite", "checkpoints/**/final_weight.tsv"),
    ("fusion", "results/fuzz/scores.tsv"),
    ("average", "out/final_weight.tsv"),
    ("pemt", "out/*/*/*/gates.tsv"),
)
BEST = (("tune_two", "out/*/*/*/checkpoint-best.pt"), ("tune_two", "out/*/checkpoint-best.pt"))
TENSORS = (
    *BEST,
    ("tune", "out/*/*/*/resume.pt"),
    ("pairs", "out/*/*/checkpoint-best.pt"),
    ("suite", "checkpoints/**/checkpoint-best.pt"),
    ("suite", "checkpoints/**/without_*.pt"),
    ("suite", "checkpoints/**/resume.pt"),
    ("pemt", "out/*/checkpoint-best.pt"),
    ("fusion", "out/zoo/*/model.safetensors"),
    ("fusion", "out/zoo/*/statistics/*"),
    ("fusion", "out/zoo/*/logits/*"),
    ("average", "out/without_*.pt"),
    ("statistics", "out/*/statistics.safetensors"),
)


def repeated(edit: Edit, files, right: str = EITHER) -> Variant:
    """A command whose earlier results are there, one of them spoiled: refused, or made again as it was.

    For half the runs and most steps, what was written of their end is taken away, so that what they left is read.
    """

    def make(box: Box) -> Case:
        command, pattern = box.rng.choice(files)
        box.earlier(command)
        path = box.rng.choice(sorted(box.root.glob(pattern)))
        if path.suffix == ".pt" and (path.parent / "run.json").is_file() and box.rng.random() < 0.5:
            without_result(path.parent)
        step = next((parent / "step.json" for parent in path.parents if (parent / "step.json").is_file()), path)
        if step != path and box.rng.random() < 0.7:
            step.unlink()
        if command == "fusion" and path.parent.name != "scores":
            shutil.rmtree(box.root / "out" / "zoo" / "scores")
        edit(path, box.rng)
        loose = path.suffix in (".json", ".safetensors") or path.name == "gates.tsv"
        name = str(path.relative_to(box.root)) if loose else ""
        return Case(box.words(command), right, (path.name, path.parent.name), command, loose=name, causes=True)

    return make


def interrupted(change: Callable[[dict], object]) -> Variant:
    """A run that is to go on from a resume file of another shape."""

    def make(box: Box) -> Case:
        command = box.rng.choice(("tune", "lora", "tune_two"))
        box.earlier(command)
        path = box.rng.choice(sorted(box.root.glob("out/*/*/*/resume.pt")))
        without_result(path.parent)
        found = torch.load(path, weights_only=True)
        found["progress"].update(finished=False, updates=1, history=found["progress"]["history"][:2])
        change(found)
        torch.save(found, path)
        return Case(box.words(command), EITHER, (path.name,), command)

    return make


def of_another_run(box: Box) -> Case:
    """A resume file of another run is not gone on from."""
    box.earlier("tune_two")
    path, *_, other = sorted(box.root.glob("out/*/*/*/resume.pt"))
    without_result(path.parent)
    path.write_bytes(other.read_bytes())
    return Case(box.words("tune_two"), EITHER, (path.name,), "tune_two")


def other_settings(command: str, *more: str) -> Variant:
    """A folder with the results of other settings: they are made anew, as without them."""

    def make(box: Box) -> Case:
        words = box.words(command)
        before = run([*words, *more], box.root)
        if before.code != 0:
            raise RuntimeError(before.err)
        return Case(words, EITHER, ("out",), command)

    return make


def first(state: dict) -> str:
    """The name of its first tensor."""
    return next(iter(state))


def torn(rows: list[list[str]], rng) -> None:
    """The last row without its last cell."""
    rows[-1].pop()


JSON_SHAPES: dict[str, Edit] = {
    "list": text("[]"),
    "number": text("5"),
    "text": text('"x"'),
    "null": text("null"),
    "empty": text(""),
    "no JSON": text("{"),
    "NaN": text("NaN"),
    "not UTF-8": text(b'{"settings": "\xff"}'),
    "deep": text("[" * 100_000),
    "no entries": text("{}"),
    "settings are a number": text('{"settings": 5}'),
    "settings are a list": text('{"settings": [1], "result": 3}'),
    "byte order mark": whole(lambda found: b"\xef\xbb\xbf" + found),
    "cut off": lambda path, rng: path.write_bytes(path.read_bytes()[: rng.randrange(path.stat().st_size)]),
    "an entry is missing": an_entry(None),
    "an entry is a list": an_entry([]),
    "an entry is a text": an_entry("<b>"),
    "an entry is a number": an_entry(-7),
    "an entry is a dict": an_entry({"a": {}}),
    "missing": DAMAGES["missing"],
}
TABLE_SHAPES: dict[str, Edit] = {
    "empty": text(""),
    "header only": cells(lambda rows, rng: rows.__delitem__(slice(1, None))),
    "no header": cells(lambda rows, rng: rows.__delitem__(0)),
    "a column is missing": cells(column_renamed),
    "a text for a number": a_number("abc", "1,5", "--"),
    "torn": cells(torn),
    "not UTF-8": text(b"target\tsource\n\xff\xfe\t1\n"),
    "binary": text(b"\x00\x01\x02" * 50),
    "a folder": DAMAGES["a folder"],
    "a row twice": cells(lambda rows, rng: rows.append(rows[-1])),
    "a cell more": cells(lambda rows, rng: rows[-1].append("x")),
    "commas": cells(lambda rows, rng: rows.__setitem__(slice(None), [[",".join(row)] for row in rows])),
}
STATES: dict[str, Edit] = {
    **DAMAGES,
    "a number": saved(lambda path: 5),
    "a list": saved(lambda path: [{}]),
    "no entries": saved(lambda path: {}),
    "an object": saved(lambda path: {"adapter": evil(path)}),
    "a text for a state": lambda path, rng: (
        path.suffix == ".pt" and content(lambda found: {**found, first(found): "x"})(path, rng)
    ),
}
RESUMES: dict[str, Callable[[dict], object]] = {
    "sound": lambda found: found["progress"].update(updates=2, finished=True),
    "other shape": lambda found: found["delta"].update({first(found["delta"]): torch.zeros(2, 2)}),
    "a tensor is missing": lambda found: found["delta"].pop(first(found["delta"])),
    "NaN": lambda found: found["delta"][first(found["delta"])].fill_(float("nan")),
    "no delta": lambda found: found.pop("delta"),
    "no progress": lambda found: found.pop("progress"),
    "optimizer is empty": lambda found: found.update(optimizer=[]),
    "optimizer is a text": lambda found: found.update(optimizer="x"),
    "unknown progress": lambda found: found["progress"].update(unknown=1),
    "text of updates": lambda found: found["progress"].update(updates="a"),
    "updates beyond the end": lambda found: found["progress"].update(updates=99),
    "updates are negative": lambda found: found["progress"].update(updates=-1),
    "history is a number": lambda found: found["progress"].update(history=5),
}
RUNS = ("list", "null", "settings are a number", "an entry is missing", "an entry is a text", "an entry is a list")
GROUPS: dict[str, dict[str, Variant]] = {
    "records": {
        **{f"JSON: {name}": repeated(edit, JSON_FILES) for name, edit in JSON_SHAPES.items()},
        **{f"run: {name}": repeated(JSON_SHAPES[name], JSON_FILES[:4]) for name in RUNS},
        **{f"table: {name}": repeated(edit, TABLES) for name, edit in TABLE_SHAPES.items()},
        **{f"tensors: {name}": repeated(edit, TENSORS) for name, edit in STATES.items()},
        **{f"best: {name}": repeated(edit, BEST) for name, edit in STATES.items()},
        **{f"resume: {name}": interrupted(change) for name, change in RESUMES.items()},
        "resume: of another run": of_another_run,
        "other settings: clip": other_settings("tune", "--max_grad_norm", "1e-3"),
        "other settings: seed": other_settings("GraNd", "--seed", "9"),
        "other settings: length": other_settings("Loss", "--max_input_length", "7"),
        "other settings: examples": other_settings("statistics", "--examples", "2"),
        "other settings: inits": other_settings("suite", "--init", "Random", "Average"),
        "other settings: updates": other_settings("fusion", "--updates", "1"),
        "other settings: sparsity": other_settings("pemt", "--sparsity", "0"),
    },
}
