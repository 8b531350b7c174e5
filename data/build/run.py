"""Building many tasks: which ones, in how many processes, with checksums, tables and a list of what could not be built."""

import concurrent.futures
import contextlib
import hashlib
import logging
import multiprocessing
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from data.build import summary
from data.build.entry import Entry
from data.build.lines import Settings
from data.build.registry import selected
from data.build.rows import task_folder
from data.build.task import Source, build_task, read_built
from pewe.cli import log_settings, log_to
from pewe.errors import UserError
from pewe.files import hold, read_json, within, write_json
from pewe.flags import check, flag, seed_flag

log = logging.getLogger("pewe")
OUT, CHECKSUMS = "data/crossfit", "data/checksums.json"


@dataclass(frozen=True)
class BuildConfig:
    """Which tasks to build, how many lines of them, from where, and to where."""

    tasks: list[str] = flag([], "tasks, groups or lists of task_list.py; none: the paper's 51")
    shots: int = flag(64, "train lines, and as many dev lines, of a text-to-text task", low=1)
    shots_per_class: int = flag(16, "train lines, and as many dev lines, of each class of a classification task", low=1)
    seeds: list[int] = seed_flag([42], "one draw of train and dev lines for each seed")
    full: bool = flag(False, "also write <task>_full_train.tsv, which source deltas are trained on")
    max_test: int = flag(0, "test lines at most, drawn at random, equal for every seed; 0: all", low=0)
    max_full: int = flag(0, "lines of the full train file at most, drawn at random; 0: all", low=0)
    from_dir: str = flag("", "folder with the data sets' files (Parquet, Arrow, JSON, CSV, TSV) instead of the hub")
    one_split: bool = flag(False, "where --from_dir has only one split of a task, deal it into train and test")
    out: str = flag(OUT, "folder to build in, one sub-folder per task")
    jobs: int = flag(1, "tasks built at the same time, each in its own process", low=1)
    checksums: str = flag("", f"file of the checksums; {CHECKSUMS} for the default --out, else checksums.json in --out")
    verify: bool = flag(False, "build nothing: compare the files in --out with the checksums")
    report: bool = flag(False, "build nothing: list source, licence and notes of each task")
    quiet: bool = flag(False, "only warnings and errors")

    def checksum_file(self) -> Path:
        """Where the checksums are."""
        default = Path(CHECKSUMS) if Path(self.out) == Path(OUT) else Path(self.out) / "checksums.json"
        return Path(self.checksums) if self.checksums else default

    def settings(self) -> Settings:
        """What decides the lines. Raises UserError for numbers that make no sense."""
        check(self)
        return Settings(self.shots, self.shots_per_class, tuple(self.seeds), self.full, self.max_test, self.max_full)


def run(config: BuildConfig) -> None:
    """Report, verify or build. Raises UserError at the end where a task could not be built or a checksum differs."""
    if config.report:
        print(summary.report(selected(config.tasks)))
        return
    if config.verify:
        verify(config)
        return
    log_to(None, config.quiet)
    settings, out = config.settings(), Path(config.out)
    log_settings(config)
    entries = _available(config)
    failed = {}
    with hold(out):
        with contextlib.nullcontext() if config.quiet else logging_redirect_tqdm([log]):
            for task, record, error in _build_all(entries, settings, config):
                if error:
                    failed[task] = error
                    log.error("%s", error)
                else:
                    _log_record(task, record)
        _write_checksums(config, [entry.task for entry in entries if entry.task not in failed])
        table = summary.write(out)
    if table is not None and not config.quiet:
        print(summary.as_text(table))
    if failed:
        reasons = "".join(f"\n  {error}" for error in dict.fromkeys(failed.values()))
        raise UserError(f"{len(failed)} of {len(entries)} tasks were not built ({' '.join(failed)}):{reasons}")


def _available(config: BuildConfig) -> list[Entry]:
    """The selected entries; from files and without --tasks, those that the folder has."""
    entries = selected(config.tasks)
    if not config.from_dir:
        return entries
    folder = Path(config.from_dir)
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder} (--from_dir)")
    found = [entry for entry in entries if task_folder(entry, folder)]
    if config.tasks:
        return entries
    if not found:
        raise UserError(
            f"{folder} has no folder that is named after a task or its data set, e.g. boolq or google/boolq"
        )
    rest = [entry.task for entry in entries if entry not in found]
    if rest:
        log.info("not in %s: %s", folder, " ".join(rest))
    return found


