"""The one target x source loop that every get_similarity/get_*.py runs.

A measure is a function `score(sources, batch)`: the K stacked sources on one batch of the target's dev set, scope ->
(K,). The loop loads the sources K at a time, goes over the targets and their batches, resumes and writes:

    <output_dir>/result.tsv          target, source, scope, value: one row per pair and scope
    <output_dir>/<scope>/result.tsv  the same for one scope, where there are several (blocks, layers)
    <output_dir>/config.json         what the matrix was made from, the orientation of the measure, digests of the tables

A table that is not the one that `config.json` names, or was made from something else, is set aside, not continued.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor, nn
from tqdm import tqdm

from pewe.backbone import Backbone, BackboneConfig, load_backbone
from pewe.checkpoint import read_checkpoint, shapes_of, task_checkpoint
from pewe.cli import UserError, flag, log, log_to, show
from pewe.cli import check as check_flags
from pewe.data import Batch, DataConfig, Encoded, chosen_prefixes, load_split, scoring_batches, split_digest, task_names
from pewe.deltas import Delta, DeltaConfig, DeltaState, attach_delta, unread_flags
from pewe.identity import deciding, difference, file_digest, model_digest, state_digest
from pewe.plots import heat_map
from pewe.results import hold, provenance, read_record, read_table, replacing, write_record, write_table
from pewe.scoring import Sources, positions
from pewe.tune import TuneConfig
from pewe.weights import COLUMNS, RESULT, similarity_frame


@dataclass
class SimilarityConfig(BackboneConfig, DataConfig, DeltaConfig):
    """Similarity of each source delta to each target, on the target's dev set."""

    ignored = TuneConfig  # its further flags are accepted, because the original's scripts give them
    source_ckpt_path: str = flag(
        "checkpoints/adapter/full_data", "folder with <source>/checkpoint-best.pt", decides=False
    )
    source_tasks: list[str] = flag([], "names of the sources (default: the targets)", unique=True)
    random_tuned_ckpt_path: str = flag(
        "", "folder with <target>/checkpoint-best.pt tuned from random init (KL, block)", decides=False
    )
    output_dir: str = flag("checkpoints/adapter/similarity/Loss", "folder of result.tsv", decides=False)
    predict_batch_size: int = flag(50, "dev lines per batch", low=1)
    max_batches: int = flag(0, "dev batches used per target; 0: as many as the original, -1: all", low=-1)
    reduction: str = flag("sum", "sum or mean over the batches used", choices=("sum", "mean"))
    stack: int = flag(0, "sources scored in one forward; 0: as many as memory allows", decides=False, low=0, high=2**12)
    pictures: bool = flag(True, "draw a heat map of every scope", decides=False)
    quiet: bool = flag(False, "warnings only, no progress bar", decides=False)


@dataclass(frozen=True)
class Measure:
    """What the loop must know about a measure besides its score."""

    name: str
    score: Callable[[Sources, Batch], dict[str, Tensor]]
    higher_is_more_similar: bool
    max_batches: Callable[[str], int | None] = lambda task: 1  # the original's budget for a target; None: all batches
    gradients: bool = False  # goes backwards: keeps the activations of every layer
    random: bool = False  # depends on the seed
    needs_target: bool = False  # compares with a delta tuned on the target: member 0 of the stack


def run(measure: Measure, config: SimilarityConfig) -> pd.DataFrame:
    """Compute, or complete, the similarity matrix of a measure; returns the table that it writes."""
    check(measure, config)
    out = Path(config.output_dir)
    with hold(out):
        log_to(out / "log.txt", config.quiet)
        log.info("settings:\n%s", show(config))
        return _matrix(measure, config, out)


def _matrix(measure: Measure, config: SimilarityConfig, out: Path) -> pd.DataFrame:
    targets, source_names = task_names(config), task_names(config, "source_tasks")
    backbone = load_backbone(config)
    delta = attach_delta(backbone.model, config)
    states = read_sources(config, delta, config.source_ckpt_path, source_names)
    tuned = read_sources(config, delta, config.random_tuned_ckpt_path, targets) if measure.needs_target else {}
    dev = {target: _dev_split(backbone, config, target) for target in targets}
    record = {"settings": identity(measure, config, delta, states, tuned, dev), "measure": measure.name,
              "higher_is_more_similar": measure.higher_is_more_similar, "provenance": provenance()}  # fmt: skip
    stack = config.stack or automatic_stack(backbone, config, measure, len(states))
    rows = Rows(out, record, targets, source_names)
    _fill(rows, measure, Sources(backbone, delta, config, measure.needs_target), states, tuned, dev, stack)
    return rows.finish(config.pictures)


