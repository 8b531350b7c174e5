"""What a stack's best steps reach on the test lines."""

from collections.abc import Sequence

from pewe.backbone import Backbone
from pewe.deltas.checkpoint import BEST, read_checkpoint
from pewe.deltas.tunable import Tunable
from pewe.tuning.config import TuneConfig
from pewe.tuning.evaluate import evaluate, outcomes
from pewe.tuning.member import Member
from pewe.tuning.runs import Run


def test_best(
    backbone: Backbone, delta: Tunable, pairs: Sequence[tuple[Run, Member]], config: TuneConfig
) -> list[dict[str, float]]:
    """Test score of the best steps, which are loaded, and log-likelihood (--trace_test); empty without --do_predict."""
    if config.trace_test:
        return outcomes_of_best(backbone, delta, pairs, config)
    scores = scores_on(backbone, delta, [run for run, _ in pairs], "test", config) if config.do_predict else []
    return [{"test": score} for score in scores] or [{} for _ in pairs]


def outcomes_of_best(
    backbone: Backbone, delta: Tunable, pairs: Sequence[tuple[Run, Member]], config: TuneConfig
) -> list[dict[str, float]]:
    """Score and log-likelihood of the best steps: as noted along the way where that point was looked at, else looked at now."""
    noted = [{point["updates"]: point for point in member.progress.trace} for _, member in pairs]
    found = [points.get(member.progress.best_updates) for points, (_, member) in zip(noted, pairs, strict=True)]
    left = [run for (run, _), point in zip(pairs, found, strict=True) if point is None]
    if left and len(left) < len(pairs):
        delta.load([read_checkpoint(run.folder / BEST, config.tune_method) for run in left])
    splits, names = [run.splits["test"] for run in left], [run.metric for run in left]
    length = delta.generation_length(config)
    fresh = iter(outcomes(backbone, delta, splits, names, config.predict_batch_size, length) if left else [])
    return [{name: point[name] for name in ("test", "log_likelihood")} for point in (p or next(fresh) for p in found)]


def scores_on(backbone: Backbone, delta: Tunable, runs: Sequence[Run], split: str, config: TuneConfig) -> list[float]:
    """The metric of each run's delta, which is loaded, on its `split`."""
    splits, names = [run.splits[split] for run in runs], [run.metric for run in runs]
    return evaluate(backbone, delta, splits, names, config.predict_batch_size, delta.generation_length(config))
