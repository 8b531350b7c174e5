"""Numbers of our own making, for whoever has this repository alone: what every measure, delta, merge and metric gave on tiny
random T5s at a commit whose numbers agreed with the original code's, to 1e-4.

    python tests/golden/make.py [--only NAME]    writes tests/golden/<topic>.json

tests/test_golden.py computes every case again. A case whose numbers change without a reason is a fault, not a reason to make
them anew: make them after a wanted change only, from a checkout whose comparisons with the original code passed (`pytest` with
../shared beside it), and say in the commit what changed and why.
"""

import argparse
import itertools
import json
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import torch

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent.parent), str(HERE.parent)]

from conftest import LINES_OF, MINI_TASKS, VERSIONS, write_tiny_backbone, write_tiny_checkpoints, write_tiny_data  # noqa: E402
from golden.cases import CASES  # noqa: E402
from golden.compare import Numbers  # noqa: E402


def world_in(folder: Path) -> SimpleNamespace:
    """Backbones, data and checkpoints that the cases read, and a new folder for each of them."""
    numbers = itertools.count()

    def scratch() -> Path:
        out = folder / f"case{next(numbers)}"
        out.mkdir()
        return out

    return SimpleNamespace(
        backbones={version: write_tiny_backbone(folder / version, **changes) for version, changes in VERSIONS.items()},
        data=write_tiny_data(folder / "data", {task: task for task in MINI_TASKS}),
        paper_data=write_tiny_data(folder / "paper_data", LINES_OF),
        checkpoints=write_tiny_checkpoints(folder / "checkpoints"),
        scratch=scratch,
    )


def stored(topic: str) -> dict[str, Numbers]:
    """Case -> numbers of one file."""
    path = HERE / f"{topic}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def rounded(value):
    return float(f"{value:.7g}") if isinstance(value, float) else value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="cases whose names begin so")
    only = parser.parse_args().only
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        world = world_in(Path(folder))
        for topic, names in itertools.groupby(CASES, lambda name: name.split("/")[0]):
            old = stored(topic)
            new = {name: CASES[name](world) if name.startswith(only) else old.get(name, {}) for name in names}
            rows = [
                f"{json.dumps(name)}: {json.dumps({k: [rounded(v) for v in values] for k, values in numbers.items()})}"
                for name, numbers in new.items()
            ]
            (HERE / f"{topic}.json").write_text("{\n" + ",\n".join(rows) + "\n}\n", encoding="utf-8")
            print(f"{topic}: {len(rows)} cases")


if __name__ == "__main__":
    main()
