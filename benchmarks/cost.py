"""Cost against the number of stacked deltas K, and against the number of tasks: two curves in one picture.

    python -m benchmarks.cost

Left: seconds per source of the Loss of K stacked sources on one dev batch. Right: seconds of the whole Loss matrix of T
tasks, the plain way and ours. Random deltas, mini T5, mini gym.
"""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks import measure, scoring
from get_similarity import get_Loss
from pewe.backbone import load_backbone
from pewe.batches import scoring_batches
from pewe.cli import main
from pewe.data import find_prefixes, load_split, task_names
from pewe.deltas.attach import attach_delta
from pewe.deltas.checkpoint import read_checkpoint, task_checkpoint
from pewe.flags import flag
from pewe.reporting.plots import drawing, save
from pewe.similarity.scoring import Sources


@dataclass(frozen=True)
class Config(scoring.Config):
    """The flags of benchmarks.scoring."""

    stacks: list[int] = flag([1, 2, 4, 8, 16, 32], "numbers of stacked sources")
    sizes: list[int] = flag([2, 4, 8, 12], "numbers of tasks")
    name: str = flag("cost", "name of the result file and the picture")


def by_stack(config: Config) -> list[dict]:
    """Seconds of one scored batch per source, for each K."""
    backbone = load_backbone(config)
    delta = attach_delta(backbone.model, config, 1)
    task = task_names(config)[0]
    state = read_checkpoint(task_checkpoint(Path(config.source_ckpt_path), task), config.tune_method)
    prefix = find_prefixes(Path(config.task_dir), task)[0]
    encoded = load_split(backbone.tokenizer, config, task, prefix, "dev")
    batch = next(scoring_batches(encoded, config.predict_batch_size, backbone.pad))
    sources = Sources(backbone, delta, config)

    def score(stack: int, times: int) -> Callable[[], None]:
        def run() -> None:
            for _ in range(times):
                delta.load([state] * stack)
                get_Loss.score(sources, batch)

        return run

    rows = []
    for stack in config.stacks:
        ways = {"plain": score(1, stack), "ours": score(stack, 1)}  # one after the other, and stacked
        measure.in_turns(ways, 2)  # warm-up
        times = measure.in_turns(ways, 5 * config.repeats, config.clock)
        rows.append({**measure.row(f"K = {stack}", times), "stack": stack})
    return rows


def by_tasks(config: Config, folder: Path) -> list[dict]:
    """Seconds of the whole Loss matrix for each number of tasks."""
    tasks, rows = task_names(config), []
    for size in config.sizes:
        some = replace(config, tasks=tasks[:size])
        rows.append({**scoring.compare("Loss", some, folder / str(size)), "tasks": size})
    return rows


def draw(rows: list[dict], path: Path) -> None:
    """The two curves."""
    plt, _ = drawing()
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4))
    stacks, tasks = [r for r in rows if "stack" in r], [r for r in rows if "tasks" in r]
    left.plot([r["stack"] for r in stacks], [1000 * r["ours_s"] / r["stack"] for r in stacks], marker="o")
    left.set(
        title="one dev batch",
        xlabel="stacked sources K",
        ylabel="milliseconds per source",
        xscale="log",
        ylim=(0, None),
    )
    left.set_xticks([r["stack"] for r in stacks], [r["stack"] for r in stacks])
    for name in ("plain", "ours"):
        right.plot([r["tasks"] for r in tasks], [r[f"{name}_s"] for r in tasks], marker="o", label=name)
    right.set(title="Loss matrix", xlabel="tasks", ylabel="seconds", ylim=(0, None))
    right.legend()
    save(figure, path)


def bench(config: Config) -> None:
    """Both curves."""
    with scoring.random_deltas(config) as ready, tempfile.TemporaryDirectory() as folder:
        rows = by_stack(ready) + by_tasks(ready, Path(folder))
    measure.write(config.name, config, rows)
    draw(rows, measure.RESULTS / f"{config.name}.png")


if __name__ == "__main__":
    main(bench, Config, __doc__)
