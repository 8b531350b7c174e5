"""Few-shot tuning of the 12 mini-gym targets: one by one against one stack, whole runs with validation, test and files.

python -m benchmarks.tuning
"""

import contextlib
import io
import tempfile
from dataclasses import dataclass, replace

from benchmarks import measure
from pewe.cli import flag, main
from pewe.data import task_names
from pewe.tune import TuneConfig, tune


@dataclass
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
    """Both ways in turns for one delta method; the scores of both are compared."""
    scores, tasks = {}, task_names(config)

    def way(name: str, stack: int):
        def run() -> None:
            with tempfile.TemporaryDirectory() as out, contextlib.redirect_stdout(io.StringIO()):
                scores[name] = tune(replace(config, tune_method=method, stack=stack, output_dir=out)).set_index("task")

        return run

    times = measure.in_turns({"plain": way("plain", 1), "ours": way("ours", len(tasks))}, config.repeats)
    columns = ["dev", "test"]
    difference = (scores["plain"][columns] - scores["ours"].loc[tasks, columns]).abs().to_numpy().max()
    return measure.row(method, times, largest_difference_of_a_score=round(float(difference), 4))


def bench(config: Config) -> None:
    """All delta methods."""
    measure.write(config.name, config, [compare(method, config) for method in config.methods])


if __name__ == "__main__":
    main(bench, Config, __doc__)
