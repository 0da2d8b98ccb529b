"""The style and the parts that all figures share.

Colour and line style show the boundary, and panels show the schedule. With several seeds, thin
lines show the seeds and a thick line shows their mean. Dotted vertical lines are the boundaries
between sessions. A cross marks where a run's values stop being finite. Colour-blind readers can
distinguish the first seven colours, which are those of Okabe and Ito, and the grey after them. The
line styles distinguish the boundaries in greyscale prints.
"""

import argparse
import functools
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, cast

import matplotlib

matplotlib.use("agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.gridspec import GridSpec
from matplotlib.lines import Line2D
from matplotlib.textpath import text_to_path
from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

from optstate import UNINTERRUPTED
from optstate.analysis import tables
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
    {"color": "#882255", "linestyle": (0, (5, 1, 1, 1, 1, 1))},
    {"color": "#999933", "linestyle": (0, (4, 1.5, 4, 4))},
    {"color": "#5D3A9B", "linestyle": (0, (1.5, 3))},
]
FADED = "#C8C8C8"
NEUTRAL = "#555555"  # colour of lines and text that are not data
MAX_LEGEND_COLUMNS = 4
LEGEND_TEXT = 3.6  # inches; longer labels are wrapped
PANEL_WIDTHS = {1: 5.0, 2: 4.5}  # inches, by the number of columns
NARROW_PANEL = 3.6  # inches, of three columns or more
AXIS_WIDTH = 0.75  # inches; the y axis, its labels and the space between panels
PANEL = 4.5  # inches; the width of a panel with rows
ROW_LABEL = 2.6  # inches; longer labels of rows are wrapped
LINE_HEIGHT = 0.18  # inches
NOTE_SIZE = 8
NOTE_LINE = 11  # points; the height of a line of a note
NOTE_GAP = 4  # points; the part of a title's letters below its baseline, which its pad leaves out
TITLE_PAD = 18  # points; leaves a line for the session numbers
SEED: Look = {"linewidth": 0.6, "alpha": 0.45}
MEAN: Look = {"linewidth": 1.8}
SEED_POINT: Look = {"marker": ".", "markersize": 2, "linestyle": "", "alpha": 0.45}
MEAN_POINT: Look = {"marker": ".", "linestyle": ""}
POINT_SIZES = 11, 5  # of the first and the last boundary that is drawn, so that equal points show
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
    width = 1 + num_columns * PANEL_WIDTHS.get(num_columns, NARROW_PANEL)
    size = (width, 0.5 + row_height * num_rows)
    return plt.subplots(
        num_rows, num_columns, figsize=size, layout="constrained", squeeze=False, **options
    )


def make_panels(labels: Sequence[Sequence[str]]) -> tuple[Figure, list[Axes]]:
    """Return a figure and its panels, one below the other, which share the x axis.

    Args:
        labels: for each panel, the labels of its rows, which are at y = 0, 1, ... from the bottom.
    """
    size = plt.rcParams["font.size"]
    wrapped = [[wrap(label, ROW_LABEL, size) for label in of_panel] for of_panel in labels]
    lines = [label.split("\n") for of_panel in wrapped for label in of_panel]
    row_height = LINE_HEIGHT * (max(map(len, lines), default=1) + 0.7)
    heights = [0.3 + row_height * len(of_panel) for of_panel in wrapped]
    widths = [measure_text(line, size) for of_label in lines for line in of_label]
    figure, grid = plt.subplots(
        len(labels), 1, height_ratios=heights, sharex=True, squeeze=False, layout="constrained"
    )
    figure.set_size_inches(
        PANEL + 0.5 + max(widths, default=0), 1 + sum(heights) + 0.5 * len(labels)
    )
    for axes, of_panel in zip(grid[:, 0], wrapped, strict=True):
        axes.set_yticks(range(len(of_panel)), of_panel)
        axes.set_ylim(-0.6, max(len(of_panel), 1) - 0.4)
    return figure, list(grid[:, 0])


def write_sentence(axes: Axes, sentence: str) -> None:
    """Write a sentence into the middle of empty axes."""
    axes.grid(visible=False)
    axes.text(0.5, 0.5, sentence, ha="center", va="center", color=NEUTRAL, transform=axes.transAxes)


def measure_panel(axes: Axes) -> float:
    """Return the approximate width of axes from :func:`make_grid`, in inches.

    The exact width is known only after the layout, which needs all texts.
    """
    figure = cast(Figure, axes.get_figure())
    num_columns = cast(GridSpec, axes.get_gridspec()).ncols
    return (figure.get_figwidth() - 1) / num_columns - AXIS_WIDTH


@functools.cache
def measure_text(text: str, size: float) -> float:
    """Return the width of a line of text in inches."""
    font = FontProperties(size=size)
    width, _, _ = text_to_path.get_text_width_height_descent(text, font, ismath=False)
    return width / 72


