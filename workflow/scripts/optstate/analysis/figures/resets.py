"""Draw the cost of losing the optimizer's state over the number of losses, for one data set."""

import argparse
import itertools
import json
import textwrap

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from optstate.analysis import tables
from optstate.analysis.compare import stack_measures
from optstate.analysis.figures import style
from optstate.analysis.statistics import estimate_difference
from optstate.checksums import write_checksums
from optstate.job import run

Losses = dict[str, list[int]]  # the sessions before which each boundary loses the state

SLOT = 0.95  # inches; the width of a boundary's label
GAP = 0.4  # slots between boundaries with different numbers of losses
MAX_SLOTS = 12  # of an x axis to scale
MAX_NAMED = 5  # sessions in a label; of more, the first two and the last are named
NAME_WIDTH = 15  # characters in a line of a label
LINE_HEIGHT = 11  # points, of a label
TREND: style.Look = {"color": style.NEUTRAL, "linewidth": 1.2, "zorder": 1.6}  # above the grid


def main(arguments: argparse.Namespace) -> None:
    """Write ``resets`` to ``--output``."""
    inputs = [arguments.tables / f"{name}.csv" for name in ("summary", "boundaries")]
    summary, boundaries = map(tables.read_verified, inputs)
    rows = stack_measures(summary, boundaries)
    rows = rows[(rows["dataset"] == arguments.dataset) & (rows["measure"] == arguments.measure)]
    values = rows.rename(columns={"value": arguments.measure})
    figure = draw_resets(values, json.loads(arguments.losses), arguments.measure)
    output = arguments.output / "resets"
    write_checksums(output.with_suffix(".sha256"), style.save(figure, output), inputs)


def draw_resets(summary: pd.DataFrame, losses: Losses, column: str) -> Figure:
    """Draw a row for each schedule: the differences to the boundary that never loses the state.

    Args:
        summary: a row for each run of one data set.
        losses: the boundaries to draw, exactly one of them without a loss.
        column: the measure to draw, a column of ``summary``.
    """
    kept = find_kept(losses)
    measure = tables.get_measure(column)
    differences = subtract_kept(summary, losses, column)
    differences["difference"] *= 100 if measure.is_top1 else 1
    schedules = differences["schedule"].unique()
    boundaries = {*losses, *summary["boundary"]}
    positions = place_boundaries(losses)
    figure, grid = style.make_grid(len(schedules), 1, 2.8, sharex=True, sharey=True)
    width = SLOT * (max(positions.values()) - min(positions.values()) + 1)
    figure.set_size_inches(max(1 + width, 6), 1.3 + 2.8 * len(schedules))
    for axes, schedule in zip(grid[:, 0], schedules, strict=True):
        draw_schedule(axes, differences[differences["schedule"] == schedule], losses, boundaries)
        style.set_panel_title(axes, schedule)
        if not np.isfinite(differences["difference"]).all():
            axes.margins(y=0.25)  # for the numbers of diverged runs
    label_boundaries(grid[-1, 0], losses)
    label = style.label_difference(column, 2.8 * len(schedules))
    figure.supylabel(label, fontsize=plt.rcParams["font.size"], multialignment="center")
    arrow = "↓" if measure.better == "higher" else "↑"
    style.set_figure_title(figure, f"{summary['dataset'].iloc[0]}: {arrow} {kept} better")
    has_intervals = len(differences["seed"].unique()) > 1
    trend = Line2D([], [], label="average of the means", **TREND)
    handles = [*style.make_pair_handles(has_intervals), trend]
    style.place_legend(figure, handles)
    return figure


def find_kept(losses: Losses) -> str:
    """Return the boundary that never loses the state."""
    return next(boundary for boundary, sessions in losses.items() if not sessions)


def subtract_kept(summary: pd.DataFrame, losses: Losses, column: str) -> pd.DataFrame:
    """Subtract the value of the run that never loses the state from each run's value.

    Returns:
        A row for each pair of runs: schedule, boundary, seed, difference. A schedule without
        another run has no row.
    """
    names = ["schedule", "boundary", "seed"]
    runs = summary.loc[summary["boundary"].isin(losses), [*names, column]]
    kept = runs[runs["boundary"] == find_kept(losses)].drop(columns="boundary")
    pairs = runs.merge(kept, on=["schedule", "seed"], suffixes=("", "_kept"))
    pairs = pairs[pairs.groupby("schedule")["boundary"].transform("nunique") > 1]
    with np.errstate(invalid="ignore"):  # both may be infinite
        return pairs[names].assign(difference=pairs[column] - pairs[f"{column}_kept"])


def group_boundaries(losses: Losses) -> dict[int, list[str]]:
    """Return the boundaries with each number of losses, in the order of their losses."""
    ordered = sorted(losses, key=lambda boundary: (len(losses[boundary]), losses[boundary]))
    groups = itertools.groupby(ordered, key=lambda boundary: len(losses[boundary]))
    return {number: list(group) for number, group in groups}


