"""The curves: train and valid, loss and accuracy, of every method; and the learning rate.

Alike in all figures: the colour tells the schedule, the line style the boundary, dotted vertical
lines the boundaries between sessions; with several seeds, each is a thin line under their mean.
Colours are Okabe and Ito's, which the colour-blind can tell apart.
"""

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, ScalarFormatter

from optstate.analysis import tables
from optstate.job import replacing, run

COLOURS = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00"]
STYLES = {"preserve": "-", "new": (0, (4, 2))}
OTHER_STYLES = [(0, (1, 1.5)), (0, (6, 2, 1, 2)), (0, (8, 3)), (0, (3, 2, 1, 2, 1, 2))]
FADED = "#C8C8C8"
TITLE_PAD = 18  # points: leaves a line for the numbers of the sessions
MAX_POINTS_PER_EPOCH = 10  # of the curves of training, each a mean over steps,
MIN_STEPS_PER_POINT = 5  # and over no fewer than these: single steps are mostly noise
RUN = ["schedule", "boundary", "seed"]


def main(arguments: argparse.Namespace) -> None:
    """Write the figures of one data set, or that of the learning rate, to ``--output``."""
    plt.rcParams.update(
        {
            "axes.grid": True,
            "axes.spines.right": False,
            "axes.spines.top": False,
            "axes.titlesize": 11,
            "figure.dpi": 150,
            "font.size": 10,
            "grid.color": "#E6E6E6",
            "legend.frameon": False,
            "svg.hashsalt": "optstate",  # the same figure, the same bytes
        }
    )
    steps = tables.read(arguments.tables / "steps.csv")
    if arguments.dataset is None:
        save(learning_rate_figure(steps), arguments.output / "learning_rate")
        return
    epochs = tables.read(arguments.tables / "epochs.csv")
    of_dataset = [table[table["dataset"] == arguments.dataset] for table in (steps, epochs)]
    curves = curves_of(*of_dataset)
    for name in tables.CURVES:
        save(single_figure(curves, name, arguments.dataset), arguments.output / name)
    save(overview_figure(curves, arguments.dataset), arguments.output / "overview")
    for boundary in curves["boundary"].unique():
        figure = overview_figure(curves, arguments.dataset, highlighted=boundary)
        save(figure, arguments.output / f"overview_{boundary}")


def curves_of(steps: pd.DataFrame, epochs: pd.DataFrame) -> pd.DataFrame:
    """Every curve in one table: schedule, boundary, seed, session, x (epochs), measure, value."""
    columns = [*RUN, "session"]
    train = binned(steps, columns)
    valid = epochs[epochs["split"] == "valid"].assign(x=epochs["epoch"].astype(float))
    return pd.concat(
        table.rename(columns={"loss": f"{split}_loss", "top1": f"{split}_accuracy"}).melt(
            [*columns, "x"], [f"{split}_loss", f"{split}_accuracy"], "measure"
        )
        for split, table in (("train", train), ("valid", valid))
    )


