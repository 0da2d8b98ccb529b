"""Read tables, and describe the measures in them."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from optstate.analysis.files import FIX, explain_unreadable
from optstate.checksums import verify
from optstate.job import InputError

NAMES = ["dataset", "schedule", "boundary", "baseline", "method", "measure", "verdict"]
FILLED = ["steps", "epochs", "summary"]  # the tables that have rows in every experiment
RUN = ["dataset", "schedule", "boundary", "method", "seed"]


class Measure(NamedTuple):
    """The words and the direction with which a measure is presented.

    Attributes:
        label: its name, or definition, in prose. ``{}`` stands for the session, if it has one.
        better: ``"higher"`` or ``"lower"``; empty if neither is better.
        is_top1: whether the measure is a top-1 accuracy. Such a measure is a fraction, is shown in
            points, and is tested for equivalence.
    """

    label: str
    better: str = ""
    is_top1: bool = False


OF_RUNS = {
    "final_valid_top1": Measure("final valid top-1", "higher", is_top1=True),
    "final_valid_balanced_top1": Measure(
        "final valid top-1, averaged over the classes", "higher", is_top1=True
    ),
    "final_valid_loss": Measure("final valid loss", "lower"),
    "best_valid_top1": Measure("best valid top-1", "higher", is_top1=True),
    "best_valid_loss": Measure("best valid loss", "lower"),
    "epochs_to_target": Measure("epochs to the target", "lower"),
}
OF_BOUNDARIES = {  # in comparisons.csv followed by _session2 for the first boundary, and so on
    "train_loss_first_40_steps": Measure("mean train loss of the first 40 steps of {}", "lower"),
    "excess_loss_area": Measure(
        "train loss minus that of the run that keeps all state, summed over the first 200 steps of "
        "{}",
        "lower",
    ),
    "excess_loss_peak": Measure(
        "largest excess of the train loss over that of the run that keeps all state, in one of the "
        "first 200 steps of {}",
        "lower",
    ),
    "recovery_steps": Measure(
        "steps of {} until the mean train loss of ten steps is within the noise of that of the run "
        "that keeps all state",
        "lower",
    ),
    "update_norm_ratio": Measure(
        "norm of the first update of {}, divided by that of the run that keeps all state"
    ),
    "steps_lost": Measure(
        "steps by which the train loss at the end of {} is behind that of the run that keeps all "
        "state",
        "lower",
    ),
    "end_valid_top1": Measure("valid top-1 at the end of {}", "higher", is_top1=True),
    "end_valid_loss": Measure("valid loss at the end of {}", "lower"),
}
OF_LIMITS = {"final_valid_top1": "limit", "final_valid_balanced_top1": "balanced_limit"}


def get_measure(name: str) -> Measure:
    """Return the description of a measure of ``comparisons.csv``."""
    return (OF_RUNS | OF_BOUNDARIES)[name.partition("_session")[0]]


def label_measure(name: str) -> str:
    """Return a measure of ``comparisons.csv`` in words, with its session if it has one."""
    _, _, session = name.partition("_session")
    return get_measure(name).label.format(f"session {session}")


def format_margin(margin: float) -> str:
    """Return a margin of equivalence in words: 0.01 is ±1 point."""
    return f"±{100 * margin:.3g} point{'s' if margin != 0.01 else ''}"


def format_value(value: float, measure: Measure) -> str:
    """Return a difference with its sign, and with its unit if it is in top-1."""
    return f"{100 * value:+.2f} points" if measure.is_top1 else f"{value:+.3g}"


def format_interval(
    mean: float, low: float, high: float, measure: Measure, is_signed: bool = True
) -> str:
    """Return a difference and its interval, with as many digits as the interval justifies.

    The half width has two significant digits. An end that is not zero is not rounded to zero.
    """
    scale, unit = (100, " points") if measure.is_top1 else (1, "")
    mean, low, high = (scale * value for value in (mean, low, high))
    digits = max(1 - math.floor(math.log10((high - low) / 2)), 0)
    while any(end and not round(end, digits) for end in (low, high)):
        digits += 1
    sign = "+" if is_signed else ""
    mean_text, *ends = (f"{value:{sign}.{digits}f}" for value in (mean, low, high))
    return f"{mean_text}{unit} [{', '.join(ends)}]"


class Chance(NamedTuple):
    """The accuracy of a model that has learnt nothing.

    Attributes:
        top1: the valid top-1, a fraction, if the answer is always the most frequent class.
        limit: ``top1`` plus two standard errors of as many images. A top-1 above it is not chance.
        balanced_top1: the valid top-1, averaged over the classes, of any constant answer.
        balanced_limit: ``balanced_top1`` plus two standard errors. A mean above it is not chance.
    """

    top1: float
    limit: float
    balanced_top1: float
    balanced_limit: float


def compute_chance(card: dict[str, Any], valid_per_class: int | None) -> Chance:
    """Return the level of chance of a data set.

    Args:
        card: the content of ``dataset.json``.
        valid_per_class: validation images of each class that are used; None: all.
    """
    numbers = [min(c["valid"], valid_per_class or c["valid"]) for c in card["classes"]]
    top1 = max(numbers) / sum(numbers)
    balanced = 1 / len(numbers)
    error = math.sqrt(balanced * (1 - balanced) * sum(1 / n for n in numbers)) / len(numbers)
    limit = top1 + 2 * math.sqrt(top1 * (1 - top1) / sum(numbers))
    return Chance(top1, limit, balanced, balanced + 2 * error)


def list_at_chance(summary: pd.DataFrame, chances: dict[str, Chance]) -> list[tuple[str, str]]:
    """Return each data set and schedule whose methods all stay at the level of chance.

    A method is above it if the mean over seeds of its final valid top-1 is, or that of the average
    over the classes.
    """
    measures = [name for name in OF_LIMITS if name in summary]  # older tables have fewer
    means = summary.groupby(["dataset", "schedule", "method"])[measures].mean()
    cells: dict[Any, Any] = means.groupby(["dataset", "schedule"]).max().to_dict("index")
    return [
        cell
        for cell, best in cells.items()
        if all(best[name] <= getattr(chances[cell[0]], OF_LIMITS[name]) for name in measures)
    ]


def read(path: Path) -> pd.DataFrame:
    """Read a table. Names stay text, even those that look like a number or a missing value.

    Raises:
        InputError: the file is not a CSV file.
    """
    with explain_unreadable(path):
        columns = pd.read_csv(path, nrows=0).columns
        missing = {column: ["", "nan"] for column in columns.difference(NAMES)}
        names = dict.fromkeys(columns.intersection(NAMES), str)
        return pd.read_csv(path, dtype=names, keep_default_na=False, na_values=missing)


def read_verified(path: Path) -> pd.DataFrame:
    """Read a table of an experiment, after checking that it is as its job wrote it.

    Raises:
        InputError: the table has changed, is not a CSV file, or has no rows but must have some.
    """
    verify(path)
    table = read(path)
    if table.empty and path.stem in FILLED:
        raise InputError(f"{path}: has no rows. {FIX}")
    return table


def select_primary(comparisons: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of the primary outcomes."""
    return comparisons[comparisons["primary"].eq(True)]  # without rows, it is not boolean


def iterate_rows(table: pd.DataFrame) -> Iterator[Any]:
    """Yield the rows of a table, with an attribute for each column."""
    return table.itertuples()  # its type says nothing of the columns
