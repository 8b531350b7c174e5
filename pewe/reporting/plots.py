"""Pictures: heat maps of matrices with sources across, bars and lines."""

import functools
import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd

from pewe.files import replacing
from task_list import GROUP_OF


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
    scale: str = "weight",
    higher: bool = True,
) -> None:
    """Draw a matrix, index down and sources (columns) across, with a line where the group of tasks changes.

    A brighter colour always means more: more weight, or more similar where `higher` says whether that is a higher number.
    The colour range spans the percentiles; `scale` says what its numbers are. `side` is one number per row, written to the
    right under `side_title`; `down` says what the rows are.
    """
    rows, columns = frame.shape
    plt, sns = drawing()
    figure, axes = plt.subplots(figsize=(4.2 + 0.32 * columns + (0.9 if side is not None else 0), 2.6 + 0.27 * rows))
    finite = frame.to_numpy(dtype=float)
    low, high = np.nanpercentile(finite, percentiles)
    beyond = np.nanmin(finite) < low, np.nanmax(finite) > high
    extend = {(False, False): "neither", (True, False): "min", (False, True): "max"}.get(beyond, "both")
    colour_bar = {"shrink": 0.7, "extend": extend, "pad": 0.03 if side is None else 0.12, "label": scale}
    sns.heatmap(
        frame.astype(float),
        ax=axes,
        cmap="viridis" if higher else "viridis_r",
        vmin=low,
        vmax=high,
        square=True,
        xticklabels=True,
        yticklabels=True,
        cbar_kws=colour_bar,
    )
    if not higher:
        axes.collections[0].colorbar.ax.invert_yaxis()  # bright is above, as everywhere
    for place in separators(frame.index):
        axes.axhline(place, color="white", linewidth=3)
    for place in separators(frame.columns):
        axes.axvline(place, color="white", linewidth=3)
    axes.set(title=title, xlabel="source", ylabel=down)
    axes.tick_params(axis="x", rotation=90)
    axes.tick_params(axis="y", rotation=0)
    if side is not None:
        axes.text(columns + 0.3, -0.4, side_title, fontsize=8, va="bottom")
        for row, value in enumerate(side):
            axes.text(columns + 0.3, row + 0.5, f"{value:.1f}", fontsize=8, va="center")
    save(figure, path)


def separators(tasks: Iterable[str]) -> list[int]:
    """Where the group of neighbouring tasks changes; nowhere beside what is no task."""
    groups = [GROUP_OF.get(task, "") for task in tasks]
    return [place for place, (a, b) in enumerate(itertools.pairwise(groups), start=1) if a and b and a != b]


def bars(values: pd.Series, path: Path, title: str, unit: str) -> None:
    """Draw one horizontal bar per entry, in the order given, first on top."""
    plt, sns = drawing()
    figure, axes = plt.subplots(figsize=(6, 1.4 + 0.25 * len(values)))
    axes.barh(values.index, values, color=plt.get_cmap("viridis")(0.35))
    axes.invert_yaxis()
    axes.set(title=title, xlabel=unit)
    sns.despine(ax=axes)
    save(figure, path)


def score_bars(
    means: pd.Series,
    deviations: pd.Series,
    path: Path,
    title: str,
    marked: Sequence[str],
    goal: float | None,
    name: str,
) -> None:
    """Draw one horizontal bar per row, first on top, with its deviation; the `marked` rows in grey, the `goal` as a line."""
    plt, sns = drawing()
    figure, axes = plt.subplots(figsize=(5, 1.1 + 0.27 * len(means)))
    colours = ["0.65" if row in marked else plt.get_cmap("viridis")(0.35) for row in means.index]
    error = {"ecolor": "black", "capsize": 2, "elinewidth": 1}
    axes.barh(means.index, means, xerr=deviations.fillna(0.0), color=colours, error_kw=error)
    for place, (mean, deviation) in enumerate(zip(means, deviations.fillna(0.0), strict=True)):
        axes.text(mean + deviation, place, f" {mean:.3f}", va="center", fontsize=8)
    axes.set(title=title, xlim=(0, 1.17 * max([*(means + deviations.fillna(0.0)), goal or 0.0]) or 1.0))
    if goal is not None:
        axes.axvline(goal, color="black", linestyle="--", linewidth=1)
        axes.set_xlabel(f"mean test score; dashed: {name}, {goal:.3f}")
    else:
        axes.set_xlabel("mean test score")
    axes.invert_yaxis()
    sns.despine(ax=axes)
    save(figure, path, dpi=100)


def grouped_bars(values: pd.DataFrame, errors: pd.DataFrame, path: Path, title: str, chance: float) -> None:
    """Draw one group of bars per row and one bar per column, with error bars and a dashed line at chance."""
    plt, sns = drawing()
    figure, axes = plt.subplots(figsize=(1.6 + 1.3 * len(values), 3.4))
    colours = sns.color_palette("viridis", values.shape[1])
    values.plot.bar(ax=axes, yerr=errors[values.columns], rot=15, width=0.75, capsize=2, color=colours)
    axes.axhline(chance, color="black", linestyle="--", linewidth=1, label="chance")
    axes.set(title=title, xlabel="", ylim=(0, None))
    _legend_below(axes)
    sns.despine(ax=axes)
    save(figure, path)


def lines(frame: pd.DataFrame, path: Path, title: str, across: str, up: str, bands: pd.DataFrame | None = None) -> None:
    """Draw one line per column over the index; `bands` are half the widths of the bands around them."""
    plt, sns = drawing()
    figure, axes = plt.subplots(figsize=(6, 4))
    for number, name in enumerate(frame.columns):
        colour = plt.get_cmap("tab10" if frame.shape[1] <= 10 else "tab20")(number % 20)
        axes.plot(frame.index, frame[name], label=name, color=colour, marker="o", markersize=3)
        if bands is not None:
            low, high = frame[name] - bands[name], frame[name] + bands[name]
            axes.fill_between(frame.index, low, high, color=colour, alpha=0.15, linewidth=0)
    axes.set(title=title, xlabel=across, ylabel=up)
    _legend_below(axes)
    sns.despine(ax=axes)
    save(figure, path)


def _legend_below(axes) -> None:
    """A legend under the axis and what is written there, whatever its size."""
    axes.figure.canvas.draw()
    bottom = axes.get_tightbbox().transformed(axes.transAxes.inverted()).y0
    axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, bottom - 0.01), frameon=False, ncols=3)


def save(figure, path: Path, dpi: int = 75) -> None:
    """Write a figure as PNG, atomically, and close it."""
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=dpi, bbox_inches="tight")
    drawing()[0].close(figure)
