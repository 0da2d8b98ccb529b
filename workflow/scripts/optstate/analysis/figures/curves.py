"""Draw the curves of one data set: train and valid loss and accuracy of every method."""

import argparse
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from optstate.analysis import tables
from optstate.analysis.figures import CURVES, style
from optstate.checksums import write_checksums
from optstate.job import run

MAX_POINTS_PER_EPOCH = 10  # of the train curves; each point is a mean over steps
MIN_STEPS_PER_POINT = 5  # single steps are mostly noise
SESSION = ["schedule", "boundary", "seed", "session"]


def main(arguments: argparse.Namespace) -> None:
    """Write a figure of each curve, an overview, and an overview for each highlighted boundary."""
    inputs = [arguments.tables / f"{name}.csv" for name in ("steps", "epochs")]
    steps, epochs = (
        table[table["dataset"] == arguments.dataset] for table in map(tables.read_verified, inputs)
    )
    curves = stack_curves(steps, epochs)
    written: list[Path] = []

    def write(name: str, measures: list[str], highlighted: str | None = None) -> None:
        figure = draw_curves(curves, measures, arguments.dataset, highlighted)
        written.extend(style.save(figure, arguments.output / name))

    for name in CURVES:
        write(name, [name])
    write("overview", list(CURVES))
    for boundary in curves["boundary"].unique():
        write(f"overview_{boundary}", list(CURVES), boundary)
    write_checksums(arguments.output / "curves.sha256", written, inputs)


def stack_curves(steps: pd.DataFrame, epochs: pd.DataFrame) -> pd.DataFrame:
    """Return all curves in rows: schedule, boundary, seed, session, x (epochs), measure, value."""
    train = average_steps(steps)
    valid = epochs[epochs["split"] == "valid"].assign(x=epochs["epoch"].astype(float))
    return pd.concat(
        table.rename(columns={"loss": f"{split}_loss", "top1": f"{split}_accuracy"}).melt(
            [*SESSION, "x"], [f"{split}_loss", f"{split}_accuracy"], "measure"
        )
        for split, table in (("train", train), ("valid", valid))
    )


def average_steps(steps: pd.DataFrame) -> pd.DataFrame:
    """Average loss and top-1 over equal parts of each epoch; ``x`` is a part's end, in epochs."""
    in_epoch = steps.groupby([*SESSION, "epoch"])["step"]
    num_steps = in_epoch.transform("size")
    fraction = (steps["step"] - in_epoch.transform("min") + 1) / num_steps
    num_parts = (num_steps // MIN_STEPS_PER_POINT).clip(1, MAX_POINTS_PER_EPOCH)
    part = np.ceil(fraction * num_parts - 1e-9)
    x = steps["epoch"] - 1 + part / num_parts
    means = steps.groupby([*SESSION, x.rename("x")])[["loss", "top1"]].mean(skipna=False)
    return means.reset_index()


def draw_curves(
    curves: pd.DataFrame, measures: list[str], dataset: str, highlighted: str | None = None
) -> Figure:
    """Draw a row for each measure and a column for each schedule.

    Args:
        curves: the result of :func:`stack_curves`.
        measures: names in ``CURVES``.
        dataset: the data set's name, for the title.
        highlighted: the only boundary not drawn in grey. None: all boundaries have their colours.
    """
    schedules = sorted(curves["schedule"].unique())
    height = 4.2 if len(measures) == 1 else 2.7
    figure, grid = style.make_grid(len(measures), len(schedules), height, sharex=True, sharey="row")
    for row, measure in zip(grid, measures, strict=True):
        of_measure = curves[curves["measure"] == measure]
        for axes, schedule in zip(row, schedules, strict=True):
            of_schedule = of_measure[of_measure["schedule"] == schedule]
            drawn = draw_methods(axes, of_schedule, curves["boundary"].unique(), highlighted)
            note = style.describe_coinciding(drawn)
            style.set_panel_title(axes, schedule, note, pad=style.TITLE_PAD)
        if measure.endswith("loss"):
            style.set_log_scale(row[0])
        row[0].set_ylabel(CURVES[measure] + (", log scale" if measure.endswith("loss") else ""))
    for axes in grid[-1]:
        axes.set_xlabel("epoch")
    what = f": {CURVES[measures[0]]}" if len(measures) == 1 else ""
    suffix = f", {highlighted}" if highlighted else ""
    style.set_figure_title(figure, f"{dataset}{what}{suffix}")
    has_diverged = not np.isfinite(curves.loc[curves["measure"].isin(measures), "value"]).all()
    marks = style.make_marks(curves["seed"].nunique(), curves["session"].max() > 1, has_diverged)
    style.add_legend(figure, curves["boundary"].unique(), *marks)
    return figure


def draw_methods(
    axes: Axes, curves: pd.DataFrame, boundaries: Iterable[str], highlighted: str | None
) -> dict[str, pd.DataFrame]:
    """Draw one measure of the methods of one schedule.

    Args:
        axes: the axes to draw on.
        curves: the rows of the measure and schedule.
        boundaries: the boundaries of all schedules, which determine the looks.
        highlighted: the only boundary not drawn in grey. None: all boundaries have their colours.

    Returns:
        What was drawn of each boundary.
    """
    is_valid = curves["measure"].str.startswith("valid").any()
    marker: style.Look = {"marker": "o", "markersize": 3} if is_valid else {}
    names = style.sort_for_drawing(curves["boundary"].unique(), boundaries)
    drawn = {
        name: curves[curves["boundary"] == name].pivot(index="x", columns="seed", values="value")
        for name in sorted(names, key=lambda name: name == highlighted)
    }
    for boundary, wide in drawn.items():
        look = style.get_look(boundary, boundaries)
        if highlighted not in (None, boundary):
            look = look | {"color": style.FADED}
        style.draw_runs(axes, wide, look, boundary, **marker)
    style.mark_sessions(axes, curves)
    first, last = curves["x"].min(), curves["x"].max()
    axes.set_xlim(0 if first else -0.02 * last, 1.03 * last)  # do not cut a marker at 0
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return drawn


PARSER = style.make_parser(__doc__)
PARSER.add_argument("--dataset", required=True, help="data set to draw")

if __name__ == "__main__":
    run(PARSER, main)
