"""The one target x source loop that every get_similarity/get_*.py runs.

A measure is a function `score(sources, batch, reference)`: the stacked sources on one batch of the target's dev set,
scope -> (K,). The loop loads the sources K at a time, goes over the targets and their batches, resumes and writes:

    <output_dir>/result.tsv          target, source, scope, value: one row per pair and scope
    <output_dir>/<scope>/result.tsv  the same for one scope, where there are several (blocks, layers)
    <output_dir>/config.json         settings, orientation of the measure, provenance
"""

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

from pewe.backbone import Backbone, load_backbone
from pewe.checkpoint import read_checkpoint, shapes_of, state_digest, task_checkpoint
from pewe.cli import UserError, flag, log, log_to, show, suggest
from pewe.data import Batch, Encoded, digest, find_prefixes, load_split, scoring_batches, task_names
from pewe.deltas import Delta, DeltaState, attach_delta
from pewe.plots import heat_map
from pewe.results import provenance, read_json, read_table, write_json, write_table
from pewe.train import member_losses
from pewe.tune import TuneConfig
from pewe.weights import similarity_frame

COLUMNS = ["target", "source", "scope", "value"]
RESULT = "result.tsv"


@dataclass
class SimilarityConfig(TuneConfig):
    """Similarity of each source delta to each target, on the target's dev set.

    The flags of tuning are accepted, because the original's scripts give them, and not used.
    """

    source_ckpt_path: str = flag("checkpoints/adapter/full_data", "folder with <source>/checkpoint-best.pt")
    source_tasks: list[str] = flag([], "names of the sources (default: the targets)")
    random_tuned_ckpt_path: str = flag("", "folder with <target>/checkpoint-best.pt tuned from random init (KL, block)")
    output_dir: str = flag("checkpoints/adapter/similarity/Loss", "folder of result.tsv")
    predict_batch_size: int = flag(50, "dev lines per batch")
    max_batches: int = flag(0, "dev batches used per target; 0: as many as the original, -1: all")
    reduction: str = flag("sum", "sum or mean over the batches used")
    stack: int = flag(0, "sources scored in one forward; 0: as many as memory allows")


@dataclass(frozen=True)
class Measure:
    """What the loop must know about a measure besides its score."""

    name: str
    score: Callable[["Sources", Batch, "Sources | None"], dict[str, Tensor]]
    higher_is_more_similar: bool
    max_batches: Callable[[str], int] | int = 1  # the original's budget; a function of the task where it depends on it
    needs_target: bool = False  # compares with a delta tuned on the target


@dataclass
class Sources:
    """K stacked source deltas on the backbone, and the generator of the target (dropout)."""

    backbone: Backbone
    delta: Delta

    @property
    def stack(self) -> int:
        """K."""
        return self.delta.stack

    def losses(self, batch: Batch) -> Tensor:
        """Mean token cross-entropy of each source on the batch, (K,)."""
        return member_losses(self.backbone.model, batch.repeat(self.stack), self.stack)


def run(measure: Measure, config: SimilarityConfig) -> pd.DataFrame:
    """Compute, or complete, the similarity matrix of a measure; returns the table that it writes."""
    check(measure, config)
    out = Path(config.output_dir)
    log_to(out / "log.txt", config.quiet)
    log.info("settings:\n%s", show(config))
    targets = task_names(config)
    source_names = (
        task_names(dataclasses.replace(config, tasks=config.source_tasks)) if config.source_tasks else targets
    )
    backbone = load_backbone(config)
    delta = attach_delta(backbone.model, config)
    states = read_sources(config, delta, source_names)
    dev = {target: _dev_split(backbone, config, target) for target in targets}
    settings = identity(measure, config, states, dev)
    table = previous_rows(out, settings)
    write_json(out / "config.json", {"settings": settings, "measure": measure.name,
               "higher_is_more_similar": measure.higher_is_more_similar, "provenance": provenance()})  # fmt: skip
    stack = config.stack or automatic_stack(backbone, config, len(states))
    rows = _Rows(table, out, targets, source_names)
    _fill(rows, measure, config, Sources(backbone, delta), states, dev, stack)
    return rows.finish()


