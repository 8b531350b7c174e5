"""Timing in turns, and the JSON files in benchmarks/results/ from which the table of benchmarks/README.md is made."""

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from pewe.files import provenance, write_json
from pewe.flags import flag

RESULTS = Path("benchmarks/results")

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def clock_flag() -> str:
    """The flag of the clock: on a machine that others use, CPU time of one thread compares two ways where wall time does not."""
    return flag("wall", "wall, or cpu: CPU time of the process, all its threads together", choices=CLOCKS)


@dataclass(frozen=True)
class Embedded:
    """The embedded default for a command's flags, and what every benchmark on it has; goes in front of the command's class."""

    model: str = flag("checkpoints/mini_t5", "backbone")
    task_dir: str = flag("data/mini_gym", "data")
    task_list: str = flag("mini_task_list", "tasks")
    device: str = flag("cpu", "cpu or cuda")
    max_input_length: int = flag(64, "tokens of the input at most; the plain way pads to it")
    max_output_length: int = flag(8, "tokens of the output at most; the plain way pads to it")
    quiet: bool = flag(True, "no progress bars")
    repeats: int = flag(3, "turns")
    clock: str = clock_flag()


def seconds(way: Callable[[], object], clock: str = "wall") -> float:
    """Seconds of one call by one of CLOCKS, the device's queue emptied before and after."""
    _wait()
    start = CLOCKS[clock]()
    way()
    _wait()
    return CLOCKS[clock]() - start


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def in_turns(ways: dict[str, Callable[[], object]], repeats: int, clock: str = "wall") -> dict[str, list[float]]:
    """Seconds of every way, `repeats` times in turns (a b c a b c ...), so that a change of the machine's speed hits all."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            times[name].append(seconds(way, clock))
    return times


def median_ratio(times: dict[str, list[float]], plain: str = "plain", ours: str = "ours") -> float:
    """The median over the turns of the ratio plain / ours."""
    return round(statistics.median(slow / fast for slow, fast in zip(times[plain], times[ours], strict=True)), 2)


def row(case: str, times: dict[str, list[float]], **more) -> dict:
    """One line of a result: medians in seconds, and the ratio plain / ours."""
    medians = {f"{name}_s": round(statistics.median(values), 4) for name, values in times.items()}
    line = {"case": case, **medians, "ratio": median_ratio(times), "turns": len(times["ours"]), **more}
    print("  ".join(f"{name} {value}" for name, value in line.items()), flush=True)
    return line


def write(name: str, config, rows: list[dict]) -> Path:
    """Write `benchmarks/results/<name>.json`: settings, machine, versions and the lines; of an absolute path the last name."""
    path = RESULTS / f"{name}.json"
    settings = {
        key: Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value
        for key, value in asdict(config).items()
    }
    write_json(path, {"settings": settings, "provenance": provenance(), "rows": rows})
    print(f"written: {path}")
    return path