def binned(steps: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
    """Mean loss and top-1 over equal parts of each epoch; ``x`` is where a part ends, in epochs."""
    in_epoch = steps.groupby([*columns, "epoch"])["step"]
    num_steps = in_epoch.transform("size")
    fraction = (steps["step"] - in_epoch.transform("min") + 1) / num_steps
    num_parts = (num_steps // MIN_STEPS_PER_POINT).clip(1, MAX_POINTS_PER_EPOCH)
    part = np.ceil(fraction * num_parts - 1e-9)
    x = steps["epoch"] - 1 + part / num_parts
    return steps.groupby([*columns, x.rename("x")], as_index=False)[["loss", "top1"]].mean()


def single_figure(curves: pd.DataFrame, name: str, dataset: str) -> Figure:
    """One measure of one data set."""
    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    draw(axes, curves, name)
    axes.set_title(f"{dataset}: {tables.CURVES[name]}", loc="left", pad=TITLE_PAD)
    add_legend(figure, axes)
    return figure


def overview_figure(curves: pd.DataFrame, dataset: str, highlighted: str | None = None) -> Figure:
    """All four measures of one data set; with ``highlighted``, other boundaries are faded."""
    figure, grid = plt.subplots(2, 2, figsize=(11, 7.5), layout="constrained", sharex=True)
    for axes, name in zip(grid.flat, tables.CURVES, strict=True):
        draw(axes, curves, name, highlighted)
        axes.set_title(tables.CURVES[name], loc="left", pad=TITLE_PAD)
    suffix = f", {boundary_words(highlighted)}" if highlighted else ""
    figure.suptitle(f"{dataset}{suffix}", x=0.01, ha="left")
    add_legend(figure, grid.flat[0])
    return figure


def draw(axes: Axes, curves: pd.DataFrame, name: str, highlighted: str | None = None) -> None:
    """Draw one measure of every method."""
    schedules = sorted(curves["schedule"].unique())
    boundaries = sorted(curves["boundary"].unique(), key=lambda b: (b == highlighted, b))
    of_measure = curves[curves["measure"] == name]
    is_loss = name.endswith("loss")
    drawable = np.isfinite(of_measure["value"]) & ((of_measure["value"] > 0) | (not is_loss))
    of_measure = of_measure[drawable]
    for boundary in boundaries:
        for schedule, colour in zip(schedules, cycled(COLOURS, len(schedules)), strict=True):
            method = of_measure.query("schedule == @schedule and boundary == @boundary")
            if method.empty:
                continue
            faded = highlighted not in (None, boundary)
            look: dict[str, Any] = {
                "color": FADED if faded else colour,
                "linestyle": style_of(boundary, curves["boundary"].unique()),
            }
            wide = method.pivot(index="x", columns="seed", values="value")
            if wide.shape[1] > 1:
                axes.plot(wide.index, wide, linewidth=0.6, alpha=0.45, **look)
            label = f"{schedule}, {boundary_words(boundary)}"
            marker = "o" if name.startswith("valid") else ""
            axes.plot(
                wide.index, wide.mean(axis=1), linewidth=1.8, marker=marker, markersize=3,
                label=label, **look,
            )  # fmt: skip
    mark_sessions(axes, curves)
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("epoch")
    axes.set_ylabel(tables.CURVES[name] + (", log scale" if is_loss else ""))
    if is_loss:
        set_log_scale(axes)


def set_log_scale(axes: Axes) -> None:
    """A logarithmic y axis with plain numbers: 1, 2, 3, 5 of each decade, or 1 of many."""
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5) if high / low < 100 else (1,)))
    narrow = high / low < 2  # ticks are no powers then, and may differ in many digits
    axes.yaxis.set_major_formatter(ScalarFormatter(useOffset=False) if narrow else "{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())


def mark_sessions(axes: Axes, curves: pd.DataFrame, x: str = "x") -> None:
    """A dotted line at every boundary, and the numbers of the sessions above the axes."""
    ends = {int(str(session)): end for session, end in curves.groupby("session")[x].max().items()}
    for session, end in ends.items():
        start = ends.get(session - 1, 0)
        if session > 1:
            axes.axvline(start, color="#555555", linestyle=":", linewidth=1)
        axes.text(
            (start + end) / 2, 1.0, f"session {session}", ha="center", va="bottom", fontsize=8,
            color="#555555", transform=axes.get_xaxis_transform(),
        )  # fmt: skip


def learning_rate_figure(steps: pd.DataFrame) -> Figure:
    """The learning rate of every step, a row for each schedule, a column for each data set."""
    schedules, datasets = sorted(steps["schedule"].unique()), sorted(steps["dataset"].unique())
    figure, grid = plt.subplots(
        len(schedules), len(datasets), layout="constrained", squeeze=False, sharex="col",
        sharey="row", figsize=(1 + 4.5 * len(datasets), 0.8 + 2.4 * len(schedules)),
    )  # fmt: skip
    colours = cycled(COLOURS, len(schedules))
    for row, (schedule, colour) in enumerate(zip(schedules, colours, strict=True)):
        for column, dataset in enumerate(datasets):
            axes = grid[row, column]
            run_ = steps.query("schedule == @schedule and dataset == @dataset")
            run_ = run_.drop_duplicates("step").sort_values("step")
            for _, session in run_.groupby("session"):
                axes.plot(session["step"], session["lr"], color=colour, linewidth=1.8)
            mark_sessions(axes, run_, x="step")
            set_log_scale(axes)
            axes.set_title(f"{dataset}: {schedule}", loc="left", pad=TITLE_PAD)
            axes.set_xlim(left=0)
            axes.set_xlabel("step" if row == len(schedules) - 1 else "")
            axes.set_ylabel("learning rate, log scale" if column == 0 else "")
    return figure


def style_of(boundary: str, boundaries: Iterable[str]) -> object:
    """The line style of a boundary: fixed for new and preserve, in name order for the others."""
    others = sorted(set(boundaries) - STYLES.keys())
    others_styles = cycled(OTHER_STYLES, len(others))
    return (STYLES | dict(zip(others, others_styles, strict=True)))[boundary]


def boundary_words(boundary: str) -> str:
    """What a boundary is called in a figure."""
    words = {"new": "new optimizer", "preserve": "preserved optimizer"}
    return words.get(boundary, boundary)


def cycled(items: list, length: int) -> list:
    """``length`` items, from the beginning again when they are used up."""
    return [items[index % len(items)] for index in range(length)]


def add_legend(figure: Figure, axes: Axes) -> None:
    """One legend below everything; every method is a line there, faded or not."""
    handles, labels = axes.get_legend_handles_labels()
    order = np.argsort(labels)
    figure.legend(
        [handles[i] for i in order], [labels[i] for i in order],
        loc="outside lower center", ncols=2, handlelength=3.5,
    )  # fmt: skip


def save(figure: Figure, path: Path) -> None:
    """Write ``path`` as PNG and SVG, without a date in them."""
    for suffix, metadata in ((".png", {"Software": None}), (".svg", {"Date": None})):
        with replacing(path.with_suffix(suffix)) as temporary:
            figure.savefig(temporary, format=suffix[1:], metadata=metadata)
    plt.close(figure)


PARSER = argparse.ArgumentParser(description=__doc__.split("\n")[0])
PARSER.add_argument("--tables", type=Path, required=True, help="folder")
PARSER.add_argument("--dataset", help="draw its curves; without, the learning rate")
PARSER.add_argument("--output", type=Path, required=True, help="folder")

if __name__ == "__main__":
    run(PARSER, main)
