"""Damaged and malformed delta checkpoints, each read by one of the commands that read such a file."""

import argparse
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from random import Random

import safetensors.torch
import torch

from tests.fuzz.case import ANY, EITHER, REFUSE, SAME, Box, Case, Variant, spoiled
from tests.fuzz.edits import DAMAGES, Edit, State, checkpoint, content, every, evil, kind_of, one, saved, text
from tests.fuzz.places import FIRST, TASKS
from tests.fuzz.process import ROOT

# command, place of checkpoints that it reads, the files below it of which one is spoiled
PER_TASK = tuple(f"{task}/checkpoint-best.pt" for task in TASKS)
PAIRS = tuple(f"{target}/{source}/checkpoint-best.pt" for target in TASKS for source in TASKS if target != source)
OF_SOURCES = (
    "Loss",
    "GraNd",
    "EL2N",
    "Cosine",
    "average",
    "Loss_weights",
    "GraNd_weights",
    "cos",
    "Euclidean",
    "statistics",
    "pairs",
    "zero_shot",
    "block",
)
READERS = [
    *((command, "sources", PER_TASK) for command in OF_SOURCES),
    *((command, "random", PER_TASK) for command in ("KL", "block", "cos")),
    ("Euclidean", "pairs", PAIRS),
    ("Performance", "pairs", PAIRS),
    ("Fisher", "statistics", PER_TASK),
    ("RegMean", "statistics", PER_TASK),
    ("test", "sources", PER_TASK[:1]),
    ("pemt", "experts", PER_TASK[1:]),
    ("from_ensemble", "Loss_weights", (f"without_{FIRST}_checkpoint.pt",)),
]
# where the first file sets the shapes, another one is said to be wrong
NAMED = ("checkpoint-best.pt", "without_", "not finite")


def in_checkpoint(edit: Edit, right: str = REFUSE, readers=READERS) -> Variant:
    """A checkpoint that is spoiled, and a command that reads it."""

    def make(box: Box) -> Case:
        command, place, files = box.rng.choice(readers)
        edit(box.take(place) / box.rng.choice(files), box.rng)
        if right == REFUSE and command != "statistics" and box.rng.random() < 0.5:
            box.earlier(command)
        return Case(box.words(command), right, NAMED, command)

    return make


def in_state(change: Callable, right: str = REFUSE, readers=READERS) -> Variant:
    """A checkpoint of which the state is changed."""
    return in_checkpoint(checkpoint(change), right, readers)


def in_all(change: Callable) -> Variant:
    """All checkpoints of a folder changed alike."""

    def make(box: Box) -> Case:
        command, place, files = box.rng.choice(READERS)
        for file in files:
            checkpoint(change)(box.take(place) / file, box.rng)
        return Case(box.words(command), REFUSE, NAMED, command)

    return make


def rounded(box: Box) -> Case:
    """A state in another floating type counts as its values in float32."""
    command, place, files = box.rng.choice([reader for reader in READERS if "statistics" not in reader[:2]])
    kind, file = getattr(torch, box.rng.choice(("float16", "bfloat16", "float64"))), box.rng.choice(files)
    other = Box(box.world, box.folder / "like", box.rng)
    checkpoint(every(lambda tensor: tensor.to(kind)))(box.take(place) / file, box.rng)
    checkpoint(every(lambda tensor: tensor.to(kind).float()))(other.take(place) / file, box.rng)
    return Case(box.words(command), EITHER, NAMED, command, like=(other, other.words(command)))


def other_flag(flag: str, value, commands: tuple[str, ...]) -> Variant:
    """Sound checkpoints, but a flag that does not fit them."""

    def make(box: Box) -> Case:
        command = box.rng.choice(commands)
        return Case(box.words(command, flag, value), REFUSE, NAMED, command)

    return make