def wrap(text: str, width: float, size: float) -> str:
    """Break the lines of a text into lines of at most ``width`` inches, at spaces if possible."""
    return "\n".join(wrap_line(line, width, size) for line in text.split("\n"))


def wrap_line(text: str, width: float, size: float) -> str:
    """Break a line of text into lines of at most ``width`` inches."""
    if " · " in text and measure_text(text, size) > width:
        return wrap(text.replace(" · ", "\n"), width, size)
    lines = [text]
    num_characters = len(text)
    while num_characters and max(measure_text(line, size) for line in lines) > width:
        has_long_word = max(map(len, text.split())) > num_characters
        lines = textwrap.wrap(text, num_characters, break_on_hyphens=has_long_word)
        num_characters -= 1
    return "\n".join(lines)


def set_figure_title(figure: Figure, title: str) -> None:
    """Write a title at the top left of the figure."""
    figure.suptitle(wrap(title, figure.get_figwidth() - 0.3, 12), x=0.01, ha="left")


def label_difference(name: str, width: float) -> str:
    """Return the label of an axis of differences in a measure, in lines of ``width`` inches."""
    unit = " (points)" if tables.get_measure(name).is_top1 else ""
    text = f"difference in {tables.label_measure(name)}{unit}"
    return wrap(text, width, plt.rcParams["font.size"])


def set_panel_title(
    axes: Axes, title: str, note: str = "", width: float | None = None, pad: float = 6
) -> None:
    """Write a title at the top left of axes. At `` · `` it is broken first.

    Args:
        axes: the axes, from :func:`make_grid` if ``width`` is None.
        title: the title.
        note: lines to write in small letters below the title.
        width: available width in inches. None: that of the axes.
        pad: points to leave above the axes.
    """
    width = measure_panel(axes) if width is None else width
    if note:
        note = wrap(note, width, NOTE_SIZE)
        axes.annotate(
            note, (0, 1), (0, pad), "axes fraction", "offset points", va="bottom",
            fontsize=NOTE_SIZE, color=NEUTRAL,
        )  # fmt: skip
        pad += NOTE_LINE * (note.count("\n") + 1) + NOTE_GAP
    title = wrap(title, width, plt.rcParams["axes.titlesize"])
    axes.set_title(title, loc="left", pad=pad)


def get_look(boundary: str, boundaries: Iterable[str]) -> Look:
    """Return the colour and line style of a boundary, which depend on the other ``boundaries``."""
    if boundary in LOOKS:
        return LOOKS[boundary]
    others = sorted(set(boundaries) - LOOKS.keys())
    turn, index = divmod(others.index(boundary), len(OTHER_LOOKS))
    line = OTHER_LOOKS[(index + turn) % len(OTHER_LOOKS)]
    return OTHER_LOOKS[index] | {"linestyle": line["linestyle"]}


def sort_for_drawing(drawn: Iterable[str], boundaries: Iterable[str]) -> list[str]:
    """Sort ``drawn`` so that lines drawn first show through the gaps of equal lines drawn later.

    Args:
        drawn: the boundaries to sort.
        boundaries: all boundaries of the figure, which determine the looks.
    """

    def get_inked_part(boundary: str) -> float:
        line = get_look(boundary, boundaries)["linestyle"]
        return 1.0 if line == "-" else sum(line[1][::2]) / sum(line[1])

    return sorted(drawn, key=lambda boundary: (-get_inked_part(boundary), boundary))


def draw_runs(
    axes: Axes,
    wide: pd.DataFrame,
    look: Look,
    label: str,
    stretches: Sequence[np.ndarray] | None = None,
    **mean_look: Any,
) -> None:
    """Draw the runs of a method: their mean, and each of them if there are several.

    Args:
        axes: the axes to draw on.
        wide: values, with a column for each seed, indexed by x. A run with a value that is not
            finite is drawn up to the first such value, marked there, and left out of the mean.
        look: colour and line style.
        label: for the legend.
        stretches: indices of the rows to connect. A stretch of one row is drawn as a point.
            None: connect all rows.
        mean_look: further properties of the mean's line.
    """
    finite = wide.where(np.isfinite(wide))
    whole = finite.loc[:, finite.notna().all()]
    seeds, means = (look | SEED, look | SEED_POINT), (look | MEAN, look | MEAN_POINT)
    if wide.shape[1] > 1:
        draw_stretches(axes, finite, stretches, *seeds)
    for seed in finite.columns.difference(whole.columns):
        values = finite[seed]
        num_finite = int(np.argmin(np.isfinite(values)))
        draw_stretches(axes, values.where(np.arange(len(values)) < num_finite), stretches, *means)
        if num_finite:
            end = values.iloc[num_finite - 1 : num_finite]
            axes.plot(end.index, end, color=look["color"], **DIVERGED)
        else:  # no value is finite: mark the run's start near the top of the axes
            where = axes.get_xaxis_transform()
            axes.plot(finite.index[:1], [0.95], color=look["color"], transform=where, **DIVERGED)
    line, point = ({**properties, "label": label, **mean_look} for properties in means)
    draw_stretches(axes, whole.mean(axis=1), stretches, line, point)


