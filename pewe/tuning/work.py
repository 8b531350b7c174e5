"""The runs that a tuning command asks for: of which configuration, and where each begins."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pewe.data import task_names
from pewe.deltas.checkpoint import delta_identity, read_checkpoint, sources_hint
from pewe.deltas.sources import first_files, source_files, source_names
from pewe.deltas.tunable import Tunable
from pewe.errors import UserError
from pewe.inputs import check_files
from pewe.state import DeltaState, Shapes, check_state
from pewe.tuning.config import TuneAllConfig, TuneConfig
from pewe.tuning.plan import Inits, check_use, initial_state


@dataclass(frozen=True)
class Work:
    """The runs of a configuration, and where each begins."""

    config: TuneConfig
    inits: Inits
    sources: Sequence[str] = ("",)  # where a task has several inits


def work_of(config: TuneConfig, start: DeltaState | None = None) -> Work:
    """The runs from an ensemble, or from nothing, or without any tuning; or all of them from the state that is given."""
    if start is None:
        return Work(config, lambda delta, task, source, shapes: initial_state(config, delta, task, shapes))
    if config.train_checkpoint or not config.do_train:
        raise UserError("a state to begin with is tuned, in place of --train_checkpoint: do_train, without it")

    def init(delta: Tunable, task: str, source: str, shapes: Shapes) -> DeltaState:
        check_state(start, shapes, Path("the state to begin with"))
        return start

    return Work(config, init)


def pairs_of(config: TuneAllConfig) -> Work:
    """The runs of every target from every source. Raises UserError where a source is not there."""
    check_use(config)
    names = source_names(config.source_ckpt_path, config.source_tasks, task_names(config, scored=False))
    paths = source_files(config.source_ckpt_path, names)
    states: dict[str, DeltaState] = {}
    hint = sources_hint(config.tune_method, config.source_ckpt_path)
    check_files(first_files(paths), "sources", hint)

    def init(delta: Tunable, task: str, name: str, shapes: Shapes) -> DeltaState:
        path = paths[name]
        if name not in states:
            like = {"built_on": delta.built_on, "made_for": delta_identity(config), "among": paths.values()}
            states[name] = read_checkpoint(path, config.tune_method, shapes, hint, **like)
        check_state(states[name], shapes, path)  # PEMT's shapes are those of the target
        return states[name]

    return Work(config, init, names)
