"""The figures: a module for each kind, and the names of the files that they write."""

from collections.abc import Iterable

CURVES = {  # name of the file: label of the y axis
    "train_loss": "train loss",
    "train_accuracy": "train top-1 accuracy",
    "valid_loss": "valid loss",
    "valid_accuracy": "valid top-1 accuracy",
}
BOUNDARY = {  # name of the file: column of steps.csv, label of the y axis
    "boundary_loss": ("loss", "train loss"),
    "boundary_update_norm": ("update_norm", "L2 norm of the update"),
}


def name_differences(measures: Iterable[str]) -> dict[str, str]:
    """Return the measure of each figure of differences, by the name of the figure's file."""
    first, *others = dict.fromkeys(measures)
    return {"differences": first} | {f"differences_{measure}": measure for measure in others}
