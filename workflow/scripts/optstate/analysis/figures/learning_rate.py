"""The learning rate and the momentum that each step used, for each schedule and data set."""

import argparse
from collections.abc import Iterable
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from optstate.analysis import tables
from optstate.analysis.figures import style
from optstate.job import run

COLUMNS = {"lr": "learning rate, log scale", "momentum": "momentum"}


def main(arguments: argparse.Namespace) -> None:
    """Write ``learning_rate`` to ``--output``."""
    style.use()
    steps = tables.read(arguments.tables / "steps.csv")
    style.save(schedule_figure(steps), arguments.output / "learning_rate")


def schedule_figure(steps: pd.DataFrame) -> Figure:
    """Two rows for each schedule, a column for each data set."""
    schedules, datasets = sorted(steps["schedule"].unique()), sorted(steps["dataset"].unique())
    rows = [(schedule, column) for schedule in schedules for column in COLUMNS]
    figure, grid = plt.subplots(
        len(rows), len(datasets), layout="constrained", squeeze=False, sharex="col", sharey="row",
        figsize=(max(1 + 4.5 * len(datasets), 6), 1 + 2.2 * len(rows)),
    )  # fmt: skip
    for row, (schedule, column) in zip(grid, rows, strict=True):
        for axes, dataset in zip(row, datasets, strict=True):
            of_cell = steps[(steps["schedule"] == schedule) & (steps["dataset"] == dataset)]
            draw(axes, of_cell, column, steps["boundary"].unique())
            axes.set_title(f"{dataset}: {schedule}", loc="left", pad=style.TITLE_PAD)
        row[0].set_ylabel(COLUMNS[column])
    for axes in grid[-1]:
        axes.set_xlabel("step")
    marks = style.marks_for(1, steps["session"].max() > 1, diverged=False)
    style.add_legend(figure, steps["boundary"].unique(), *marks)
    return figure


def draw(axes: Axes, steps: pd.DataFrame, column: str, boundaries: Iterable[str]) -> None:
    """Draw every boundary: where they are the same, their lines lie over each other."""
    one_seed = steps[steps["seed"] == steps["seed"].min()]
    for boundary in sorted(one_seed["boundary"].unique(), reverse=True):
        of_arm = one_seed[one_seed["boundary"] == boundary]
        look = style.look_of(boundary, boundaries)
        for _, session in of_arm.groupby("session"):
            axes.plot(session["step"], session[column], **look, **style.MEAN)
    style.mark_sessions(axes, one_seed, x="step")
    if column == "lr":
        style.set_log_scale(axes)
    elif one_seed[column].isna().all():
        axes.text(0.5, 0.5, "none", ha="center", color=style.MARKS, transform=axes.transAxes)
    axes.set_xlim(left=0)


PARSER = argparse.ArgumentParser(description=__doc__)
PARSER.add_argument("--tables", type=Path, required=True, help="folder")
PARSER.add_argument("--output", type=Path, required=True, help="folder")

if __name__ == "__main__":
    run(PARSER, main)
