"""Draw every paired difference in the primary outcome of one data set."""

import argparse
from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from optstate.analysis import tables
from optstate.analysis.figures import style
from optstate.checksums import write_checksums
from optstate.job import run

BAND = "#EDEDED"


def main(arguments: argparse.Namespace) -> None:
    """Write ``differences`` to ``--output``."""
    comparisons, pairs = (
        tables.read_verified(arguments.tables / f"{name}.csv") for name in ("comparisons", "pairs")
    )
    figure = draw_differences(comparisons, pairs, arguments.dataset, arguments.measures)
    output = arguments.output / "differences"
    write_checksums(output.with_suffix(".sha256"), style.save(figure, output))


def draw_differences(
    comparisons: pd.DataFrame, pairs: pd.DataFrame, dataset: str, measures: Sequence[str]
) -> Figure:
    """Draw a panel for each measure, with a row for each comparison.

    Args:
        comparisons: the table ``comparisons.csv``.
        pairs: the table ``pairs.csv``.
        dataset: the data set to draw.
        measures: the measures of the primary outcomes.
    """
    numbers = [
        int((comparisons["dataset"].eq(dataset) & comparisons["measure"].eq(m)).sum())
        for m in measures
    ]
    heights = [0.9 + 0.45 * number for number in numbers]
    figure, grid = plt.subplots(
        len(measures), figsize=(6.5, 0.9 + sum(heights)), layout="constrained", squeeze=False,
        height_ratios=heights,
    )  # fmt: skip
    for axes, measure in zip(grid[:, 0], measures, strict=True):
        compared = comparisons[comparisons["measure"] == measure]
        draw_measure(axes, compared, pairs[pairs["measure"] == measure], dataset, measure)
    handles: list[Artist] = [*style.make_pair_handles()]
    if comparisons.loc[comparisons["measure"].isin(measures), "margin"].notna().any():
        handles.append(Patch(color=BAND, label="margin of equivalence"))
    figure.legend(handles=handles, loc="outside lower center", ncols=3)
    return figure


def draw_measure(
    axes: Axes, comparisons: pd.DataFrame, pairs: pd.DataFrame, dataset: str, name: str
) -> None:
    """Draw a row for each comparison: the pairs, their mean, its interval and the margin.

    Args:
        axes: the panel.
        comparisons: rows of one measure and all data sets, so that all figures have one scale.
        pairs: the pairs of these comparisons.
        dataset: the data set to draw.
        name: the measure.
    """
    measure = tables.get_measure(name)
    scale = 100 if measure.is_top1 else 1
    # The first one is on top, and primary outcomes are above the others.
    of_dataset = comparisons[comparisons["dataset"] == dataset].iloc[::-1]
    of_dataset = of_dataset.sort_values("primary", kind="stable")
    axes.axvline(0, color=style.NEUTRAL, linewidth=1)
    boundaries = [*of_dataset["boundary"], *of_dataset["baseline"]]
    names = []
    for y, row in enumerate(tables.iterate_rows(of_dataset)):
        if np.isfinite(row.margin):
            left = -scale * row.margin
            axes.add_patch(Rectangle((left, y - 0.5), -2 * left, 1, color=BAND, zorder=0))
        values = scale * select_pairs(pairs, row).to_numpy()
        draw_comparison(axes, y, row, values, scale, boundaries)
        names.append(name_comparison(row, len(values)))
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(-0.7, len(names) - 0.3)
    extent = scale * find_extent(comparisons, pairs)
    axes.update_datalim([(x, 0) for x in extent])
    axes.autoscale_view(scaley=False)
    unit = " (points)" if measure.is_top1 else ""
    _, _, session = name.partition("_session")
    label = f"session {session}: {measure.label}" if session else measure.label
    axes.set_xlabel(f"difference in {label}{unit}")
    axes.set_title(f"{dataset}: {name_sides(of_dataset, measure.better)}", loc="left")


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
    role = "" if row.primary else " (exploratory)"
    return f"{row.schedule}: {row.boundary}\nvs {row.baseline}{lost}{role}"


def name_sides(comparisons: pd.DataFrame, better: str) -> str:
    """Return which boundary is better on each side of zero, by name if all rows agree."""
    if comparisons.empty:
        return "nothing to compare"
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
PARSER.add_argument("--measures", nargs="+", required=True, help="measures of primary outcomes")

if __name__ == "__main__":
    run(PARSER, main)
