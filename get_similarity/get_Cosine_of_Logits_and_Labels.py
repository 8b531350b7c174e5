"""Cosine of Logits and Labels: how much source j points at the target's dev answers (Lv et al. 2023, section 3).

    S[i, j] = sum over label tokens of cos(P(theta_j), onehot(label)) = sum of p_label / ||P||_2      higher is more similar

with P = softmax(logits), on all dev batches of target i. It is a sum: it grows with the dev set and the answers' length.
"""

import pewe_environment  # noqa: F401

from functools import partial

from pewe.command import main

import torch
from torch import Tensor

from pewe.batches import Batch
from pewe.similarity.loop import run
from pewe.similarity.measure import Measure
from pewe.similarity.scoring import Sources, at_labels


@torch.no_grad()
def score(sources: Sources, batch: Batch) -> dict[str, Tensor]:
    """Summed cosines of each of the K sources, (K,), without unit."""

    def cosine(log_p: Tensor, labels: Tensor) -> Tensor:
        return (at_labels(log_p, labels) - 0.5 * torch.logsumexp(2 * log_p, dim=2)).exp()

    return {"all": sources.over_tokens(batch, cosine)}


MEASURE = Measure(
    "Cosine_of_Logits_and_Labels", score, higher_is_more_similar=True, max_batches=lambda config, task: None
)

if __name__ == "__main__":
    main(partial(run, MEASURE), MEASURE.config, __doc__)
