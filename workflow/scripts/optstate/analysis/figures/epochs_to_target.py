"""The epochs that each run took until its valid top-1 was at the target."""

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from optstate.analysis import tables
from optstate.analysis.figures import style
from optstate.job import run

METHOD = ["dataset", "schedule", "boundary"]


def main(arguments: argparse.Namespace) -> None:
    """Write ``epochs_to_target``."""
    style.use()
    summary = tables.read(arguments.tables / "summary.csv")
    style.save(target_figure(summary), arguments.output / "epochs_to_target")


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
        of_method = summary[(summary[METHOD] == list(names)).all(axis=1)]
        epochs = of_method["epochs_to_target"].replace(np.inf, missed).to_numpy()
        colour = style.look_of(names[2], summary["boundary"])["color"]
        heights = y + style.spread(len(epochs))
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
PARSER.add_argument("--output", type=Path, required=True, help="folder")

if __name__ == "__main__":
    run(PARSER, main)
