"""Performance: sources that a few steps of tuning on the target improve most (Lv et al. 2023, section 3).

    S[i, j] = dev score of theta_j tuned on i - zero-shot dev score of theta_j on i,    w_i = softmax over j != i of (S / tem)

`scripts/adapter_tuneall.sh` makes the tuned deltas and their scores (`tuned_ckpt_path`), `scripts/adapter_devall.sh` the
zero-shot scores (`zero_result_path`). The *tuned* deltas are averaged.
"""

import pewe_environment  # noqa: F401

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pewe.command import main

import pandas as pd
import torch

from pewe.cli import log_to
from pewe.deltas.checkpoint import BEST, task_checkpoint
from pewe.errors import UserError
from pewe.flags import flag
from pewe.identity import file_digest
from pewe.merging.combine import Combiner
from pewe.merging.save import (
    Part,
    SoftmaxConfig,
    digests,
    ensemble_sources,
    ensemble_tasks,
    ensemble_weights,
    read_states,
    save,
)
from pewe.merging.weights import allowed_sources
from pewe.scores import read_scores
from pewe.setting import TASK_LIST
from pewe.state import DeltaState

delta = "adapter"
tem = 0.001
tuned_ckpt_path = "checkpoints/adapter/tuned_all"
zero_result_path = "checkpoints/adapter/zero_shot/result.tsv"
save_ckpt_path = "checkpoints/adapter/Performance"


@dataclass(frozen=True)
class Config(SoftmaxConfig):
    """Flags; the constants above are their defaults."""

    delta: str = flag(delta, "adapter, lora or prefix")
    tem: float = flag(tem, "temperature of the softmax, in the unit of the metric", above=0)
    tuned_ckpt_path: str = flag(
        tuned_ckpt_path, "folder with result.tsv and <target>/<source>/checkpoint-best.pt", decides=False
    )
    zero_result_path: str = flag(zero_result_path, "result.tsv of dev_all_ckpt.py", decides=False)
    source_ckpt_path: str = flag("", "not used: the tuned deltas are averaged", decides=False)
    save_ckpt_path: str = flag(save_ckpt_path, "folder of the ensembles", decides=False)


def of_the_merged(tuned: pd.DataFrame, folder: Path) -> pd.DataFrame:
    """Of pairs with several runs, the rows without those whose delta is not the one that lies where the pair's is read."""

    def differs(row) -> bool:
        own, used = folder / row.run / BEST, task_checkpoint(folder / row.target, row.source)
        return bool(row.run) and own.is_file() and used.is_file() and file_digest(own) != file_digest(used)

    several = tuned.duplicated(["target", "source"], keep=False)
    other = [more and differs(row) for more, row in zip(several, tuned.itertuples(), strict=True)]
    return tuned.loc[[not out for out in other]]


def of_the_start(zero: pd.DataFrame, tuned: pd.DataFrame) -> pd.DataFrame:
    """The zero-shot scores without those of other deltas than the tuned ones began with, or that were scored on others."""
    for what in ("init", "scored_on"):
        of_tuned = tuned.dropna(subset=what).groupby(["target", "source"])[what].agg(set)
        known = [of_tuned.get((row.target, row.source)) for row in zero.itertuples()]
        zero = zero.loc[[not own or one is None or one in own for own, one in zip(known, zero[what], strict=True)]]
    return zero


def dev_scores(table: pd.DataFrame, tasks: list[str], sources: list[str], path: Path, of: str = "") -> pd.DataFrame:
    """Dev scores by name, targets down and sources across; the best where a pair has several runs. `of`: which are wanted."""
    frame = table.pivot_table(index="target", columns="source", values="dev", aggfunc="max")
    frame = frame.reindex(index=tasks, columns=sources)
    for target in tasks:
        for source in sources:
            if target != source and pd.isna(frame.loc[target, source]):
                raise UserError(f"{path} has no dev score of target {target!r}, source {source!r}{of}")
    return frame


def run(config: Config) -> None:
    """Weights, checkpoints and heat map."""
    log_to(None, config.quiet)
    tasks = ensemble_tasks(config, TASK_LIST)
    sources = ensemble_sources(config, tasks)
    allowed = allowed_sources(tasks, sources)
    tables = [Path(config.tuned_ckpt_path) / "result.tsv", Path(config.zero_result_path)]
    read, zero = (read_scores(path, ["target", "source"], ["dev"]) for path in tables)
    tuned = of_the_merged(read, tables[0].parent)
    zero = of_the_start(zero, tuned)
    alike = ", with the delta that the tuned one began with, on its dev lines, backbone and lengths"
    gains = dev_scores(tuned, tasks, sources, tables[0]) - dev_scores(zero, tasks, sources, tables[1], alike)
    gains = torch.tensor(gains.fillna(0.0).to_numpy())
    W, tem = ensemble_weights(config, gains, config.tem, True, allowed)
    pairs = [f"{tasks[i]}/{sources[j]}" for i, j in allowed.nonzero().tolist()]
    states = read_states(config.tuned_ckpt_path, config.delta, pairs)
    combiner = Combiner(config, states, pairs)
    made_from = {
        "sources": digests(pairs, states),
        "tables": [file_digest(path) for path in tables],
        "used_temperature": tem,
        **combiner.made_from(),
    }
    part = Part(
        tasks, sources, W, f"{config.delta}: weights from Performance, tem {tem:g}", merged(combiner, W, allowed)
    )
    save(config, [part], made_from, states.made_for)


def merged(combiner: Combiner, W: torch.Tensor, allowed: torch.Tensor) -> Iterator[DeltaState]:
    """For every target, the sources tuned on it combined; the states are in the order target by target."""
    start = 0
    for row, own in zip(W, allowed, strict=True):
        end = start + int(own.sum())
        yield from combiner.merge(row[own][None], range(start, end))
        start = end


if __name__ == "__main__":
    main(run, Config, __doc__)
