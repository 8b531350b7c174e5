"""Write the table of all results, benchmarks/results/*.json, into benchmarks/README.md.

python -m benchmarks.table
"""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from benchmarks.measure import RESULTS
from pewe.cli import main
from pewe.errors import UserError
from pewe.files import read_json, write_text
from pewe.flags import flag
from pewe.reporting.tables import markdown
from pewe.texts import visible

START, END = "<!-- table: python -m benchmarks.table -->", "<!-- end of table -->"
FIRST = {"start": 3}  # lines of a result that has one for each command, the slowest first
SHOWN = ("case", "plain_s", "ours_s", "ratio", "turns")


@dataclass(frozen=True)
class Config:
    """Where the table goes."""

    readme: str = flag("benchmarks/README.md", "file with the two marks")


def lines() -> pd.DataFrame:
    """One line per case of every result; what only some cases have comes last."""
    rows = []
    for path in visible(RESULTS.glob("*.json")):
        for row in read_json(path)["rows"][: FIRST.get(path.stem)]:
            more = ", ".join(
                f"{key.removesuffix('_s').replace('_', ' ')} {value}" for key, value in row.items() if key not in SHOWN
            )
            rows.append([path.stem, *(row.get(key, "") for key in SHOWN), more])
    columns = ["result", "case", "plain (s)", "ours (s)", "plain / ours", "turns", "also"]
    return pd.DataFrame(rows, columns=columns).set_index("result")


def run(config: Config) -> None:
    """Replace what stands between the marks."""
    path = Path(config.readme)
    text = path.read_text(encoding="utf-8")
    if START not in text or END not in text:
        raise UserError(f"{path} must have the lines {START} and {END}")
    before, after = text.split(START)[0], text.split(END)[1]
    write_text(path, f"{before}{START}\n\n{markdown(lines(), 'result')}\n{END}{after}")


if __name__ == "__main__":
    main(run, Config, __doc__)
