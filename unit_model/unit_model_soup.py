"""Greedy soup (Wortsman et al. 2022, "Model soups", algorithm 1), of the sources of another task.

The sources in the order of their zero-shot dev score on the target; one after another is added to the mean, and stays where
the dev score of the mean does not fall. `scripts/adapter_devall.sh` makes the zero-shot scores (`zero_result_path`).
"""

import pewe_environment  # noqa: F401

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar

from pewe.command import main

import torch
from torch import Tensor

from pewe.cli import log_to
from pewe.flags import flag
from pewe.identity import file_digest
from pewe.merging.few_shot import FewShot, FewShotConfig, Found, weigh_and_save
from pewe.merging.save import ensemble_sources
from pewe.merging.weights import uniform_weights
from pewe.scores import read_scores
from pewe.setting import TASK_LIST
from unit_model.unit_model_Performance import dev_scores

delta = "adapter"
zero_result_path = "checkpoints/adapter/zero_shot/result.tsv"
source_ckpt_path = "checkpoints/adapter/full_data"
save_ckpt_path = "checkpoints/adapter/soup"


@dataclass(frozen=True)
class Config(FewShotConfig):
    """Flags; the constants above are their defaults."""

    delta: str = flag(delta, "adapter, lora or prefix")
    zero_result_path: str = flag(zero_result_path, "result.tsv of dev_all_ckpt.py", decides=False)
    source_ckpt_path: str = flag(
        source_ckpt_path, "folder with <source>/checkpoint-best.pt, or a list of sources", decides=False
    )
    save_ckpt_path: str = flag(save_ckpt_path, "folder of the ensembles", decides=False)
    reads: ClassVar[str] = "dev"

    def forwards(self, lines: int, sources: int) -> float:
        """All lines for each source but the first."""
        return (sources - 1) * lines


def soups(zero: Tensor, allowed: Tensor, score: Callable[[Tensor, Sequence[int]], Sequence[float]]) -> Tensor:
    """Which sources each target's soup has, (T, n) of truth values, from their zero-shot scores (T, n).

    `score` gives the dev scores of weights (K, n) on the targets with these numbers. All targets try their next source at
    once, so that there are n - 1 rounds at most. Of equal scores the first source comes first.
    """
    order = zero.masked_fill(~allowed, -torch.inf).argsort(dim=1, descending=True, stable=True)
    chosen = torch.zeros_like(allowed).scatter(1, order[:, :1], True)
    best = zero.gather(1, order[:, :1])[:, 0].clone()
    for place in range(1, zero.shape[1]):
        targets = [i for i in range(len(zero)) if allowed[i, order[i, place]]]
        tried = chosen[targets].scatter(1, order[targets, place][:, None], True)
        for i, one, found in zip(targets, tried, score(uniform_weights(tried), targets), strict=True):
            if found >= best[i]:
                chosen[i], best[i] = one, found
    return chosen


def weigh(config: Config, few_shot: FewShot, allowed: Tensor) -> Found:
    """The weights of every target, (T, n): equal for the sources of its soup."""
    path, tasks = Path(config.zero_result_path), few_shot.tasks
    sources = ensemble_sources(config, tasks)
    zero = dev_scores(read_scores(path, ["target", "source"], ["dev"]), tasks, sources, path)

    def score(W: Tensor, targets: Sequence[int]) -> list[float]:
        return few_shot.dev_scores(few_shot.mixtures(W), [tasks[i] for i in targets])

    W = uniform_weights(soups(torch.tensor(zero.fillna(0.0).to_numpy()), allowed, score))
    return Found(W, made_from={"tables": [file_digest(path)]})


def run(config: Config) -> None:
    """Weights, checkpoints and heat map."""
    log_to(None, config.quiet)
    weigh_and_save(config, TASK_LIST, "greedy soup", partial(weigh, config))


if __name__ == "__main__":
    main(run, Config, __doc__)
