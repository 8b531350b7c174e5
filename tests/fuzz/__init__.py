"""Malformed inputs, flipped bytes and killed processes: drivers that a maintainer runs by hand, a short part in the suite.

    python -m tests.fuzz.inputs --count 700     malformed inputs of every command (--seed N: others)
    python -m tests.fuzz.flips --count 200      one byte changed in a stored file, then the same command again
    python -m tests.fuzz.kills --kills 100      SIGKILL at random moments, other settings in between, two at once

    python -m tests.fuzz                        a short part of the first two, as the suite runs it

Each prints a table, writes what failed to a JSONL file (--failures) with the exact command, and exits with 1 unless all is well.
"""
