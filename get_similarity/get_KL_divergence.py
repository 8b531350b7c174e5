"""KL-divergence between a delta tuned on the target and source j (Lv et al. 2023, section 3).

    S[i, j] = sum over label tokens of KL(P(theta_i) || P(theta_j))      lower is more similar

with P = softmax(logits) and theta_i tuned on the target's few-shot data from random init (`--random_tuned_ckpt_path`), on
the first dev batch of target i. The original drops vocabulary entries whose probability is exactly 0 in fp32 on either
side and normalises the rest (`--as_original`); in log space there is no such entry.
"""

import pewe_environment  # noqa: F401

from functools import partial

from pewe.command import main

import torch
from torch import Tensor

from pewe.batches import Batch
from pewe.similarity.config import TargetConfig
from pewe.similarity.loop import run
from pewe.similarity.measure import Measure
from pewe.similarity.scoring import Sources


def divergence(log_p: Tensor, labels: Tensor) -> Tensor:
    """KL of the target's distribution (member 0) from each source's, in nats, (1 + K, n, V) -> (K, n)."""
    target, sources = log_p[:1], log_p[1:]
    return sources.sub_(target).mul_(target.exp()).sum(2).neg()


def divergence_of_the_original(log_p: Tensor, labels: Tensor) -> Tensor:
    """The same over the entries that are above 0 on both sides, both normalised again."""
    target, sources = log_p[:1].exp(), log_p[1:].exp()
    both = (target > 0) & (sources > 0)
    p, q = target * both, sources * both
    p, q = p / p.sum(2, keepdim=True), q / q.sum(2, keepdim=True)
    return torch.where(both, p * (p / q).log(), 0.0).sum(2)


@torch.no_grad()
def score(sources: Sources, batch: Batch) -> dict[str, Tensor]:
    """Summed divergences in nats of each of the K sources, (K,)."""
    statistic = divergence_of_the_original if sources.config.as_original else divergence
    return {"all": sources.over_tokens(batch, statistic)}


MEASURE = Measure("KL-divergence", score, higher_is_more_similar=False, needs_target=True, config=TargetConfig)

if __name__ == "__main__":
    main(partial(run, MEASURE), MEASURE.config, __doc__)
