"""K stacked sources on a batch of the target: statistics over its label tokens, in pieces that fit into memory."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from transformers import T5ForConditionalGeneration

from pewe.backbone import Backbone
from pewe.batches import Batch
from pewe.deltas.tunable import Tunable
from pewe.forward import T5, Packed, Watch, pack
from pewe.state import DeltaState

if TYPE_CHECKING:
    from pewe.similarity.config import SimilarityConfig


@dataclass
class Sources:
    """K stacked source deltas on the backbone.

    Of a measure that needs it, member 0 of the stack is the delta tuned on the target, and the K sources follow it.
    """

    backbone: Backbone
    delta: Tunable
    config: "SimilarityConfig"

    def load(self, states: Sequence[DeltaState], target: DeltaState | None = None) -> "Sources":
        """Fill the stack with these sources, the target's delta in front of them where there is one; returns itself."""
        self.delta.load([*([] if target is None else [target]), *states])
        return self

    @property
    def stack(self) -> int:
        """Members of the stack, the target's delta included."""
        return self.delta.stack

    @property
    def model(self) -> T5ForConditionalGeneration:
        """The backbone's model."""
        return self.backbone.model

    def pieces(self, batch: Batch) -> Iterator[Batch]:
        """The batch in pieces of rows that fit into memory for all members."""
        return batch.pieces(positions(self.backbone, batch.input_ids.shape[1]) // self.stack)

    def states(self, batch: Batch, watch: Watch | None = None) -> tuple[Tensor, Packed]:
        """What the head reads at every label token, (members, tokens, d); and the lines of all members, which are alike."""
        packed = pack(self.model, batch.repeat(self.stack), self.stack)
        return T5(self.delta, watch=watch).states(packed).unflatten(0, (self.stack, -1)), packed

    def over_tokens(self, batch: Batch, statistic: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """Sum over the label tokens of `statistic(log_probabilities, labels)`, (K,).

        The statistic gets the log-softmax in fp32 of each member, (members, n, V), and the labels (n,), and returns one
        value per source and token, (K, n); it may overwrite the former. Only label tokens reach the vocabulary.
        """
        head, total = self.model.lm_head.weight.float(), 0.0
        for piece in self.pieces(batch):
            hidden, packed = self.states(piece)
            labels = packed.labels[: hidden.shape[1]]
            total = total + sum_over_tokens(
                statistic, hidden, labels, lambda part: nn.functional.linear(part.float(), head), len(head)
            )
        return total


CHUNK = {"cpu": 2**21, "cuda": 2**26}  # numbers of a chunk of logits: what a CPU's cache holds; 256 MiB on a GPU


def sum_over_tokens(
    statistic: Callable[[Tensor, Tensor], Tensor],
    hidden: Tensor,
    labels: Tensor,
    to_logits: Callable[[Tensor], Tensor],
    vocabulary: int,
) -> Tensor:
    """Sum over the tokens of `statistic(log_softmax(to_logits(hidden)), labels)`, a few tokens at a time.

    `hidden` (members, tokens, d), `labels` (tokens,), logits (members, n, vocabulary), a statistic (K, n); returns (K,).
    """
    step, total = max(1, CHUNK[hidden.device.type] // (len(hidden) * vocabulary)), 0.0
    by_token = hidden.transpose(0, 1).contiguous()
    for part, gold in zip(by_token.split(step), labels.split(step), strict=True):
        log_probabilities = torch.log_softmax(to_logits(part), dim=-1).transpose(0, 1)
        total = total + statistic(log_probabilities, gold).sum(1)
    return total


def at_labels(log_probabilities: Tensor, labels: Tensor) -> Tensor:
    """The log-probability of each label, (members, n, V) -> (members, n)."""
    return log_probabilities.gather(2, labels.expand(log_probabilities.shape[0], -1)[..., None]).squeeze(2)


def positions(backbone: Backbone, length: int, layers: int = 1) -> int:
    """Token positions of inputs of this length that one forward may hold in half of the free memory.

    `layers` are those whose activations are held at once: one without a gradient, else all.
    """
    model = backbone.model.config
    numbers = layers * (8 * model.d_model + 4 * model.d_ff + 2 * model.num_heads * length)  # of one position
    if backbone.device.type == "cuda":
        unused = torch.cuda.memory_reserved(backbone.device) - torch.cuda.memory_allocated(backbone.device)
        return (torch.cuda.mem_get_info(backbone.device)[0] + unused) // (2 * 4 * numbers)
    return min(2**14, 2**31 // (4 * numbers))  # more does not make a CPU faster
