"""Measure the effect of each boundary on each run: ``boundaries.csv``.

The train loss and the updates after a boundary are compared with those of the reference: the run
with the same schedule and seed that keeps the optimizer's whole state. Up to the first boundary at
which they differ, both are the same run, and their differences are exactly 0. Afterwards both train
on the same batches, unless a boundary reshuffles them. Without reshuffling, any difference is
caused by the boundaries.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from optstate import UNINTERRUPTED
from optstate.analysis import tables
from optstate.checksums import write_checksums
from optstate.job import run, write_atomically

EARLY_STEPS = 40  # the effect of a reset shows within these steps; means over epochs miss it
EXCESS_STEPS = 200  # steps over which losses are compared with those of the reference
LEVEL_STEPS = 50  # steps before the boundary; their median loss is the level to recover
RECOVERY_STEPS = 10  # steps whose median loss must be at most that level
COLUMNS = [*tables.RUN, "session", *tables.OF_BOUNDARIES]


def main(arguments: argparse.Namespace) -> None:
    """Write ``boundaries.csv``."""
    steps = tables.read_verified(arguments.tables / "steps.csv")
    rows = measure_boundaries(steps, arguments.preserved, arguments.first_boundary)
    output = arguments.tables / "boundaries.csv"
    with write_atomically(output) as path:
        pd.DataFrame(rows, columns=COLUMNS).to_csv(path, index=False, lineterminator="\n")
    write_checksums(output.with_suffix(".sha256"), [output])


def measure_boundaries(
    steps: pd.DataFrame, preserved: str, first_boundary: int
) -> Iterator[dict[str, object]]:
    """Yield a row for each boundary of each run.

    Args:
        steps: the table ``steps.csv``.
        preserved: the name of the boundary that keeps the whole state.
        first_boundary: the first session that begins with a boundary.
    """
    for cell, of_cell in steps.groupby(["dataset", "schedule", "seed"]):
        sessions: dict[Any, pd.DataFrame] = dict(list(of_cell.groupby(["boundary", "session"])))
        for (boundary, session), after in sessions.items():
            if session < first_boundary or boundary == UNINTERRUPTED:
                continue
            before = sessions.get((boundary, session - 1))
            reference = sessions.get((preserved, session))
            dataset, schedule, seed = cell
            names = [dataset, schedule, boundary, f"{schedule}-{boundary}", seed, session]
            measures = measure_boundary(before, after, reference)
            yield dict(zip(COLUMNS, [*names, *measures], strict=True))


def measure_boundary(
    before: pd.DataFrame | None, after: pd.DataFrame, reference: pd.DataFrame | None
) -> list[float]:
    """Compute the measures of ``tables.OF_BOUNDARIES``, in their order.

    Args:
        before: the steps of the session before the boundary. If None, recovery is NaN.
        after: the steps of the session after the boundary.
        reference: the steps after the boundary of the run that keeps all state. If None, the
            measures relative to that run are NaN.
    """
    loss = after["loss"].to_numpy()
    area = peak = ratio = recovery = np.nan
    if before is not None:
        level = float(np.median(before["loss"].to_numpy()[-LEVEL_STEPS:]))
        recovery = count_recovery_steps(loss, level)
    if reference is not None:
        excess = loss[:EXCESS_STEPS] - reference["loss"].to_numpy()[:EXCESS_STEPS]
        area, peak = float(excess.sum()), float(excess.max())
        ratio = after["update_norm"].iloc[0] / reference["update_norm"].iloc[0]
    early = float(loss[:EARLY_STEPS].mean())
    return [early, area, peak, recovery, float(ratio)]


def count_recovery_steps(loss: np.ndarray, level: float) -> float:
    """Count the steps until the median of the last ``RECOVERY_STEPS`` losses is at most ``level``.

    Args:
        loss: the losses of a session's steps (steps,).
        level: the loss to recover.

    Returns:
        The number of steps, at least ``RECOVERY_STEPS``; infinite if the loss does not
        recover within the session.
    """
    if len(loss) < RECOVERY_STEPS:
        return np.inf
    windows = np.lib.stride_tricks.sliding_window_view(loss, RECOVERY_STEPS)
    has_recovered = np.median(windows, axis=1) <= level
    return float(np.argmax(has_recovered) + RECOVERY_STEPS) if has_recovered.any() else np.inf


PARSER = argparse.ArgumentParser(description=__doc__.split("\n")[0])
PARSER.add_argument("--tables", type=Path, required=True, help="folder of the tables")
PARSER.add_argument("--preserved", required=True, help="boundary that keeps the whole state")
PARSER.add_argument(
    "--first-boundary", type=int, default=2, help="first session that begins with a boundary"
)

if __name__ == "__main__":
    run(PARSER, main)
