"""The answer as a picture: every paired difference."""

import argparse
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from optstate.analysis import tables
from optstate.analysis.figures import style
from optstate.job import run

BAND = "#EDEDED"


def main(arguments: argparse.Namespace) -> None:
    """Write ``differences``."""
    style.use()
    comparisons, pairs = (
        tables.read(arguments.tables / f"{name}.csv").query("measure == @arguments.measure")
        for name in ("comparisons", "pairs")
    )
    figure = differences_figure(
        comparisons, pairs, arguments.dataset, arguments.measure, arguments.margin
    )
    style.save(figure, arguments.output / "differences")


def differences_figure(
    comparisons: pd.DataFrame, pairs: pd.DataFrame, dataset: str, measure: str, margin: float
) -> Figure:
    """A row for each comparison: the pairs, their mean, and its t interval at 95 %.

    Args:
        comparisons: those of all data sets, so that their figures have one scale.
        pairs: theirs.
        dataset: whose are drawn.
        measure: that the tables are of.
        margin: of equivalence.
    """
    of_measure = tables.measure_of(measure)
    scale = 100 if of_measure.is_top1 else 1
    ends = [pairs["difference"], comparisons["low"], comparisons["high"]]
    # A table without rows has no types.
    extent = scale * np.concatenate(ends, dtype=float, casting="unsafe")
    # The first one is drawn on top.
    comparisons = comparisons[comparisons["dataset"] == dataset].iloc[::-1]
    pairs = pairs[pairs["dataset"] == dataset]
    figure, axes = plt.subplots(figsize=(6.5, 1.8 + 0.45 * len(comparisons)), layout="constrained")
    if of_measure.is_top1:
        axes.axvspan(-scale * margin, scale * margin, color=BAND, zorder=0)
    axes.axvline(0, color=style.MARKS, linewidth=1)
    boundaries = [*comparisons["boundary"], *comparisons["baseline"]]
    names = []
    row: Any
    for y, row in enumerate(comparisons.itertuples()):
        colour = style.look_of(row.boundary, boundaries)["color"]
        is_row = (pairs["schedule"] == row.schedule) & (pairs["boundary"] == row.boundary)
        values = scale * pairs["difference"][is_row].to_numpy()
        heights = y + style.spread(len(values))
        axes.plot(values, heights, "o", color=colour, alpha=0.45, markersize=4)
        interval = np.array([row.low, row.high], float) * scale
        axes.plot(interval, [y, y], color=colour, linewidth=3, solid_capstyle="butt")
        axes.plot([scale * row.mean_difference], [y], "D", color=colour, markersize=7)
        lost = f", {len(values) - row.n} of {len(values)} lost" if row.n < len(values) else ""
        names.append(f"{row.schedule}: {row.boundary}\nvs {row.baseline}{lost}")
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(-0.7, len(names) - 0.3)
    axes.update_datalim([(x, 0) for x in extent[np.isfinite(extent)]])
    axes.autoscale_view(scaley=False)
    unit = " (points)" if of_measure.is_top1 else ""
    axes.set_xlabel(f"difference in {of_measure.words}{unit}")
    side = "right" if of_measure.better == "higher" else "left"
    axes.set_title(f"{dataset}: {side} of the line the first is better", loc="left")
    handles: list[Artist] = [
        Line2D([], [], color=style.MARKS, marker="o", linestyle="", alpha=0.45, label="a pair"),
        Line2D([], [], color=style.MARKS, marker="D", linewidth=3, label="mean, 95 % t interval"),
    ]
    if of_measure.is_top1:
        handles.append(Patch(color=BAND, label=f"margin of equivalence, {tables.points(margin)}"))
    figure.legend(handles=handles, loc="outside lower center", ncols=3)
    return figure


PARSER = argparse.ArgumentParser(description=__doc__)
PARSER.add_argument("--tables", type=Path, required=True, help="folder")
PARSER.add_argument("--dataset", required=True)
PARSER.add_argument("--measure", required=True, help="the primary outcome's")
PARSER.add_argument("--margin", type=float, required=True, help="of equivalence, in top-1")
PARSER.add_argument("--output", type=Path, required=True, help="folder")

if __name__ == "__main__":
    run(PARSER, main)
