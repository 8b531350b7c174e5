"""Few-shot tuning of the 12 mini-gym targets, whole runs with validation, test and files: the plain way (benchmarks/plain.py),
ours one by one, and ours in one stack.

python -m benchmarks.tuning
"""

import contextlib
import io
import tempfile
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks import measure, plain
from pewe.cli import main
from pewe.data import task_names
from pewe.flags import flag
from pewe.tuning.config import TuneConfig
from pewe.tuning.tune import tune


@dataclass(frozen=True)
class Config(measure.Embedded, TuneConfig):
    """The flags of tuning, with the quickstart's settings of the targets, and of the benchmark."""

    learning_rate_list: list[float] = flag([3e-3], "learning rate")
    train_iters: int = flag(80, "updates")
    valid_interval: int = flag(20, "updates between two validations")
    predict_batch_size: int = flag(200, "dev and test lines per forward")
    max_grad_norm: float = flag(1.0, "gradient clip")
    do_train: bool = flag(True, "tune")
    do_predict: bool = flag(True, "test")
    methods: list[str] = flag(["adapter", "lora", "prefix"], "delta methods")
    name: str = flag("tuning", "name of the result file")


def compare(method: str, config: Config) -> dict:
    """All ways in turns for one delta method; the scores of all are compared."""
    config = replace(config, tune_method=method)
    scores, tasks = {}, task_names(config)

    def plain_way() -> None:
        with tempfile.TemporaryDirectory() as out:
            scores["plain"] = np.array([plain.tune(config, task, Path(out)) for task in tasks])

    def our_way(name: str, stack: int) -> None:
        with tempfile.TemporaryDirectory() as out, contextlib.redirect_stdout(io.StringIO()):
            table = tune(replace(config, stack=stack, output_dir=out)).set_index("task")
        scores[name] = table.loc[tasks, ["dev", "test"]].to_numpy()

    ways = {"plain": plain_way, "alone": partial(our_way, "alone", 1), "ours": partial(our_way, "ours", len(tasks))}
    times = measure.in_turns(ways, config.repeats, config.clock)
    return measure.row(
        method,
        times,
        ratio_to_alone=measure.median_ratio(times, "alone"),
        **{f"mean_test_{name}": round(float(values[:, 1].mean()), 3) for name, values in scores.items()},
        largest_difference_of_a_score=round(float(max(np.ptp(list(scores.values()), axis=0).flatten())), 4),
    )


def bench(config: Config) -> None:
    """All delta methods."""
    measure.write(config.name, config, [compare(method, config) for method in config.methods])


if __name__ == "__main__":
    main(bench, Config, __doc__)
