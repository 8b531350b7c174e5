"""What unit_model_Fisher.py and unit_model_RegMean.py share: the merge of all other tasks' deltas for every target."""

from collections.abc import Sequence
from pathlib import Path

from pewe.cli import UserError, log_to
from pewe.ensemble import Part, digests, ensemble_tasks, read_states, save
from pewe.fusion.collect_deltas import WATCHES, statistics_file
from pewe.fusion.deltas import merge_deltas
from pewe.fusion.store import read_statistics
from pewe.identity import file_digest
from pewe.weights import allowed_sources, uniform_weights


def leave_one_out(config, method: str, default: Sequence[str]) -> None:
    """Write `without_<target>_checkpoint.pt` for every target of the list, and the (equal) coefficients of the sources.

    `config` is an EnsembleConfig and a DeltaMergeConfig. Raises UserError where a checkpoint or its statistics are missing.
    """
    log_to(None, config.quiet)
    tasks = ensemble_tasks(config, default)
    if config.delta not in WATCHES:
        raise UserError(f"--delta {config.delta}: only {', '.join(WATCHES)} can be merged by {method}")
    source = Path(config.source_ckpt_path)
    states = read_states(config.source_ckpt_path, config.delta, tasks)
    missing = [task for task in tasks if not statistics_file(source, task).is_file()]
    if missing:
        flags = f"--tune_method {config.delta} --source_ckpt_path {source} --full_train"
        raise UserError(
            f"no statistics.safetensors for {missing[0]!r} in {source}; run python -m pewe.fusion.collect_deltas {flags}"
        )
    statistics = [read_statistics(statistics_file(source, task)) for task in tasks]
    W = uniform_weights(allowed_sources(tasks, tasks))
    merged = merge_deltas(config.delta, method, states, statistics, W, config)
    made_from = {"method": method, "sources": digests(tasks, states),
                 "statistics": {task: file_digest(statistics_file(source, task)) for task in tasks}}  # fmt: skip
    part = Part(tasks, tasks, W, f"{config.delta}: coefficients of {method}", merged)
    save(config, [part], made_from, states.made_for)
