"""One update of PEMT's stage 2 with six sources against one of a plain adapter on the same batch (forward, backward, clip, step).

    python -m benchmarks.pemt                            T5 v1.1 base with random weights
    python -m benchmarks.pemt --layers 4 --width 128 --feed_forward 256 --vocabulary 1300 --name pemt_mini     the mini T5's size

`plain` is the adapter (houlsby, 12), `ours` PEMT, `no sparsity` PEMT without its sparsity loss.
"""

from dataclasses import dataclass

from benchmarks import measure
from benchmarks.gpu import Config as Sizes
from benchmarks.gpu import backbone, random_task
from pewe.batches import Batch, scoring_batches
from pewe.cli import main
from pewe.deltas.attach import attach_delta
from pewe.deltas.config import DeltaConfig
from pewe.flags import flag
from pewe.losses import member_losses
from pewe.tuning.optimizers import clip_gradients, make_optimizer


@dataclass(frozen=True)
class Config(Sizes):
    """Sizes of the backbone and the batch."""

    device: str = flag("cpu", "cuda or cpu")
    dtype: str = flag("float32", "dtype of the backbone")
    lines: int = flag(8, "lines of the batch")
    sources: int = flag(6, "experts")
    prompt: int = flag(15, "positions of the target's prompt; those of the sources are about as long")
    updates: int = flag(3, "updates in a turn")
    repeats: int = flag(5, "turns")
    name: str = flag("pemt", "name of the result file")


def updates(config: Config, batch: Batch, **flags):
    """A function that makes `config.updates` updates of this delta; the model is built and warmed up before."""
    base = backbone(config)
    experts = {}
    if flags["tune_method"] == "pemt":
        source = attach_delta(base.model, DeltaConfig(tune_method="pemt_source"))
        for number in range(config.sources):
            source.describe(range(2, 2 + config.prompt + number % 3))
            source.initialise([str(number)])
            experts[str(number)] = source.states()[0]
        base = backbone(config)
    delta = attach_delta(base.model, DeltaConfig(**flags))
    if experts:
        delta.describe(range(2, 2 + config.prompt))
        delta.set_experts(experts)
    delta.initialise(["target"])
    optimizer = make_optimizer(delta, [1e-3], "adamw")
    base.model.train()

    def way() -> None:
        for _ in range(config.updates):
            (member_losses(delta, batch) + delta.extra_loss()).sum().backward()
            clip_gradients(delta, 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    way()
    return way


def run(config: Config) -> None:
    """All ways in turns."""
    batch = next(scoring_batches(random_task("task", config.lines, 0, config.vocabulary), config.lines, 0))
    ways = {
        "plain": updates(config, batch, tune_method="adapter"),
        "ours": updates(config, batch, tune_method="pemt"),
        "no sparsity": updates(config, batch, tune_method="pemt", sparsity=0.0),
    }
    times = {
        name: [s / config.updates for s in seconds] for name, seconds in measure.in_turns(ways, config.repeats).items()
    }
    cost = round(1 / measure.median_ratio(times), 2)
    row = measure.row(
        f"one update, {config.sources} sources, d {config.width}",
        times,
        times_the_adapter=cost,
        sequence=batch.input_ids.shape[1],
    )
    measure.write(config.name, config, [row])


if __name__ == "__main__":
    main(run, Config, __doc__)
