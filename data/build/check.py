"""Say what is wrong with a folder of data, file by file and line by line.

    python -m data.build.check FOLDER                  a task's folder, or a folder of such folders
    python -m data.build.check FOLDER --tasks boolq    one task of a folder of tasks

A fault is what the training or its result would suffer from: a missing split, a line that is not input TAB output, an empty
output, a label that the task does not have, an answer that is not among the options, the same input in two splits. The exit
code is 1 where there is one. Remarks (a repeated line, an uneven class) are only told.
"""

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pewe.command import main

from data.build import choice
from data.build.registry import ALL
from pewe.data import SPLITS, Example, few_lines, find_prefixes, parse_line, split_path
from pewe.errors import UserError
from pewe.flags import flag
from pewe.metrics import check_gold
from pewe.own_tasks import declare, unknown_task
from pewe.texts import raw_lines, visible
from task_list import METRICS

BATCH = 8  # the smallest default batch of the training commands


@dataclass(frozen=True)
class CheckConfig:
    """What to check."""

    folders: list[str] = flag([], "task folders, or folders of task folders; --folders may be left out")
    tasks: list[str] = flag([], "only these tasks of a folder of tasks")
    show: int = flag(20, "findings shown of each file at most; 0: all", low=0)
    no_remarks: bool = flag(False, "show faults only")


@dataclass(frozen=True)
class Finding:
    """One thing about one line (0: the file)."""

    path: Path
    line: int
    text: str
    fault: bool = True

    def __str__(self) -> str:
        place = f"{self.path}, line {self.line}" if self.line else f"{self.path}"
        return f"{place}: {'' if self.fault else 'remark: '}{self.text}"


Lines = list[tuple[int, str, list[str]]]  # number, input, outputs


def run(config: CheckConfig) -> None:
    """Check every task of the folders; exit with code 1 where there is a fault."""
    if not config.folders:
        raise UserError("name a folder: python -m data.build.check FOLDER")
    faults = 0
    for folder in task_folders(config.folders, config.tasks):
        findings, files, lines = check_task(folder)
        _print(findings, config)
        found = sum(finding.fault for finding in findings)
        print(f"{folder.name}: {files} files, {lines} lines, {found} faults, {len(findings) - found} remarks")
        faults += found
    if faults:
        print(f"{faults} faults", file=sys.stderr)
        sys.exit(1)


def task_folders(folders: Sequence[str], tasks: Sequence[str]) -> list[Path]:
    """The task folders that are named, or lie in the folders that are named; of the latter only `tasks`, if given."""
    found: list[Path] = []
    for folder in map(Path, folders):
        if not folder.is_dir():
            raise UserError(f"there is no folder {folder}")
        if has_tables(folder) and not (folder / "summary.tsv").is_file():
            found.append(folder)
            continue
        below = [child for child in visible(folder.iterdir()) if child.is_dir() and has_tables(child)]
        names = {child.name for child in below}
        missing = [task for task in tasks if task not in names]
        if not below or missing:
            what = f"for task {missing[0]!r}" if missing else "with .tsv files"
            raise UserError(f"{folder} has no folder {what}; expected {folder}/TASK/TASK_64_42_train.tsv and so on")
        found += [child for child in below if not tasks or child.name in tasks]
    return list(dict.fromkeys(found))


def has_tables(folder: Path) -> bool:
    """Whether a folder has .tsv files."""
    return bool(visible(folder.glob("*.tsv")))


def _print(findings: list[Finding], config: CheckConfig) -> None:
    shown = Counter()
    for finding in findings:
        if config.no_remarks and not finding.fault:
            continue
        shown[finding.path] += 1
        if not config.show or shown[finding.path] <= config.show:
            print(finding)
    for path, number in shown.items():
        if config.show and number > config.show:
            print(f"{path}: {number - config.show} more (--show 0 shows all)")


