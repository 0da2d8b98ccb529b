"""What all figures have in common.

Colour and line style tell the boundary, the panel the schedule. With several seeds, each is a thin
line under their mean; dotted vertical lines are the boundaries between sessions; a cross is where a
run's loss stopped being finite. Colours are Okabe and Ito's, which the colour-blind can tell apart;
the line styles tell as much when printed in grey.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

from optstate import UNINTERRUPTED
from optstate.job import write_atomically

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
WORDS = {
    "new": "new optimizer", "preserve": "preserved optimizer", UNINTERRUPTED: "one session",
}  # fmt: skip
FADED = "#C8C8C8"
MARKS = "#555555"  # of lines and words that are no data
TITLE_PAD = 18  # points: leaves a line for the numbers of the sessions
SEED: Look = {"linewidth": 0.6, "alpha": 0.45}
MEAN: Look = {"linewidth": 1.8}
DIVERGED: Look = {"marker": "x", "markersize": 9, "markeredgewidth": 2.2}


def use() -> None:
    """Set what matplotlib is told once."""
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
            "svg.hashsalt": "optstate",  # the same figure, the same bytes
        }
    )


def look_of(boundary: str, boundaries: Iterable[str]) -> Look:
    """Colour and line style of a boundary: in name order for those that have none of their own."""
    others = sorted(set(boundaries) - LOOKS.keys())
    if boundary in LOOKS:
        return LOOKS[boundary]
    return OTHER_LOOKS[others.index(boundary) % len(OTHER_LOOKS)]


def words_of(boundary: str) -> str:
    """What a boundary is called in a legend."""
    return WORDS.get(boundary, boundary)


def draw_runs(axes: Axes, wide: pd.DataFrame, look: Look, label: str, **mean_look: Any) -> None:
    """Draw the runs of a method: each by itself if there are several, and the mean of them.

    Args:
        axes: to draw on.
        wide: a column for each seed, indexed by x. A run that is not finite throughout is drawn as
            far as it is, marked there, and left out of the mean.
        look: colour and line style.
        label: for the legend.
        mean_look: further properties of the mean.
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
        else:  # at its beginning, near the top of the axes
            where = axes.get_xaxis_transform()
            axes.plot(finite.index[:1], [0.95], color=look["color"], transform=where, **DIVERGED)
    mean = whole.mean(axis=1)
    axes.plot(mean.index, mean, label=label, **look, **MEAN, **mean_look)


def spread(number: int) -> np.ndarray:
    """Heights for the points of a row, apart from each other: (number,), within ±0.25."""
    return (np.arange(1, number + 1) / (number + 1) - 0.5) / 2


def set_log_scale(axes: Axes) -> None:
    """A logarithmic y axis with plain numbers: 1, 2, 3, 5 of each decade, or 1 of many."""
    if not np.isfinite(axes.dataLim.minposy):
        return  # nothing that could be drawn
    axes.set_yscale("log", nonpositive="mask")
    low, high = axes.get_ylim()
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5) if high / low < 100 else (1,)))
    narrow = high / low < 2  # ticks are no powers then, and may differ in many digits
    axes.yaxis.set_major_formatter(ScalarFormatter(useOffset=False) if narrow else "{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())


def mark_sessions(axes: Axes, points: pd.DataFrame, x: str = "x") -> None:
    """A dotted line at every boundary, and the numbers of the sessions above the axes."""
    interrupted = points[points["boundary"] != UNINTERRUPTED]
    ends = {
        int(str(session)): end for session, end in interrupted.groupby("session")[x].max().items()
    }
    for session, end in ends.items():
        start = ends.get(session - 1, 0)
        if session > 1:
            axes.axvline(start, color=MARKS, linestyle=":", linewidth=1)
        axes.text(
            (start + end) / 2, 1.0, f"session {session}", ha="center", va="bottom", fontsize=8,
            color=MARKS, transform=axes.get_xaxis_transform(),
        )  # fmt: skip


def add_legend(figure: Figure, boundaries: Iterable[str], *marks: Line2D) -> None:
    """One legend below everything: the boundaries, and what else needs to be said."""
    boundaries = sorted(boundaries, key=lambda b: (list(LOOKS).index(b) if b in LOOKS else 9, b))
    lines = [
        Line2D([], [], label=words_of(boundary), **look_of(boundary, boundaries), **MEAN)
        for boundary in boundaries
    ]
    handles = [*lines, *marks]
    figure.legend(
        handles=handles, loc="outside lower center", ncols=min(len(handles), 4), handlelength=3.5
    )


def marks_for(num_seeds: int, has_boundaries: bool, diverged: bool) -> list[Line2D]:
    """The entries of a legend that explain what is not a boundary's look."""
    marks = []
    if num_seeds > 1:
        marks.append(Line2D([], [], color=MARKS, label="thin: a seed, thick: their mean", **SEED))
    if has_boundaries:
        marks.append(Line2D([], [], color=MARKS, linestyle=":", label="between two sessions"))
    if diverged:
        mark = Line2D([], [], color=MARKS, linestyle="", label="diverged", **DIVERGED)
        marks.append(mark)
    return marks


def save(figure: Figure, path: Path) -> None:
    """Write ``path`` as PNG and SVG, without a date in them."""
    for suffix, metadata in ((".png", {"Software": None}), (".svg", {"Date": None})):
        with write_atomically(path.with_name(path.name + suffix)) as temporary:
            figure.savefig(temporary, format=suffix[1:], metadata=metadata)
    plt.close(figure)
