"""Print what an experiment found, and where to look: `python -m optstate.analysis.show RESULTS`."""

import sys
from pathlib import Path

from optstate.analysis import tables


def main(results: Path) -> None:
    """Print the final validation metrics of every method, and the answer."""
    summary = tables.read(results / "tables" / "summary.csv")
    final = summary.groupby(["dataset", "method"]).agg(
        seeds=("seed", "size"),
        valid_top1=("final_valid_top1", "mean"),
        valid_loss=("final_valid_loss", "mean"),
        train_loss=("final_train_loss", "mean"),
    )
    print(f"\nAfter the last session, mean over seeds:\n{final.round(4).to_string()}")
    differences = tables.read(results / "tables" / "comparisons.csv")
    if len(differences):
        differences["difference"] = differences["boundary"] + " - " + differences["baseline"]
        shown = differences["measure"].str.match("final_|train_loss_first")
        wide = differences[shown].pivot(
            index=["dataset", "schedule", "difference"], columns="measure", values="mean_difference"
        )
        wide.columns = wide.columns.str.replace(
            r"train_loss_first_(\d+)_steps_session", r"train_loss_\1_s", regex=True
        )
        print(f"\nDifferences, mean over seeds:\n{wide.round(4).to_string()}")
        print("Below zero is better in a loss, above zero in top-1. train_loss_40_s2 is the mean")
        print("train loss of the first 40 steps of session 2, after the first boundary.")
        if (differences["n"] < 2).all():
            print("One seed shows what a boundary does here, not whether it would do so again.")
        for row in differences[differences["primary"]].itertuples():
            print(f"{row.dataset}, {row.schedule}, {row.measure}, {row.difference}: {row.verdict}")
    print(f"\nReport:  {results / 'report.html'}")
    print(f"Figures: {results / 'figures'}")
    print(f"Tables:  {results / 'tables'}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
