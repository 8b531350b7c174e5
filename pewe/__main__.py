"""One command for everything: `pewe COMMAND [WHAT] [FLAGS]`, the same programs as the bash scripts call.

No program is imported before it is asked for.
"""

import ctypes
import os
import runpy
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from pewe.errors import UserError, one_line
from pewe.flags import suggest

# of glibc's mallopt
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4


@dataclass(frozen=True)
class Command:
    """What it does, and its programs: WHAT -> (module, flags that go before those of the user)."""

    about: str
    programs: Callable[[], Mapping[str, tuple[str, Sequence[str]]]]
    default: str = ""  # WHAT, where none is given


def _plain(**modules: str) -> Callable[[], Mapping[str, tuple[str, Sequence[str]]]]:
    return lambda: {name: (module, ()) for name, module in modules.items()}


def _measures() -> dict[str, tuple[str, Sequence[str]]]:
    from get_similarity import MEASURES

    return {name: (f"get_similarity.{script}", ()) for name, script in MEASURES.scripts.items()}


def _ensembles() -> dict[str, tuple[str, Sequence[str]]]:
    from unit_model import ENSEMBLES

    return {
        name: (f"unit_model.{one.script}", [*_similarity_of(one), *_as_flags(one.flags)])
        for name, one in ENSEMBLES.items()
    }


def _similarity_of(ensemble) -> list[str]:
    folder = f"checkpoints/adapter/similarity/{ensemble.measure}"
    return ["--origin_data_path", folder] if ensemble.measure else []


def _as_flags(flags: Mapping) -> list[str]:
    return [
        word
        for name, value in flags.items()
        for word in ([f"--{name}"] if value is True else [f"--{name}", str(value)])
    ]


COMMANDS = {
    "tune": Command(
        "tune deltas on tasks; pairs: every source on every target; zero_shot: score these pairs only",
        _plain(tasks="tune_hps_singletask", pairs="tune_all_ckpt", zero_shot="dev_all_ckpt"),
        "tasks",
    ),
    "similarity": Command("how near the sources are to the targets, by a measure", _measures),
    "ensemble": Command("the weights of an init, and the merged deltas to start from", _ensembles),
    "rank": Command(
        "rank my sources for my target, and merge them to start from", _plain(sources="rank_sources"), "sources"
    ),
    "reproduce": Command(
        "the whole experiment of a suite, with its tables and report", _plain(suite="pewe.grid"), "suite"
    ),
    "fuse": Command(
        "merge whole models; collect: the statistics of one; experiment: train, merge and score a zoo of them",
        _plain(models="pewe.fusion", collect="pewe.merging.collect", experiment="pewe.fusion.experiment"),
        "models",
    ),
    "data": Command(
        "build tasks from public data sets, check a folder of tasks, sample it anew, unpack a backbone",
        _plain(
            build="data.build",
            check="data.build.check",
            resample="data.build.resample",
            backbone="data.build.backbone",
        ),
    ),
    "report": Command(
        "tables and figures of stored results",
        _plain(
            page="pewe.reporting.page",
            table="pewe.reporting.tables",
            gates="pewe.tuning.gates",
            contrasts="pewe.reporting.contrasts",
            gate="pewe.reporting.gate",
            unite="pewe.reporting.unite",
        ),
        "page",
    ),
    "convert": Command(
        "a checkpoint of the original code, or a LoRA of PEFT, becomes one of ours",
        _plain(one="pewe.deltas.convert"),
        "one",
    ),
    "export": Command(
        "a LoRA becomes a folder of PEFT, an adapter one of adapters, with a model card",
        _plain(one="pewe.deltas.export"),
        "one",
    ),
}


def usage() -> str:
    """What `pewe --help` prints."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {command.about}{_choices(command)}" for name, command in COMMANDS.items()]
    return "\n".join(
        ["usage: pewe COMMAND [WHAT] [FLAGS]", "", *lines, "", "pewe COMMAND [WHAT] --help shows the flags."]
    )


def _choices(command: Command) -> str:
    names = list(command.programs())
    return (
        ""
        if len(names) == 1
        else f"\n{' ' * 4}WHAT: {', '.join(names)}" + (f" (default: {command.default})" if command.default else "")
    )


def program(args: Sequence[str]) -> tuple[str, str, list[str]]:
    """(name, module, arguments) of what a command line asks for. Raises UserError for an unknown command or WHAT."""
    name, *rest = args
    if name not in COMMANDS:
        raise UserError(f"unknown command {suggest(name, COMMANDS)}")
    command = COMMANDS[name]
    programs = command.programs()
    if rest and not rest[0].startswith("-"):
        what, *rest = rest
    else:
        what = command.default
    if not what:
        raise UserError(f"pewe {name}: which one? Known: {', '.join(programs)}")
    if what not in programs:
        raise UserError(f"pewe {name}: unknown {suggest(what, programs)}")
    module, flags = programs[what]
    return f"pewe {name}" + (f" {what}" if len(programs) > 1 else ""), module, [*flags, *rest]


def settle() -> None:
    """What scripts/common.sh says of idle threads and freed memory, and why; before torch is loaded."""
    os.environ.setdefault("GOMP_SPINCOUNT", "5000")
    if hasattr(libc := ctypes.CDLL(None), "mallopt") and "MALLOC_MMAP_MAX_" not in os.environ:
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, 2**28)


def main(args: Sequence[str] | None = None) -> None:
    """Run a program in this process as if it had been called by itself."""
    args = sys.argv[1:] if args is None else list(args)
    with one_line():
        if not args or args[0] in ("-h", "--help"):
            return print(usage())
        if args[1:] in (["-h"], ["--help"]) and args[0] in COMMANDS and not COMMANDS[args[0]].default:
            command = COMMANDS[args[0]]
            return print(f"usage: pewe {args[0]} WHAT [FLAGS]\n\n{command.about}{_choices(command)}")
        name, module, rest = program(args)
        settle()
        before = sys.argv
        sys.argv = [name, *rest]
        try:
            runpy.run_module(module, run_name="__main__")
        finally:
            sys.argv = before


if __name__ == "__main__":
    main()
