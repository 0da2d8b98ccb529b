"""Draw the train loss and the update norm of the steps around the boundaries of one data set."""

import argparse

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


def main(arguments: argparse.Namespace) -> None:
    """Write both figures to ``--output``."""
    steps = tables.read_verified(arguments.tables / "steps.csv")
    of_dataset = steps.query("dataset == @arguments.dataset")
    around = select_steps(of_dataset, arguments.first_boundary)
    written = []
    for name, (column, label) in BOUNDARY.items():
        figure = draw_boundaries(around, column, label, arguments.dataset)
        written += style.save(figure, arguments.output / name)
    write_checksums(arguments.output / "boundary.sha256", written)


def select_steps(steps: pd.DataFrame, first_boundary: int) -> pd.DataFrame:
    """Select the steps around each boundary.

    Args:
        steps: the rows of one data set.
        first_boundary: the first session that begins with a boundary.

    Returns:
        Rows of ``steps`` with two more columns: ``x``, which is 1 for the first step after the
        boundary, and ``next_session``, the session that begins with it.
    """
    steps = steps[steps["boundary"] != UNINTERRUPTED]
    parts = []
    for session in range(first_boundary, int(steps["session"].max()) + 1):
        x = steps["step"] - steps.loc[steps["session"] == session, "step"].min() + 1
        is_near = (x > -STEPS_BEFORE) & (x <= STEPS_AFTER)
        is_near &= (steps["session"] - session).between(-1, 0)
        parts.append(steps[is_near].assign(x=x, next_session=session))
    return pd.concat(parts)


def draw_boundaries(around: pd.DataFrame, column: str, label: str, dataset: str) -> Figure:
    """Draw a row for each schedule and a column for each boundary.

    Args:
        around: the result of :func:`select_steps`.
        column: the column to draw.
        label: the column's name in prose.
        dataset: the data set's name, for the title.
    """
    schedules = sorted(around["schedule"].unique())
    numbers = sorted(around["next_session"].unique())
    figure, grid = style.make_grid(len(schedules), len(numbers), 3.2, sharex=True)
    for row, schedule in zip(grid, schedules, strict=True):
        for axes, number in zip(row, numbers, strict=True):
            is_here = (around["schedule"] == schedule) & (around["next_session"] == number)
            draw_boundary(axes, around[is_here], column)
            before = f"session {number - 1}" if number > 1 else "given checkpoint"
            axes.set_title(f"{schedule}: {before} to {number}", loc="left")
        row[0].set_ylabel(f"{label}, log scale")
    for axes in grid[-1]:
        axes.set_xlabel("steps after the boundary")
    figure.suptitle(f"{dataset}: {label} around the boundaries", x=0.01, ha="left")
    has_diverged = not np.isfinite(around["loss"]).all()
    marks = style.make_marks(around["seed"].nunique(), True, has_diverged)
    style.add_legend(figure, around["boundary"].unique(), *marks)
    return figure


def draw_boundary(axes: Axes, around: pd.DataFrame, column: str) -> None:
    """Draw the methods of one schedule around one boundary, all on the same axes."""
    boundaries = around["boundary"].unique()
    for boundary in sorted(boundaries):
        of_method = around[around["boundary"] == boundary]
        # Norms are not recorded at every step.
        is_drawn = of_method["grad_norm"].notna() | (column != "update_norm")
        wide = of_method[is_drawn].pivot(index="x", columns="seed", values=column)
        style.draw_runs(axes, wide, style.get_look(boundary, boundaries), style.get_label(boundary))
    axes.axvline(0.5, color=style.NEUTRAL, linestyle=":", linewidth=1)
    style.set_log_scale(axes)


PARSER = style.make_parser(__doc__)
PARSER.add_argument("--dataset", required=True, help="data set to draw")
PARSER.add_argument(
    "--first-boundary", type=int, default=2, help="first session that begins with a boundary"
)

if __name__ == "__main__":
    run(PARSER, main)
