"""Draw the learning rate and the momentum of every step, for each schedule and data set."""

import argparse
from collections.abc import Iterable

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from optstate.analysis import tables
from optstate.analysis.figures import style
from optstate.checksums import write_checksums
from optstate.job import run

LABELS = {"lr": "learning rate,\nlog scale", "momentum": "momentum"}


def main(arguments: argparse.Namespace) -> None:
    """Write ``learning_rate`` to ``--output``."""
    table, output = arguments.tables / "steps.csv", arguments.output / "learning_rate"
    figure = draw_learning_rates(tables.read_verified(table))
    write_checksums(output.with_suffix(".sha256"), style.save(figure, output), [table])


def draw_learning_rates(steps: pd.DataFrame) -> Figure:
    """Draw two rows for each schedule and a column for each data set."""
    schedules, datasets = sorted(steps["schedule"].unique()), sorted(steps["dataset"].unique())
    boundaries = steps["boundary"].unique()
    rows = [(schedule, column) for schedule in schedules for column in LABELS]
    figure, grid = style.make_grid(len(rows), len(datasets), 2.2, sharex="col", sharey="row")
    for row, (schedule, column) in zip(grid, rows, strict=True):
        for axes, dataset in zip(row, datasets, strict=True):
            is_here = (steps["schedule"] == schedule) & (steps["dataset"] == dataset)
            drawn = draw_methods(axes, steps[is_here], column, boundaries)
            note = style.describe_coinciding(drawn)
            style.set_panel_title(axes, f"{dataset}: {schedule}", note, pad=style.TITLE_PAD)
        row[0].set_ylabel(LABELS[column])
    for axes in grid[-1]:
        axes.set_xlabel("step")
    marks = style.make_marks(1, steps["session"].max() > 1, has_diverged=False)
    style.add_legend(figure, boundaries, *marks)
    return figure


def draw_methods(
    axes: Axes, steps: pd.DataFrame, column: str, boundaries: Iterable[str]
) -> dict[str, pd.DataFrame]:
    """Draw one column of all methods of one schedule. Returns what was drawn of each boundary."""
    one_seed = steps[steps["seed"] == steps["seed"].min()]
    drawn = {}
    for boundary in style.sort_for_drawing(one_seed["boundary"].unique(), boundaries):
        of_method = one_seed[one_seed["boundary"] == boundary]
        drawn[boundary] = of_method.set_index("step")[[column]]
        look = style.get_look(boundary, boundaries)
        for _, session in of_method.groupby("session"):
            axes.plot(session["step"], session[column], **look, **style.MEAN)
    style.mark_sessions(axes, one_seed, x="step")
    if column == "lr":
        style.set_log_scale(axes)
    axes.set_xlim(0, 1.03 * one_seed["step"].max())
    if one_seed[column].isna().all():
        axes.text(0.5, 0.5, "none", ha="center", color=style.NEUTRAL, transform=axes.transAxes)
        return {}
    return drawn


PARSER = style.make_parser(__doc__)

if __name__ == "__main__":
    run(PARSER, main)
