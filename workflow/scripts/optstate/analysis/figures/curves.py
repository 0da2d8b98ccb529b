"""The curves of one data set: train and valid, loss and accuracy, of every method."""

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from optstate.analysis import tables
from optstate.analysis.figures import style
from optstate.job import run

MAX_POINTS_PER_EPOCH = 10  # of the curves of training, each a mean over steps,
MIN_STEPS_PER_POINT = 5  # and over no fewer than these: single steps are mostly noise
RUN = ["schedule", "boundary", "seed"]


def main(arguments: argparse.Namespace) -> None:
    """Write each curve by itself, all four, and those with one boundary highlighted."""
    style.use()
    of_dataset = [
        tables.read(arguments.tables / f"{name}.csv").query("dataset == @arguments.dataset")
        for name in ("steps", "epochs")
    ]
    curves = curves_of(*of_dataset)
    for name in tables.CURVES:
        figure = figure_of(curves, [name], arguments.dataset)
        style.save(figure, arguments.output / name)
    overview = figure_of(curves, list(tables.CURVES), arguments.dataset)
    style.save(overview, arguments.output / "overview")
    for boundary in curves["boundary"].unique():
        figure = figure_of(curves, list(tables.CURVES), arguments.dataset, highlighted=boundary)
        style.save(figure, arguments.output / f"overview_{boundary}")


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
    grouped = steps.groupby([*columns, x.rename("x")])[["loss", "top1"]]
    return grouped.mean(skipna=False).reset_index()


def figure_of(
    curves: pd.DataFrame, names: list[str], dataset: str, highlighted: str | None = None
) -> Figure:
    """A row for each measure, a column for each schedule; all but ``highlighted`` are faded."""
    schedules = sorted(curves["schedule"].unique())
    height = 4.2 if len(names) == 1 else 2.7
    figure, grid = plt.subplots(
        len(names), len(schedules), layout="constrained", squeeze=False, sharex=True, sharey="row",
        figsize=(max(1 + 4.5 * len(schedules), 6), 1 + height * len(names)),
    )  # fmt: skip
    for row, name in zip(grid, names, strict=True):
        of_measure = curves[curves["measure"] == name]
        for axes, schedule in zip(row, schedules, strict=True):
            draw(axes, of_measure[of_measure["schedule"] == schedule], highlighted)
            axes.set_title(schedule, loc="left", pad=style.TITLE_PAD)
        if name.endswith("loss"):
            style.set_log_scale(row[0])
        row[0].set_ylabel(tables.CURVES[name] + (", log scale" if name.endswith("loss") else ""))
    for axes in grid[-1]:
        axes.set_xlabel("epoch")
    what = f": {tables.CURVES[names[0]]}" if len(names) == 1 else ""
    suffix = f", {style.words_of(highlighted)}" if highlighted else ""
    figure.suptitle(f"{dataset}{what}{suffix}", x=0.01, ha="left")
    diverged = not np.isfinite(curves.loc[curves["measure"].isin(names), "value"]).all()
    marks = style.marks_for(curves["seed"].nunique(), curves["session"].max() > 1, diverged)
    style.add_legend(figure, curves["boundary"].unique(), *marks)
    return figure


def draw(axes: Axes, curves: pd.DataFrame, highlighted: str | None) -> None:
    """Draw one measure of the methods of one schedule."""
    is_valid = curves["measure"].str.startswith("valid").any()
    marker = {"marker": "o", "markersize": 3} if is_valid else {}
    boundaries = curves["boundary"].unique()
    for boundary in sorted(boundaries, key=lambda b: (b == highlighted, b)):
        of_method = curves[curves["boundary"] == boundary]
        wide = of_method.pivot(index="x", columns="seed", values="value")
        look = style.look_of(boundary, boundaries)
        if highlighted not in (None, boundary):
            look = look | {"color": style.FADED}
        style.draw_runs(axes, wide, look, style.words_of(boundary), **marker)
    style.mark_sessions(axes, curves)
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


PARSER = argparse.ArgumentParser(description=__doc__)
PARSER.add_argument("--tables", type=Path, required=True, help="folder")
PARSER.add_argument("--dataset", required=True)
PARSER.add_argument("--output", type=Path, required=True, help="folder")

if __name__ == "__main__":
    run(PARSER, main)
