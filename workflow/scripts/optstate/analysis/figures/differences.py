"""Draw every paired difference in the primary outcome of one data set."""

import argparse
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from optstate.analysis import tables
from optstate.analysis.figures import style
from optstate.checksums import write_checksums
from optstate.job import run

BAND = "#EDEDED"


def main(arguments: argparse.Namespace) -> None:
    """Write ``differences`` to ``--output``."""
    comparisons, pairs = (
        tables.read_verified(arguments.tables / f"{name}.csv").query(
            "measure == @arguments.measure"
        )
        for name in ("comparisons", "pairs")
    )
    measure = tables.get_measure(arguments.measure)
    figure = draw_differences(comparisons, pairs, arguments.dataset, measure, arguments.margin)
    output = arguments.output / "differences"
    write_checksums(output.with_suffix(".sha256"), style.save(figure, output))


def draw_differences(
    comparisons: pd.DataFrame,
    pairs: pd.DataFrame,
    dataset: str,
    measure: tables.Measure,
    margin: float,
) -> Figure:
    """Draw a panel for each boundary and baseline, with the pairs of each schedule in a row.

    Args:
        comparisons: rows of all data sets, so that all figures have the same scale.
        pairs: the pairs of these comparisons.
        dataset: the data set to draw.
        measure: the measure of both tables.
        margin: the margin of equivalence in top-1, a fraction.
    """
    scale = 100 if measure.is_top1 else 1
    groups = group_comparisons(comparisons[comparisons["dataset"] == dataset])
    boundaries = {boundary for names in groups for boundary in names}
    labels = [[name_row(pairs, row) for row in rows[::-1].itertuples()] for rows in groups.values()]
    figure, panels = style.make_panels(labels or [[]])
    for axes, ((boundary, baseline), rows) in zip(panels, groups.items(), strict=False):
        draw_margin(axes, margin if measure.is_top1 else None)
        sides = name_sides(boundary, baseline, measure.better)
        style.set_panel_title(axes, sides, width=style.PANEL)
        colour = style.get_look(boundary, boundaries)["color"]
        for y, row in enumerate(rows[::-1].itertuples()):  # the first one is at the top
            values = scale * select_pairs(pairs, row).to_numpy()
            draw_comparison(axes, y, row, values, scale, colour)
    panels[0].update_datalim([(x, 0) for x in scale * find_extent(comparisons, pairs)])
    panels[0].autoscale_view(scaley=False)
    if not groups:
        style.write_sentence(panels[0], "no pair of methods to compare")
    panels[-1].set_xlabel(style.label_difference(measure, style.PANEL))
    style.set_figure_title(figure, dataset)
    has_intervals = bool(comparisons[["low", "high"]].notna().any(axis=None))
    style.place_legend(figure, make_handles(has_intervals, margin if measure.is_top1 else None))
    return figure


def group_comparisons(comparisons: pd.DataFrame) -> dict[tuple[str, str], pd.DataFrame]:
    """Return the rows of each boundary and baseline. Those of the primary outcome come first."""
    groups = {
        (str(boundary), str(baseline)): rows
        for (boundary, baseline), rows in comparisons.groupby(["boundary", "baseline"])
    }
    return dict(sorted(groups.items(), key=lambda group: not group[1]["primary"].eq(True).any()))


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


def draw_margin(axes: Axes, margin: float | None) -> None:
    """Draw zero, and the margin of equivalence, a fraction, if there is one."""
    if margin is not None:
        axes.axvspan(-100 * margin, 100 * margin, color=BAND, zorder=0)
    axes.axvline(0, color=style.NEUTRAL, linewidth=1)


def make_handles(has_intervals: bool, margin: float | None) -> list[Artist]:
    """Return the legend entries for pairs, means, and the margin of equivalence if there is one."""
    handles: list[Artist] = [*style.make_pair_handles(has_intervals)]
    if margin is not None:
        label = f"margin of equivalence, {tables.format_margin(margin)}"
        handles.append(Patch(color=BAND, label=label))
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
PARSER.add_argument("--measure", required=True, help="measure of the primary outcome")
PARSER.add_argument(
    "--margin", type=float, required=True, help="margin of equivalence in top-1, a fraction"
)

if __name__ == "__main__":
    run(PARSER, main)
