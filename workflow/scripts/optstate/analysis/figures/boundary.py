"""Draw the train loss and the update norm of the steps around the boundaries of one data set."""

import argparse
import itertools
import math
from collections.abc import Iterable

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from optstate import UNINTERRUPTED
from optstate.analysis import tables
from optstate.analysis.figures import BOUNDARY, style
from optstate.checksums import write_checksums
from optstate.job import run

STEPS_BEFORE, STEPS_AFTER = 50, 200
MAX_COLUMNS = 3
MAX_BOUNDARIES = 6  # of more, the first and the last half of this number are drawn


def main(arguments: argparse.Namespace) -> None:
    """Write both figures to ``--output``."""
    table = arguments.tables / "steps.csv"
    of_dataset = tables.read_verified(table).query("dataset == @arguments.dataset")
    around = select_steps(of_dataset, arguments.first_boundary)
    written = []
    for name, (column, label) in BOUNDARY.items():
        figure = draw_boundaries(around, column, label, arguments.dataset)
        written += style.save(figure, arguments.output / name)
    write_checksums(arguments.output / "boundary.sha256", written, [table])


def select_steps(steps: pd.DataFrame, first_boundary: int) -> pd.DataFrame:
    """Select the steps around each boundary, or those around the first and the last ones.

    Args:
        steps: the rows of one data set.
        first_boundary: the first session that begins with a boundary.

    Returns:
        Rows of ``steps`` with two more columns: ``x``, which is 1 for the first step after the
        boundary, and ``next_session``, the session that begins with it.
    """
    steps = steps[steps["boundary"] != UNINTERRUPTED]
    parts = []
    sessions = list(range(first_boundary, int(steps["session"].max()) + 1))
    if len(sessions) > MAX_BOUNDARIES:
        half = MAX_BOUNDARIES // 2
        sessions = sessions[:half] + sessions[-half:]
    for session in sessions:
        x = steps["step"] - steps.loc[steps["session"] == session, "step"].min() + 1
        is_near = (x > -STEPS_BEFORE) & (x <= STEPS_AFTER)
        is_near &= (steps["session"] - session).between(-1, 0)
        parts.append(steps[is_near].assign(x=x, next_session=session))
    return pd.concat(parts)


def draw_boundaries(around: pd.DataFrame, column: str, label: str, dataset: str) -> Figure:
    """Draw a panel for each schedule and boundary. The panels of a schedule may take several rows.

    Args:
        around: the result of :func:`select_steps`.
        column: the column to draw.
        label: the column's name in prose.
        dataset: the data set's name, for the title.
    """
    schedules = sorted(around["schedule"].unique())
    numbers = sorted(around["next_session"].unique())
    num_rows = math.ceil(len(numbers) / MAX_COLUMNS)  # of each schedule
    num_columns = math.ceil(len(numbers) / num_rows)
    figure, grid = style.make_grid(len(schedules) * num_rows, num_columns, 3.0, sharex=True)
    for panels, schedule in zip(grid.reshape(len(schedules), -1), schedules, strict=True):
        for axes, number in itertools.zip_longest(panels, numbers):
            if number is None:
                axes.remove()
                continue
            is_here = (around["schedule"] == schedule) & (around["next_session"] == number)
            drawn = draw_boundary(axes, around[is_here], column, around["boundary"].unique())
            before = f"session {number - 1}" if number > 1 else "given checkpoint"
            note = style.describe_coinciding(drawn)
            style.set_panel_title(
                axes, f"{schedule}: {before} to {'' if number > 1 else 'session '}{number}", note
            )
    for row in grid:
        row[0].set_ylabel(f"{label},\nlog scale")
    for axes in grid.T:
        lowest = [one for one in axes if one.figure][-1]
        lowest.set_xlabel("steps after the boundary")
        lowest.tick_params(labelbottom=True)
    style.set_figure_title(figure, f"{dataset}: {label} around the boundaries")
    has_diverged = not np.isfinite(around["loss"]).all()
    marks = style.make_marks(around["seed"].nunique(), True, has_diverged)
    style.add_legend(figure, around["boundary"].unique(), *marks)
    return figure


def draw_boundary(
    axes: Axes, around: pd.DataFrame, column: str, boundaries: Iterable[str]
) -> dict[str, pd.DataFrame]:
    """Draw the methods of one schedule around one boundary, all on the same axes.

    Args:
        axes: the axes to draw on.
        around: the rows of the schedule and boundary.
        column: the column to draw.
        boundaries: the boundaries of all schedules, which determine the looks.

    Returns:
        What was drawn of each boundary.
    """
    drawn = {}
    names = style.sort_for_drawing(around["boundary"].unique(), boundaries)
    for boundary, size in zip(names, np.linspace(*style.POINT_SIZES, len(names)), strict=True):
        of_method = around[around["boundary"] == boundary]
        if column == "update_norm":
            of_method = of_method[find_recorded(of_method)]
        wide = of_method.pivot(index="x", columns="seed", values=column)
        drawn[boundary] = wide
        look, label = style.get_look(boundary, boundaries), boundary
        stretches = split_steps(wide.index.to_numpy()) if column == "update_norm" else None
        style.draw_runs(axes, wide, look, label, stretches, markersize=size)
    axes.axvline(0.5, color=style.NEUTRAL, linestyle=":", linewidth=1)
    axes.update_datalim([(x, 1) for x in (around["x"].min(), around["x"].max())], updatey=False)
    style.set_log_scale(axes)
    return drawn


def find_recorded(steps: pd.DataFrame) -> pd.Series:
    """Return which steps of a method have norms, or no finite loss in any of its runs."""
    is_finite = pd.Series(np.isfinite(steps["loss"]), steps.index)
    has_finite = is_finite.groupby(steps["x"]).transform("any")
    return steps["grad_norm"].notna() | ~has_finite


def split_steps(x: np.ndarray) -> list[np.ndarray]:
    """Return the indices of ``x`` in stretches of consecutive steps that end at the boundary."""
    is_start = (np.diff(x) > 1) | (x[1:] == 1)
    return np.split(np.arange(len(x)), np.flatnonzero(is_start) + 1)


PARSER = style.make_parser(__doc__)
PARSER.add_argument("--dataset", required=True, help="data set to draw")
PARSER.add_argument(
    "--first-boundary", type=int, default=2, help="first session that begins with a boundary"
)

if __name__ == "__main__":
    run(PARSER, main)