def check(measure: Measure, config: SimilarityConfig) -> None:
    """Flags that make no sense, told before a model is loaded."""
    check_flags(config)
    if config.tune_method in ("pemt", "pemt_source", "model"):  # made for one task each, or not to be stacked
        raise UserError(f"--tune_method {config.tune_method}: similarities are of adapter, lora and prefix deltas")
    if measure.needs_target and not config.random_tuned_ckpt_path:
        raise UserError(f"{measure.name} compares with deltas tuned on the targets: give --random_tuned_ckpt_path")


def read_sources(config: SimilarityConfig, delta: Delta, folder: str, names: Sequence[str]) -> dict[str, DeltaState]:
    """The deltas of these tasks in a folder, each checked against the backbone."""
    shapes = shapes_of(delta)
    hint = f"tune them first: scripts/{config.tune_method}.sh --output_dir {folder} (sources: with --full_train)"
    return {
        name: read_checkpoint(task_checkpoint(Path(folder), name), config.tune_method, shapes, hint) for name in names
    }


def _dev_split(backbone: Backbone, config: SimilarityConfig, target: str) -> Encoded:
    return load_split(backbone.tokenizer, config, target, chosen_prefixes(config, target)[0], "dev")


def identity(measure: Measure, config: SimilarityConfig, delta: Delta, states: dict[str, DeltaState],
             tuned: dict[str, DeltaState], dev: dict[str, Encoded]) -> dict:  # fmt: skip
    """What decides a value of the matrix; a stored matrix with another identity is not continued."""
    seed = config.seed if measure.random else 0
    told = {"tasks": [], "source_tasks": [], "one_prefix": False, "sample": "", "full_train": False}  # by the digests
    flags = deciding(config, seed=seed, **told)
    return {
        "measure": measure.name,
        **{name: value for name, value in flags.items() if name not in unread_flags(delta)},
        "backbone": model_digest(config.model, config.tokenizer_path),
        "sources": {name: state_digest(state) for name, state in states.items()},
        "tuned": {name: state_digest(state) for name, state in tuned.items()},
        "dev": {name: split_digest(encoded) for name, encoded in dev.items()},
    }


def previous_rows(out: Path, settings: dict) -> pd.DataFrame:
    """The rows that an interrupted run left, made from the same; any other matrix is set aside."""
    path = out / RESULT
    if not path.is_file():
        return pd.DataFrame(columns=COLUMNS)
    saved = read_record(out / "config.json")
    why = difference((saved or {}).get("settings"), settings)
    if not why and file_digest(path) not in saved.get("tables", {}).get(RESULT, []):
        why = "it was changed after it was written"
    if not why:
        return read_table(path, COLUMNS)
    path.replace(out / "result.previous.tsv")
    log.warning("%s is now result.previous.tsv, and computed anew: %s", path, why)
    return pd.DataFrame(columns=COLUMNS)


