"""LoraHub (Huang et al. 2023, "LoraHub: efficient cross-task generalization via dynamic LoRA composition").

    w_i = argmin over w in [-1.5, 1.5]^n of L_i(sum over sources j != i of w_j theta_j) + 0.05 * mean |w_j|

L_i is over the target's few-shot training lines, as in the release: the sum of the mean token losses of batches of 5 lines,
divided by the number of lines. The search starts at w = 0 and has 40 evaluations. The release asks nevergrad's NGOpt, which
takes COBYLA for this (a step of 0.5, points beyond a bound reflected); here it is SciPy's. The best point that was evaluated
is taken. The weights need not sum to 1.
"""

import pewe_environment  # noqa: F401

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from pewe.command import main

import numpy as np
import torch
from torch import Tensor

from pewe.cli import log, log_to
from pewe.data import Encoded
from pewe.flags import flag
from pewe.merging.few_shot import FewShot, FewShotConfig, Found, weigh_and_save
from pewe.setting import TASK_LIST

delta = "adapter"
evaluations = 40
regularisation = 0.05
bound = 1.5
step = 0.5
loss_batch = 5
source_ckpt_path = "checkpoints/adapter/full_data"
save_ckpt_path = "checkpoints/adapter/LoraHub"


@dataclass(frozen=True)
class Config(FewShotConfig):
    """Flags; the constants above are their defaults."""

    delta: str = flag(delta, "adapter, lora or prefix")
    evaluations: int = flag(evaluations, "points that the search may look at", low=1)
    regularisation: float = flag(regularisation, "factor of the mean absolute weight", low=0)
    bound: float = flag(bound, "largest absolute weight; a point beyond it is reflected", above=0)
    step: float = flag(step, "COBYLA's first step along every axis", above=0)
    loss_batch: int = flag(
        loss_batch, "lines whose token losses are averaged; the release sums over such batches", low=1
    )
    source_ckpt_path: str = flag(
        source_ckpt_path, "folder with <source>/checkpoint-best.pt, or a list of sources", decides=False
    )
    save_ckpt_path: str = flag(save_ckpt_path, "folder of the ensembles", decides=False)

    def forwards(self, lines: int, sources: int) -> float:
        """All lines at each point of the search."""
        return self.evaluations * lines


class InStacks:
    """f(x) for an optimiser that asks for one point after another; what it will ask for next is computed with it.

    COBYLA begins with 0 and a step along each axis from the best point so far. As long as no step is better than its start,
    these n + 1 points are the corners of one simplex, and cost one call of `many`, points (K, n) -> values (K,).
    """

    def __init__(self, many: Callable[[np.ndarray], np.ndarray], step: float, size: int):
        self.many, self.step, self.size = many, step, size
        self.known: dict[bytes, float] = {}
        self.asked: list[tuple[float, np.ndarray]] = []  # value and point, in order
        self.calls = 0

    def __call__(self, x: np.ndarray) -> float:
        if x.tobytes() not in self.known:
            points = self.ahead(x)
            self.known |= {p.tobytes(): v for p, v in zip(points, self.many(np.stack(points)).tolist(), strict=True)}
            self.calls += 1
        self.asked.append((self.known[x.tobytes()], x.copy()))
        return self.known[x.tobytes()]

    def ahead(self, x: np.ndarray) -> list[np.ndarray]:
        """The point and, while the first simplex is built, the further steps from the point that it is a step from."""
        axis = len(self.asked) - 1
        if axis >= self.size:
            return [x]
        start = x.copy()
        if axis >= 0:
            start[axis] -= self.step
        further = [start + self.step * np.eye(self.size)[k] for k in range(max(axis, 0), self.size)]
        return [x, *(point for point in further if point.tobytes() != x.tobytes())]

    def best(self) -> np.ndarray:
        """The point with the lowest value, the first of equal ones."""
        return min(self.asked, key=lambda pair: pair[0])[1]


def reflected(x: np.ndarray, bound: float) -> np.ndarray:
    """The points within [-bound, bound]^n: what is beyond a bound is mirrored at it."""
    period = 4 * bound
    place = np.mod(x + bound, period)
    return np.where(place <= 2 * bound, place, period - place) - bound


def batch_loss(sums: Tensor, tokens: Tensor, size: int) -> Tensor:
    """The release's loss of K candidates: sum over batches of `size` lines of the mean token loss, over the lines, (K,).

    `sums` (K, L) are the summed token losses of the lines, `tokens` (L,) their numbers.
    """
    means = [a.sum(1) / n.sum() for a, n in zip(sums.split(size, dim=1), tokens.split(size), strict=True)]
    return torch.stack(means).sum(0) / len(tokens)


def search(config: Config, loss: Callable[[Tensor], Tensor], size: int) -> Tensor:
    """Weights of `size` sources, (size,) float64; `loss` of points (K, size) is (K,)."""
    from scipy.optimize import minimize  # not for --help

    def many(points: np.ndarray) -> np.ndarray:
        inside = reflected(points, config.bound)
        return loss(torch.from_numpy(inside)).numpy() + config.regularisation * np.abs(inside).mean(1)

    asked = InStacks(many, config.step, size)
    options = {"rhobeg": config.step, "maxiter": config.evaluations}
    minimize(asked, np.zeros(size), method="COBYLA", options=options)
    return torch.from_numpy(reflected(asked.best(), config.bound))


def weigh(config: Config, few_shot: FewShot, allowed: Tensor) -> Found:
    """The weights of every target, (T, n)."""
    W = torch.zeros(allowed.shape, dtype=torch.float64)
    for row, own, task in zip(W, allowed, few_shot.tasks, strict=True):
        lines = few_shot.split(task, "train")
        row[own] = search(config, partial(_loss, config, few_shot, lines, own), int(own.sum()))
        log.info("%s: LoraHub weights, sum %.3f", task, row.sum())
    return Found(W)


def _loss(config: Config, few_shot: FewShot, lines: Encoded, own: Tensor, points: Tensor) -> Tensor:
    W = torch.zeros(len(points), len(own), dtype=torch.float64)
    W[:, own] = points
    return batch_loss(*few_shot.line_losses(few_shot.mixtures(W), lines), config.loss_batch)


def run(config: Config) -> None:
    """Weights, checkpoints and heat map."""
    log_to(None, config.quiet)
    weigh_and_save(config, TASK_LIST, "weights of LoraHub", partial(weigh, config))


if __name__ == "__main__":
    main(run, Config, __doc__)
