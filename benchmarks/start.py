"""How long every command takes to begin: the seconds of its `--help`, and of its imports, as those of a run.

python -m benchmarks.start
"""

import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks import measure
from pewe.__main__ import COMMANDS
from pewe.cli import main
from pewe.flags import flag

COMPUTES = ("torch", "transformers", "pandas")
IMPORT = (
    f"import importlib, sys; importlib.import_module(sys.argv[1]); print([x for x in {COMPUTES} if x in sys.modules])"
)


@dataclass(frozen=True)
class Config:
    """How often."""

    repeats: int = flag(3, "turns", low=1)
    name: str = flag("start", "name of the result file")


def programs() -> list[str]:
    """The modules of all commands."""
    return sorted({module for command in COMMANDS.values() for module, _ in command.programs().values()})


def run(*words: str) -> tuple[float, str]:
    """The seconds of `python WORDS`, and what it printed."""
    start = time.perf_counter()
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=True)
    return time.perf_counter() - start, done.stdout


def rows(config: Config) -> Iterator[dict]:
    """One for each program; medians over the turns."""
    for program in programs():
        helps = [run("-m", program, "--help")[0] for _ in range(config.repeats)]
        imports = [run("-c", IMPORT, program) for _ in range(config.repeats)]
        line = {
            "case": program,
            "ours_s": round(statistics.median(helps), 2),
            "import_s": round(statistics.median(seconds for seconds, _ in imports), 2),
            "imports": imports[0][1].strip(),
            "turns": config.repeats,
        }
        print("  ".join(f"{name} {value}" for name, value in line.items()), flush=True)
        yield line


def bench(config: Config) -> None:
    """All programs, the slowest `--help` first."""
    measure.write(config.name, config, sorted(rows(config), key=lambda line: -line["ours_s"]))


if __name__ == "__main__":
    main(bench, Config, __doc__)
