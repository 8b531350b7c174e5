"""Euclidean: sources that a few steps of tuning on the target move least (Lv et al. 2023, section 3).

    S[i, j] = sum over delta tensors of || theta_j - theta_j tuned on i ||_2,    w_i = softmax over j != i of (-S[i, j] / tem)

`scripts/adapter_tuneall.sh` makes the tuned deltas (`tuned_ckpt_path`). The untouched sources are averaged.
"""

import pewe_environment  # noqa: F401

from dataclasses import dataclass

from pewe.command import main

import torch

from pewe.cli import log_to
from pewe.deltas.checkpoint import start_of
from pewe.errors import UserError
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
tem = 0.1
tuned_ckpt_path = "checkpoints/adapter/tuned_all"
source_ckpt_path = "checkpoints/adapter/full_data"
save_ckpt_path = "checkpoints/adapter/Euclidean"


@dataclass(frozen=True)
class Config(SoftmaxConfig):
    """Flags; the constants above are their defaults."""

    delta: str = flag(delta, "adapter, lora or prefix")
    tem: float = flag(tem, "temperature of the softmax", above=0)
    tuned_ckpt_path: str = flag(tuned_ckpt_path, "folder with <target>/<source>/checkpoint-best.pt", decides=False)
    source_ckpt_path: str = flag(
        source_ckpt_path, "folder with <source>/checkpoint-best.pt, or a list of sources", decides=False
    )
    save_ckpt_path: str = flag(save_ckpt_path, "folder of the ensembles", decides=False)


def distance(first: DeltaState, second: DeltaState) -> float:
    """Sum over tensors of the L2 norm of the difference (not the norm over all tensors)."""
    return sum(float((first[name].double() - second[name].double()).norm()) for name in first)


def run(config: Config) -> None:
    """Weights, checkpoints and heat map."""
    log_to(None, config.quiet)
    tasks = ensemble_tasks(config, TASK_LIST)
    names = ensemble_sources(config, tasks)
    allowed = allowed_sources(tasks, names)
    sources = read_states(config.source_ckpt_path, config.delta, names)
    pairs = {f"{tasks[i]}/{names[j]}": (i, j) for i, j in allowed.nonzero().tolist()}
    tuned = read_states(config.tuned_ckpt_path, config.delta, list(pairs), like=sources)
    combiner = Combiner(config, sources, names, config.source_ckpt_path)
    S = torch.zeros(len(tasks), len(names), dtype=torch.float64)
    own = digests(names, sources)
    for (i, j), state, path in zip(pairs.values(), tuned, tuned.paths, strict=True):
        if start_of(path, config.delta) not in ("", own[names[j]]):
            raise UserError(f"{path} began with another delta than {sources.paths[j]}; tune the pairs again")
        S[i, j] = distance(sources[j], state)
    W, tem = ensemble_weights(config, S, config.tem, False, allowed)
    part = Part(tasks, names, W, f"{config.delta}: weights from Euclidean, tem {tem:g}", combiner.merge(W))
    made_from = {"sources": own, "tuned": digests(list(pairs), tuned), "used_temperature": tem}
    made_from |= combiner.made_from()
    save(config, [part], made_from, sources.made_for)


if __name__ == "__main__":
    main(run, Config, __doc__)
