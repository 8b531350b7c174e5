"""Draw further few-shot samples of tasks, one for each seed, from their full training files.

    python -m data.build.resample data/crossfit --seeds 42 43 44 45 46 --out data/crossfit_seeds
    python -m data.build.resample data/crossfit --tasks boolq numer_sense --seeds 1 2 3 --out DIR

writes <out>/<task>/<task>_<shots>_<seed>_{train,dev,test}.tsv and <task>_full_train.tsv, and never touches FOLDER.

The distinct lines of a full training file that stand in no other file of the task are dealt, class by class, into a train
side and a dev side. A seed draws its train lines from the one and its dev lines from the other, so that no train line of
any seed is a dev line of any seed, and a sample does not depend on which other seeds are asked for. The new full training
file is the train side. A sample that FOLDER has already is copied as it is. Every draw is a function of task, seed and line
only (data/build/sample.py).
"""

import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from pewe.command import main

from data.build.check import few_labels, task_folders, with_flag
from data.build.entry import digest
from data.build.lines import as_text, write_file
from data.build.registry import ALL
from data.build.sample import rank
from pewe.cli import log, log_to
from pewe.data import SPLITS, Example, read_examples
from pewe.errors import UserError
from pewe.files import hold, provenance, read_json, within, write_json
from pewe.flags import flag, name_fault, seed_flag
from pewe.texts import visible

RECORD = "resample.json"


@dataclass(frozen=True)
class ResampleConfig:
    """Which tasks, which samples, and where to."""

    folders: list[str] = flag([], "task folders, or folders of task folders; --folders may be left out")
    tasks: list[str] = flag([], "only these tasks of a folder of tasks")
    seeds: list[int] = seed_flag([42, 43, 44, 45, 46], "one sample of train and dev lines for each seed")
    shots: int = flag(64, "train lines, and as many dev lines, of a text-to-text task", low=1)
    shots_per_class: int = flag(16, "train lines, and as many dev lines, of each class of a classification task", low=1)
    max_test: int = flag(1000, "test lines at most, equal for every seed; 0: all", low=0)
    more_test: bool = flag(
        False,
        "fill a smaller test file up to --max_test from the full training file, with at most a quarter of its lines",
    )
    out: str = flag("", "folder to write in, one sub-folder per task")
    quiet: bool = flag(False, "only warnings and errors")


@dataclass(frozen=True)
class Pool:
    """The lines that may be drawn, by side; each side by class ("" where there are no classes), in the order of the file."""

    train: dict[str, list[Example]]
    dev: dict[str, list[Example]]
    test: list[Example]


def run(config: ResampleConfig) -> None:
    """Resample every task; one that cannot be is named at the end, the others are written."""
    log_to(None, config.quiet)
    if not config.folders or not config.out:
        raise UserError("name a folder and --out: python -m data.build.resample FOLDER --out DIR")
    failed = []
    for folder in task_folders(config.folders, config.tasks):
        try:
            resample(folder, Path(config.out) / folder.name, config)
        except UserError as error:
            failed.append(f"{folder.name}: {error}")
    if failed:
        raise UserError(f"{len(failed)} tasks were not resampled:\n  " + "\n  ".join(failed))


def resample(folder: Path, out: Path, config: ResampleConfig) -> None:
    """Write the samples of one task, its full training file and a record of how they were made."""
    task = folder.name
    if out.resolve() == folder.resolve():
        raise UserError("--out must be another folder than the one that is read")
    full = read_examples(folder / f"{task}_full_train.tsv")
    present = {
        path.name: read_examples(path) for path in visible(folder.glob("*.tsv")) if "full_train" not in path.name
    }
    pool = deal(task, full, present, config)
    left = {example.input for lines in pool.train.values() for example in lines}
    made = {f"{task}_full_train.tsv": [example for example in full if example.input in left]}
    for seed in config.seeds:
        for split, examples in zip(SPLITS, draw(task, seed, pool, present, config), strict=True):
            made[f"{task}_{config.shots}_{seed}_{split}.tsv"] = examples
    about = {"settings": asdict(config), "provenance": provenance()}
    with hold(out):
        remove_earlier(out)
        write_json(out / RECORD, {**about, "files": dict.fromkeys(made)})
        files = {name: write_file(out / name, map(as_text, examples)) for name, examples in made.items()}
        write_json(out / RECORD, {**about, "files": files})
    counts = [f"{files[f'{task}_{config.shots}_{config.seeds[0]}_{split}.tsv']['lines']} {split}" for split in SPLITS]
    log.info(
        "%s: %d samples of %s, %d full",
        task,
        len(config.seeds),
        ", ".join(counts),
        files[f"{task}_full_train.tsv"]["lines"],
    )


