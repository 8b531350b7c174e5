"""Cosine: sources whose weights point where a delta tuned on the target points (Lv et al. 2023, section 3).

    S[i, j] = mean over delta tensors of cos(theta_i, theta_j),    w_i = softmax over j != i of (S[i, j] / temperature)

theta_i is tuned on the target's few-shot data (`tuned_64shot_ckpt_path`).
"""

import pewe_environment  # noqa: F401

from collections.abc import Sequence
from dataclasses import dataclass

from pewe.command import main

import torch
from torch import Tensor

from pewe.cli import log_to
from pewe.flags import flag
from pewe.merging.combine import Combiner
from pewe.merging.save import (
    Part,
    SoftmaxConfig,
    digests,
    ensemble_sources,
    ensemble_tasks,
    ensemble_weights,
    read_states,
    save,
)
from pewe.merging.weights import allowed_sources
from pewe.setting import TASK_LIST
from pewe.state import DeltaState

delta = "adapter"
temperature = 0.001
tuned_64shot_ckpt_path = "checkpoints/adapter/random"
source_ckpt_path = "checkpoints/adapter/full_data"
save_ckpt_path = "checkpoints/adapter/cos"


@dataclass(frozen=True)
class Config(SoftmaxConfig):
    """Flags; the constants above are their defaults."""

    delta: str = flag(delta, "adapter, lora or prefix")
    temperature: float = flag(temperature, "temperature of the softmax", above=0)
    tuned_64shot_ckpt_path: str = flag(
        tuned_64shot_ckpt_path, "folder with <target>/checkpoint-best.pt, tuned from random", decides=False
    )
    source_ckpt_path: str = flag(
        source_ckpt_path, "folder with <source>/checkpoint-best.pt, or a list of sources", decides=False
    )
    save_ckpt_path: str = flag(save_ckpt_path, "folder of the ensembles", decides=False)


def directions(state: DeltaState) -> Tensor:
    """The state as one vector, each tensor scaled to norm 1, (P,), float64."""
    return torch.cat([torch.nn.functional.normalize(state[name].double().flatten(), dim=0) for name in sorted(state)])


def cosines(targets: Sequence[DeltaState], sources: Sequence[DeltaState]) -> Tensor:
    """Mean over tensors of the cosine of the flattened tensors, (T, n), without unit."""
    rows = torch.stack([directions(state) for state in targets])
    return torch.stack([rows @ directions(state) for state in sources], dim=1) / len(sources[0])


def run(config: Config) -> None:
    """Weights, checkpoints and heat map."""
    log_to(None, config.quiet)
    tasks = ensemble_tasks(config, TASK_LIST)
    names = ensemble_sources(config, tasks)
    sources = read_states(config.source_ckpt_path, config.delta, names)
    tuned = read_states(config.tuned_64shot_ckpt_path, config.delta, tasks, like=sources)
    combiner = Combiner(config, sources, names, config.source_ckpt_path)
    W, temperature = ensemble_weights(
        config, cosines(tuned, sources), config.temperature, True, allowed_sources(tasks, names)
    )
    title = f"{config.delta}: weights from Cosine, temperature {temperature:g}"
    part = Part(tasks, names, W, title, combiner.merge(W))
    made_from = {"sources": digests(names, sources), "tuned": digests(tasks, tuned), "used_temperature": temperature}
    made_from |= combiner.made_from()
    save(config, [part], made_from, sources.made_for)


if __name__ == "__main__":
    main(run, Config, __doc__)
