"""CrossFit data: read and check TSV splits, tokenise, batch.

`<task_dir>/<task>/<prefix>_{train,dev,test}.tsv`, UTF-8, one example a line: input TAB output [TAB further acceptable
outputs]. `<task_dir>/<task>/<task>_full_train.tsv` holds the task's full training data (`--full_train`).
"""

import functools
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pewe import metrics
from pewe.errors import UserError
from pewe.flags import OriginalConfig, SeedConfig, flag, suggest
from pewe.identity import digest
from pewe.own_tasks import declare, unknown_task
from pewe.setting import SETTING
from pewe.texts import decoded, raw_lines, visible
from pewe.tokens import tokenise
from task_list import METRICS, TASK_LISTS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LONGEST = 2**15  # tokens of a sequence
SPLITS = ("train", "dev", "test")
SAMPLES = ("all", "by_seed")


@dataclass(frozen=True)
class TaskConfig(SeedConfig):
    """Which tasks, where they are, and how they are cut."""

    task_dir: str = flag(SETTING.task_dir, "folder with one sub-folder per task, in CrossFit format", decides=False)
    task_list: str = flag(
        SETTING.task_list, "list of task_list.py: " + ", ".join(TASK_LISTS), decides=False, choices=TASK_LISTS
    )
    tasks: list[str] = flag([], "task names instead of a list", unique=True)
    sample: str = flag(
        "all",
        "all: every prefix of a task's data; by_seed: the one that ends with the seed (python -m data.build.resample)",
        choices=SAMPLES,
    )
    max_input_length: int = flag(512, "tokens of the input at most, the end token among them", low=2, high=LONGEST)
    max_output_length: int = flag(
        64, "tokens of the output at most; also the length of generation, start token included", low=2, high=LONGEST
    )

    def __post_init__(self) -> None:
        declare(self.task_dir)


@dataclass(frozen=True)
class DataConfig(OriginalConfig, TaskConfig):
    """The same where deltas are tuned."""

    one_prefix: bool = flag(False, "use only the first prefix (seed) of each task's data")
    full_train: bool = flag(False, "train on <task>_full_train.tsv instead of the few-shot file (source deltas)")


@dataclass(frozen=True)
class Example:
    """One line: the input and its acceptable outputs, the first being the one that the dev and test loss use."""

    input: str
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class Encoded:
    """A tokenised split: token ids of each input, and of each acceptable output of each example."""

    task: str
    examples: tuple[Example, ...]
    inputs: tuple[tuple[int, ...], ...]
    outputs: tuple[tuple[tuple[int, ...], ...], ...]

    def labels(self, flat: bool = False) -> list[tuple[int, ...]]:
        """The label of each line for a loss: its first output.

        The original indexes the flat list of all outputs with the line's number, so that after a line with two outputs
        every label belongs to an earlier line: `flat`.
        """
        if flat:
            return [output for outputs in self.outputs for output in outputs][: len(self.outputs)]
        return [outputs[0] for outputs in self.outputs]

    def mean_length(self) -> float:
        """Tokens of an input, on average."""
        return sum(map(len, self.inputs)) / len(self.inputs)


def task_names(config: TaskConfig, flag: str = "tasks", scored: bool = True) -> list[str]:
    """The tasks that the flags name: those of `flag`, else of --tasks, else of the list.

    Raises UserError for an unknown list or metric, for a task that is named twice, and where there is none; where they are
    `scored`, for an unknown task.
    """
    names, where = getattr(config, flag), f"--{flag}"
    if not names and flag != "tasks":
        return task_names(config, scored=scored)
    if not names:
        if config.task_list not in TASK_LISTS:
            raise UserError(f"unknown --task_list {suggest(config.task_list, TASK_LISTS)}")
        names, where = TASK_LISTS[config.task_list], f"--task_list {config.task_list}"
    return distinct(names, where, config.task_dir if scored else None)


def distinct(names: Sequence[str], where: str, task_dir: str | None) -> list[str]:
    """Names of tasks, none of them twice, all of them known unless `task_dir` is None; `where` they stand is for the UserError."""
    if isinstance(names, str) or not names:
        raise UserError(f"{where} must name at least one task, not {names!r}")
    for number, task in enumerate(names):
        if task_dir is not None and task not in METRICS:
            raise UserError(f"{where}: {unknown_task(task, task_dir)}")
        if METRICS.get(task, "ACC") not in metrics.METRICS:
            raise UserError(
                f"task_list.py: the metric of {task!r} is unknown, {suggest(METRICS[task], metrics.METRICS)}"
            )
        if task in names[:number]:
            raise UserError(f"{where} names {task!r} twice")
    return list(names)


def few_lines(lines: int, batch: int) -> str:
    """What to say of a train file that has fewer lines than a batch."""
    return f"{lines} training lines are fewer than one batch of {batch}; give --bsz_list {lines} or less"


