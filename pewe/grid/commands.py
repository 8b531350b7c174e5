"""Commands without cells of their own as steps carry them out: what they make, and what that has cost."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from pewe.files import read_record
from pewe.grid.step import Made
from pewe.merging import collect_deltas
from pewe.merging.save import RECORD
from pewe.merging.store import read_tensors
from pewe.meter import Work, metered
from pewe.similarity.matrix import spent_on
from pewe.similarity.table import RESULT


def at_once(
    command: Callable, files_of: Callable[[object], list[Path]], work_of: Callable[..., Work] | None = None
) -> Callable[..., Made]:
    """A command without cells of its own, as a step carries it out; `files_of` its configuration are what it made.

    `work_of` its configuration and this call's work is what these have cost, where a call finds some of them there.
    """

    def carry_out(config, finished, again=True) -> Made:
        with metered() as spent:
            command(config)
        return Made(files_of(config), work=work_of(config, spent) if work_of else spent)

    return carry_out


def work_of_matrix(config, spent: Work) -> Work:
    """What the rows of a similarity have cost, in whatever calls."""
    return spent_on(Path(config.output_dir))


def work_of_statistics(config, spent: Work) -> Work:
    """The lines that the statistics are of, in whatever calls; the seconds of this one."""
    return replace(spent, lines=sum(read_tensors(path).info["examples"] for path in statistics_of(config)))


def matrix_of(config) -> list[Path]:
    """The table of a similarity, and its record."""
    return [Path(config.output_dir) / name for name in (RESULT, RECORD)]


def ensembles_of(config) -> list[Path]:
    """The files of an ensemble, and its record."""
    folder = Path(config.save_ckpt_path)
    return [folder / name for name in (RECORD, *read_record(folder / RECORD)["files"])]


def statistics_of(config) -> list[Path]:
    """The statistics of the sources, which lie beside their checkpoints."""
    return [collect_deltas.statistics_file(Path(config.source_ckpt_path), task) for task in config.tasks]
