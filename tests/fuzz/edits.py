"""Edits that spoil a file in place, `edit(path, rng)`; what they return are words of which an error must have one."""

import json
import os
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import safetensors.torch
import torch

Edit = Callable[[Path, Random], object]
State = dict[str, torch.Tensor]


# ---- any file


def flip(path: Path, rng: Random) -> None:
    """One bit of one byte changed: mostly of a number, else of any byte of the file."""
    content = bytearray(path.read_bytes())
    numbers = list(where_numbers_are(path, content)) if rng.random() < 0.7 else []
    content[rng.choice(numbers or range(len(content)))] ^= 1 << rng.randrange(
        3 if path.suffix in (".tsv", ".json") else 8
    )
    path.write_bytes(content)


def where_numbers_are(path: Path, content: bytes) -> Iterator[int]:
    """The places of digits in a text, of tensors in a .pt or .safetensors file."""
    if path.suffix == ".safetensors":
        yield from range(8 + int.from_bytes(content[:8], "little"), len(content))
    elif zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as file:
            for entry in file.infolist():
                names = content[entry.header_offset + 26 : entry.header_offset + 30]
                start = (
                    entry.header_offset + 30 + int.from_bytes(names[:2], "little") + int.from_bytes(names[2:], "little")
                )
                if "/data/" in entry.filename:
                    yield from range(start, start + entry.file_size)
    else:
        yield from (place for place, byte in enumerate(content) if chr(byte).isdigit())


def text(content: str | bytes) -> Edit:
    """Another content."""
    return lambda path, rng: path.write_bytes(content if isinstance(content, bytes) else content.encode())


def whole(change: Callable[[bytes], bytes]) -> Edit:
    """The content changed."""
    return lambda path, rng: path.write_bytes(change(path.read_bytes()))


def instead(make: Callable[[Path], object]) -> Edit:
    """Something else in place of the file."""
    return lambda path, rng: (path.unlink(), make(path))


def lines(content: bytes | Callable[[bytes], bytes]) -> Callable[[Path, Random], tuple[str, ...]]:
    """One line in place of another; it is to be named with its number."""

    def edit(path: Path, rng: Random) -> tuple[str, ...]:
        found = path.read_bytes().splitlines()
        number = rng.randrange(len(found))
        found[number] = content(found[number]) if callable(content) else content
        path.write_bytes(b"\n".join(found) + b"\n")
        return (f"line {number + 1}",)

    return edit


POINTER = (
    "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32\nsize 193216\n"
)
DAMAGES: dict[str, Edit] = {
    "without its end": lambda path, rng: path.write_bytes(path.read_bytes()[: -rng.randrange(1, 400)]),
    "first half": lambda path, rng: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "empty": text(""),
    "random bytes": lambda path, rng: path.write_bytes(rng.randbytes(999)),
    "a pointer": text(POINTER),
    "a folder": instead(Path.mkdir),
    "missing": instead(lambda path: None),
    "a link to nothing": instead(lambda path: path.symlink_to("/nowhere")),
}


# ---- JSON


def write_json(path: Path, content) -> None:
    """A JSON file as the suite would write it: sealed, where it seals its records and the content can be sealed."""
    from pewe import identity

    if (
        isinstance(content, dict)
        and identity.SEAL in content
        and isinstance(content.get(identity.PROVENANCE, {}), dict)
    ):
        content = identity.sealed({name: value for name, value in content.items() if name != identity.SEAL})
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def entries(change: Callable[[dict, Random], object]) -> Edit:
    """The content of a JSON file changed."""

    def edit(path: Path, rng: Random) -> None:
        found = json.loads(path.read_text(encoding="utf-8"))
        change(found, rng)
        write_json(path, found)

    return edit


def an_entry(value) -> Edit:
    """Some entry, of whatever depth, with another value; None: taken out."""

    def change(found: dict, rng: Random) -> None:
        while True:
            name = rng.choice(sorted(found))
            if not isinstance(found[name], dict) or not found[name] or rng.random() < 0.3:
                break
            found = found[name]
        if value is None:
            del found[name]
        else:
            found[name] = value

    return entries(change)


def without_result(folder: Path) -> None:
    """The run in this folder has not ended."""
    entries(lambda found, rng: found.pop("result", None))(folder / "run.json", Random(0))


# ---- tables


def cells(change: Callable[[list[list[str]], Random], object]) -> Edit:
    """The cells of a tab-separated table changed; the first row is its header."""

    def edit(path: Path, rng: Random) -> None:
        rows = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()]
        change(rows, rng)
        path.write_text("\n".join("\t".join(row) for row in rows) + "\n", encoding="utf-8")

    return edit


