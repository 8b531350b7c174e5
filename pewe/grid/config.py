"""The flags of the grid."""

from dataclasses import dataclass

from pewe.deltas.kinds import KINDS
from pewe.flags import flag, seed_flag
from pewe.model_files import DEVICES
from pewe.reporting.stored import INITS
from pewe.setting import LIMIT_TRAIN_ITERS
from unit_model import MODULES, PAPER, of_group


@dataclass(frozen=True)
class Config:
    """What part of which suite."""

    suite: str = flag("mini", "mini, qa32, all51, or a file like those in scripts/suites")
    delta: list[str] = flag([], "delta methods (default: all of the suite)", choices=KINDS, unique=True)
    init: list[str] = flag(
        ["Random", *of_group(PAPER)],
        f"rows of the table: {', '.join(INITS)} ({', '.join(of_group(MODULES))}: one row per block or layer; PEMT: delta pemt)",
        choices=INITS,
        unique=True,
    )
    seeds: list[int] = seed_flag([42, 43, 44], "seeds of init, data order and dropout")
    dry_run: bool = flag(False, "print the steps, what is done, and the estimated time; compute nothing")
    limit_train_iters: int = flag(
        LIMIT_TRAIN_ITERS, "at most so many updates in every run: a reduced experiment, kept apart", low=0
    )
    tasks: list[str] = flag([], "some tasks instead of the suite's", unique=True)
    name: str = flag("", "folder below checkpoints/ and results/ (default: the suite's name)", name=True)
    devices: str = flag("", "all, or a number: a worker on each, by Ray (default: one after the other, without Ray)")
    ray_address: str = flag("", "a Ray cluster that is there, e.g. auto or HOST:6379, instead of this machine alone")
    part: str = flag("", "I/N: the Ith of N parts of what can be done now, as N processes without Ray; no tables")
    wait: bool = flag(False, "where another process holds the experiment, wait for it instead of stopping")
    source_ckpt_path: str = flag(
        "",
        "sources of your own instead of tuned ones, which give the deltas their size: a list, or a folder; kept apart, NAME_own",
    )
    source_tasks: list[str] = flag(
        [],
        "names of these (default: all of a list; of a folder the tasks that it has, else all)",
        unique=True,
        name=True,
    )
    collect_from: list[str] = flag([], "folders checkpoints/NAME of elsewhere: take their finished runs that fit")
    device: str = flag("", "auto, cpu or cuda instead of the suite's", choices=DEVICES)
