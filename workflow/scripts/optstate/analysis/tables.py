"""Reading the tables, and what their measures are called."""

from pathlib import Path
from typing import NamedTuple

import pandas as pd

NAMES = ["dataset", "schedule", "boundary", "baseline", "method", "measure", "verdict"]
RUN = ["dataset", "schedule", "boundary", "method", "seed"]
CURVES = {  # name of the figure: name of the axis
    "train_loss": "train loss",
    "train_accuracy": "train top-1 accuracy",
    "valid_loss": "valid loss",
    "valid_accuracy": "valid top-1 accuracy",
}


class Measure(NamedTuple):
    """What a measure is called, and what is good of it."""

    words: str
    better: str = ""  # "higher" or "lower"; empty: neither
    is_top1: bool = False  # a fraction, shown in points, which a margin of equivalence is for


OF_RUNS = {
    "final_valid_top1": Measure("final valid top-1", "higher", is_top1=True),
    "final_valid_loss": Measure("final valid loss", "lower"),
    "best_valid_top1": Measure("best valid top-1", "higher", is_top1=True),
    "best_valid_loss": Measure("best valid loss", "lower"),
    "epochs_to_target": Measure("epochs to the target", "lower"),
}
OF_BOUNDARIES = {  # followed by _session2 for the first boundary, and so on
    "train_loss_first_40_steps": Measure("train loss of the first 40 steps", "lower"),
    "excess_loss_area": Measure("excess train loss, area", "lower"),
    "excess_loss_peak": Measure("excess train loss, peak", "lower"),
    "recovery_steps": Measure("steps until the loss is as before", "lower"),
    "update_norm_ratio": Measure("update norm over that with all kept, first step"),
}


def measure_of(name: str) -> Measure:
    """What is to be said of a measure of ``comparisons.csv``."""
    base, _, session = name.partition("_session")
    if not session:
        return OF_RUNS[base]
    measure = OF_BOUNDARIES[base]
    return measure._replace(words=f"{measure.words}, session {session}")


def points(margin: float) -> str:
    """A margin of equivalence in words: 0.01 is ±1 point."""
    return f"±{100 * margin:g} point{'s' if margin != 0.01 else ''}"


def read(path: Path) -> pd.DataFrame:
    """A table, with names as text, even those that look like a number or like a missing value."""
    columns = pd.read_csv(path, nrows=0).columns
    missing = {column: ["", "nan"] for column in columns.difference(NAMES)}
    names = dict.fromkeys(columns.intersection(NAMES), str)
    return pd.read_csv(path, dtype=names, keep_default_na=False, na_values=missing)
