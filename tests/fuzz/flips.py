"""One bit of a stored file changed, then a command that reads it: noticed, made again, or without influence on any number.

    python -m tests.fuzz.flips --seed 1 --count 200 [--only 'resume.*'] [--failures FILE]

The classes are those of tests.fuzz.inputs; accepted_same here means equal to the last bit.
"""

import sys
from dataclasses import replace

from tests.fuzz import checkpoints, inputs, merging, records, tables
from tests.fuzz.case import EITHER, Box, Case, Variant
from tests.fuzz.edits import flip


def stored(name: str) -> Variant:
    """A flipped file among the results of an earlier run of the same command; `name` is the end of its pattern."""
    files = [one for one in (*records.JSON_FILES, *records.TABLES, *records.TENSORS) if one[1].endswith(name)]
    return records.repeated(flip, files)


def stopped(box: Box) -> Case:
    """A run that was killed, whose resume file is flipped."""
    out = box.take("stopped")
    path = next(out.rglob("resume.pt"))
    flip(path, box.rng)
    out.rename(box.root / "out")
    return Case(box.words("long"), EITHER, (path.name,), "long")


def exact(make: Variant) -> Variant:
    """The same case, judged to the last bit."""
    return lambda box: replace(make(box), tolerance=0.0)


STORED = (
    "run.json",
    "step.json",
    "config.json",
    "scores/*.json",
    "recipe.json",
    "result.tsv",
    "final_weight.tsv",
    "cells.tsv",
    "checkpoint-best.pt",
    "without_*.pt",
    "statistics/*",
    "model.safetensors",
    "logits/*",
)
KINDS = {
    **{name.replace("/", " ") + "/flip": stored(name) for name in STORED},
    "resume.pt/flip": stopped,
    "read checkpoint/flip": checkpoints.in_checkpoint(flip, EITHER),
    "read ensemble/flip": checkpoints.in_checkpoint(flip, EITHER, checkpoints.READERS[-1:]),
    "read table/flip": tables.in_table(flip, EITHER, (*tables.SIMILARITIES, *tables.SCORES)),
    "read statistics/flip": merging.of_file(merging.STATISTICS, flip, ("Fisher", "RegMean"), "statistics", EITHER),
}

if __name__ == "__main__":
    kinds = {name: exact(make) for name, make in KINDS.items()}
    sys.exit(inputs.drive(inputs.flags(__doc__, 200), lambda world, args: inputs.judged(world, kinds, args)))
