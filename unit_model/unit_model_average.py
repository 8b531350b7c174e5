"""Average of Checkpoints, and Manual Division: the plain mean of the other tasks' deltas (Lv et al. 2023, section 3).

    theta_i = 1/n * sum over sources j != i of theta_j

over the whole list, over the list of one group (`--task_list closed_book_qa`), or, with `--manual_division`, over the
own group of every target of the list.
"""

import pewe_environment  # noqa: F401

from dataclasses import dataclass

from pewe.command import main

from pewe.cli import log_to
from pewe.errors import UserError
from pewe.flags import flag
from pewe.merging.combine import Combiner
from pewe.merging.save import EnsembleConfig, Part, digests, ensemble_sources, ensemble_tasks, read_states, save
from pewe.merging.weights import allowed_sources, uniform_weights
from pewe.setting import TASK_LIST
from task_list import GROUP_OF

delta = "adapter"
source_ckpt_path = "checkpoints/adapter/full_data"
save_ckpt_path = "checkpoints/adapter/average"


@dataclass(frozen=True)
class Config(EnsembleConfig):
    """Flags; the constants above are their defaults."""

    delta: str = flag(delta, "adapter, lora or prefix")
    source_ckpt_path: str = flag(
        source_ckpt_path, "folder with <source>/checkpoint-best.pt, or a list of sources", decides=False
    )
    save_ckpt_path: str = flag(save_ckpt_path, "folder of the ensembles", decides=False)
    manual_division: bool = flag(False, "average only over the target's own group in task_list.py")


def run(config: Config) -> None:
    """Weights, checkpoints and heat map."""
    log_to(None, config.quiet)
    tasks = ensemble_tasks(config, TASK_LIST)
    sources = ensemble_sources(config, tasks)
    allowed = allowed_sources(tasks, sources)
    title = f"{config.delta}: average of checkpoints"
    if config.manual_division:
        title = f"{config.delta}: manual division"
        for i, target in enumerate(tasks):
            for j, source in enumerate(sources):
                allowed[i, j] &= GROUP_OF[target] == GROUP_OF.get(source)
            if not allowed[i].any():
                raise UserError(f"--manual_division: {target!r} is the only task of its group {GROUP_OF[target]}")
    states = read_states(config.source_ckpt_path, config.delta, sources)
    combiner = Combiner(config, states, sources, config.source_ckpt_path)
    W = uniform_weights(allowed)
    part = Part(tasks, sources, W, title, combiner.merge(W))
    save(config, [part], {"sources": digests(sources, states), **combiner.made_from()}, states.made_for)


if __name__ == "__main__":
    main(run, Config, __doc__)
