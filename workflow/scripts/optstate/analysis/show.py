"""Print an experiment's results and their paths: ``python -m optstate.analysis.show RESULTS``."""

import sys
from pathlib import Path

import pandas as pd

from optstate.analysis import tables
from optstate.job import InputError


def main(results: Path) -> None:
    """Print every method's final metrics, the differences, the verdicts, and the paths."""
    summary = tables.read_verified(results / "tables" / "summary.csv")
    final = summary.groupby(["dataset", "method"]).agg(
        seeds=("seed", "size"),
        valid_top1=("final_valid_top1", "mean"),
        valid_loss=("final_valid_loss", "mean"),
        train_loss=("final_train_loss", "mean"),
    )
    print(f"\nAfter the last session, mean over seeds:\n{final.round(4).to_string()}")
    comparisons = tables.read_verified(results / "tables" / "comparisons.csv")
    if len(comparisons):
        print_differences(comparisons)
    print(f"\nReport:  {results / 'report.html'}")
    print(f"Figures: {results / 'figures'}")
    print(f"Tables:  {results / 'tables'}")


def print_differences(comparisons: pd.DataFrame) -> None:
    """Print the mean differences in the main measures, and the primary outcome's verdicts."""
    comparisons = comparisons.assign(
        difference=comparisons["boundary"] + " - " + comparisons["baseline"]
    )
    is_main = comparisons["measure"].str.match("final_|train_loss_first")
    wide = comparisons[is_main].pivot(
        index=["dataset", "schedule", "difference"], columns="measure", values="mean_difference"
    )
    wide.columns = wide.columns.str.replace(
        r"train_loss_first_(\d+)_steps_session", r"train_loss_\1_s", regex=True
    )
    print(f"\nDifferences, mean over seeds:\n{wide.round(4).to_string()}")
    print("Below zero is better for a loss, above zero for top-1. train_loss_40_sN is the mean")
    print("train loss of the first 40 steps of session N, which begins with a boundary.")
    if (comparisons["n"] < 2).all():
        print("One seed shows the effect in these runs, not whether it would repeat.")
    for row in comparisons[comparisons["primary"]].itertuples():
        print(f"{row.dataset}, {row.schedule}, {row.measure}, {row.difference}: {row.verdict}")


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]))
    except InputError as error:
        sys.exit(f"error: {error}")
