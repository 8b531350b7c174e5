"""The choices of a trainer that are not flags: ours, and those of the original (docs/DEVIATIONS.md)."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Choices:
    """Each choice has a name, by which it reaches the formula that it decides."""

    own_dropout: bool = True  # every member draws from its own stream; else all from torch's, seeded by the update
    start_is_scored: bool = True  # the starting delta has a dev score
    full_updates: bool = True  # micro-batches of two epochs may share an update; else see `batches.training_updates`
    first_of_equals: bool = (
        True  # of equal dev scores the first is the best; else the last, also after an undefined one
    )


OURS = Choices()
ORIGINAL = Choices(own_dropout=False, start_is_scored=False, full_updates=False, first_of_equals=False)