def others(rows: list[list[str]]) -> list[list[str]]:
    """The rows without those of a task with itself."""
    if "target" not in rows[0] or "source" not in rows[0]:
        return rows[1:]
    target, source = rows[0].index("target"), rows[0].index("source")
    return [row for row in rows[1:] if row[target] != row[source]] or rows[1:]


def a_number(*values: str) -> Edit:
    """A number of a row in place of another, in a column that every reader of the table reads."""

    def change(rows: list[list[str]], rng: Random) -> None:
        columns = [place for place, name in enumerate(rows[0]) if name in ("value", "weight", "dev", "score")]
        rng.choice(others(rows))[columns[0] if columns else -1] = rng.choice(values)

    return cells(change)


def a_name(value: str) -> Edit:
    """A name of a row in place of another."""
    names = ("target", "source", "scope", "task", "layer", "init", "delta")

    def change(rows: list[list[str]], rng: Random) -> None:
        columns = [place for place, name in enumerate(rows[0]) if name in names]
        rng.choice(rows[1:])[rng.choice(columns)] = value

    return cells(change)


def every_name(column: str, value: str) -> Edit:
    """All names of a column."""

    def change(rows: list[list[str]], rng: Random) -> None:
        place = rows[0].index(column)
        for row in rows[1:]:
            row[place] = value

    return cells(change)


def column_renamed(rows: list[list[str]], rng: Random) -> None:
    """A column that is needed has another name."""
    needed = ("target", "source", "scope", "value", "dev", "task", "weight")
    rows[0][rng.choice([place for place, name in enumerate(rows[0]) if name in needed])] = "other"


# ---- tensors


class Evil:
    """An object whose loading would make a folder."""

    def __init__(self, folder: Path):
        self.folder = str(folder)

    def __reduce__(self):
        return (os.mkdir, (self.folder,))


def box_of(path: Path) -> Path:
    """The folder of the box that a file belongs to."""
    return next(parent for parent in path.parents if parent.name in ("inputs", "root")).parent


def evil(path: Path) -> Evil:
    """An object that leaves a trace beside the inputs of a file's box."""
    return Evil(box_of(path) / "executed")


def one(change: Callable[[torch.Tensor], object]) -> Callable[[State, Random], State | None]:
    """A change of one tensor of a state; None: it is taken out."""

    def edit(state: State, rng: Random) -> None:
        name = rng.choice(sorted(state))
        found = change(state.pop(name))
        if found is not None:
            state[name] = found

    return edit


def every(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[State, Random], State]:
    """A change of all tensors of a state."""
    return lambda state, rng: {name: change(tensor) for name, tensor in state.items()}


def kind_of(content: dict) -> str:
    """The entry of a checkpoint that holds the state."""
    return next(name for name in ("adapter", "lora", "prefix", "pemt_source", "pemt") if name in content)


def checkpoint(change: Callable[[State, Random], State | None]) -> Edit:
    """The state in a checkpoint changed, and the file written as the suite does where it would write such a state."""

    def edit(path: Path, rng: Random) -> None:
        from pewe.deltas.checkpoint import write_checkpoint

        content = torch.load(path, weights_only=True)
        kind, progress = kind_of(content), content.get("current_state", {})
        state = {name: tensor.clone() for name, tensor in content[kind].items()}
        state = change(state, rng) or state
        try:
            write_checkpoint(
                path, kind, state, content["args"], progress.get("num_updates", 0), progress.get("epoch", 0)
            )
        except Exception:
            torch.save({**content, kind: state}, path)

    return edit


def content(change: Callable[[dict], dict]) -> Edit:
    """The dict in a .pt file changed."""
    return lambda path, rng: torch.save(change(torch.load(path, weights_only=True)), path)


def saved(made: Callable[[Path], object]) -> Edit:
    """Some other content in a .pt file."""
    return lambda path, rng: torch.save(made(path), path)


def tensors(
    change: Callable[[State, Random], State | None], note: Callable[[dict], object] = lambda note: None
) -> Edit:
    """The tensors of a safetensors file changed, or the statistics' note in its header."""

    def edit(path: Path, rng: Random) -> tuple[str, ...]:
        with safetensors.safe_open(path, framework="pt") as file:
            header = dict(file.metadata() or {})
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        state = change(state, rng) or state
        if "statistics" in header:
            found = json.loads(header["statistics"])
            note(found)
            header["statistics"] = json.dumps(found)
        safetensors.torch.save_file({name: tensor.contiguous() for name, tensor in state.items()}, path, header)
        return tuple(name.removeprefix("gram.").removeprefix("fisher.") for name in state)

    return edit
