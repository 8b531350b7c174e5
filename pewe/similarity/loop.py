"""The one target x source loop that every get_similarity/get_*.py runs.

A measure is a function `score(sources, batch)`: the K stacked sources on one batch of the target's dev set, scope ->
(K,). The loop loads the sources K at a time, goes over the targets and their batches, resumes and writes:

    <output_dir>/result.tsv          target, source, scope, value: one row per pair and scope
    <output_dir>/<scope>/result.tsv  the same for one scope, where there are several (blocks, layers)
    <output_dir>/config.json         what the matrix was made from, the orientation of the measure, digests of the tables

A table that is not the one that `config.json` names, or was made from something else, is set aside, not continued.
"""

from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor, nn

from pewe.backbone import Backbone
from pewe.batches import Batch, scoring_batches
from pewe.cli import log, log_settings, log_to
from pewe.data import Encoded, load_split, sampled_prefixes, split_digest, task_names
from pewe.deltas.attach import attached
from pewe.deltas.checkpoint import delta_identity, read_checkpoint, sources_hint, task_checkpoint
from pewe.deltas.config import unread_flags
from pewe.deltas.kinds import SCORED
from pewe.deltas.sources import first_files, source_files, source_names
from pewe.deltas.tunable import Tunable
from pewe.errors import UserError
from pewe.files import PARTS, hold, provenance
from pewe.flags import check as check_flags
from pewe.identity import deciding, model_digest, state_digest
from pewe.inputs import check_backbone, check_data, check_files
from pewe.progress import Bar
from pewe.similarity.config import SimilarityConfig
from pewe.similarity.matrix import Matrix
from pewe.similarity.measure import Measure
from pewe.similarity.scoring import Sources, positions
from pewe.state import DeltaState, shapes_of


def run(measure: Measure, config: SimilarityConfig) -> pd.DataFrame:
    """Compute, or complete, the similarity matrix of a measure; returns the table that it writes."""
    if measure.matrix:
        return measure.matrix(config)
    check(measure, config)
    out = Path(config.output_dir)
    with hold(out):
        log_to(out / "log.txt", config.quiet)
        log_settings(config)
        return _matrix(measure, config, out)


def _matrix(measure: Measure, config: SimilarityConfig, out: Path) -> pd.DataFrame:
    targets = task_names(config, scored=False)
    names = source_names(config.source_ckpt_path, config.source_tasks, targets)
    backbone, delta = attached(config)
    places = source_files(config.source_ckpt_path, names)
    states = read_sources(config, delta, places, places)
    own = source_files(config.random_tuned_ckpt_path, targets) if measure.needs_target else {}
    tuned = read_sources(config, delta, own, places)
    dev = {target: _dev_split(backbone, config, target) for target in targets}
    record = {
        "settings": identity(measure, config, delta, states, tuned, dev),
        "measure": measure.name,
        "higher_is_more_similar": measure.higher_is_more_similar,
        "provenance": provenance(),
    }
    stack = config.stack or automatic_stack(backbone, config, measure, len(states))
    rows = Matrix(out, record, targets, names)
    rows.adopt(out / PARTS)
    _fill(rows, measure, Sources(backbone, delta, config), states, tuned, dev, stack)
    return rows.finish(config.pictures)


def check(measure: Measure, config: SimilarityConfig) -> None:
    """Flags that make no sense, told before a model is loaded."""
    check_flags(config)
    if config.tune_method not in SCORED:  # made for one task each, or not to be stacked
        raise UserError(f"--tune_method {config.tune_method}: similarities are of {', '.join(SCORED)} deltas")
    if measure.needs_target and not config.random_tuned_ckpt_path:
        raise UserError(f"{measure.name} compares with deltas tuned on the targets: give --random_tuned_ckpt_path")
    check_inputs(measure, config)


def read_sources(
    config: SimilarityConfig, delta: Tunable, places: Mapping[str, Path], sources: Mapping[str, Path]
) -> dict[str, DeltaState]:
    """The deltas at these places, used with these sources, each checked against the backbone, and made for it and these flags."""
    use = {"shapes": shapes_of(delta), "made_for": delta_identity(config), "among": sources.values()}
    return {name: read_checkpoint(path, config.tune_method, **use) for name, path in places.items()}


def check_inputs(measure: Measure, config: SimilarityConfig) -> None:
    """Raises UserError for data, deltas or a backbone that are not there."""
    targets = task_names(config, scored=False)
    check_data(config, targets, ["dev"], first=True)
    check_backbone(config)
    names = source_names(config.source_ckpt_path, config.source_tasks, targets)
    files = first_files(source_files(config.source_ckpt_path, names))
    check_files(files, "sources", sources_hint(config.tune_method, Path(config.source_ckpt_path)))
    if measure.needs_target:
        own = Path(config.random_tuned_ckpt_path)
        paths = [task_checkpoint(own, name) for name in targets]
        check_files(paths, "tuned targets", f"tune them first: bash scripts/{config.tune_method}.sh --output_dir {own}")


