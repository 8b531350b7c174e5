"""A similarity table as it is stored, and as a matrix."""

import numpy as np
import pandas as pd

from pewe.errors import UserError

COLUMNS = ["target", "source", "scope", "value"]  # of a similarity table
RESULT = "result.tsv"  # its name in the folder of a measure


def similarity_frame(table: pd.DataFrame, where: str = "the similarity table") -> pd.DataFrame:
    """Rows (target, source, value) of one scope as a matrix, targets down and sources across, in order of appearance.

    Raises UserError where a pair stands twice, is missing (other than target = source), or is not finite.
    """
    pairs = table[["target", "source"]]
    if pairs.duplicated().any():
        target, source = pairs[pairs.duplicated()].iloc[0]
        raise UserError(f"{where}: the pair target {target!r}, source {source!r} stands twice")
    frame = table.pivot(index="target", columns="source", values="value")
    frame = frame.loc[pd.unique(table["target"]), pd.unique(table["source"])].astype(float)
    frame.columns.name = frame.index.name = None
    bad = ~np.isfinite(frame.to_numpy())
    for i, j in zip(*np.nonzero(bad), strict=True):
        if frame.index[i] != frame.columns[j]:
            problem = "is missing" if np.isnan(frame.iat[i, j]) else f"is {frame.iat[i, j]}"
            raise UserError(f"{where}: the value of target {frame.index[i]!r}, source {frame.columns[j]!r} {problem}")
    return frame