def draw_stretches(
    axes: Axes,
    values: pd.Series | pd.DataFrame,
    stretches: Sequence[np.ndarray] | None,
    line: Look,
    point: Look,
) -> None:
    """Draw ``values`` over their index: a line for each stretch, points for stretches of one row.

    ``stretches`` are indices of the rows; None: connect all rows.
    """
    if stretches is None:
        stretches = [np.arange(len(values))]
    for stretch in stretches:
        if len(stretch) > 1:
            axes.plot(values.index[stretch], values.iloc[stretch], **line)
    points = [stretch[0] for stretch in stretches if len(stretch) == 1]
    if points:
        axes.plot(values.index[points], values.iloc[points], **point)


def describe_coinciding(drawn: dict[str, pd.DataFrame]) -> str:
    """Return which boundaries have equal values everywhere, a line for each group of them.

    Args:
        drawn: what is drawn of each boundary.
    """
    groups: list[list[str]] = []
    for boundary, values in drawn.items():
        group = next((group for group in groups if values.equals(drawn[group[0]])), None)
        groups.append([boundary]) if group is None else group.append(boundary)
    if len(drawn) > 2 and len(groups) == 1:
        return "all methods coincide"
    notes = [f"{join_names(group)} coincide" for group in groups if len(group) > 1]
    return "\n".join(sorted(notes))


def join_names(boundaries: Iterable[str]) -> str:
    """Return the names of boundaries as a list in prose, in alphabetical order."""
    *first, last = sorted(boundaries)
    return f"{', '.join(first)} and {last}" if first else last


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
    """Draw a dotted line at every boundary, and write each session's number above the axes.

    The axes are from :func:`make_grid`. Where the word *session* does not fit above every session,
    only the first number has it, and numbers without space are left out.
    """
    interrupted = points[points["boundary"] != UNINTERRUPTED]
    ends = {
        int(str(session)): end for session, end in interrupted.groupby("session")[x].max().items()
    }
    starts = {session: ends.get(session - 1, 0) for session in ends}
    inches = measure_panel(axes) / (1.1 * points[x].max())
    labels = {session: f"session {session}" for session in ends}
    widths = {s: measure_text(label, NOTE_SIZE) + 0.1 for s, label in labels.items()}
    if any(inches * (ends[s] - starts[s]) < widths[s] for s in ends):
        labels = {s: label if s == min(ends) else str(s) for s, label in labels.items()}
    left = -np.inf
    for session, label in labels.items():
        if session > 1:
            axes.axvline(starts[session], color=NEUTRAL, linestyle=":", linewidth=1)
        width = measure_text(label, NOTE_SIZE) / inches
        middle = max((starts[session] + ends[session]) / 2, width / 2)
        if middle - width / 2 < left:
            continue
        left = middle + width / 2 + 0.05 / inches
        axes.text(
            middle, 1.0, label, ha="center", va="bottom", fontsize=NOTE_SIZE, color=NEUTRAL,
            transform=axes.get_xaxis_transform(),
        )  # fmt: skip


def add_legend(figure: Figure, boundaries: Iterable[str], *marks: Artist) -> None:
    """Add one legend below all axes: the boundaries, then ``marks``."""
    boundaries = sorted(boundaries, key=lambda b: (list(LOOKS).index(b) if b in LOOKS else 9, b))
    lines = [
        Line2D([], [], label=boundary, **get_look(boundary, boundaries), **MEAN)
        for boundary in boundaries
    ]
    place_legend(figure, [*lines, *marks], handlelength=3.5)


def place_legend(figure: Figure, handles: Sequence[Artist], **options: Any) -> None:
    """Add a legend with as many columns as fit below all axes, and make the figure taller by it."""
    size = plt.rcParams["font.size"]
    labels = [wrap(str(handle.get_label()), LEGEND_TEXT, size) for handle in handles]
    for num_columns in range(min(len(handles), MAX_LEGEND_COLUMNS), 0, -1):
        legend = figure.legend(
            handles, labels, loc="outside lower center", ncols=num_columns, **options
        )
        extent = legend.get_window_extent()
        if num_columns == 1 or extent.width < figure.bbox.width:
            break
        legend.remove()
    figure.set_figheight(figure.get_figheight() + extent.height / figure.dpi)


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


def make_pair_handles(has_intervals: bool) -> list[Line2D]:
    """Return the legend entries for pairs of runs, and for their mean, possibly with intervals."""
    bar = INTERVAL | {"linestyle": "-"} if has_intervals else {}
    label = "mean, t interval" if has_intervals else "mean"
    return [
        Line2D([], [], color=NEUTRAL, label="a pair", **PAIR),
        Line2D([], [], color=NEUTRAL, label=label, **PAIRS_MEAN | {"markersize": 6} | bar),
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
