"""GraNd: how far the target's dev data would still move source j (Paul et al. 2021; Lv et al. 2023, sections 3 and 5).

    S[i, j] = sum over dev batches of || d loss(batch; theta_j) / d theta_j ||_2      lower is more similar

`--mode dev` takes the norm over all parameters of the delta; `block` and `layer` give one value per block, or per
sub-layer that holds delta parameters. A prefix has one network per stack, so there both modes give encoder and decoder.
The gradient is taken in train mode, with dropout: the same for all sources, seeded by the batch; `--eval_mode` without.
"""

import pewe_environment  # noqa: F401

import zlib
from dataclasses import dataclass
from functools import partial

from pewe.command import main

import torch
from torch import Tensor

from pewe import state
from pewe.batches import Batch
from pewe.dropout import OwnStreams
from pewe.flags import SEED, flag
from pewe.losses import member_losses
from pewe.similarity.config import SimilarityConfig
from pewe.similarity.loop import run, set_mode
from pewe.similarity.measure import Measure
from pewe.similarity.scoring import Sources

mode = "dev"
MODES = {"dev": 0, "block": 3, "layer": 5}  # leading parts of a parameter's name that make its scope

# The original's number of dev batches: every full batch of 5 of the classification tasks, and 10 of the others.
BATCHES = {
    6: (
        "boolq",
        "mc_taco",
        "amazon_polarity",
        "scitail",
        "tab_fact",
        "tweet_eval-offensive",
        "tweet_eval-irony",
        "glue-mrpc",
        "glue-qqp",
        "medical_questions_pairs",
        "blimp-ellipsis_n_bar_1",
        "blimp-irregular_past_participle_adjectives",
        "blimp-sentential_negation_npi_scope",
    ),
    9: ("financial_phrasebank", "anli", "tweet_eval-sentiment"),
    12: ("climate_fever", "health_fact"),
    18: ("liar",),
}
BATCHES_OF = {task: count for count, tasks in BATCHES.items() for task in tasks}


@dataclass(frozen=True)
class GraNdConfig(SimilarityConfig):
    """Similarity by gradient norm."""

    mode: str = flag(
        mode, "dev (one value), block (one per block) or layer (one per sub-layer with a delta)", choices=MODES
    )
    eval_mode: bool = flag(False, "without dropout: deterministic, whatever the seed")
    predict_batch_size: int = flag(5, "dev lines per batch")
    bsz_list: list[int] = flag(
        [8], "batch size of the tuning, by whose micro-batches of 16 --as_original divides the loss"
    )
    output_dir: str = flag("checkpoints/adapter/similarity/GraNd", "folder of result.tsv", decides=False)


def scope_of(name: str, mode: str) -> str:
    """`decoder.block.3.layer.2.adapter.adapter_A` -> all, decoder.block.3 or decoder.block.3.layer.2."""
    if mode == "dev":
        return "all"
    return state.scope_of(name, MODES[mode])


def score(sources: Sources, batch: Batch) -> dict[str, Tensor]:
    """Gradient norm of the batch's mean loss for each of the K sources and each scope, from one backward."""
    config = sources.config
    set_mode(sources.model, training=not config.eval_mode)
    losses = member_losses(sources.delta, batch.repeat(sources.stack), seeded_dropout(sources, batch))
    if config.as_original:
        losses = losses / max(1, config.bsz_list[0] // 16)  # it divides by the accumulation steps of the training
    parameters = sources.delta.named
    gradients = torch.autograd.grad(losses.sum(), list(parameters.values()))
    squares: dict[str, Tensor] = {}
    for name, gradient in zip(parameters, gradients, strict=True):
        scope = scope_of(name, config.mode)
        squares[scope] = squares.get(scope, 0) + gradient.float().flatten(1).square().sum(1)
    return {scope: square.sqrt() for scope, square in squares.items()}


def seeded_dropout(sources: Sources, batch: Batch) -> OwnStreams | None:
    """The same dropout for every source, of the batch and the seed; `--as_original` torch's own."""
    number = zlib.crc32(batch.input_ids.numpy().tobytes())
    if sources.config.as_original:
        torch.manual_seed((number + sources.config.seed) % SEED)
        return None
    seeds = [f"{sources.config.seed}/GraNd/{number}"] * sources.stack
    return OwnStreams(sources.model.config.dropout_rate, seeds, sources.backbone.device)


def original_budget(config: GraNdConfig, task: str) -> int:
    """The number of dev batches that the original uses."""
    if config.mode == "dev":
        return BATCHES_OF.get(task, 10)
    return 3 if task in ("boolq", "mc_taco") else 5


MEASURE = Measure("GraNd", score, False, original_budget, gradients=True, random=True, config=GraNdConfig)

if __name__ == "__main__":
    main(partial(run, MEASURE), MEASURE.config, __doc__)
