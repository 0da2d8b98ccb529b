"""Draw the epochs that each run takes until its valid top-1 reaches the target."""

import argparse
import json
from collections.abc import Iterable

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

POINT: style.Look = {"marker": "o", "markersize": 4, "linestyle": ""}
MEDIAN: style.Look = {"marker": "|", "markeredgewidth": 3, "linestyle": ""}


def main(arguments: argparse.Namespace) -> None:
    """Write ``epochs_to_target`` to ``--output``."""
    table = arguments.tables / "summary.csv"
    figure = draw_epochs_to_target(tables.read_verified(table), json.loads(arguments.targets))
    output = arguments.output / "epochs_to_target"
    write_checksums(output.with_suffix(".sha256"), style.save(figure, output), [table])


def draw_epochs_to_target(summary: pd.DataFrame, targets: dict[str, float]) -> Figure:
    """Draw a panel for each data set with a target, with a row for each of its methods.

    A row shows the runs and their median. If no run of a data set reached the target, its panel
    says so and has no rows.

    Args:
        summary: the table ``summary.csv``.
        targets: the valid top-1 to reach, a fraction, of the data sets to draw.
    """
    epochs = summary["epochs_to_target"]
    missed = epochs[np.isfinite(epochs)].max() + 1 if np.isfinite(epochs).any() else 1
    methods = {dataset: list_methods(summary, dataset) for dataset in sorted(targets)}
    labels = [[f"{schedule}: {boundary}" for schedule, boundary in m] for m in methods.values()]
    figure, panels = style.make_panels(labels)
    drawn = [x for of_dataset in methods.values() for x in of_dataset.values()]
    has_missed = any(np.isinf(x).any() for x in drawn)
    for axes, (dataset, of_dataset) in zip(panels, methods.items(), strict=True):
        target = f"{100 * targets[dataset]:g} %"
        title = f"{dataset}: epochs until the valid top-1 reaches {target}"
        style.set_panel_title(axes, title, width=style.PANEL)
        draw_methods(axes, of_dataset, missed, summary["boundary"].unique())
        if not of_dataset:
            style.write_sentence(axes, f"no run reached {target}")
    if not drawn:
        panels[0].set_xticks([])
        return figure
    panels[0].set_xlim(0, missed + 0.5 if has_missed else missed - 0.5)
    panels[0].xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    if has_missed:
        mark_missed(panels, missed)
    panels[-1].set_xlabel("epochs" + (" (∞: never)" if has_missed else ""))
    handles = [
        Line2D([], [], color=style.NEUTRAL, label="a run", **POINT),
        Line2D([], [], color=style.NEUTRAL, label="median", markersize=14, **MEDIAN),
    ]
    style.place_legend(figure, handles)
    return figure


def list_methods(summary: pd.DataFrame, dataset: str) -> dict[tuple[str, str], np.ndarray]:
    """Return the epochs of the runs of each method from the bottom row to the top one.

    There is no method if no run reached the target.
    """
    of_dataset = summary[summary["dataset"] == dataset]
    if not np.isfinite(of_dataset["epochs_to_target"]).any():
        return {}
    methods = {
        (str(schedule), str(boundary)): runs["epochs_to_target"].to_numpy()
        for (schedule, boundary), runs in of_dataset.groupby(["schedule", "boundary"])
    }
    return dict(reversed(methods.items()))


def draw_methods(
    axes: Axes,
    methods: dict[tuple[str, str], np.ndarray],
    missed: float,
    boundaries: Iterable[str],
) -> None:
    """Draw the runs of each method and their median. Infinite epochs are drawn at ``missed``."""
    for y, ((_, boundary), epochs) in enumerate(methods.items()):
        x = np.minimum(epochs, missed)
        colour = style.get_look(boundary, boundaries)["color"]
        axes.plot(x, y + style.spread_points(len(x)), color=colour, **POINT)
        median = min(np.median(epochs), missed)
        axes.plot([median], [y], color=colour, markersize=16, **MEDIAN)


def mark_missed(panels: list[Axes], missed: float) -> None:
    """Label ``missed`` on the x axis as infinite, and separate it from the epochs."""
    for axes in panels:
        axes.axvline(missed - 0.5, color=style.NEUTRAL, linestyle=":", linewidth=1)
    ticks = [tick for tick in panels[0].get_xticks() if 0 <= tick < missed - 0.5]
    panels[-1].set_xticks([*ticks, missed], [*(f"{tick:g}" for tick in ticks), "∞"])


PARSER = style.make_parser(__doc__)
PARSER.add_argument("--targets", required=True, help="JSON: target valid top-1 of each data set")

if __name__ == "__main__":
    run(PARSER, main)
