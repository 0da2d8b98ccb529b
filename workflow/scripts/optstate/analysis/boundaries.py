"""What each boundary between two sessions did to each run: ``boundaries.csv``.

The train loss and the updates of the steps after it, against the run of the same schedule and seed
that keeps the optimizer's whole state: before the first boundary the two are one run, after it they
have the same batches (unless reshuffled), and what differs is the boundary's doing.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from optstate.analysis import tables
from optstate.job import write_atomically, run

EARLY_STEPS = 40  # a reset shows itself within about so many; means of epochs miss it
EXCESS_STEPS = 200  # over which the loss is compared with that of the run that keeps all
LEVEL_STEPS = 50  # before the boundary, whose median loss is the level to be regained,
RECOVERY_STEPS = 10  # by the median of so many
COLUMNS = [*tables.RUN, "session", *tables.OF_BOUNDARIES]


def main(arguments: argparse.Namespace) -> None:
    """Write ``boundaries.csv``."""
    steps = tables.read(arguments.tables / "steps.csv")
    table = pd.DataFrame(crossings(steps, arguments.preserved), columns=COLUMNS)
    with write_atomically(arguments.tables / "boundaries.csv") as path:
        table.to_csv(path, index=False, lineterminator="\n")


def crossings(steps: pd.DataFrame, preserved: str) -> Iterator[dict[str, object]]:
    """A row for each boundary of each run.

    Args:
        steps: as ``steps.csv``.
        preserved: the boundary that keeps the whole state, which others are compared with.
    """
    for cell, of_cell in steps.groupby(["dataset", "schedule", "seed"]):
        sessions: dict[Any, pd.DataFrame] = dict(list(of_cell.groupby(["boundary", "session"])))
        for (boundary, session), after in sessions.items():
            if session == 1:
                continue
            before = sessions[boundary, session - 1]
            reference = sessions.get((preserved, session))
            dataset, schedule, seed = cell
            named = [dataset, schedule, boundary, f"{schedule}-{boundary}", seed, session]
            yield dict(zip(COLUMNS, [*named, *measured(before, after, reference)], strict=True))


def measured(
    before: pd.DataFrame, after: pd.DataFrame, reference: pd.DataFrame | None
) -> list[float]:
    """The measures of ``tables.OF_BOUNDARIES``, in their order.

    Args:
        before: the steps of the session before the boundary.
        after: those of the session after it.
        reference: those of the run that keeps all, if there is one; else what is compared with it
            is NaN.
    """
    loss = after["loss"].to_numpy()
    level = float(np.median(before["loss"].to_numpy()[-LEVEL_STEPS:]))
    area = peak = ratio = np.nan
    if reference is not None:
        excess = loss[:EXCESS_STEPS] - reference["loss"].to_numpy()[:EXCESS_STEPS]
        area, peak = float(excess.sum()), float(excess.max())
        ratio = after["update_norm"].iloc[0] / reference["update_norm"].iloc[0]
    return [float(loss[:EARLY_STEPS].mean()), area, peak, recovery(loss, level), float(ratio)]


def recovery(loss: np.ndarray, level: float) -> float:
    """Steps until the median ``loss`` (steps,) of the last few is at most ``level``.

    Infinite if it never is. The least there can be are the steps that a median is taken of.
    """
    if len(loss) < RECOVERY_STEPS:
        return np.inf
    windows = np.lib.stride_tricks.sliding_window_view(loss, RECOVERY_STEPS)
    regained = np.median(windows, axis=1) <= level
    return float(np.argmax(regained) + RECOVERY_STEPS) if regained.any() else np.inf


PARSER = argparse.ArgumentParser(description=__doc__.split("\n")[0])
PARSER.add_argument("--tables", type=Path, required=True, help="folder")
PARSER.add_argument("--preserved", required=True, help="boundary that keeps the whole state")

if __name__ == "__main__":
    run(PARSER, main)