def check(measure: Measure, config: SimilarityConfig) -> None:
    """Flags that make no sense, told before a model is loaded."""
    if config.reduction not in ("sum", "mean"):
        raise UserError(f"--reduction {suggest(config.reduction, ('sum', 'mean'))}")
    if config.predict_batch_size < 1:
        raise UserError(f"--predict_batch_size must be at least 1, not {config.predict_batch_size}")
    if config.stack < 0 or config.max_batches < -1:
        raise UserError("--stack must be at least 0 and --max_batches at least -1")
    if measure.needs_target and not config.random_tuned_ckpt_path:
        raise UserError(f"{measure.name} compares with deltas tuned on the targets: give --random_tuned_ckpt_path")


def read_sources(config: SimilarityConfig, delta: Delta, names: Sequence[str]) -> dict[str, DeltaState]:
    """The source deltas by task, each checked against the backbone."""
    folder, shapes = Path(config.source_ckpt_path), shapes_of(delta)
    hint = f"tune the sources first: scripts/{config.tune_method}.sh --full_train --output_dir {folder}"
    return {name: read_checkpoint(task_checkpoint(folder, name), config.tune_method, shapes, hint) for name in names}


def _dev_split(backbone: Backbone, config: SimilarityConfig, target: str) -> Encoded:
    prefix = find_prefixes(Path(config.task_dir), target)[0]
    return load_split(backbone.tokenizer, config, target, prefix, "dev")


def identity(
    measure: Measure, config: SimilarityConfig, states: dict[str, DeltaState], dev: dict[str, Encoded]
) -> dict:
    """What decides a value of the matrix; a stored matrix with another identity is not continued."""
    names = ("model", "dtype", "tune_method", "lora_alpha", "max_input_length", "max_output_length", "as_original",
             "predict_batch_size", "max_batches", "reduction", "seed", "random_tuned_ckpt_path")  # fmt: skip
    return {
        "measure": measure.name,
        **{name: getattr(config, name) for name in names},
        "sources": {name: state_digest(state) for name, state in states.items()},
        "dev": {name: digest(encoded) for name, encoded in dev.items()},
    }


def previous_rows(out: Path, settings: dict) -> pd.DataFrame:
    """The rows that an interrupted run with the same settings left; a matrix of other settings is set aside."""
    path = out / RESULT
    if not path.is_file():
        return pd.DataFrame(columns=COLUMNS)
    if (read_json(out / "config.json") or {}).get("settings") == settings:
        return read_table(path, COLUMNS)
    path.replace(out / "result.previous.tsv")
    log.info("%s was made with other settings or data; it is now result.previous.tsv", path)
    return pd.DataFrame(columns=COLUMNS)


def automatic_stack(backbone: Backbone, config: SimilarityConfig, sources: int) -> int:
    """How many sources fit into half of the free memory, from the size of logits and activations of one batch."""
    model = backbone.model.config
    tokens = config.predict_batch_size * (config.max_input_length + config.max_output_length)
    activations = (
        tokens * (8 * model.d_model + 4 * model.d_ff)
        + config.predict_batch_size * model.num_heads * config.max_input_length**2
    )
    logits = 3 * config.predict_batch_size * config.max_output_length * model.vocab_size
    if backbone.device.type == "cuda":
        free = torch.cuda.mem_get_info(backbone.device)[0]
    else:
        free = 4 * 2**30
    return max(1, min(sources, int(free / 2 / (4 * (activations + logits)))))


