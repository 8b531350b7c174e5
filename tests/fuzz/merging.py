"""Damaged statistics, and whole models that do not fit together."""

from collections.abc import Callable
from pathlib import Path
from random import Random

import safetensors.torch
import torch

from tests.fuzz.case import ANY, EITHER, REFUSE, Box, Case, Variant, spoiled
from tests.fuzz.edits import DAMAGES, Edit, every, one, tensors
from tests.fuzz.places import TASKS

STATISTICS = f"{TASKS[1]}/statistics.safetensors"
METHODS = ("simple", "fisher", "regmean")


def of_file(
    name: str, edit: Edit, command, place: str, right: str = REFUSE, more: Callable[[Box], tuple] = lambda box: ()
) -> Variant:
    """A file below a place that is spoiled."""

    def change(folder: Path, rng: Random) -> tuple[str, ...]:
        path = folder / name
        found = edit(path, rng)
        more = found if isinstance(found, tuple) and all(isinstance(one, str) for one in found) else ()
        return (path.name, path.parent.name, "statistics", "model 0", "model 1", *more)

    return lambda box: spoiled(command, place, change, right, *more(box))(box)


def statistics(edit: Edit, right: str = REFUSE) -> Variant:
    """The statistics of a source."""
    return of_file(STATISTICS, edit, ("Fisher", "RegMean"), "statistics", right)


def merged(edit: Edit, right: str = REFUSE, file: str = "b/model.safetensors") -> Variant:
    """One of the models that are merged, by one of the methods."""
    return of_file(file, edit, "merge", "local", right, lambda box: ("--method", box.rng.choice(METHODS)))


def merging(*words: str, names: tuple[str, ...], right: str = REFUSE) -> Variant:
    """Flags of a merge that do not fit."""

    def make(box: Box) -> Case:
        given = [word.replace("{local}", str(box.place("local"))) for word in words]
        return Case(box.words("merge", *given), right, names, "merge")

    return make


def finite(box: Box, command: str) -> str:
    """The merged model has numbers only."""
    state = safetensors.torch.load_file(box.root / "out" / "merged" / "model.safetensors")
    bad = [name for name, tensor in state.items() if not torch.isfinite(tensor).all()]
    return f"{bad[0]} is not finite" if bad else ""


def overflow(box: Box) -> Case:
    """A first model in half precision whose mean with the second is beyond its range: refused, or written wide enough."""
    local = box.take("local")
    tensors(every(lambda tensor: tensor.half()))(local / "a" / "model.safetensors", box.rng)
    tensors(every(lambda tensor: tensor * 1e6 + 1e6))(local / "b" / "model.safetensors", box.rng)
    return Case(
        box.words("merge", "--method", "simple"), ANY, ("classifier", "bert", "/a", "/b"), "merge", check=finite
    )


SIMPLE = ("--method", "simple", "--coefficients")
GROUPS: dict[str, dict[str, Variant]] = {
    "merging": {
        **{f"statistics: {name}": statistics(edit) for name, edit in DAMAGES.items()},
        "statistics: NaN": statistics(tensors(every(lambda tensor: tensor * float("nan")))),
        "statistics: negative": statistics(tensors(every(lambda tensor: -tensor - 1))),
        "statistics: some are missing": statistics(
            tensors(lambda state, rng: {name: tensor for name, tensor in state.items() if "block.0" not in name})
        ),
        "statistics: other shape": statistics(tensors(every(lambda tensor: tensor.flatten()[:3].clone()))),
        "statistics: int": statistics(tensors(every(lambda tensor: (tensor * 1e6).long()))),
        "statistics: empty note": statistics(tensors(lambda state, rng: None, dict.clear), EITHER),
        "statistics: odd note": statistics(
            tensors(lambda state, rng: None, lambda note: note.update(examples="x", shapes=[])), EITHER
        ),
        **{f"model: {name}": merged(edit) for name, edit in DAMAGES.items()},
        "model: config is missing": merged(DAMAGES["missing"], REFUSE, "a/config.json"),
        "model: config is a folder": merged(DAMAGES["a folder"], REFUSE, "a/config.json"),
        "model: NaN": merged(tensors(one(lambda tensor: tensor * float("nan")))),
        "model: infinite": merged(tensors(one(lambda tensor: tensor + float("inf")))),
        "model: a tensor is missing": merged(tensors(one(lambda tensor: None))),
        "model: other shape": merged(tensors(one(lambda tensor: tensor[:1].clone()))),
        "model: int": merged(tensors(every(lambda tensor: (tensor * 100).long()))),
        "model: counter that only one has": merged(tensors(lambda state, rng: {**state, "steps": torch.tensor([3])})),
        "model: complex": merged(
            tensors(one(lambda tensor: tensor.to(torch.complex64))), REFUSE, "a/model.safetensors"
        ),
        "model: half precision overflows": overflow,
        "model: named twice": merging("--models", "{local}/a", "{local}/a", names=("models", "twice", "/a")),
        "model: one only": merging("--models", "{local}/a", names=("models", "statistics", "/a")),
        "model: no folder": merging("--models", "{local}/a", "{local}/c", names=("/c",)),
        "model: output is a model": merging("--output", "{local}/a", names=("--output", "/a")),
        "model: statistics are missing": merging("--stats", "{local}/a.safetensors", names=("statistics",)),
        "model: weights as statistics": merging(
            "--stats", "{local}/a/model.safetensors", "{local}/b.safetensors", names=("model.safetensors",)
        ),
        "coefficients: too few": merging(*SIMPLE, "1", names=("--coefficients",)),
        "coefficients: NaN": merging(*SIMPLE, "nan", "0.5", names=("--coefficients",)),
        "coefficients: infinite": merging(*SIMPLE, "inf", "0.5", names=("--coefficients",)),
        "coefficients: sum is 0": merging("--coefficients", "1", "-1", names=("--coefficients", "ridge"), right=ANY),
        "expression: malformed": merging("--exclude", "(", names=("--exclude", "(")),
        "expression: everything": merging("--exclude", ".*", names=("--exclude", ".*", "regmean")),
    },
}