def as_file(change: Callable[[Path, State, Random], object], right: str = REFUSE, *more) -> Variant:
    """`--test_checkpoint` with a .safetensors file made from a state; what returns a value has written the file itself."""

    def make(box: Box) -> Case:
        state = torch.load(box.place("sources") / PER_TASK[0], weights_only=True)["adapter"]
        state = {name: tensor.clone().contiguous() for name, tensor in state.items()}
        path = box.input("delta.safetensors")
        if change(path, state, box.rng) is None:
            safetensors.torch.save_file(state, path)
        return Case(box.words("test", "--test_checkpoint", path, *more), right, (path.name,), "test")

    return make


def replaced(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Path, State, Random], None]:
    """One tensor of a state replaced."""
    return lambda path, state, rng: state.update({min(state): change(state[min(state)])})


def overlapping(path: Path, state: State, rng: Random) -> int:
    """A file whose tensors share bytes."""
    header = {name: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} for name in state}
    packed = json.dumps(header).encode()
    return path.write_bytes(len(packed).to_bytes(8, "little") + packed + b"\0" * 4)


def original(change: Callable[[dict, Path], object], right: str = REFUSE) -> Variant:
    """A checkpoint of the original code that is to be converted."""

    def edit(path: Path, rng: Random) -> str:
        found = {
            "adapter": {"a": torch.ones(2), "b": torch.zeros(3)},
            "args": argparse.Namespace(seed=1),
            "current_state": {"num_updates": 3, "epoch": 1},
        }
        change(found, path)
        torch.save(found, path)
        return path.name

    return spoiled("convert", "original", edit, right)


