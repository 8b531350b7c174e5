"""The scale of a combiner by dev score: lambda of task arithmetic (Ilharco et al. 2023), or of any rule that has a scale.

    theta_i = the merge of the sources j != i with the scale, of those that are tried, whose dev score on target i is best

Sources have equal weights. All scales are members of one stack; of equal scores the first scale is taken.
"""

import pewe_environment  # noqa: F401

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from pewe.command import main

from torch import Tensor

from pewe.cli import log_to
from pewe.errors import UserError
from pewe.flags import flag
from pewe.merging.combine import Combiner
from pewe.merging.few_shot import FewShot, FewShotConfig
from pewe.merging.save import Part, digests, ensemble_sources, ensemble_tasks, read_states, save
from pewe.merging.weights import allowed_sources, uniform_weights
from pewe.setting import TASK_LIST
from pewe.state import DeltaState

delta = "adapter"
combine = "task_arithmetic"
scales = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]
source_ckpt_path = "checkpoints/adapter/full_data"
save_ckpt_path = "checkpoints/adapter/task_arithmetic"


@dataclass(frozen=True)
class Config(FewShotConfig):
    """Flags; the constants above are their defaults."""

    delta: str = flag(delta, "adapter, lora or prefix")
    combine: str = flag(combine, "the rule, which must have a scale")
    scales: list[float] = flag(scales, "scales that are tried", low=0, unique=True)
    source_ckpt_path: str = flag(
        source_ckpt_path, "folder with <source>/checkpoint-best.pt, or a list of sources", decides=False
    )
    save_ckpt_path: str = flag(save_ckpt_path, "folder of the ensembles", decides=False)
    reads: ClassVar[str] = "dev"

    def forwards(self, lines: int, sources: int) -> float:
        """All lines with each scale."""
        return len(self.scales) * lines


def run(config: Config) -> None:
    """Weights, checkpoints and heat map."""
    log_to(None, config.quiet)
    tasks = ensemble_tasks(config, TASK_LIST)
    sources = ensemble_sources(config, tasks)
    states = read_states(config.source_ckpt_path, config.delta, sources)
    combiner = Combiner(config, states, sources, config.source_ckpt_path)
    if not hasattr(combiner.flags, "scale"):
        raise UserError(f"--combine {config.combine} has no scale to choose")
    few_shot = FewShot(config, states, tasks)
    W, chosen = uniform_weights(allowed_sources(tasks, sources)), {}
    title = f"{config.delta}: {config.combine}, scale by dev score"
    part = Part(tasks, sources, W, title, list(best_of(config, combiner, few_shot, W, chosen)))
    made_from = {"sources": digests(sources, states), **few_shot.made_from(), **combiner.made_from()}
    save(config, [part], {**made_from, "scales": chosen}, states.made_for)


def best_of(
    config: Config, combiner: Combiner, few_shot: FewShot, W: Tensor, chosen: dict[str, float]
) -> Iterator[DeltaState]:
    """The best candidate of every target; notes the scale that it has."""
    flags = combiner.flags
    for task, row in zip(few_shot.tasks, W, strict=True):
        candidates = []
        for scale in config.scales:
            combiner.flags = dataclasses.replace(flags, scale=scale)
            candidates += combiner.merge(row[None])
        scores = few_shot.dev_scores(candidates, [task] * len(candidates))
        best = max(range(len(scores)), key=lambda number: scores[number])
        chosen[task] = config.scales[best]
        yield candidates[best]
    combiner.flags = flags


if __name__ == "__main__":
    main(run, Config, __doc__)
