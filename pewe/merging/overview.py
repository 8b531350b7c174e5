"""The weights of an ensemble by block or layer, seen together."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from pewe.cli import log
from pewe.files import write_table
from pewe.reporting.plots import bars, heat_map


def save_overview(folder: Path, delta: str, weights: dict[str, pd.DataFrame], targets: Sequence[str]) -> None:
    """Draw the weights of each of these targets in every scope, and the importance of the scopes.

    The importance of a scope is the spread of its weights: their sample deviation over the sources other than the
    target (of one source 0), averaged over the targets. Equal weights everywhere have spread 0: the scope does not tell
    sources apart.
    """
    for target in targets:
        rows = pd.DataFrame({scope: frame.loc[target] for scope, frame in weights.items()}).T
        title = f"{delta}: weights for {target}"
        heat_map(rows, folder / f"overview_{target}.png", title, down="scope")
    spread = pd.Series({scope: _spread(frame) for scope, frame in weights.items()}, name="spread")
    write_table(folder / "importance.tsv", spread.rename_axis("scope").reset_index())
    bars(spread, folder / "importance.png", f"{delta}: importance", "spread of the weights (standard deviation)")
    log.info("%s: overview of %s, and the importance of %d scopes", folder, ", ".join(targets), len(spread))


def _spread(frame: pd.DataFrame) -> float:
    """Mean over targets of the sample deviation of the weights of the other tasks; of one other task 0."""
    spreads = [row.drop(target, errors="ignore").std(ddof=1) for target, row in frame.iterrows()]
    return float(np.nan_to_num(spreads).mean())
