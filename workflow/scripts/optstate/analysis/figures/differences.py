"""The answer as pictures: every paired difference, and the epochs to the target."""

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from optstate.analysis import tables
from optstate.analysis.figures import style
from optstate.job import run

BAND = "#EDEDED"
KEY = ["dataset", "schedule", "boundary"]
SPREAD = 0.5  # how much of a row's height its points take


def main(arguments: argparse.Namespace) -> None:
    """Write ``differences``, and ``epochs_to_target`` if there is a target."""
    style.use()
    read = {
        name: tables.read(arguments.tables / f"{name}.csv")
        for name in ("comparisons", "pairs", "summary")
    }
    is_primary = [read[name]["measure"] == arguments.measure for name in ("comparisons", "pairs")]
    figure = differences_figure(
        read["comparisons"][is_primary[0]], read["pairs"][is_primary[1]], arguments.measure,
        arguments.margin,
    )  # fmt: skip
    style.save(figure, arguments.output / "differences")
    if arguments.with_target:
        style.save(target_figure(read["summary"]), arguments.output / "epochs_to_target")


def differences_figure(
    comparisons: pd.DataFrame, pairs: pd.DataFrame, measure: str, margin: float
) -> Figure:
    """A row for each comparison: the pairs, their mean, and its t interval at 95 %."""
    of_measure = tables.measure_of(measure)
    scale = 100 if of_measure.is_top1 else 1
    comparisons = comparisons.iloc[::-1]  # the first one is drawn on top
    figure, axes = plt.subplots(figsize=(9, 1.8 + 0.45 * len(comparisons)), layout="constrained")
    if of_measure.is_top1:
        axes.axvspan(-scale * margin, scale * margin, color=BAND, zorder=0)
    axes.axvline(0, color=style.MARKS, linewidth=1)
    boundaries = [*comparisons["boundary"], *comparisons["baseline"]]
    for y, row in enumerate(comparisons.itertuples()):
        colour = style.look_of(str(row.boundary), boundaries)["color"]
        of_row = pairs[(pairs[KEY] == [getattr(row, name) for name in KEY]).all(axis=1)]
        values = scale * of_row["difference"].to_numpy()
        heights = y + SPREAD * (np.linspace(0, 1, len(values) + 2)[1:-1] - 0.5)
        axes.plot(values, heights, "o", color=colour, alpha=0.45, markersize=4, linestyle="")
        ends = np.array([row.low, row.high], float) * scale
        axes.plot(ends, [y, y], color=colour, linewidth=3, solid_capstyle="butt")
        axes.plot([scale * float(str(row.mean_difference))], [y], "D", color=colour, markersize=7)
    names = [
        f"{row.dataset}, {row.schedule}: {row.boundary} vs {row.baseline}"
        for row in comparisons.itertuples()
    ]
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(-0.7, len(names) - 0.3)
    unit = " (points)" if of_measure.is_top1 else ""
    axes.set_xlabel(f"difference in {of_measure.words}{unit}")
    side = "right" if of_measure.better == "higher" else "left"
    axes.set_title(f"{of_measure.words}: {side} of the line the first is better", loc="left")
    handles: list[Artist] = [
        Line2D([], [], color=style.MARKS, marker="o", linestyle="", alpha=0.45, label="a pair"),
        Line2D([], [], color=style.MARKS, marker="D", linewidth=3, label="mean, 95 % t interval"),
    ]
    if of_measure.is_top1:
        handles.append(Patch(color=BAND, label=f"±{scale * margin:g} points: equivalent"))
    figure.legend(handles=handles, loc="outside lower center", ncols=3)
    return figure


def target_figure(summary: pd.DataFrame) -> Figure:
    """A row for each method: after how many epochs each of its runs was at the target."""
    summary = summary[summary["epochs_to_target"].notna()]
    rows = sorted(
        set(zip(summary["dataset"], summary["schedule"], summary["boundary"], strict=True))
    )
    figure, axes = plt.subplots(figsize=(9, 1.8 + 0.4 * len(rows)), layout="constrained")
    reached = summary["epochs_to_target"][np.isfinite(summary["epochs_to_target"])]
    missed = reached.max() + 1 if len(reached) else 1
    for y, names in enumerate(reversed(rows)):
        of_method = summary[(summary[KEY] == list(names)).all(axis=1)]
        epochs = of_method["epochs_to_target"].replace(np.inf, missed).to_numpy()
        colour = style.look_of(names[2], summary["boundary"])["color"]
        heights = y + SPREAD * (np.linspace(0, 1, len(epochs) + 2)[1:-1] - 0.5)
        axes.plot(epochs, heights, "o", color=colour, markersize=4, linestyle="")
        axes.plot([np.median(epochs)], [y], "|", color=colour, markersize=16, markeredgewidth=3)
    axes.set_yticks(range(len(rows)), [f"{d}, {s}: {b}" for d, s, b in reversed(rows)])
    axes.set_ylim(-0.7, len(rows) - 0.3)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if not np.isfinite(summary["epochs_to_target"]).all():
        axes.axvline(missed - 0.5, color=style.MARKS, linestyle=":", linewidth=1)
        ticks = [tick for tick in axes.get_xticks() if 0 <= tick < missed - 0.5]
        axes.set_xticks([*ticks, missed], [*(f"{tick:g}" for tick in ticks), "∞"])
    axes.set_xlabel("epochs until the valid top-1 is at the target; ∞: missed")
    handles = [
        Line2D([], [], color=style.MARKS, marker="o", linestyle="", markersize=4, label="a run"),
        Line2D([], [], color=style.MARKS, marker="|", linestyle="", markersize=14,
               markeredgewidth=3, label="median"),
    ]  # fmt: skip
    figure.legend(handles=handles, loc="outside lower center", ncols=2)
    return figure


PARSER = argparse.ArgumentParser(description=__doc__)
PARSER.add_argument("--tables", type=Path, required=True, help="folder")
PARSER.add_argument("--measure", required=True, help="the primary outcome's")
PARSER.add_argument("--margin", type=float, required=True, help="of equivalence, in top-1")
PARSER.add_argument("--with-target", action="store_true", help="some data set has a target")
PARSER.add_argument("--output", type=Path, required=True, help="folder")

if __name__ == "__main__":
    run(PARSER, main)
