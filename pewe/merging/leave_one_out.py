"""What unit_model_Fisher.py and unit_model_RegMean.py share: the merge of all other tasks' deltas for every target."""

from collections.abc import Sequence
from pathlib import Path

from pewe.cli import log_to
from pewe.errors import UserError
from pewe.identity import digest, state_digest
from pewe.merging.collect_deltas import DELTA, OF_ONE_DELTA, TASK, WATCHES, statistics_file
from pewe.merging.deltas import merge_deltas
from pewe.merging.save import Part, digests, ensemble_tasks, read_states, save
from pewe.merging.statistics import Statistics
from pewe.merging.store import check_alike, read_statistics
from pewe.merging.weights import allowed_sources, uniform_weights
from pewe.state import DeltaState


def leave_one_out(config, method: str, default: Sequence[str]) -> None:
    """Write `without_<target>_checkpoint.pt` for every target of the list, and the (equal) coefficients of the sources.

    `config` is an EnsembleConfig and a DeltaMergeConfig. Raises UserError where a checkpoint or its statistics are missing,
    or the statistics are of another delta.
    """
    log_to(None, config.quiet)
    tasks = ensemble_tasks(config, default)
    if config.delta not in WATCHES:
        raise UserError(f"--delta {config.delta}: only {', '.join(WATCHES)} can be merged by {method}")
    states = read_states(config.source_ckpt_path, config.delta, tasks)
    statistics = statistics_of(config, tasks, states)
    W = uniform_weights(allowed_sources(tasks, tasks))
    merged = merge_deltas(config.delta, method, states, statistics, W, config)
    made_from = {
        "method": method,
        "sources": digests(tasks, states),
        "statistics": {task: digest(one.info) for task, one in zip(tasks, statistics, strict=True)},
    }
    part = Part(tasks, tasks, W, f"{config.delta}: coefficients of {method}", merged)
    save(config, [part], made_from, states.made_for)


def statistics_of(config, tasks: Sequence[str], states: Sequence[DeltaState]) -> list[Statistics]:
    """The statistics of these deltas. Raises UserError where they are of others, or were not collected alike."""
    source, found = Path(config.source_ckpt_path), []
    command = (
        f"python -m pewe.merging.collect_deltas --tune_method {config.delta} --source_ckpt_path {source} --full_train"
    )
    for task, state in zip(tasks, states, strict=True):
        made_from = {DELTA: state_digest(state), TASK: task}
        found.append(read_statistics(statistics_file(source, task), made_from, command))
    check_alike(found, tasks, OF_ONE_DELTA)
    return found