def _dev_split(backbone: Backbone, config: SimilarityConfig, target: str) -> Encoded:
    return load_split(backbone.tokenizer, config, target, sampled_prefixes(config, target)[0], "dev")


def identity(
    measure: Measure,
    config: SimilarityConfig,
    delta: Tunable,
    states: dict[str, DeltaState],
    tuned: dict[str, DeltaState],
    dev: dict[str, Encoded],
) -> dict:
    """What decides a value of the matrix; a stored matrix with another identity is not continued."""
    seed = config.seed if measure.random else 0
    told = {"tasks": [], "source_tasks": [], "sample": ""}  # by the digests
    flags = deciding(config, seed=seed, **told)
    return {
        "measure": measure.name,
        **{name: value for name, value in flags.items() if name not in unread_flags(config.tune_method)},
        "backbone": model_digest(config.model, config.tokenizer_path),
        "sources": {name: state_digest(state) for name, state in states.items()},
        "tuned": {name: state_digest(state) for name, state in tuned.items()},
        "dev": {name: split_digest(encoded) for name, encoded in dev.items()},
    }


def automatic_stack(backbone: Backbone, config: SimilarityConfig, measure: Measure, sources: int) -> int:
    """How many sources fit into memory: with one row each, as a batch is cut into pieces, or with a batch for gradients."""
    model = backbone.model.config
    layers = model.num_layers + model.num_decoder_layers if measure.gradients else 1
    room = positions(backbone, config.max_input_length, layers)
    needed = config.max_input_length + config.max_output_length
    if measure.gradients:
        needed *= config.predict_batch_size
    return max(1, min(sources, room // needed - measure.needs_target))


def _fill(
    rows: Matrix,
    measure: Measure,
    sources: Sources,
    states: dict[str, DeltaState],
    tuned: dict[str, DeltaState],
    dev: dict[str, Encoded],
    stack: int,
) -> None:
    """Every (chunk of sources, target) that the table does not have yet; on a GPU, half the stack where memory runs out."""
    names = list(states)
    with Bar(total=len(names) * len(dev), unit="pair", disable=sources.config.quiet, desc=measure.name) as bar:
        for start in range(0, len(names), stack):
            chunk = names[start : start + stack]
            missing = [target for target in dev if not rows.has(target, chunk)]
            bar.update(len(chunk) * (len(dev) - len(missing)))
            for target in missing:
                try:
                    if target == missing[0] or measure.needs_target:
                        sources.load([states[name] for name in chunk], tuned.get(target))
                    values = score_target(measure, sources, dev[target])
                except torch.cuda.OutOfMemoryError:
                    if stack == 1:
                        raise UserError("one source does not fit on the GPU; lower --predict_batch_size") from None
                    log.warning("out of GPU memory with %d stacked sources; going on with %d", stack, stack // 2)
                    torch.cuda.empty_cache()
                    bar.reset()
                    return _fill(rows, measure, sources, states, tuned, dev, stack // 2)
                rows.add(target, chunk, {scope: column.tolist() for scope, column in values.items()})
                bar.update(len(chunk))


def score_target(measure: Measure, sources: Sources, encoded: Encoded) -> dict[str, Tensor]:
    """Scope -> the value of every source on a target's dev lines (its first batches), summed or averaged, (K,), float64.

    Raises UserError for a value that is not finite.
    """
    config, totals = sources.config, {}
    batches = list(budgeted_batches(measure, config, sources.backbone.pad, encoded))
    set_mode(sources.model, training=False)
    for batch in batches:
        for scope, values in measure.score(sources, batch).items():
            totals[scope] = totals.get(scope, 0) + values.detach().double().cpu()
    divisor = len(batches) if config.reduction == "mean" else 1
    result = {scope: total / divisor for scope, total in totals.items()}
    bad = [scope for scope, column in result.items() if not column.isfinite().all()]
    if bad:
        raise UserError(f"{measure.name} on {encoded.task}, {bad[0]}: a value is not finite; try --dtype float32")
    return result


def set_mode(model: nn.Module, training: bool) -> None:
    """Train or eval mode; the thousand modules of a model with deltas are visited only where it changes."""
    if model.training != training:
        model.train(training)


def budgeted_batches(measure: Measure, config: SimilarityConfig, pad: int, encoded: Encoded) -> Iterator[Batch]:
    """The target's first dev batches: `--max_batches`, or as many as the original used."""
    limit = {0: measure.max_batches(config, encoded.task), -1: None}.get(config.max_batches, config.max_batches)
    return islice(scoring_batches(encoded, config.predict_batch_size, pad, config.as_original), limit)