def place_boundaries(losses: Losses) -> dict[str, float]:
    """Return the position of each boundary on the x axis, in slots.

    Boundaries with the same number of losses stand side by side. The distance between numbers is to
    scale, unless the axis would become too long.
    """
    groups = group_boundaries(losses)
    numbers, sizes = np.array(list(groups)), np.array([len(group) for group in groups.values()])
    needed = (sizes[1:] + sizes[:-1]) / 2 + GAP  # slots between the centres of neighbours
    centres = numbers * (needed / np.diff(numbers)).max()
    if centres[-1] > MAX_SLOTS:
        centres = np.cumsum([0, *needed])
    return {
        boundary: float(centre + index - (len(group) - 1) / 2)
        for centre, group in zip(centres, groups.values(), strict=True)
        for index, boundary in enumerate(group)
    }


def draw_schedule(
    axes: Axes, differences: pd.DataFrame, losses: Losses, boundaries: set[str]
) -> None:
    """Draw the boundaries of one schedule, and a line that connects their means.

    Where several boundaries have the same number of losses, the line passes through their average.

    Args:
        axes: the axes to draw on.
        differences: the rows of the schedule from :func:`subtract_kept`.
        losses: the boundaries of all schedules.
        boundaries: all boundaries of the experiment, which determine the colours.
    """
    positions = place_boundaries(losses)
    points = []
    for boundary, pairs in differences.groupby("boundary"):
        x, values = positions[str(boundary)], pairs["difference"].to_numpy()
        colour = style.get_look(str(boundary), boundaries)["color"]
        mean = draw_boundary(axes, x, values, colour, has_losses=bool(losses[str(boundary)]))
        points.append((len(losses[str(boundary)]), x, mean))
    trend = pd.DataFrame(points, columns=["number", "x", "mean"]).groupby("number").mean()
    axes.plot(trend["x"], trend["mean"], **TREND)
    axes.axhline(0, color=style.NEUTRAL, linewidth=0.8, zorder=1.6)
    axes.grid(visible=False, axis="x")
    axes.tick_params(axis="x", which="both", length=0)


def draw_boundary(axes: Axes, x: float, values: np.ndarray, colour: str, has_losses: bool) -> float:
    """Draw the differences ``values`` (n,), their mean and its t interval. Returns the mean.

    Without losses, all differences are 0, and only the mean is drawn.
    """
    finite = values[np.isfinite(values)]
    found = estimate_difference(finite)
    if has_losses:
        axes.plot(x + style.spread_points(len(values)), values, color=colour, **style.PAIR)
        axes.plot([x, x], [found.low, found.high], color=colour, **style.INTERVAL)
    axes.plot([x], [found.mean], color=colour, **style.PAIRS_MEAN)
    if has_losses and len(finite) < len(values):
        lost = f"{len(values) - len(finite)} of {len(values)}\ndiverged"
        where = axes.get_xaxis_transform()
        axes.text(x, 0.98, lost, ha="center", va="top", fontsize=8, transform=where)
    return found.mean


def label_boundaries(axes: Axes, losses: Losses) -> None:
    """Write the boundaries, and below them their numbers of losses, at the x axis."""
    positions = place_boundaries(losses)
    labels = [f"{wrap(boundary)}\n{describe_losses(losses[boundary])}" for boundary in positions]
    axes.set_xticks(list(positions.values()), labels, fontsize=8)
    groups = group_boundaries(losses)
    centres = [np.mean([positions[b] for b in group]) for group in groups.values()]
    axes.xaxis.remove_overlapping_locs = False  # a number may be exactly below a boundary
    axes.set_xticks(centres, list(map(str, groups)), minor=True, fontsize=11)
    num_lines = 1 + max(label.count("\n") for label in labels)
    axes.tick_params(axis="x", which="minor", pad=8 + LINE_HEIGHT * num_lines)
    axes.set_xlim(min(positions.values()) - 0.5, max(positions.values()) + 0.5)
    is_to_scale = np.ptp(np.diff(centres) / np.diff(list(groups))) < 1e-6
    axes.set_xlabel("number of losses of the state" + ("" if is_to_scale else " (not to scale)"))


def wrap(name: str) -> str:
    """Break a long name into lines."""
    return "\n".join(textwrap.wrap(name, NAME_WIDTH))


def describe_losses(sessions: list[int]) -> str:
    """Return when the state is lost, in words for a label."""
    if not sessions:
        return "never"
    first, last, number = sessions[0], sessions[-1], len(sessions)
    named = ", ".join(map(str, sessions))
    if number > 2 and last - first == number - 1:
        named = f"{first} to {last}"
    elif number > MAX_NAMED:
        named = f"{first}, {sessions[1]}, …, {last}"
    return f"before sessions\n{named}" if number > 1 else f"before\nsession {first}"


PARSER = style.make_parser(__doc__)
PARSER.add_argument("--dataset", required=True, help="data set to draw")
PARSER.add_argument("--measure", required=True, help="measure of the primary outcome")
PARSER.add_argument(
    "--losses", required=True, help="JSON: sessions before which each boundary loses the state"
)

if __name__ == "__main__":
    run(PARSER, main)
