"""What tuning asks of whatever it tunes, with the answers of most kinds."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from pewe.backbone import Backbone
from pewe.data import DataConfig, Encoded
from pewe.no_delta import NoDelta
from pewe.state import DeltaState

MEASURED = ("test_runtime", "test_samples_per_second")  # entries of a result block that are times


@dataclass(frozen=True)
class Tested:
    """A run that has been tested."""

    folder: Path  # of its record
    test: Encoded
    score: float
    epochs: float  # tuned
    seconds: float  # wall time of the generation


class ReportFlags(Protocol):
    """The flags that a result block depends on."""

    predict_batch_size: int
    as_original: bool
    quiet: bool


class Tunable(NoDelta):
    """A stack of K states of one kind on a backbone. `named` maps the original parameter names to the parameters."""

    stacked = True  # tensors have the leading axis K
    named: dict[str, nn.Parameter]
    built_on: dict[str, str]  # frozen deltas that this one needs, name -> fingerprint

    @abstractmethod
    def initialise(self, seeds: Sequence[str]) -> None:
        """The start of a stack of `len(seeds)`: member k from `seeds[k]` alone (a text such as "42/boolq")."""

    @abstractmethod
    def load(self, states: Sequence[DeltaState]) -> None:
        """Fill the stack with these states, which must have been checked; its size becomes `len(states)`."""

    @abstractmethod
    def states(self) -> list[DeltaState]:
        """A copy on the CPU of each member's state, under the original names."""

    @abstractmethod
    def keep(self, members: Tensor) -> None:
        """Drop all members but these (indices into the stack)."""

    def for_task(self, config: DataConfig, task: str, tokenizer: PreTrainedTokenizerBase) -> None:
        """Make this ready for a task; raises UserError where what it needs of the task is missing. Most need nothing."""

    def generation_length(self, config: DataConfig) -> int:
        """Tokens that are generated at most, start token included."""
        return config.max_output_length

    def extra_loss(self) -> Tensor | float:
        """What this kind adds to the losses of its members, (K,) or a scalar, from the last forward."""
        return 0.0

    def result_block(self, backbone: Backbone, tested: Tested, config: ReportFlags) -> dict[str, float]:
        """What this kind reports of a tested run beside its score, by name; it writes the files of its Kind beside the record.

        Entries in MEASURED differ each time. Most kinds report nothing.
        """
        return {}