def parse_line(raw: bytes) -> Example:
    """One line: input TAB output [TAB further outputs]. Raises ValueError that says what is wrong with it."""
    text, *outputs = (cell.strip() for cell in decoded(raw).split("\t"))
    if not outputs:
        raise ValueError("no TAB; expected input TAB output [TAB further outputs]")
    if not text:
        raise ValueError("empty input")
    if not all(outputs):
        raise ValueError(f"empty output in column {outputs.index('') + 2}")
    return Example(text, tuple(outputs))


def read_examples(path: Path, metric: str = "", scored: bool = False) -> tuple[Example, ...]:
    """Read one TSV file. Raises UserError naming file and line for anything that is not CrossFit format.

    Answers that a metric, where one is given, cannot read are refused, too; `scored`: the metric will be taken of this file.
    """
    examples = []
    for number, raw in enumerate(raw_lines(path), start=1):
        try:
            example = parse_line(raw)
            metrics.check_gold(metric, example.outputs, scored)
        except ValueError as error:
            raise UserError(f"{path}, line {number}: {error}") from None
        examples.append(example)
    if not examples:
        raise UserError(f"{path} is empty")
    return tuple(examples)


def find_prefixes(task_dir: Path, task: str) -> list[str]:
    """The prefixes P for which `<task_dir>/<task>/P_train.tsv` exists, sorted; the full training file is not one."""
    folder = task_dir / task
    if not task_dir.is_dir():
        raise UserError(f"there is no data folder {task_dir} (--task_dir)")
    if not folder.is_dir():
        present = [child.name for child in visible(task_dir.iterdir()) if child.is_dir()]
        raise UserError(f"no data for task {suggest(task, present)} in {task_dir}")
    names = (path.name.removesuffix("_train.tsv") for path in visible(folder.glob("*_train.tsv")))
    prefixes = sorted(name for name in names if name != f"{task}_full")
    if not prefixes:
        raise UserError(f"{folder} has no <prefix>_train.tsv, e.g. {task}_64_42_train.tsv")
    return prefixes


def chosen_prefixes(config: DataConfig, task: str) -> list[str]:
    """The prefixes of a task that are tuned on: those of its sample, or the first of them (--one_prefix)."""
    prefixes = sampled_prefixes(config, task)
    return prefixes[:1] if config.one_prefix else prefixes


def sampled_prefixes(config: TaskConfig, task: str) -> list[str]:
    """The prefixes of a task in the order of their names: the seed's own (--sample by_seed), or all.

    Raises UserError where there is not exactly one for the seed.
    """
    prefixes = find_prefixes(Path(config.task_dir), task)
    if config.sample == "all":
        return prefixes
    own = [prefix for prefix in prefixes if prefix.endswith(f"_{config.seed}")]
    if len(own) != 1:
        folder, there = Path(config.task_dir) / task, ", ".join(own or prefixes)
        raise UserError(f"{folder}: expected one <prefix>_{config.seed}_train.tsv (--sample by_seed), found {there}")
    return own


def split_path(task_dir: Path, task: str, prefix: str, split: str, full_train: bool = False) -> Path:
    """The file of a split; `full_train` replaces the few-shot training file."""
    stem = f"{task}_full" if full_train and split == "train" else prefix
    return task_dir / task / f"{stem}_{split}.tsv"


def load_split(tokenizer: "PreTrainedTokenizerBase", config: TaskConfig, task: str, prefix: str, split: str) -> Encoded:
    """Read, check and tokenise a split; done once per process, file content and setting.

    Of "train", the configuration says which file (`full_train`).
    """
    path = split_path(Path(config.task_dir), task, prefix, split, split == "train" and config.full_train)
    if not path.is_file():
        raise UserError(f"task {task!r}: missing split {split}: there is no file {path}")
    content = hashlib.sha256(path.read_bytes()).hexdigest()
    metric, scored = METRICS.get(task, ""), split != "train"
    return _encode(tokenizer, path, content, task, metric, scored, config.max_input_length, config.max_output_length)


@functools.cache
def _encode(tokenizer, path: Path, content: str, task: str, metric: str, scored: bool, *lengths: int) -> Encoded:
    examples, (max_input, max_output) = read_examples(path, metric, scored), lengths
    inputs = tokenise(tokenizer, [f" [{task}] {example.input}" for example in examples], max_input)
    flat = iter(tokenise(tokenizer, [f"<extra_id_0>{o}" for example in examples for o in example.outputs], max_output))
    outputs = tuple(tuple(tuple(next(flat)) for _ in example.outputs) for example in examples)
    return Encoded(task, examples, tuple(map(tuple, inputs)), outputs)


def split_digest(encoded: Encoded) -> str:
    """A short fingerprint of a split's text, stored with every result that depends on it."""
    return lines_digest(encoded.examples)


def lines_digest(examples: Sequence[Example]) -> str:
    """The same of the lines of a file."""
    return digest([(example.input, *example.outputs) for example in examples])