BAD_STATES: dict[str, Callable] = {
    "int64": one(lambda tensor: tensor.long()),
    "int8": one(lambda tensor: tensor.to(torch.int8)),
    "bool": one(lambda tensor: tensor > 0),
    "complex": one(lambda tensor: tensor.to(torch.complex64)),
    "float8": one(lambda tensor: tensor.to(torch.float8_e4m3fn)),
    "sparse": one(lambda tensor: tensor.to_sparse()),
    "meta": one(lambda tensor: tensor.to("meta")),
    "quantised": one(lambda tensor: torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8)),
    "empty tensor": one(lambda tensor: tensor[:0].clone()),
    "NaN": one(lambda tensor: tensor.index_fill(0, torch.tensor([0]), float("nan"))),
    "infinite": one(lambda tensor: torch.full_like(tensor, float("-inf"))),
    "float16 overflowed": every(lambda tensor: (tensor + 1e6).half()),
    "a tensor is missing": one(lambda tensor: None),
    "a tensor more": lambda state, rng: {**state, "more": torch.zeros(2)},
    "tensors renamed": lambda state, rng: {f"module.{name}": tensor for name, tensor in state.items()},
    "other shape": one(lambda tensor: torch.zeros(3, 3)),
    "transposed": one(lambda tensor: tensor.T.contiguous() if tensor.dim() == 2 else tensor[:1].clone()),
    "a scalar": one(lambda tensor: torch.tensor(1.0)),
    "a number": one(lambda tensor: 1.0),
    "a text": one(lambda tensor: "text"),
    "a list": one(lambda tensor: tensor.tolist()),
    "number as a name": lambda state, rng: {**state, 7: torch.zeros(1)},
    "other tensors": lambda state, rng: {"none": torch.zeros(0)},
    "ten million million zeros": one(lambda tensor: torch.zeros(1).expand(10**7, 10**6)),
}
CASTS = {"int64": torch.int64, "complex": torch.complex64, "float8": torch.float8_e5m2, "bool": torch.bool}
GROUPS: dict[str, dict[str, Variant]] = {
    "checkpoints": {
        **{name: in_checkpoint(edit) for name, edit in DAMAGES.items()},
        **{name: in_state(change) for name, change in BAD_STATES.items()},
        **{f"all: {name}": in_all(every(lambda tensor, kind=kind: tensor.to(kind))) for name, kind in CASTS.items()},
        "all: NaN": in_all(every(lambda tensor: tensor * float("nan"))),
        "near overflow": in_state(every(lambda tensor: torch.full_like(tensor, 3e38)), ANY),
        "other floating type": rounded,
        "requires a gradient": in_state(every(lambda tensor: tensor.requires_grad_()), EITHER),
        "written anew": in_state(lambda state, rng: None, SAME),
        "pickle of an object": in_checkpoint(lambda path, rng: path.write_bytes(pickle.dumps(evil(path)))),
        "object as arguments": in_checkpoint(saved(lambda path: {"adapter": {}, "args": evil(path)})),
        "object as the state": in_checkpoint(saved(lambda path: {"adapter": evil(path)})),
        "a list in its place": in_checkpoint(saved(lambda path: [1, 2])),
        "a number in its place": in_checkpoint(saved(lambda path: 5)),
        "a bare state": in_checkpoint(content(lambda found: found[kind_of(found)])),
        "the state is a list": in_checkpoint(content(lambda found: {**found, kind_of(found): [1]})),
        "the state is empty": in_checkpoint(content(lambda found: {**found, kind_of(found): {}})),
        "no arguments": in_checkpoint(content(lambda found: {k: v for k, v in found.items() if k != "args"}), EITHER),
        "arguments are a list": in_checkpoint(content(lambda found: {**found, "args": [1]}), EITHER),
        "another kind": in_checkpoint(content(lambda found: {"lora": found[kind_of(found)], "args": {}})),
        "other size": other_flag("--adapter_size", 3, ("Loss", "test", "pairs", "statistics")),
        "other method": other_flag("--tune_method", "lora", ("Loss", "test", "pairs", "statistics")),
        "other backbone": other_flag("--model", ROOT / "checkpoints" / "mini_t5", ("Loss", "test", "KL")),
        "safetensors: sound": as_file(lambda path, state, rng: None, SAME),
        "safetensors: other shape": as_file(replaced(lambda tensor: torch.zeros(2, 2))),
        "safetensors: int": as_file(replaced(lambda tensor: tensor.long())),
        "safetensors: NaN": as_file(replaced(lambda tensor: tensor * float("nan"))),
        "safetensors: missing": as_file(lambda path, state, rng: state.update(x=state.pop(min(state)))),
        "safetensors: more": as_file(lambda path, state, rng: state.update(more=torch.zeros(1))),
        "safetensors: random bytes": as_file(lambda path, state, rng: path.write_bytes(rng.randbytes(99))),
        "safetensors: endless header": as_file(lambda path, state, rng: path.write_bytes(b"\xff" * 7 + b"\x0f{}")),
        "safetensors: overlapping": as_file(overlapping),
        "safetensors: empty": as_file(lambda path, state, rng: path.write_bytes(b"") + 1),
        "safetensors: other method": as_file(lambda path, state, rng: None, REFUSE, "--tune_method", "lora"),
        "original: objects beside it": original(lambda found, path: found.update(more=evil(path)), EITHER),
        "original: object as arguments": original(lambda found, path: found.update(args=evil(path)), EITHER),
        "original: object as a tensor": original(lambda found, path: found["adapter"].update(a=evil(path))),
        "original: no state": original(lambda found, path: found.pop("adapter")),
        "original: text of updates": original(
            lambda found, path: found.update(current_state={"num_updates": "many"}), ANY
        ),
        "original: arguments are a dict": original(lambda found, path: found.update(args={"seed": 1}), EITHER),
        "original: arguments are a list": original(lambda found, path: found.update(args=[1]), EITHER),
        "original: NaN": original(lambda found, path: found["adapter"]["a"].fill_(float("nan"))),
        "original: int": original(lambda found, path: found["adapter"].update(a=torch.ones(2).long())),
        "original: empty state": original(lambda found, path: found.update(adapter={})),
        "original: pickle": spoiled(
            "convert",
            "original",
            lambda path, rng: (path.write_bytes(pickle.dumps({"adapter": evil(path)})), path.name)[1],
        ),
        "original: junk": spoiled("convert", "original", lambda path, rng: (text("junk")(path, rng), path.name)[1]),
    },
}
