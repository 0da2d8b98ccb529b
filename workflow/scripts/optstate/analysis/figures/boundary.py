"""Train loss and update norm of the steps around the boundaries of one data set."""

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from optstate import UNINTERRUPTED
from optstate.analysis import tables
from optstate.analysis.figures import style
from optstate.job import run

BEFORE, AFTER = 50, 200  # steps that are shown
FIGURES = {
    "boundary_loss": ("loss", "train loss"),
    "boundary_update_norm": ("update_norm", "L2 norm of the update"),
}


def main(arguments: argparse.Namespace) -> None:
    """Write both figures to ``--output``."""
    style.use()
    steps = tables.read(arguments.tables / "steps.csv").query("dataset == @arguments.dataset")
    around = around_boundaries(steps)
    for name, (column, words) in FIGURES.items():
        figure = zoom_figure(around, column, words, arguments.dataset)
        style.save(figure, arguments.output / name)


def around_boundaries(steps: pd.DataFrame) -> pd.DataFrame:
    """The steps near each boundary: ``x`` counts from its first, 1; ``boundary_number`` from 1."""
    steps = steps[steps["boundary"] != UNINTERRUPTED]
    parts = []
    for session in range(2, int(steps["session"].max()) + 1):
        x = steps["step"] - steps.loc[steps["session"] == session, "step"].min() + 1
        near = (x > -BEFORE) & (x <= AFTER) & (steps["session"] - session).between(-1, 0)
        parts.append(steps[near].assign(x=x, boundary_number=session - 1))
    return pd.concat(parts)


def zoom_figure(around: pd.DataFrame, column: str, words: str, dataset: str) -> Figure:
    """A row for each schedule, a column for each boundary between sessions."""
    schedules = sorted(around["schedule"].unique())
    numbers = sorted(around["boundary_number"].unique())
    figure, grid = plt.subplots(
        len(schedules), len(numbers), layout="constrained", squeeze=False, sharex=True,
        figsize=(max(1 + 4.5 * len(numbers), 6), 1 + 3.2 * len(schedules)),
    )  # fmt: skip
    for row, schedule in zip(grid, schedules, strict=True):
        for axes, number in zip(row, numbers, strict=True):
            here = around[(around["schedule"] == schedule) & (around["boundary_number"] == number)]
            draw(axes, here, column)
            title = f"{schedule}: session {number} to {number + 1}"
            axes.set_title(title, loc="left")
        row[0].set_ylabel(f"{words}, log scale")
    for axes in grid[-1]:
        axes.set_xlabel("steps after the boundary")
    figure.suptitle(f"{dataset}: {words} around the boundaries", x=0.01, ha="left")
    diverged = not np.isfinite(around["loss"]).all()
    marks = style.marks_for(around["seed"].nunique(), True, diverged)
    style.add_legend(figure, around["boundary"].unique(), *marks)
    return figure


def draw(axes: Axes, around: pd.DataFrame, column: str) -> None:
    """Draw the arms of one schedule at one boundary over each other."""
    boundaries = around["boundary"].unique()
    for boundary in sorted(boundaries):
        of_arm = around[around["boundary"] == boundary]
        # Norms are recorded at some steps only.
        recorded = of_arm[of_arm["grad_norm"].notna()] if column == "update_norm" else of_arm
        wide = recorded.pivot(index="x", columns="seed", values=column)
        style.draw_runs(axes, wide, style.look_of(boundary, boundaries), style.words_of(boundary))
    axes.axvline(0.5, color=style.MARKS, linestyle=":", linewidth=1)
    style.set_log_scale(axes)


PARSER = argparse.ArgumentParser(description=__doc__)
PARSER.add_argument("--tables", type=Path, required=True, help="folder")
PARSER.add_argument("--dataset", required=True)
PARSER.add_argument("--output", type=Path, required=True, help="folder")

if __name__ == "__main__":
    run(PARSER, main)
