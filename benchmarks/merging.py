"""Leave-one-out averages of adapter states of T5-base (1.1 M numbers each), and many LoRA states in little memory.

python -m benchmarks.merging                    plain loop, PEFT's arithmetic (requirements-development.txt), ours
python -m benchmarks.merging --many 500         500 LoRA states of 10 MB, file to file, with the peak memory (10 GB of disk)
"""

import copy
import resource
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks import measure
from pewe.cli import main
from pewe.deltas.checkpoint import ensemble_checkpoint, task_checkpoint, write_checkpoint
from pewe.flags import flag
from pewe.merging.average import merge
from pewe.merging.save import read_states
from pewe.merging.weights import uniform_weights
from pewe.state import DeltaState


@dataclass(frozen=True)
class Config:
    """Sizes."""

    states: int = flag(32, "states; each is merged from the others")
    many: int = flag(0, "instead: so many LoRA states of 10 MB, file to file")
    repeats: int = flag(5, "turns")


def adapter_shapes() -> dict[str, tuple[int, ...]]:
    """The adapter of size 12 on T5-base: 60 sites of two matrices."""
    sites = [
        f"{stack}.block.{b}.layer.{layer}.adapter"
        for stack, layers in (("encoder", 2), ("decoder", 3))
        for b in range(12)
        for layer in range(layers)
    ]
    return {f"{site}.adapter_{m}": shape for site in sites for m, shape in (("A", (768, 12)), ("B", (12, 768)))}


def lora_shapes(numbers: int = 2_621_440) -> dict[str, tuple[int, ...]]:
    """LoRA matrices on q and v of 36 attentions of width 1024, about `numbers` numbers."""
    rank = max(1, round(numbers / (36 * 2 * 2 * 1024)))
    sites = [f"block.{number}.{m}" for number in range(36) for m in "qv"]
    return {f"{site}.{m}": shape for site in sites for m, shape in (("A", (1024, rank)), ("B", (rank, 1024)))}


def random_state(shapes: dict[str, tuple[int, ...]], seed: int) -> DeltaState:
    """A state of these shapes."""
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) * 0.02 for name, shape in shapes.items()}


def leave_one_out(count: int) -> torch.Tensor:
    """(count, count) weights: the mean of the others."""
    return uniform_weights(~torch.eye(count, dtype=torch.bool))


def plain_way(states: list[DeltaState], weights: torch.Tensor) -> list[DeltaState]:
    """The original's: for every target a copy of all states, then the loop."""
    return [plain_loop(copy.deepcopy(states), row[None])[0] for row in weights]


def plain_loop(states: list[DeltaState], weights: torch.Tensor) -> list[DeltaState]:
    """Target by target, tensor by tensor, source by source."""
    merged = []
    for row in weights:
        state = {}
        for name in states[0]:
            total = torch.zeros_like(states[0][name])
            for weight, source in zip(row, states, strict=True):
                if weight:
                    total += float(weight) * source[name]
            state[name] = total
        merged.append(state)
    return merged


def peft_arithmetic(states: list[DeltaState], weights: torch.Tensor) -> list[DeltaState]:
    """Target by target and tensor by tensor, the weighted sum of PEFT's `add_weighted_adapter`."""
    from peft.utils.merge_utils import task_arithmetic

    return [
        {name: task_arithmetic([state[name] for state in states], row) for name in states[0]} for row in weights.float()
    ]


def in_memory(config: Config) -> dict:
    """Three ways in turns on the same states."""
    states = [random_state(adapter_shapes(), seed) for seed in range(config.states)]
    weights, results = leave_one_out(config.states), {}
    ways = {"plain": plain_way, "loop": plain_loop, "peft": peft_arithmetic, "ours": lambda s, w: list(merge(s, w))}

    def way(name: str):
        def run() -> None:
            results[name] = None  # the memory of the turn before
            results[name] = ways[name](states, weights)

        return run

    times = measure.in_turns({name: way(name) for name in ways}, config.repeats)
    error = max(
        float((a[name] - b[name]).abs().max())
        for a, b in zip(results["plain"], results["ours"], strict=True)
        for name in a
    )
    ratios = {f"ratio_to_{other}": measure.median_ratio(times, other) for other in ("loop", "peft")}
    case = f"{config.states} leave-one-out merges of T5-base adapters"
    return measure.row(case, times, **ratios, largest_difference=float(f"{error:.1e}"))


def many_files(count: int) -> dict:
    """Merge `count` files into `count` files by the functions that unit_model/ uses; peak memory of this process."""
    with tempfile.TemporaryDirectory(dir="checkpoints") as folder:
        names = [f"task_{number}" for number in range(count)]
        for number, name in enumerate(names):
            path = task_checkpoint(Path(folder) / "sources", name)
            write_checkpoint(path, "lora", random_state(lora_shapes(), number), {})
        size = path.stat().st_size / 1e6
        start = time.perf_counter()
        states = read_states(f"{folder}/sources", "lora", names)
        for name, state in zip(names, merge(states, leave_one_out(count)), strict=True):
            write_checkpoint(ensemble_checkpoint(Path(folder) / "merged", name), "lora", state, {})
        spent = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    line = {
        "case": f"{count} LoRA states of {size:.1f} MB, file to file",
        "ours_s": round(spent, 1),
        "peak_GiB": round(peak, 2),
    }
    print(line)
    return line


def bench(config: Config) -> None:
    """In memory, or many files."""
    if config.many:
        measure.write("merging_many", config, [many_files(config.many)])
    else:
        measure.write("merging", config, [in_memory(config)])


if __name__ == "__main__":
    main(bench, Config, __doc__)