def check_task(folder: Path) -> tuple[list[Finding], int, int]:
    """Check one task's folder; returns the findings, the number of files and the number of lines."""
    task, findings, files, lines = folder.name, [], 0, 0
    try:
        declare(folder.parent)
    except UserError as error:
        findings.append(Finding(folder.parent, 0, str(error)))
    if task not in METRICS:
        findings.append(Finding(folder, 0, unknown_task(task, folder.parent)))
    try:
        prefixes = find_prefixes(folder.parent, task)
    except UserError as error:
        return [*findings, Finding(folder, 0, str(error))], files, lines
    full = folder / f"{task}_full_train.tsv"
    beyond = {}
    if full.is_file():
        beyond["full_train"] = full, read(full, task, False, findings)
        files, lines = files + 1, lines + len(beyond["full_train"][1])
    for prefix in prefixes:
        splits = {}
        for split in SPLITS:
            path = split_path(folder.parent, task, prefix, split)
            if not path.is_file():
                findings.append(Finding(path, 0, "the file is missing; every prefix needs train, dev and test"))
                continue
            splits[split] = path, read(path, task, split != "train", findings)
            files, lines = files + 1, lines + len(splits[split][1])
        findings += _balance(task, splits)
        findings += _overlaps(splits | beyond)
    return findings, files, lines


def read(path: Path, task: str, scored: bool, findings: list[Finding]) -> Lines:
    """The good lines of a file; what is wrong with the others is added to the findings. `scored`: a file of dev or test."""
    good: Lines = []
    before: dict[str, int] = {}
    for number, raw in enumerate(raw_lines(path), start=1):
        try:
            example = parse_line(raw)
            _check_line(task, example, scored)
        except ValueError as error:
            findings.append(Finding(path, number, str(error)))
            continue
        if example.input in before:
            findings.append(Finding(path, number, f"the same input as line {before[example.input]}", fault=False))
        before.setdefault(example.input, number)
        good.append((number, example.input, list(example.outputs)))
    if not good and not any(finding.path == path for finding in findings):
        findings.append(Finding(path, 0, "the file is empty"))
    return good


def _check_line(task: str, example: Example, scored: bool) -> None:
    """Raise ValueError that says what is wrong with a line of this task."""
    answer, entry = example.outputs[0], ALL.get(task)
    if entry and entry.labels and answer not in entry.labels:
        raise ValueError(f"unknown label {answer!r}; the task has: {', '.join(entry.labels)}")
    if entry in choice.ENTRIES and answer not in example.input:
        raise ValueError(f"the answer {answer!r} is not among the options of the input")
    check_gold(METRICS.get(task, ""), example.outputs, scored)


def _balance(task: str, splits: dict[str, tuple[Path, Lines]]) -> Iterator[Finding]:
    """Remarks on the train file's size and, for classification, on the balance and completeness of its labels."""
    if "train" not in splits:
        return
    path, lines = splits["train"]
    if 0 < len(lines) < BATCH:
        yield Finding(path, 0, few_lines(len(lines), BATCH), fault=False)
    labels = [outputs[0] for _, _, outputs in lines]
    counts, entry = Counter(labels), ALL.get(task)
    if not (entry.labels if entry else few_labels(labels)):
        return
    if len(set(counts.values())) > 1:
        yield Finding(
            path, 0, f"uneven labels: {', '.join(f'{n} {label}' for label, n in counts.most_common())}", fault=False
        )
    for split in ("dev", "test"):
        other, found = splits.get(split, (None, []))
        for number, _, outputs in found:
            if outputs[0] not in counts:
                yield Finding(other, number, f"the label {outputs[0]!r} is not in {path.name}", fault=False)


def few_labels(labels: Sequence[str]) -> bool:
    """A guess, for tasks without an entry: whether outputs that are so few are classes."""
    return len(set(labels)) <= 10 and len(labels) >= 4 * len(set(labels))


def _overlaps(files: dict[str, tuple[Path, Lines]]) -> Iterator[Finding]:
    """Faults for inputs that stand in two files. The few-shot train lines may be among the full train lines."""
    where: dict[str, tuple[str, int]] = {}
    for split, (path, lines) in files.items():
        for number, text, _ in lines:
            first, line = where.setdefault(text, (split, number))
            if first != split:
                harmless = {first, split} == {"train", "full_train"}
                other = files[first][0].name
                yield Finding(path, number, f"the same input as line {line} of {other}", fault=not harmless)


def with_flag(args: list[str]) -> list[str]:
    """The arguments with `--folders` put before leading folder names."""
    return ["--folders", *args] if args and not args[0].startswith("-") else args


if __name__ == "__main__":
    main(run, CheckConfig, __doc__, with_flag(sys.argv[1:]))
