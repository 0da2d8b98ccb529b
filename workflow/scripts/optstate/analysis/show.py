"""Print what an experiment found, and where to look: `python -m optstate.analysis.show RESULTS`."""

import sys
from pathlib import Path

import pandas as pd


def main(results: Path) -> None:
    """Print the final validation metrics of every method, and the differences."""
    summary = pd.read_csv(results / "tables" / "summary.csv")
    final = summary.groupby(["dataset", "method"]).agg(
        seeds=("seed", "size"),
        valid_top1=("final_valid_top1", "mean"),
        valid_loss=("final_valid_loss", "mean"),
        train_loss=("final_train_loss", "mean"),
    )
    print(f"\nAfter the last session, mean over seeds:\n{final.round(4).to_string()}")
    differences = pd.read_csv(results / "tables" / "comparisons.csv")
    if len(differences):
        differences["contrast"] = differences["boundary"] + " - " + differences["baseline"]
        wide = differences.pivot(
            index="measure", columns=["contrast", "dataset", "schedule"], values="mean_difference"
        )
        print(f"\nDifferences between the boundaries:\n{wide.round(4).to_string()}")
    print(f"\nReport:  {results / 'report.html'}")
    print(f"Figures: {results / 'figures'}")
    print(f"Tables:  {results / 'tables'}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
