"""The style and the parts that all figures share.

Colour and line style show the boundary, and panels show the schedule. With several seeds, thin
lines show the seeds and a thick line shows their mean. Dotted vertical lines are the boundaries
between sessions. A cross marks where a run's values stop being finite. Colour-blind readers can
distinguish the colours, which are those of Okabe and Ito. The line styles distinguish the
boundaries in greyscale prints.
"""

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

from optstate import UNINTERRUPTED
from optstate.job import write_atomically

plt.rcParams.update(
    {
        "axes.grid": True,
        "axes.spines.right": False,
        "axes.spines.top": False,
        "axes.titlesize": 11,
        "figure.dpi": 150,
        "font.size": 10,
        "grid.color": "#E6E6E6",
        "legend.frameon": False,
        "svg.hashsalt": "optstate",  # makes the SVG files reproducible
    }
)

Look = dict[str, Any]

LOOKS: dict[str, Look] = {
    "preserve": {"color": "#0072B2", "linestyle": "-"},
    "new": {"color": "#D55E00", "linestyle": (0, (4, 2))},
    UNINTERRUPTED: {"color": "#000000", "linestyle": (0, (1, 1.5))},
}
OTHER_LOOKS: list[Look] = [
    {"color": "#009E73", "linestyle": (0, (6, 2, 1, 2))},
    {"color": "#CC79A7", "linestyle": (0, (8, 3))},
    {"color": "#E69F00", "linestyle": (0, (3, 2, 1, 2, 1, 2))},
    {"color": "#56B4E9", "linestyle": (0, (2, 1))},
    {"color": "#7F7F7F", "linestyle": (0, (10, 2, 2, 2))},
]
LABELS = {
    "new": "new optimizer", "preserve": "preserved optimizer", UNINTERRUPTED: "one session",
}  # fmt: skip
FADED = "#C8C8C8"
NEUTRAL = "#555555"  # colour of lines and text that are not data
LEGEND_COLUMN = 2.4  # inches
TITLE_PAD = 18  # points; leaves a line for the session numbers
SEED: Look = {"linewidth": 0.6, "alpha": 0.45}
MEAN: Look = {"linewidth": 1.8}
PAIR: Look = {"marker": "o", "markersize": 4, "linestyle": "", "alpha": 0.45}
INTERVAL: Look = {"linewidth": 3, "solid_capstyle": "butt"}
PAIRS_MEAN: Look = {"marker": "D", "markersize": 7, "linestyle": ""}
DIVERGED: Look = {"marker": "x", "markersize": 9, "markeredgewidth": 2.2}


def make_parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser of the options that all figures share."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--tables", type=Path, required=True, help="folder of the tables")
    parser.add_argument("--output", type=Path, required=True, help="folder of the figures")
    return parser


def make_grid(num_rows: int, num_columns: int, row_height: float, **options: Any) -> Any:
    """Return a figure and its axes (rows, columns). ``row_height`` is in inches."""
    size = (max(1 + 4.5 * num_columns, 6), 1 + row_height * num_rows)
    return plt.subplots(
        num_rows, num_columns, figsize=size, layout="constrained", squeeze=False, **options
    )


def get_look(boundary: str, boundaries: Iterable[str]) -> Look:
    """Return the colour and line style of a boundary, which depend on the other ``boundaries``."""
    if boundary in LOOKS:
        return LOOKS[boundary]
    others = sorted(set(boundaries) - LOOKS.keys())
    return OTHER_LOOKS[others.index(boundary) % len(OTHER_LOOKS)]


def get_label(boundary: str) -> str:
    """Return a boundary's name for a legend."""
    return LABELS.get(boundary, boundary)


def draw_runs(axes: Axes, wide: pd.DataFrame, look: Look, label: str, **mean_look: Any) -> None:
    """Draw the runs of a method: their mean, and each of them if there are several.

    Args:
        axes: the axes to draw on.
        wide: values, with a column for each seed, indexed by x. A run with a value that is not
            finite is drawn up to the first such value, marked there, and left out of the mean.
        look: colour and line style.
        label: for the legend.
        mean_look: further properties of the mean's line.
    """
    finite = wide.where(np.isfinite(wide))
    whole = finite.loc[:, finite.notna().all()]
    if wide.shape[1] > 1:
        axes.plot(finite.index, finite, **look, **SEED)
    for seed in finite.columns.difference(whole.columns):
        values = finite[seed].to_numpy()
        num_finite = int(np.argmin(np.isfinite(values)))
        axes.plot(finite.index[:num_finite], values[:num_finite], **look, **MEAN)
        if num_finite:
            end = slice(num_finite - 1, num_finite)
            axes.plot(finite.index[end], values[end], color=look["color"], **DIVERGED)
        else:  # no value is finite: mark the run's start near the top of the axes
            where = axes.get_xaxis_transform()
            axes.plot(finite.index[:1], [0.95], color=look["color"], transform=where, **DIVERGED)
    mean = whole.mean(axis=1)
    axes.plot(mean.index, mean, label=label, **look, **MEAN, **mean_look)