class _Rows:
    """The table under construction: knows which pairs are there, and writes at most every two seconds."""

    def __init__(self, table: pd.DataFrame, out: Path, targets: Sequence[str], sources: Sequence[str]):
        self.rows = {(r.target, r.source, r.scope): r.value for r in table.itertuples()}
        self.pairs = {(target, source) for target, source, _ in self.rows}
        self.out, self.targets, self.sources = out, list(targets), list(sources)
        self.written = time.monotonic()

    def has(self, target: str, sources: Sequence[str]) -> bool:
        return all((target, source) in self.pairs for source in sources)

    def add(self, target: str, sources: Sequence[str], values: dict[str, list[float]]) -> None:
        for scope, column in values.items():
            for source, value in zip(sources, column, strict=True):
                self.rows[target, source, scope] = value
        self.pairs.update((target, source) for source in sources)
        if time.monotonic() - self.written > 2:
            write_table(self.out / RESULT, self.table())
            self.written = time.monotonic()

    def table(self) -> pd.DataFrame:
        scopes = list(dict.fromkeys(scope for _, _, scope in self.rows))
        order = [
            (t, s, scope) for t in self.targets for s in self.sources for scope in scopes if (t, s, scope) in self.rows
        ]
        return pd.DataFrame([(*key, self.rows[key]) for key in order], columns=COLUMNS)

    def finish(self) -> pd.DataFrame:
        table = self.table()
        write_table(self.out / RESULT, table)
        scopes = list(table["scope"].unique())
        for scope in scopes:
            part, folder = table[table["scope"] == scope], self.out / scope if len(scopes) > 1 else self.out
            write_table(folder / RESULT, part)
            heat_map(
                similarity_frame(part), folder / "similarity.png", f"{self.out.name}, {scope}", percentiles=(0, 95)
            )
        log.info("%s: %d pairs, %d scopes", self.out / RESULT, len(self.pairs), len(scopes))
        return table


def _fill(rows: _Rows, measure: Measure, config: SimilarityConfig, sources: Sources, states: dict[str, DeltaState],
          dev: dict[str, Encoded], stack: int) -> None:  # fmt: skip
    """Every (chunk of sources, target) that the table does not have yet."""
    names = list(states)
    chunks = [names[start : start + stack] for start in range(0, len(names), stack)]
    with tqdm(total=len(names) * len(dev), unit="pair", disable=config.quiet, desc=measure.name) as bar:
        for chunk in chunks:
            missing = [target for target in dev if not rows.has(target, chunk)]
            bar.update(len(chunk) * (len(dev) - len(missing)))
            if missing:
                sources.delta.load([states[name] for name in chunk])
            for target in missing:
                rows.add(target, chunk, _score_target(measure, config, sources, dev[target]))
                bar.update(len(chunk))


def _score_target(
    measure: Measure, config: SimilarityConfig, sources: Sources, encoded: Encoded
) -> dict[str, list[float]]:
    totals: dict[str, Tensor] = {}
    batches = list(budgeted_batches(measure, config, sources.backbone.pad, encoded))
    sources.backbone.model.eval()
    for batch in batches:
        for scope, values in measure.score(sources, batch.to(sources.backbone.device), None).items():
            totals[scope] = totals.get(scope, 0) + values.double().cpu()
    divisor = len(batches) if config.reduction == "mean" else 1
    result = {scope: (total / divisor).tolist() for scope, total in totals.items()}
    bad = [scope for scope, column in result.items() if not all(map(math.isfinite, column))]
    if bad:
        raise UserError(f"{measure.name} on {encoded.task}, {bad[0]}: a value is not finite; try --dtype float32")
    return result


def budgeted_batches(measure: Measure, config: SimilarityConfig, pad: int, encoded: Encoded) -> Iterator[Batch]:
    """The target's first dev batches: `--max_batches`, or as many as the original used."""
    budget = measure.max_batches if isinstance(measure.max_batches, int) else measure.max_batches(encoded.task)
    limit = {0: budget, -1: None}.get(config.max_batches, config.max_batches)
    return islice(scoring_batches(encoded, config.predict_batch_size, pad, config.as_original), limit)
