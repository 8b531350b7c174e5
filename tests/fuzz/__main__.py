"""A short part of the drivers, for the suite: some sixty malformed inputs of most groups, and fifteen flips.

python -m tests.fuzz
"""

import argparse
import re
import sys
from collections.abc import Iterator

from tests.fuzz import flips, inputs
from tests.fuzz.world import World

EVERY = 9  # of the kinds one is taken
CHEAP = r"flags|tasks|places|data|domains|checkpoints|models|encoders|tables|suites|experiments"
CHEAP_FLIPS = r"run|result|resume|read"


def judged(world: World, args: argparse.Namespace) -> Iterator[dict]:
    """The records of the short part."""
    kinds = {name: make for name, make in inputs.variants().items() if re.match(CHEAP, name)}
    kinds = dict(list(kinds.items())[::EVERY])
    yield from inputs.judged(world, kinds, argparse.Namespace(only="", seed=args.seed, count=len(kinds)))
    yield from inputs.judged(world, flips.KINDS, argparse.Namespace(only=CHEAP_FLIPS, seed=args.seed, count=15))


if __name__ == "__main__":
    sys.exit(inputs.drive(inputs.flags(__doc__, 0), judged))
