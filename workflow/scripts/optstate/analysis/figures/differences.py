"""Draw every paired difference in the primary outcome of one data set."""

import argparse
from typing import Any

import matplotlib.pyplot as plt
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
    """Draw a row for each comparison: the pairs, their mean, and its t interval at 95 %.

    Args:
        comparisons: rows of all data sets, so that all figures have the same scale.
        pairs: the pairs of these comparisons.
        dataset: the data set to draw.
        measure: the measure of both tables.
        margin: the margin of equivalence in top-1, a fraction.
    """
    scale = 100 if measure.is_top1 else 1
    of_dataset = comparisons[comparisons["dataset"] == dataset].iloc[::-1]  # the first one on top
    figure, axes = plt.subplots(figsize=(6.5, 1.8 + 0.45 * len(of_dataset)), layout="constrained")
    handles: list[Artist] = [*style.make_pair_handles()]
    if measure.is_top1:
        axes.axvspan(-scale * margin, scale * margin, color=BAND, zorder=0)
        label = f"margin of equivalence, {tables.format_margin(margin)}"
        handles.append(Patch(color=BAND, label=label))
    axes.axvline(0, color=style.NEUTRAL, linewidth=1)
    boundaries = [*of_dataset["boundary"], *of_dataset["baseline"]]
    names = []
    for y, row in enumerate(of_dataset.itertuples()):
        values = scale * select_pairs(pairs, row).to_numpy()
        draw_comparison(axes, y, row, values, scale, boundaries)
        names.append(name_comparison(row, len(values)))
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(-0.7, len(names) - 0.3)
    extent = scale * find_extent(comparisons, pairs)
    axes.update_datalim([(x, 0) for x in extent])
    axes.autoscale_view(scaley=False)
    unit = " (points)" if measure.is_top1 else ""
    axes.set_xlabel(f"difference in {measure.label}{unit}")
    axes.set_title(f"{dataset}: {name_sides(of_dataset, measure.better)}", loc="left")
    figure.legend(handles=handles, loc="outside lower center", ncols=3)
    return figure


def select_pairs(pairs: pd.DataFrame, row: Any) -> pd.Series:
    """Return the differences of the pairs of a comparison."""
    names = ["dataset", "schedule", "boundary", "baseline"]
    return pairs["difference"][(pairs[names] == [getattr(row, n) for n in names]).all(axis=1)]


def draw_comparison(
    axes: Axes, y: int, row: Any, values: np.ndarray, scale: float, boundaries: list[str]
) -> None:
    """Draw the pairs' differences ``values`` (n,), their mean and its interval at height ``y``."""
    colour = style.get_look(row.boundary, boundaries)["color"]
    heights = y + style.spread_points(len(values))
    axes.plot(values, heights, color=colour, **style.PAIR)
    interval = np.array([row.low, row.high], float) * scale
    axes.plot(interval, [y, y], color=colour, **style.INTERVAL)
    axes.plot([scale * row.mean_difference], [y], color=colour, **style.PAIRS_MEAN)


def name_comparison(row: Any, num_pairs: int) -> str:
    """Return the label of a comparison on the y axis."""
    lost = f", {num_pairs - row.n} of {num_pairs} lost" if row.n < num_pairs else ""
    return f"{row.schedule}: {row.boundary}\nvs {row.baseline}{lost}"


def name_sides(comparisons: pd.DataFrame, better: str) -> str:
    """Return which boundary is better on each side of zero, by name if all rows agree."""
    names = comparisons[["baseline", "boundary"]].drop_duplicates()
    baseline, boundary = names.iloc[0] if len(names) == 1 else ("second", "first")
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