def remove_earlier(out: Path) -> None:
    """Remove what the record of an earlier call lists: its dev lines may stand in the new full training file."""
    for name in within(read_json(out / RECORD), "files") or {}:
        if not name_fault(name):
            (out / name).unlink(missing_ok=True)


def deal(task: str, full: Sequence[Example], present: dict[str, tuple[Example, ...]], config: ResampleConfig) -> Pool:
    """Deal the lines of the full training file that stand nowhere else into the sides.

    The dev side of a class is a quarter of its lines, or twice the shots where that is more, but never more than half.
    """
    taken = {example.input for examples in present.values() for example in examples}
    lines = list({example.input: example for example in full if example.input not in taken}.values())
    test, lines = _test(task, lines, present, config)
    classes = _by_class(task, lines)
    shots = config.shots_per_class if "" not in classes else config.shots
    train, dev = {}, {}
    for label, own in classes.items():
        size = max(len(own) // 4, min(2 * shots, len(own) // 2))
        chosen = {example.input for example in smallest(f"{task} dev side", own, size)}
        dev[label] = [example for example in own if example.input in chosen]
        train[label] = [example for example in own if example.input not in chosen]
        if not dev[label]:
            raise UserError(f"{len(own)} lines{_of(label)} are too few to draw train and dev lines from")
        if len(own) < 2 * shots:
            log.warning("%s: only %d lines%s to draw from", task, len(own), _of(label))
    return Pool(train, dev, test)


def _of(label: str) -> str:
    return f" of {label!r}" if label else ""


def _test(
    task: str, lines: list[Example], present: dict[str, tuple[Example, ...]], config: ResampleConfig
) -> tuple[list[Example], list[Example]]:
    """The test lines, and the lines that are left."""
    tests = [examples for name, examples in present.items() if name.endswith("_test.tsv")]
    if not tests:
        raise UserError("there is no test file")
    known = list({example.input: example for examples in tests for example in examples}.values())
    if not config.max_test:
        return known, lines
    missing = config.max_test - len(known)
    if missing <= 0:
        chosen = {example.input for example in smallest(f"{task} test", known, config.max_test)}
        return [example for example in known if example.input in chosen], lines
    more = smallest(f"{task} test", lines, min(missing, len(lines) // 4)) if config.more_test else []
    chosen = {example.input for example in more}
    return [*known, *more], [example for example in lines if example.input not in chosen]


def _by_class(task: str, lines: Sequence[Example]) -> dict[str, list[Example]]:
    """The lines of each class of a classification task, else all of them under ""."""
    entry = ALL.get(task)
    labels = [example.outputs[0] for example in lines]
    if not (entry.labels if entry else few_labels(labels)):
        return {"": list(lines)}
    classes = defaultdict(list)
    for label, example in zip(labels, lines, strict=True):
        classes[label].append(example)
    return dict(sorted(classes.items()))


def smallest(salt: str, lines: Sequence[Example], size: int) -> list[Example]:
    """The `size` lines of smallest rank in the draw that `salt` names, by rank."""
    return sorted(lines, key=lambda example: rank(salt, digest(example.input)))[:size]


def draw(
    task: str, seed: int, pool: Pool, present: dict[str, tuple[Example, ...]], config: ResampleConfig
) -> tuple[Sequence[Example], Sequence[Example], Sequence[Example]]:
    """Train, dev and test lines of a seed: those of FOLDER where it has them, else drawn."""
    shots = config.shots_per_class if "" not in pool.train else config.shots

    def side(name: str, classes: dict[str, list[Example]]) -> list[Example]:
        return [example for lines in classes.values() for example in smallest(f"{task} {seed} {name}", lines, shots)]

    drawn = {"train": side("train", pool.train), "dev": side("dev", pool.dev)}
    old = {split: present.get(f"{task}_{config.shots}_{seed}_{split}.tsv") for split in drawn}
    if not all(old.values()):
        return drawn["train"], drawn["dev"], pool.test
    for split in drawn if "" not in pool.train else ():
        most, others = (_most_of_a_class(examples) for examples in (old[split], drawn[split]))
        if most > shots or most < others:
            name = f"{task}_{config.shots}_{seed}_{split}.tsv"
            raise UserError(f"{name} has {most} lines of a class, other seeds would have {others} (--shots_per_class)")
    return old["train"], old["dev"], pool.test


def _most_of_a_class(examples: Sequence[Example]) -> int:
    return max(Counter(example.outputs[0] for example in examples).values())


if __name__ == "__main__":
    main(run, ResampleConfig, __doc__, with_flag(sys.argv[1:]))