def spread_points(number: int) -> np.ndarray:
    """Return separate offsets (number,) for the points of a row or a column, within ±0.25."""
    return (np.arange(1, number + 1) / (number + 1) - 0.5) / 2


def set_log_scale(axes: Axes) -> None:
    """Make the y axis logarithmic, unless no value is positive.

    The ticks of each decade are 1, 2, 3 and 5, or only 1 if the axis spans two decades or more.
    """
    if not np.isfinite(axes.dataLim.minposy):
        return  # no value is positive
    axes.set_yscale("log", nonpositive="mask")
    low, high = axes.get_ylim()
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5) if high / low < 100 else (1,)))
    is_narrow = high / low < 2  # ticks may then need many digits
    axes.yaxis.set_major_formatter(ScalarFormatter(useOffset=False) if is_narrow else "{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())


def mark_sessions(axes: Axes, points: pd.DataFrame, x: str = "x") -> None:
    """Draw a dotted line at every boundary, and write each session's number above the axes."""
    interrupted = points[points["boundary"] != UNINTERRUPTED]
    ends = {
        int(str(session)): end for session, end in interrupted.groupby("session")[x].max().items()
    }
    for session, end in ends.items():
        start = ends.get(session - 1, 0)
        if session > 1:
            axes.axvline(start, color=NEUTRAL, linestyle=":", linewidth=1)
        axes.text(
            (start + end) / 2, 1.0, f"session {session}", ha="center", va="bottom", fontsize=8,
            color=NEUTRAL, transform=axes.get_xaxis_transform(),
        )  # fmt: skip


def add_legend(figure: Figure, boundaries: Iterable[str], *marks: Artist) -> None:
    """Add one legend below all axes: the boundaries, then ``marks``."""
    boundaries = sorted(boundaries, key=lambda b: (list(LOOKS).index(b) if b in LOOKS else 9, b))
    lines = [
        Line2D([], [], label=get_label(boundary), **get_look(boundary, boundaries), **MEAN)
        for boundary in boundaries
    ]
    handles = [*lines, *marks]
    ncols = min(len(handles), 4, int(figure.get_figwidth() / LEGEND_COLUMN))
    figure.legend(handles=handles, loc="outside lower center", ncols=ncols, handlelength=3.5)


def make_marks(num_seeds: int, has_boundaries: bool, has_diverged: bool) -> list[Line2D]:
    """Return the legend entries for seeds, for the lines between sessions, and for crosses."""
    marks = []
    if num_seeds > 1:
        marks.append(Line2D([], [], color=NEUTRAL, label="thin: a seed, thick: their mean", **SEED))
    if has_boundaries:
        marks.append(Line2D([], [], color=NEUTRAL, linestyle=":", label="boundary"))
    if has_diverged:
        mark = Line2D([], [], color=NEUTRAL, linestyle="", label="diverged", **DIVERGED)
        marks.append(mark)
    return marks


def make_pair_handles() -> list[Line2D]:
    """Return the legend entries for pairs of runs, and for their mean with its interval."""
    mean = PAIRS_MEAN | INTERVAL | {"linestyle": "-", "markersize": 6}
    return [
        Line2D([], [], color=NEUTRAL, label="a pair", **PAIR),
        Line2D([], [], color=NEUTRAL, label="mean, t interval", **mean),
    ]


def save(figure: Figure, path: Path) -> list[Path]:
    """Write the figure to ``path`` with .png and .svg appended, without a date, and close it.

    Returns:
        The paths of both files.
    """
    written = []
    for suffix, metadata in ((".png", {"Software": None}), (".svg", {"Date": None})):
        written.append(path.with_name(path.name + suffix))
        with write_atomically(written[-1]) as temporary:
            figure.savefig(temporary, format=suffix[1:], metadata=metadata)
    plt.close(figure)
    return written
