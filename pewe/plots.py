"""Pictures: heat maps of matrices with targets down and sources across."""

from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import seaborn as sns

from pewe.results import replacing


def heat_map(frame: pd.DataFrame, path: Path, title: str, side: pd.Series | None = None, side_title: str = "",
             percentiles: tuple[float, float] = (0, 100)) -> None:  # fmt: skip
    """Draw a matrix, targets (index) down, sources (columns) across, the scale shown; the colour range spans the percentiles.

    `side` is one number per target, written to the right under `side_title`.
    """
    rows, columns = frame.shape
    figure, axes = plt.subplots(figsize=(4.2 + 0.32 * columns + (0.9 if side is not None else 0), 2.6 + 0.27 * rows))
    finite = frame.to_numpy(dtype=float)
    low, high = np.nanpercentile(finite, percentiles)
    extend = "max" if percentiles[1] < 100 and np.nanmax(finite) > high else "neither"
    colour_bar = {"shrink": 0.7, "extend": extend, "pad": 0.03 if side is None else 0.12}
    sns.heatmap(frame.astype(float), ax=axes, cmap="viridis", vmin=low, vmax=high, square=True, linewidths=0.3,
                xticklabels=True, yticklabels=True, cbar_kws=colour_bar)  # fmt: skip
    axes.set(title=title, xlabel="source", ylabel="target")
    axes.tick_params(axis="x", rotation=90)
    axes.tick_params(axis="y", rotation=0)
    if side is not None:
        axes.text(columns + 0.3, -0.4, side_title, fontsize=8, va="bottom")
        for row, value in enumerate(side):
            axes.text(columns + 0.3, row + 0.5, f"{value:.1f}", fontsize=8, va="center")
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120, bbox_inches="tight")
    plt.close(figure)