def automatic_stack(backbone: Backbone, config: SimilarityConfig, measure: Measure, sources: int) -> int:
    """How many sources fit into memory: with one row each, as a batch is cut into pieces, or with a batch for gradients."""
    model = backbone.model.config
    layers = model.num_layers + model.num_decoder_layers if measure.gradients else 1
    room = positions(backbone, config.max_input_length, layers)
    needed = config.max_input_length + config.max_output_length
    if measure.gradients:
        needed *= config.predict_batch_size
    return max(1, min(sources, room // needed - measure.needs_target))


class Rows:
    """The table under construction: knows which pairs are there, and writes at most every two seconds.

    The record beside it is written first: it names the table that is there and the one that takes its place.
    """

    def __init__(self, out: Path, record: dict, targets: Sequence[str], sources: Sequence[str]):
        table = previous_rows(out, record["settings"])
        self.rows = {(r.target, r.source, r.scope): r.value for r in table.itertuples()}
        self.pairs = {(target, source) for target, source, _ in self.rows}
        self.out, self.targets, self.sources = out, list(targets), list(sources)
        there = [file_digest(out / RESULT)] if (out / RESULT).is_file() else []
        self.record = {**record, "finished": False, "tables": {RESULT: there}}
        self.written = time.monotonic()

    def has(self, target: str, sources: Sequence[str]) -> bool:
        return all((target, source) in self.pairs for source in sources)

    def add(self, target: str, sources: Sequence[str], values: dict[str, list[float]]) -> None:
        for scope, column in values.items():
            for source, value in zip(sources, column, strict=True):
                self.rows[target, source, scope] = value
        self.pairs.update((target, source) for source in sources)
        if time.monotonic() - self.written > 2:
            self.write(self.table())
            self.written = time.monotonic()

    def write(self, table: pd.DataFrame) -> None:
        tables = self.record["tables"]
        with replacing(self.out / RESULT) as temporary:
            write_table(temporary, table)
            tables[RESULT] = [*tables[RESULT][-1:], file_digest(temporary)]
            write_record(self.out / "config.json", self.record)

    def table(self) -> pd.DataFrame:
        scopes = list(dict.fromkeys(scope for _, _, scope in self.rows))
        order = [
            (t, s, scope) for t in self.targets for s in self.sources for scope in scopes if (t, s, scope) in self.rows
        ]
        return pd.DataFrame([(*key, self.rows[key]) for key in order], columns=COLUMNS)

    def finish(self, pictures: bool) -> pd.DataFrame:
        table = self.table()
        self.write(table)
        tables = {RESULT: self.record["tables"][RESULT][-1:]}
        scopes = list(table["scope"].unique())
        for scope in scopes:
            part, folder = table[table["scope"] == scope], self.out / scope if len(scopes) > 1 else self.out
            if len(scopes) > 1:
                write_table(folder / RESULT, part)
                tables[f"{scope}/{RESULT}"] = [file_digest(folder / RESULT)]
            if pictures:
                title = f"{self.out.name}, {scope}"
                heat_map(similarity_frame(part), folder / "similarity.png", title, percentiles=(0, 95))
        write_record(self.out / "config.json", {**self.record, "finished": True, "tables": tables})
        log.info("%s: %d pairs, %d scopes", self.out / RESULT, len(self.pairs), len(scopes))
        return table


def _fill(rows: Rows, measure: Measure, sources: Sources, states: dict[str, DeltaState], tuned: dict[str, DeltaState],
          dev: dict[str, Encoded], stack: int) -> None:  # fmt: skip
    """Every (chunk of sources, target) that the table does not have yet; on a GPU, half the stack where memory runs out."""
    names = list(states)
    with tqdm(total=len(names) * len(dev), unit="pair", disable=sources.config.quiet, desc=measure.name) as bar:
        for start in range(0, len(names), stack):
            chunk = names[start : start + stack]
            missing = [target for target in dev if not rows.has(target, chunk)]
            bar.update(len(chunk) * (len(dev) - len(missing)))
            for target in missing:
                try:
                    load_stack(sources, [states[name] for name in chunk], tuned.get(target), first=target == missing[0])
                    values = score_target(measure, sources, dev[target])
                except torch.cuda.OutOfMemoryError:
                    if stack == 1:
                        raise UserError("one source does not fit on the GPU; lower --predict_batch_size") from None
                    log.warning("out of GPU memory with %d stacked sources; going on with %d", stack, stack // 2)
                    torch.cuda.empty_cache()
                    bar.reset()
                    return _fill(rows, measure, sources, states, tuned, dev, stack // 2)
                rows.add(target, chunk, values)
                bar.update(len(chunk))


def load_stack(sources: Sources, chunk: list[DeltaState], target: DeltaState | None, first: bool) -> None:
    """The stack of a chunk of sources, with the target's delta in front where the measure needs it."""
    if first or target is not None:
        sources.delta.load(([target] if target is not None else []) + chunk)


def score_target(measure: Measure, sources: Sources, encoded: Encoded) -> dict[str, list[float]]:
    config, totals = sources.config, {}
    batches = list(budgeted_batches(measure, config, sources.backbone.pad, encoded))
    set_mode(sources.model, training=False)
    for batch in batches:
        for scope, values in measure.score(sources, batch).items():
            totals[scope] = totals.get(scope, 0) + values.detach().double().cpu()
    divisor = len(batches) if config.reduction == "mean" else 1
    result = {scope: (total / divisor).tolist() for scope, total in totals.items()}
    bad = [scope for scope, column in result.items() if not all(map(math.isfinite, column))]
    if bad:
        raise UserError(f"{measure.name} on {encoded.task}, {bad[0]}: a value is not finite; try --dtype float32")
    return result


def set_mode(model: nn.Module, training: bool) -> None:
    """Train or eval mode; the thousand modules of a model with deltas are visited only where it changes."""
    if model.training != training:
        model.train(training)


def budgeted_batches(measure: Measure, config: SimilarityConfig, pad: int, encoded: Encoded) -> Iterator[Batch]:
    """The target's first dev batches: `--max_batches`, or as many as the original used."""
    limit = {0: measure.max_batches(encoded.task), -1: None}.get(config.max_batches, config.max_batches)
    return islice(scoring_batches(encoded, config.predict_batch_size, pad, config.as_original), limit)
