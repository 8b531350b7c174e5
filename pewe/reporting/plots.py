"""Pictures: heat maps of matrices with sources across, bars and lines."""

import functools
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd

from pewe.files import replacing


@functools.cache
def drawing() -> tuple[ModuleType, ModuleType]:
    """matplotlib.pyplot and seaborn, which take a second to load: only where something is drawn, and into files."""
    import matplotlib.pyplot as plt
    import seaborn as sns

    plt.switch_backend("Agg")
    plt.rcParams["text.parse_math"] = False  # a name with two dollars is no formula
    return plt, sns


def heat_map(
    frame: pd.DataFrame,
    path: Path,
    title: str,
    side: pd.Series | None = None,
    side_title: str = "",
    percentiles: tuple[float, float] = (0, 100),
    down: str = "target",
) -> None:
    """Draw a matrix, index down and sources (columns) across, the scale shown; the colour range spans the percentiles.

    `side` is one number per row, written to the right under `side_title`; `down` says what the rows are.
    """
    rows, columns = frame.shape
    plt, sns = drawing()
    figure, axes = plt.subplots(figsize=(4.2 + 0.32 * columns + (0.9 if side is not None else 0), 2.6 + 0.27 * rows))
    finite = frame.to_numpy(dtype=float)
    low, high = np.nanpercentile(finite, percentiles)
    extend = "max" if percentiles[1] < 100 and np.nanmax(finite) > high else "neither"
    colour_bar = {"shrink": 0.7, "extend": extend, "pad": 0.03 if side is None else 0.12}
    sns.heatmap(
        frame.astype(float),
        ax=axes,
        cmap="viridis",
        vmin=low,
        vmax=high,
        square=True,
        linewidths=0.3,
        xticklabels=True,
        yticklabels=True,
        cbar_kws=colour_bar,
    )
    axes.set(title=title, xlabel="source", ylabel=down)
    axes.tick_params(axis="x", rotation=90)
    axes.tick_params(axis="y", rotation=0)
    if side is not None:
        axes.text(columns + 0.3, -0.4, side_title, fontsize=8, va="bottom")
        for row, value in enumerate(side):
            axes.text(columns + 0.3, row + 0.5, f"{value:.1f}", fontsize=8, va="center")
    save(figure, path)


def bars(values: pd.Series, path: Path, title: str, unit: str) -> None:
    """Draw one horizontal bar per entry, in the order given, first on top."""
    plt, sns = drawing()
    figure, axes = plt.subplots(figsize=(6, 1.4 + 0.25 * len(values)))
    axes.barh(values.index, values, color=plt.get_cmap("viridis")(0.35))
    axes.invert_yaxis()
    axes.set(title=title, xlabel=unit)
    sns.despine(ax=axes)
    save(figure, path)


def grouped_bars(values: pd.DataFrame, errors: pd.DataFrame, path: Path, title: str, chance: float) -> None:
    """Draw one group of bars per row and one bar per column, with error bars and a dashed line at chance."""
    plt, sns = drawing()
    figure, axes = plt.subplots(figsize=(1.6 + 1.3 * len(values), 3.4))
    colours = sns.color_palette("viridis", values.shape[1])
    values.plot.bar(ax=axes, yerr=errors[values.columns], rot=15, width=0.75, capsize=2, color=colours)
    axes.axhline(chance, color="black", linestyle="--", linewidth=1, label="chance")
    axes.set(title=title, xlabel="", ylim=(0, None))
    axes.legend(title="")
    sns.despine(ax=axes)
    save(figure, path)


def lines(frame: pd.DataFrame, path: Path, title: str, across: str, up: str) -> None:
    """Draw one line per column over the index."""
    plt, sns = drawing()
    figure, axes = plt.subplots(figsize=(7, 4))
    for number, name in enumerate(frame.columns):
        axes.plot(
            frame.index, frame[name], label=name, color=plt.get_cmap("tab20")(number % 20), marker="o", markersize=3
        )
    axes.set(title=title, xlabel=across, ylabel=up)
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    sns.despine(ax=axes)
    save(figure, path)


def save(figure, path: Path) -> None:
    """Write a figure as PNG, atomically, and close it."""
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=75, bbox_inches="tight")
    drawing()[0].close(figure)
