"""How many runs of a stack fit into memory together."""

from collections.abc import Iterable, Sequence
from heapq import nlargest
from itertools import chain

from pewe.backbone import Backbone
from pewe.cli import log
from pewe.data import Encoded
from pewe.deltas.kinds import KINDS
from pewe.deltas.tunable import Tunable
from pewe.tuning.config import TuneConfig
from pewe.tuning.member import Member
from pewe.tuning.memory import SHARE, Shape, free_bytes, generation_bytes, update_bytes
from pewe.tuning.runs import Run

Lengths = dict[str, tuple[list[int], list[int]]]  # of a run: split -> lengths of inputs and answers that come together


def parts(
    backbone: Backbone, delta: Tunable, pairs: Sequence[tuple[Run, Member]], config: TuneConfig
) -> list[list[tuple[Run, Member]]]:
    """The runs of a stack in parts whose predicted peak stays below a share of the free memory.

    A part is at least one run. Results do not depend on it, up to rounding.
    """
    if not KINDS[config.tune_method].stacks:
        return [list(pairs)]
    free, found, lengths = free_bytes(backbone.device), [], []
    for pair in pairs:
        lengths.append(longest_lines(pair[0], config))
        if len(lengths) == 1 or peak_bytes(delta, lengths, config) > SHARE * free:
            found, lengths = [*found, []], lengths[-1:]
        found[-1].append(pair)
    if len(found) > 1:
        sizes = " + ".join(str(len(part)) for part in found)
        log.info("the stack of %d runs is tuned as %s: %.1f GiB of memory are free", len(pairs), sizes, free / 2**30)
    return found


def longest_lines(run: Run, config: TuneConfig) -> Lengths:
    """The lengths of the longest lines of a run, as many as one forward takes."""
    micro = min(run.batch_size, config.micro_batch_size)
    rows = {"train": micro} if config.do_train else {}
    rows |= dict.fromkeys(("dev", "test"), config.predict_batch_size)
    return {split: _longest(run.splits[split], count) for split, count in rows.items()}


def _longest(split: Encoded, rows: int) -> tuple[list[int], list[int]]:
    answers = (max(map(len, own)) for own in split.outputs)
    return nlargest(rows, map(len, split.inputs)), nlargest(rows, answers)


def peak_bytes(delta: Tunable, runs: Sequence[Lengths], config: TuneConfig) -> int:
    """The predicted peak of these runs in one stack, beside the backbone, where their longest lines come together."""
    length = delta.generation_length(config)
    return max(
        update_bytes(delta, shape_of(runs, split), len(runs))
        if split == "train"
        else generation_bytes(delta, shape_of(runs, split), length)
        for split in runs[0]
    )


def shape_of(runs: Iterable[Lengths], split: str) -> Shape:
    """The lines of a split of all runs."""
    inputs, answers = zip(*(run[split] for run in runs), strict=True)
    return Shape.of(list(chain(*inputs)), list(chain(*answers)))
