"""Draw the figures of the committed studies that are not figures of a single experiment.

These are ``docs/images/costs.png``, with the cost of a lost state in all studies, and for each
study of remedies ``gains.png`` in its folder, with the effect of each remedy on top-1. If valid
loss is a primary measure, ``loss_gains.png`` has the effects on it. The command takes no arguments:
``.venv/bin/python docs/draw_studies.py``.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import recompute
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from recompute import configuration, tables

from optstate.analysis.figures import style

DOCS = Path(__file__).resolve().parent
TRAINED = {  # what each study trained
    "study": "ResNet-18, 64 px, the same 1,000 images for all seeds, sessions of 60, 60, 40 steps",
    "studies/attribution-resnet18": (
        "ResNet-18, 32 px, 1,000 images drawn for each seed, sessions of 60, 60, 40 steps"
    ),
    "studies/attribution": (
        "small network, 1,000 images drawn for each seed, sessions of 60, 60, 40 steps"
    ),
    "studies/article": "small network, all images, sessions of 950, 950, 475 steps",
    "studies/resets": "small network, all images, 24 sessions of 95 steps, schedules over the run",
    "studies/remedies": "the same with other seeds, state lost 23 times",
}
SCHEDULES = {
    "constant": "Adam, constant", "onecycle": "Adam, OneCycle", "cosine": "Adam, cosine",
    "sgd": "SGD with momentum",
}  # fmt: skip
REMEDIES = {
    "studies/attribution-resnet18", "studies/attribution", "studies/article", "studies/remedies"
}  # fmt: skip
COLOURS = {"imagenette": "#0072B2", "imagewoof": "#D55E00"}


def main() -> None:
    """Write all figures."""
    finished = [study for study in TRAINED if (DOCS / study).is_dir()]
    costs = [cost for study in finished for cost in list_costs(study)]
    save(
        draw(costs, "top-1 with the state kept minus that with it lost (points)"),
        DOCS / "images/costs.png",
    )
    for study in (study for study in finished if study in REMEDIES):
        gains = list(list_gains(study, "final_valid_top1"))
        label = "minus that of a new optimizer"
        save(draw(gains, f"final valid top-1 {label} (points)"), DOCS / study / "gains.png")
        gains = list(list_gains(study, "final_valid_loss"))
        if any(gain["primary"] for gain in gains):
            save(draw(gains, f"final valid loss {label}"), DOCS / study / "loss_gains.png")


def list_costs(study: str) -> Iterator[dict[str, Any]]:
    """Yield the primary differences in top-1 between keeping and losing the state, in points."""
    losses = configuration.list_resets(recompute.read_config(DOCS / study))
    for row in read_comparisons(study):
        is_cost = {row.boundary, row.baseline} <= losses.keys()
        if not (row.primary and is_cost and tables.get_measure(row.measure).is_top1):
            continue
        # A boundary that loses the state may be compared with the one that keeps it.
        sign = -1 if losses[row.boundary] else 1
        lost = row.boundary if losses[row.boundary] else row.baseline
        label = SCHEDULES[row.schedule]
        if len(losses) > 2:
            number = len(losses[lost])
            label += f", lost {number} times" if number > 1 else f", lost once, {lost}"
        if row.measure.startswith("end_"):
            label += f", end of session {row.measure.partition('_session')[2]}"
        yield describe(row, TRAINED[study], label, sign)


def list_gains(study: str, measure: str) -> Iterator[dict[str, Any]]:
    """Yield the differences of each boundary to a new optimizer in a measure."""
    for row in read_comparisons(study):
        if row.baseline == "new" and row.measure == measure:
            yield describe(row, SCHEDULES[row.schedule], row.boundary)


def read_comparisons(study: str) -> Iterator[Any]:
    """Return the comparisons of a study, in the order of its methods."""
    methods = recompute.read_config(DOCS / study)["methods"]
    found = recompute.read_committed(DOCS / study, "comparisons")
    order = (found["schedule"] + "-" + found["boundary"]).map(methods.index)
    return tables.iterate_rows(found.loc[order.sort_values(kind="stable").index])


def describe(row: Any, panel: str, label: str, sign: int = 1) -> dict[str, Any]:
    """Return what is drawn of a comparison: panel, label, dataset, primary, mean and interval.

    Differences in top-1 are in points.
    """
    scale = sign * (100 if tables.get_measure(row.measure).is_top1 else 1)
    mean, *ends = (scale * value for value in (row.mean_difference, row.low, row.high))
    names = {"panel": panel, "label": label, "dataset": row.dataset, "primary": row.primary}
    return names | {"mean": mean, "low": min(ends), "high": max(ends)}


def draw(differences: list[dict[str, Any]], label: str) -> Figure:
    """Draw differences: a panel for each study or schedule, with the data sets side by side."""
    groups = dict(list(pd.DataFrame(differences).groupby("panel", sort=False)))
    labels = {panel: list(rows["label"].unique())[::-1] for panel, rows in groups.items()}
    figure, grid = style.make_panels(list(labels.values()))
    for axes, (panel, rows) in zip(grid, groups.items(), strict=True):
        axes.axvline(0, color=style.NEUTRAL, linewidth=1)
        style.set_panel_title(axes, panel, width=style.PANEL)
        draw_rows(axes, rows, labels[panel])
    grid[-1].set_xlabel(label)
    drawn = {row["dataset"] for row in differences}
    handles = [
        Line2D([], [], color=colour, label=dataset, **style.PAIRS_MEAN)
        for dataset, colour in COLOURS.items()
        if dataset in drawn
    ]
    if not all(row["primary"] for row in differences):
        look = style.PAIRS_MEAN | {"markerfacecolor": "white"}
        handles.append(Line2D([], [], color=style.NEUTRAL, label="exploratory", **look))
    style.place_legend(figure, handles)
    return figure


def draw_rows(axes: Axes, rows: pd.DataFrame, labels: list[str]) -> None:
    """Draw each row's mean and interval at the height of its label."""
    for row in tables.iterate_rows(rows):
        y = labels.index(row.label) + 0.18 * (1 if row.dataset == "imagenette" else -1)
        colour = COLOURS[row.dataset]
        axes.plot([row.low, row.high], [y, y], color=colour, **style.INTERVAL)
        look = style.PAIRS_MEAN | {"markersize": 5}
        fill = colour if row.primary else "white"
        axes.plot([row.mean], [y], color=colour, markerfacecolor=fill, **look)


def save(figure: Figure, path: Path) -> None:
    """Write a figure, without a date, so that the same figure has the same bytes."""
    figure.savefig(path, metadata={"Software": None})


if __name__ == "__main__":
    main()
