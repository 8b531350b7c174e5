"""What unit_model_Fisher.py and unit_model_RegMean.py share: the merge of all other tasks' deltas for every target."""

from collections.abc import Sequence

from pewe.cli import log_to
from pewe.merging.combine import Combiner
from pewe.merging.save import Part, digests, ensemble_sources, ensemble_tasks, read_states, save
from pewe.merging.weights import allowed_sources, uniform_weights


def leave_one_out(config, default: Sequence[str] | str) -> None:
    """Write `without_<target>_checkpoint.pt` for every target of the list, and the (equal) coefficients of the sources.

    `config` is an EnsembleConfig with the flags of its rule. Raises UserError where a checkpoint or its statistics are
    missing, or the statistics are of another delta.
    """
    log_to(None, config.quiet)
    tasks = ensemble_tasks(config, default)
    sources = ensemble_sources(config, tasks)
    states = read_states(config.source_ckpt_path, config.delta, sources)
    combiner = Combiner(config, states, sources, config.source_ckpt_path)
    W = uniform_weights(allowed_sources(tasks, sources))
    part = Part(tasks, sources, W, f"{config.delta}: coefficients of {config.combine}", combiner.merge(W))
    save(config, [part], {"sources": digests(sources, states), **combiner.made_from()}, states.made_for)
