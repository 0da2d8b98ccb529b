"""Reading the tables, and what their curves are called."""

from pathlib import Path

import pandas as pd

NAMES = ["dataset", "schedule", "boundary", "baseline", "method", "measure", "verdict"]
CURVES = {  # name of the figure: name of the axis
    "train_loss": "train loss",
    "train_accuracy": "train top-1 accuracy",
    "valid_loss": "valid loss",
    "valid_accuracy": "valid top-1 accuracy",
}


def read(path: Path) -> pd.DataFrame:
    """A table, with names as text, even those that look like a number or like a missing value."""
    columns = pd.read_csv(path, nrows=0).columns
    missing = {column: ["", "nan"] for column in columns.difference(NAMES)}
    names = dict.fromkeys(columns.intersection(NAMES), str)
    return pd.read_csv(path, dtype=names, keep_default_na=False, na_values=missing)
