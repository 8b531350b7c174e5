"""Loss: how well source j already predicts the target's dev answers (Lv et al. 2023, section 3).

    S[i, j] = mean over label tokens of -log p(token | input, tokens before; theta_j)      lower is more similar

on the first dev batch of target i, teacher forcing, no dropout.
"""

import pewe_environment  # noqa: F401

from functools import partial

from pewe.command import main

import torch
from torch import Tensor

from pewe.batches import IGNORED, Batch
from pewe.similarity.loop import run
from pewe.similarity.measure import Measure
from pewe.similarity.scoring import Sources, at_labels


@torch.no_grad()
def score(sources: Sources, batch: Batch) -> dict[str, Tensor]:
    """Mean token cross-entropy in nats of each of the K sources, (K,)."""
    total = sources.over_tokens(batch, lambda log_p, labels: -at_labels(log_p, labels))
    return {"all": total / (batch.labels != IGNORED).sum()}


MEASURE = Measure("Loss", score, higher_is_more_similar=False)

if __name__ == "__main__":
    main(partial(run, MEASURE), MEASURE.config, __doc__)
