"""The answer in numbers: paired differences of each boundary to the one that keeps nothing.

A pair is two runs of one seed, which share the first session, and from there on the batches and
their order. The interval is Student's t interval of the mean difference, at 95 %.
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from optstate.analysis import tables
from optstate.job import replacing, run

CONFIDENCE = 0.95
AFTER_BOUNDARY_STEPS = 40  # a reset shows itself within about so many; means of epochs miss it
COLUMNS = [
    "dataset", "schedule", "boundary", "baseline", "measure", "n", "mean_difference", "low",
    "high", "verdict",
]  # fmt: skip
CELL = ["dataset", "schedule"]


def main(arguments: argparse.Namespace) -> None:
    """Write ``comparisons.csv``."""
    summary = tables.read(arguments.tables / "summary.csv")
    steps = tables.read(arguments.tables / "steps.csv")
    table = compare(measures(summary, steps), arguments.baseline)
    with replacing(arguments.tables / "comparisons.csv") as path:
        table.to_csv(path, index=False, lineterminator="\n")


def measures(summary: pd.DataFrame, steps: pd.DataFrame) -> pd.DataFrame:
    """What is compared, in rows: dataset, schedule, boundary, seed, measure, value."""
    run_columns = [*CELL, "boundary", "seed"]
    final = summary.melt(run_columns, ["final_valid_top1", "final_valid_loss"], "measure", "value")
    later = steps[steps["session"] > 1]
    place = later.groupby([*run_columns, "session"])["step"].rank().astype(int)
    early = later[place <= AFTER_BOUNDARY_STEPS]
    # A loss that is not finite makes the mean so, too, where pandas would leave it out.
    mean = early.groupby([*run_columns, "session"])["loss"].mean(skipna=False)
    after_boundary = mean.reset_index(name="value")
    after_boundary["measure"] = [
        f"train_loss_first_{AFTER_BOUNDARY_STEPS}_steps_session{session}"
        for session in after_boundary["session"]
    ]
    return pd.concat([final, after_boundary.drop(columns="session")], ignore_index=True)


def compare(values: pd.DataFrame, baseline: str) -> pd.DataFrame:
    """A row for each (dataset, schedule, boundary, measure), boundary minus ``baseline``.

    Args:
        values: as :func:`measures` gives them.
        baseline: the boundary that the others are compared with.
    """
    rows = []
    for (dataset, schedule, measure), cell in values.groupby([*CELL, "measure"]):
        by_boundary = cell.pivot(index="seed", columns="boundary", values="value")
        if baseline not in by_boundary:
            continue
        for boundary in by_boundary.columns.drop(baseline):
            pairs = by_boundary[boundary] - by_boundary[baseline]
            names = [dataset, schedule, boundary, baseline, measure]
            rows.append(dict(zip(COLUMNS, [*names, *difference(pairs)], strict=True)))
    return pd.DataFrame(rows, columns=COLUMNS).sort_values(COLUMNS[:5], ignore_index=True)


def difference(pairs: pd.Series) -> tuple[int, float, float, float, str]:
    """n, mean, low, high and verdict of paired differences, without those not finite."""
    finite = pairs[np.isfinite(pairs)].to_numpy()
    num_lost = len(pairs) - len(finite)
    mean = float(np.mean(finite)) if len(finite) else float("nan")
    low = high = float("nan")
    if len(finite) > 1:
        interval = stats.ttest_1samp(finite, 0).confidence_interval(CONFIDENCE)
        low, high = float(interval.low), float(interval.high)
    note = f"; {num_lost} of {len(pairs)} pairs diverged" if num_lost else ""
    return len(finite), mean, low, high, _verdict(len(finite), low, high) + note


def _verdict(n: int, low: float, high: float) -> str:
    if n < 2:
        return "one seed: no interval" if n else "no pair"
    if low > 0:
        return "higher"
    return "lower" if high < 0 else "undecided"


PARSER = argparse.ArgumentParser(description=__doc__.split("\n")[0])
PARSER.add_argument("--tables", type=Path, required=True, help="folder")
PARSER.add_argument("--baseline", required=True, help="boundary compared with")

if __name__ == "__main__":
    run(PARSER, main)