def _build_one(entry: Entry, settings: Settings, config: BuildConfig, seen_rows=lambda _: None) -> dict:
    source = Source(entry, Path(config.from_dir) if config.from_dir else None, config.one_split)
    return build_task(source, settings, Path(config.out), seen_rows)


def _build_all(entries: list[Entry], settings: Settings, config: BuildConfig) -> Iterator[tuple[str, dict | None, str]]:
    """Build the tasks in `jobs` processes; one that fails does not stop the rest. Yields task, record and error."""
    bar = tqdm(total=len(entries), unit="task", disable=config.quiet)
    if config.jobs == 1:
        for entry in entries:
            read = 0

            def seen_rows(more: int, task: str = entry.task) -> None:
                nonlocal read
                read += more
                bar.set_postfix_str(f"{task}: {read:,} rows", refresh=False)
                bar.update(0)  # draws it, at most ten times a second

            yield entry.task, *_outcome(entry.task, lambda e=entry, s=seen_rows: _build_one(e, settings, config, s))
            bar.update()
        bar.close()
        return
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(config.jobs, context, max_tasks_per_child=1) as pool:
        # by name: the entries' functions cannot travel to another process
        futures = {pool.submit(_build_named, entry.task, settings, config): entry.task for entry in entries}
        for future in concurrent.futures.as_completed(futures):
            bar.set_postfix_str(futures[future])
            bar.update()
            yield futures[future], *_outcome(futures[future], future.result)
    bar.close()


def _build_named(task: str, settings: Settings, config: BuildConfig) -> dict:
    return _build_one(selected([task])[0], settings, config)


def _outcome(task: str, build: Callable[[], dict]) -> tuple[dict | None, str]:
    try:
        return build(), ""
    except UserError as error:
        return None, str(error)
    except Exception as error:  # a broken file or connection of one task: the rest is built
        return None, f"task {task!r}: {type(error).__name__}: {error}"


def _log_record(task: str, record: dict) -> None:
    if record.get("skipped"):
        log.info("%s: already built with these settings", task)
        return
    log.info("%s: %s", task, ", ".join(f"{value} {name}" for name, value in record["counts"].items() if value))
    if record["settings"]["full"] and f"{task}_full_train.tsv" not in record["files"]:
        log.warning("%s: no line is left for the full train file", task)
    for label, lines in record["short"].items():
        log.warning("%s: only %d lines%s to draw from", task, lines, f" of {label!r}" if label else "")


# ---- checksums


def _write_checksums(config: BuildConfig, tasks: list[str]) -> None:
    """Put the checksums of these tasks into the file, beside those of others."""
    if not tasks:
        return
    known = within(read_json(config.checksum_file()), "files") or {}
    files = {name: value for name, value in known.items() if name.split("/")[0] not in tasks}
    for task in tasks:
        record = read_built(Path(config.out) / task)
        files |= {f"{task}/{name}": about["sha256"] for name, about in record["files"].items()}
    write_json(config.checksum_file(), {"folder": config.out, "files": dict(sorted(files.items()))})


def verify(config: BuildConfig) -> None:
    """Compare the files with their checksums. Raises UserError naming each file that is missing or differs."""
    checksums = within(read_json(config.checksum_file()), "files")
    if checksums is None:
        raise UserError(f"there are no checksums in {config.checksum_file()}; build first")
    wanted = {entry.task for entry in selected(config.tasks)}
    faults, compared = [], 0
    for name, expected in checksums.items():
        if name.split("/")[0] not in wanted:
            continue
        path = Path(config.out) / name
        compared += 1
        if not path.is_file():
            faults.append(f"{path} is missing")
        elif _sha256(path) != expected:
            faults.append(f"{path} differs")
    if faults or not compared:
        listed = "".join(f"\n  {fault}" for fault in faults)
        raise UserError(f"{len(faults)} of {compared} files are not as {config.checksum_file()} says{listed}")
    print(f"{compared} files in {config.out} are as {config.checksum_file()} says")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
