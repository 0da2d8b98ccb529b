"""Draw the epochs that each run takes until its valid top-1 reaches the target."""

import argparse

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from optstate.analysis import tables
from optstate.analysis.figures import style
from optstate.checksums import write_checksums
from optstate.job import run

METHOD = ["dataset", "schedule", "boundary"]
POINT: style.Look = {"marker": "o", "markersize": 4, "linestyle": ""}
MEDIAN: style.Look = {"marker": "|", "markeredgewidth": 3, "linestyle": ""}


def main(arguments: argparse.Namespace) -> None:
    """Write ``epochs_to_target`` to ``--output``."""
    summary = tables.read_verified(arguments.tables / "summary.csv")
    output = arguments.output / "epochs_to_target"
    files = style.save(draw_epochs_to_target(summary), output)
    write_checksums(output.with_suffix(".sha256"), files)


def draw_epochs_to_target(summary: pd.DataFrame) -> Figure:
    """Draw a row for each method on a data set with a target: its runs and their median."""
    summary = summary[summary["epochs_to_target"].notna()]
    epochs = summary["epochs_to_target"]
    missed = epochs[np.isfinite(epochs)].max() + 1 if np.isfinite(epochs).any() else 1
    methods = list(summary.groupby(METHOD))[::-1]  # the first one is at the top
    figure, axes = plt.subplots(figsize=(9, 1.8 + 0.4 * len(methods)), layout="constrained")
    for y, ((_, _, boundary), runs) in enumerate(methods):
        x = runs["epochs_to_target"].replace(np.inf, missed).to_numpy()
        colour = style.get_look(str(boundary), summary["boundary"])["color"]
        axes.plot(x, y + style.spread_points(len(x)), color=colour, **POINT)
        axes.plot([np.median(x)], [y], color=colour, markersize=16, **MEDIAN)
    names = [f"{dataset}, {schedule}: {boundary}" for (dataset, schedule, boundary), _ in methods]
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(-0.7, len(names) - 0.3)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if np.isinf(epochs).any():
        mark_missed(axes, missed)
    axes.set_xlabel("epochs until the valid top-1 reaches the target (∞: never)")
    handles = [
        Line2D([], [], color=style.NEUTRAL, label="a run", **POINT),
        Line2D([], [], color=style.NEUTRAL, label="median", markersize=14, **MEDIAN),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=2)
    return figure


def mark_missed(axes: Axes, missed: float) -> None:
    """Label ``missed`` on the x axis as infinite, and separate it from the epochs."""
    axes.axvline(missed - 0.5, color=style.NEUTRAL, linestyle=":", linewidth=1)
    ticks = [tick for tick in axes.get_xticks() if 0 <= tick < missed - 0.5]
    axes.set_xticks([*ticks, missed], [*(f"{tick:g}" for tick in ticks), "∞"])


PARSER = style.make_parser(__doc__)

if __name__ == "__main__":
    run(PARSER, main)
