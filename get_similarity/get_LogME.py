"""LogME: how well the target's classes are a linear function of what source j makes of its lines (You et al. 2021, "LogME:
practical assessment of pre-trained models for transfer learning").

    S[i, j] = 1/N mean over classes of log p(y | F; alpha, beta) at the best alpha, beta      higher is more similar

F (N, d) is what the output head reads at the first word of the answer, y whether a line has the class; p is the evidence of
y ~ N(F w, 1/beta), w ~ N(0, 1/alpha). Classes are the answers of the lines. A target of which some answer occurs but once is
no classification: all its sources get 0, which makes it Average, and a warning says so.
"""

import pewe_environment  # noqa: F401

import math
from functools import partial

from pewe.command import main

import torch
from torch import Tensor

from pewe.batches import IGNORED, Batch
from pewe.cli import log
from pewe.similarity.loop import run
from pewe.similarity.measure import Measure
from pewe.similarity.scoring import Sources

ROUNDS, CLOSE = 100, 1e-6  # of the fixed point, and the relative step at which it is found


def evidence(F: Tensor, y: Tensor) -> float:
    """max over alpha, beta of log p(y | F) / N in nats, F (N, d) and y (N,), by MacKay's fixed point (the paper, algorithm 1)."""
    U, s, _ = torch.linalg.svd(F.double(), full_matrices=False)
    sigma, z = s.square(), (U.mT @ y.double()).square()
    beyond = float(y.double().square().sum() - z.sum())
    alpha = beta = 1.0
    for _ in range(ROUNDS):
        t, gamma, m2, residual = _posterior(sigma, z, beyond, alpha, beta)
        alpha, beta = gamma / (m2 + 1e-12), (len(y) - gamma) / (residual + 1e-12)
        if abs(alpha / beta - t) <= CLOSE * t:
            break
    return log_evidence(F, y, alpha, beta) / len(y)


def _posterior(sigma: Tensor, z: Tensor, beyond: float, alpha: float, beta: float) -> tuple[float, float, float, float]:
    """t = alpha / beta, the effective number of parameters, |m|^2 and |y - F m|^2 of the posterior mean m."""
    t = alpha / beta
    gamma, m2 = float((sigma / (sigma + t)).sum()), float((sigma * z / (sigma + t).square()).sum())
    return t, gamma, m2, float((z * (t / (sigma + t)).square()).sum()) + beyond


def log_evidence(F: Tensor, y: Tensor, alpha: float, beta: float) -> float:
    """log N(y; 0, I / beta + F F^T / alpha) in nats, through the singular values of F."""
    U, s, _ = torch.linalg.svd(F.double(), full_matrices=False)
    sigma, z = s.square(), (U.mT @ y.double()).square()
    _, _, m2, residual = _posterior(sigma, z, float(y.double().square().sum() - z.sum()), alpha, beta)
    volume = len(sigma) * math.log(alpha) - float((alpha + beta * sigma).log().sum())
    return 0.5 * (volume + len(y) * math.log(beta / (2 * math.pi)) - beta * residual - alpha * m2)


@torch.no_grad()
def score(sources: Sources, batch: Batch) -> dict[str, Tensor]:
    """The evidence of each of the K sources, (K,)."""
    features, answers = [], []
    for piece in sources.pieces(batch):
        hidden, packed = sources.states(piece)
        rows = len(piece.labels)
        first = packed.decoder.position[: hidden.shape[1]] == 1  # behind <extra_id_0>
        features.append(hidden[:, first].reshape(sources.stack, rows, -1).cpu())
        answers += [tuple(row[row != IGNORED].tolist()) for row in piece.labels]
    classes = sorted(set(answers))
    if len(classes) < 2 or min(answers.count(one) for one in classes) < 2:
        log.warning(
            "LogME: the answers are no classes (%d of %d lines differ); all sources get 0", len(classes), len(answers)
        )
        return {"all": torch.zeros(sources.stack)}
    hot = [torch.tensor([float(answer == one) for answer in answers]) for one in classes]
    values = [sum(evidence(F, y) for y in hot) / len(hot) for F in torch.cat(features, dim=1)]
    return {"all": torch.tensor(values, dtype=torch.float64)}


MEASURE = Measure("LogME", score, higher_is_more_similar=True)

if __name__ == "__main__":
    main(partial(run, MEASURE), MEASURE.config, __doc__)
