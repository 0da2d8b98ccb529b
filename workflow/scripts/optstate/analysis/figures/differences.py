"""Draw the paired differences in the primary measures of one data set, in all comparisons."""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from optstate.analysis import tables
from optstate.analysis.figures import name_differences, style
from optstate.checksums import write_checksums
from optstate.job import run

BAND = "#EDEDED"


def main(arguments: argparse.Namespace) -> None:
    """Write a figure for each measure to ``--output``: ``differences`` for the first one."""
    inputs = [arguments.tables / f"{name}.csv" for name in ("comparisons", "pairs")]
    comparisons, pairs = map(tables.read_verified, inputs)
    written: list[Path] = []
    for name, measure in name_differences(arguments.measures).items():
        compared, of_pairs = (table[table["measure"] == measure] for table in (comparisons, pairs))
        figure = draw_differences(compared, of_pairs, arguments.dataset, measure)
        written += style.save(figure, arguments.output / name)
    write_checksums(arguments.output / "differences.sha256", written, inputs)


def draw_differences(
    comparisons: pd.DataFrame, pairs: pd.DataFrame, dataset: str, name: str
) -> Figure:
    """Draw a panel for each boundary and baseline, with the pairs of each schedule in a row.

    Args:
        comparisons: rows of one measure and all data sets, so that all figures have one scale.
        pairs: the pairs of these comparisons.
        dataset: the data set to draw.
        name: the measure of both tables.
    """
    measure = tables.get_measure(name)
    scale = 100 if measure.is_top1 else 1
    groups = group_comparisons(comparisons[comparisons["dataset"] == dataset])
    boundaries = {*comparisons["boundary"], *comparisons["baseline"]}
    labels = [
        [name_row(pairs, row) for row in tables.iterate_rows(rows[::-1])]
        for rows in groups.values()
    ]
    figure, panels = style.make_panels(labels or [[]])
    for axes, ((boundary, baseline), rows) in zip(panels, groups.items(), strict=False):
        axes.axvline(0, color=style.NEUTRAL, linewidth=1)
        role = "" if rows["primary"].any() else " (exploratory)"
        title = name_sides(boundary, baseline, measure.better) + role
        style.set_panel_title(axes, title, width=style.PANEL)
        colour = style.get_look(boundary, boundaries)["color"]
        for y, row in enumerate(tables.iterate_rows(rows[::-1])):  # the first one is at the top
            draw_margin(axes, y, scale * row.margin)
            values = scale * select_pairs(pairs, row).to_numpy()
            draw_comparison(axes, y, row, values, scale, colour)
    panels[0].update_datalim([(x, 0) for x in scale * find_extent(comparisons, pairs)])
    panels[0].autoscale_view(scaley=False)
    if not groups:
        style.write_sentence(panels[0], "no pair of methods to compare")
    panels[-1].set_xlabel(style.label_difference(name, style.PANEL))
    style.set_figure_title(figure, dataset)
    style.place_legend(figure, make_handles(comparisons))
    return figure


def group_comparisons(comparisons: pd.DataFrame) -> dict[tuple[str, str], pd.DataFrame]:
    """Return the rows of each boundary and baseline. Those of the primary outcome come first."""
    groups = {
        (str(boundary), str(baseline)): rows
        for (boundary, baseline), rows in comparisons.groupby(["boundary", "baseline"])
    }
    return dict(sorted(groups.items(), key=lambda group: not group[1]["primary"].any()))


def select_pairs(pairs: pd.DataFrame, row: Any) -> pd.Series:
    """Return the differences of the pairs of a comparison."""
    names = ["dataset", "schedule", "boundary", "baseline"]
    return pairs["difference"][(pairs[names] == [getattr(row, n) for n in names]).all(axis=1)]


def draw_comparison(
    axes: Axes, y: int, row: Any, values: np.ndarray, scale: float, colour: str
) -> None:
    """Draw the pairs' differences ``values`` (n,), their mean and its interval at height ``y``."""
    heights = y + style.spread_points(len(values))
    axes.plot(values, heights, color=colour, **style.PAIR)
    interval = np.array([row.low, row.high], float) * scale
    axes.plot(interval, [y, y], color=colour, **style.INTERVAL)
    axes.plot([scale * row.mean_difference], [y], color=colour, **style.PAIRS_MEAN)


def draw_margin(axes: Axes, y: int, margin: float) -> None:
    """Draw the margin of equivalence of the row at height ``y``, if it is not NaN."""
    if np.isfinite(margin):
        axes.add_patch(Rectangle((-margin, y - 0.6), 2 * margin, 1.2, color=BAND, zorder=0))


def make_handles(comparisons: pd.DataFrame) -> list[Artist]:
    """Return the legend entries for pairs, means, and the margins of equivalence if there are any.

    If all margins are equal, the entry names it.
    """
    has_intervals = bool(comparisons[["low", "high"]].notna().any(axis=None))
    handles: list[Artist] = [*style.make_pair_handles(has_intervals)]
    margins = comparisons["margin"].dropna().unique()
    if len(margins):
        size = f", {tables.format_margin(margins[0])}" if len(margins) == 1 else ""
        handles.append(Patch(color=BAND, label=f"margin of equivalence{size}"))
    return handles


def name_row(pairs: pd.DataFrame, row: Any) -> str:
    """Return the label of a comparison: its schedule, and how many pairs are lost."""
    num_pairs = len(select_pairs(pairs, row))
    return row.schedule + (f"\n{num_pairs - row.n} of {num_pairs} lost" * (row.n < num_pairs))


def name_sides(boundary: str, baseline: str, better: str) -> str:
    """Return which boundary is better on each side of zero, for differences to ``baseline``."""
    left, right = (baseline, boundary) if better == "higher" else (boundary, baseline)
    return f"← {left} better · {right} better →"


def find_extent(comparisons: pd.DataFrame, pairs: pd.DataFrame) -> np.ndarray:
    """Return all finite differences and ends of intervals, which the x axis has to include."""
    ends = [pairs["difference"], comparisons["low"], comparisons["high"]]
    # An empty table has columns of dtype object.
    values = np.concatenate(ends, dtype=float, casting="unsafe")
    return values[np.isfinite(values)]


PARSER = style.make_parser(__doc__)
PARSER.add_argument("--dataset", required=True, help="data set to draw")
PARSER.add_argument("--measures", nargs="+", required=True, help="measures of primary outcomes")

if __name__ == "__main__":
    run(PARSER, main)
