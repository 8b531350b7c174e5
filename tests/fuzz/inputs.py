"""Malformed inputs of every command: one of the classes below for each, a table of them, exit code 1 unless all are well.

    python -m tests.fuzz.inputs --seed 1 --count 700 [--only 'data/.*'] [--failures FILE]

clean           refused with one line that names the input, exit code 2; earlier results are as they were
accepted_same   accepted, and the result is that of the sound input, or what the case says that it must be
traceback       Python's traceback
silent          accepted though another number comes of it; or something is written or run that must not be
hang            no end in time
unclear         refused without a name, with more than one line, with temporary files left or results lost; or refused though sound
"""

import argparse
import collections
import hashlib
import json
import random
import re
import shlex
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.fuzz import process
from tests.fuzz.case import BAD, GOOD, Box, Case, Variant, carry_out
from tests.fuzz.world import World


def variants() -> dict[str, Variant]:
    """Every kind of malformed input, "group/name"."""
    from tests.fuzz import checkpoints, flags, merging, models, records, suites, tables, texts

    groups = [module.GROUPS for module in (flags, texts, checkpoints, merging, models, records, tables, suites)]
    return {f"{group}/{name}": make for module in groups for group, own in module.items() for name, make in own.items()}


def cases(world: World, kinds: dict[str, Variant], seed: int) -> Iterator[tuple[str, Box, Case]]:
    """Distinct cases without end: all kinds in some order, again and again with other draws. A box is removed after its case."""
    seen: set[str] = set()
    for turn in range(1000):
        for name in random.Random(f"{seed}/{turn}").sample(list(kinds), len(kinds)):
            folder = world.folder / "work" / "case"
            shutil.rmtree(folder, ignore_errors=True)
            box = Box(world, folder, random.Random(f"{seed}/{name}/{turn}"))
            case = kinds[name](box)
            if (mark := signature(box, case)) not in seen:
                seen.add(mark)
                yield f"{name}#{turn}" if turn else name, box, case
            shutil.rmtree(folder, ignore_errors=True)


def signature(box: Box, case: Case) -> str:
    """What tells a case from another: its command and the content of its inputs."""
    digest = hashlib.sha256(repr((case.words, case.names, case.prepare and case.names)).encode())
    for path in sorted(box.folder.rglob("*")):
        digest.update(str(path.relative_to(box.folder)).encode())
        if path.is_file():
            digest.update(path.read_bytes()[: 2**22])
    return digest.hexdigest()


def judged(world: World, kinds: dict[str, Variant], args: argparse.Namespace) -> Iterator[dict]:
    """The records of `--count` cases of these kinds: name, class, remark, command."""
    chosen = {name: make for name, make in kinds.items() if re.search(args.only, name)}
    for number, (name, box, case) in enumerate(cases(world, chosen, args.seed)):
        if number == args.count:
            return
        outcome, kind, remark = carry_out(case, box)
        record = {
            "name": name,
            "class": kind,
            "remark": remark,
            "right": case.right,
            "seconds": round(outcome.seconds, 2),
        }
        yield record | {"command": shlex.join(case.words), "stderr": outcome.err[-3000:] if kind in BAD else ""}


def table(records: list[dict]) -> str:
    """Groups down, classes across."""
    counts = collections.Counter((record["name"].split("/")[0], record["class"]) for record in records)
    groups = sorted({group for group, _ in counts})
    lines = [["", *GOOD, *BAD]]
    lines += [[group, *(str(counts[group, kind] or "") for kind in (*GOOD, *BAD))] for group in groups]
    lines.append(["all", *(str(sum(counts[group, kind] for group in groups)) for kind in (*GOOD, *BAD))])
    return "\n".join(f"{line[0]:14}" + "".join(f"{cell:>15}" for cell in line[1:]) for line in lines)


def flags(description: str, count: int) -> argparse.ArgumentParser:
    """The flags that the drivers share."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=count)
    parser.add_argument("--only", default="", help="regular expression of names")
    parser.add_argument(
        "--world", default="", help="folder that keeps the sound inputs and clean results for the next time"
    )
    parser.add_argument("--failures", default="", help="JSON lines of all that is not well")
    parser.add_argument("--verbose", action="store_true", help="every case, not only those that are not well")
    return parser


def report(records: Iterator[dict], args: argparse.Namespace) -> int:
    """Print the records that are not well as they come, and the table; returns the exit code."""
    done = []
    for record in records:
        done.append(record)
        bad = record["class"] in BAD
        if bad or args.verbose:
            print(f"{record['class']:13} {record['name']:45} {record['remark'][:200]!r}", flush=True)
        if bad and args.failures:
            with Path(args.failures).open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
    print(f"{table(done)}\n{len(done)} cases, {sum(record['seconds'] for record in done):.0f} s in them")
    return int(any(record["class"] in BAD for record in done))


def drive(parser: argparse.ArgumentParser, records: Callable[[World, argparse.Namespace], Iterator[dict]]) -> int:
    """Read the command line, make the world, and report what the driver finds in it; returns the exit code."""
    args = parser.parse_args()
    process.preload()
    with tempfile.TemporaryDirectory() as temporary:
        return report(records(World(Path(args.world or temporary)), args), args)


if __name__ == "__main__":
    sys.exit(drive(flags(__doc__, 700), lambda world, args: judged(world, variants(), args)))
