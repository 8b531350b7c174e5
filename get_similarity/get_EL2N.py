"""EL2N: the error of source j on the target's dev answers, as an L2 norm (Paul et al. 2021; Lv et al. 2023, section 3).

    S[i, j] = sum over label tokens of || P(theta_j) - onehot(label) ||_2      lower is more similar

with P = softmax(logits), on the first dev batch of target i.
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


def error_norm(log_p: Tensor, labels: Tensor) -> Tensor:
    """||P - onehot||_2 = sqrt(sum of the squares of the other probabilities + (1 - p_label)^2), (K, n)."""
    index = labels.expand(log_p.shape[0], -1)[..., None]
    others = (2 * log_p).exp().scatter(2, index, 0.0).sum(2)
    return (others + torch.expm1(at_labels(log_p, labels)).square()).sqrt()


@torch.no_grad()
def score(sources: Sources, batch: Batch) -> dict[str, Tensor]:
    """Summed error norms of each of the K sources, (K,), without unit."""
    return {"all": sources.over_tokens(batch, error_norm)}


MEASURE = Measure("EL2N", score, higher_is_more_similar=False)

if __name__ == "__main__":
    main(partial(run, MEASURE), MEASURE.config, __doc__)
