"""Training of one individual model, and its flags."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import (
    PreTrainedModel,
    get_linear_schedule_with_warmup,
)

from pewe.data import LONGEST
from pewe.errors import UserError
from pewe.flags import flag
from pewe.fusion.domains import SUFFIX, Row, collate
from pewe.merging.collect import BatchConfig, StatisticsConfig, gold_loss
from pewe.merging.statistics import check_finite

WARMUP = 0.06  # share of the updates


@dataclass(frozen=True)
class TrainingConfig(BatchConfig):
    """What a model is trained with, besides its data, its start and its seeds."""

    layers: int = flag(0, "use only so many layers of the encoder, the first ones (0: all)", low=0)
    kind: str = flag(
        "single",
        "single, multi (one, several labels per sentence), tokens (IOB tags of words) or yesno (a T5, multi)",
        choices=SUFFIX,
    )
    max_length: int = flag(
        128, "tokens of a text at most; no more than the encoder has positions for", low=3, high=LONGEST
    )
    updates: int = flag(300, "updates of an individual model; of multi-task training so many per domain", low=1)
    learning_rate: float = flag(
        1e-4, "peak of AdamW's learning rate, after 6 % of the updates; then linear to 0", above=0
    )


@dataclass(frozen=True)
class ZooConfig(TrainingConfig, StatisticsConfig):
    """Data, training and statistics of the individual models."""

    zoo: str = flag("checkpoints/fusion_zoo", "folder of the trained models, shared by experiments", decides=False)
    model: str = flag(
        "checkpoints/mini_bert",
        "folder of the pre-trained encoder (yesno: T5) and its tokenizer, the common start",
        decides=False,
    )
    data_dir: str = flag("data/mini_emotions", "folder of the domains", decides=False)
    rename: list[str] = flag([], "OLD=NEW, labels or entity types that mean the same")
    train_limit: int = flag(0, "training sentences per domain at most (0: all)", low=0)
    test_limit: int = flag(0, "test sentences per domain at most (0: all)", low=0)


def train(
    model: PreTrainedModel,
    domains: Sequence[list[Row]],
    config: ZooConfig,
    pad: int,
    seed: int,
    title: str | Path = "model",
) -> None:
    """Fine-tune on the rows of one domain, or jointly on several; the last weights are kept.

    A batch comes from one domain, drawn with a probability proportional to its number of rows, as in the release. Raises
    UserError, which calls the model by its title, where the loss or a weight is not finite.
    """
    torch.manual_seed(seed)
    order = torch.Generator().manual_seed(seed)
    streams = [shuffled(rows, config.batch_size, order) for rows in domains]
    shares = torch.tensor([float(len(rows)) for rows in domains])
    updates = config.updates * len(domains)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, weight_decay=0.0, fused=True)
    schedule = get_linear_schedule_with_warmup(optimizer, int(WARMUP * updates), updates)
    model.train()
    for update in range(updates):
        rows = next(streams[int(torch.multinomial(shares, 1, generator=order))])
        batch = {name: tensor.to(model.device) for name, tensor in collate(rows, pad, config.kind).items()}
        labels = batch["labels"] if model.config.is_encoder_decoder else batch.pop("labels")
        loss = gold_loss(model(**batch).logits, labels)
        if not torch.isfinite(loss):
            raise UserError(
                f"{title}: the loss is {loss.item()} at update {update + 1}; a lower --learning_rate is needed"
            )
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    for name, tensor in model.named_parameters():
        check_finite(name, tensor, title)


def shuffled(rows: list[Row], size: int, order: torch.Generator) -> Iterator[list[Row]]:
    """Endless batches of rows of like length, every row once per pass: eight batches are drawn together and sorted."""
    left: list[int] = []
    while True:
        while len(left) < 8 * size:
            left += torch.randperm(len(rows), generator=order).tolist()
        pool, left = sorted(left[: 8 * size], key=lambda number: len(rows[number][0])), left[8 * size :]
        for batch in torch.randperm(8, generator=order).tolist():
            yield [rows[number] for number in pool[batch * size : (batch + 1) * size]]
