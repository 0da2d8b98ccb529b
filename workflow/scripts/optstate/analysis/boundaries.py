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
WINDOW = 10  # steps over which losses are averaged
NOISE_FACTOR = 2  # a mean loss within this many standard errors is within the noise
COLUMNS = [*tables.RUN, "session", *tables.OF_BOUNDARIES]


def main(arguments: argparse.Namespace) -> None:
    """Write ``boundaries.csv``."""
    inputs = [arguments.tables / f"{name}.csv" for name in ("steps", "epochs")]
    steps, epochs = map(tables.read_verified, inputs)
    rows = measure_boundaries(steps, epochs, arguments.preserved, arguments.first_boundary)
    output = arguments.tables / "boundaries.csv"
    with write_atomically(output) as path:
        pd.DataFrame(rows, columns=COLUMNS).to_csv(path, index=False, lineterminator="\n")
    write_checksums(output.with_suffix(".sha256"), [output], inputs)


def measure_boundaries(
    steps: pd.DataFrame, epochs: pd.DataFrame, preserved: str, first_boundary: int
) -> Iterator[dict[str, object]]:
    """Yield a row for each boundary of each run.

    Args:
        steps: the table ``steps.csv``.
        epochs: the table ``epochs.csv``.
        preserved: the name of the boundary that keeps the whole state.
        first_boundary: the first session that begins with a boundary.
    """
    valid = epochs[epochs["split"] == "valid"]
    of_sessions = valid.groupby([*tables.RUN, "session"])[["top1", "loss"]]
    ends = of_sessions.last(skipna=False)  # of a diverged run, not its last finite loss
    for cell, of_cell in steps.groupby(["dataset", "schedule", "seed"]):
        sessions: dict[Any, pd.DataFrame] = dict(list(of_cell.groupby(["boundary", "session"])))
        losses = {name: of_run["loss"].to_numpy() for name, of_run in of_cell.groupby("boundary")}
        for (boundary, session), after in sessions.items():
            if session < first_boundary or boundary == UNINTERRUPTED:
                continue
            dataset, schedule, seed = cell
            names = [dataset, schedule, boundary, f"{schedule}-{boundary}", seed, session]
            measures = measure_boundary(after, sessions.get((preserved, session)))
            lost = np.nan
            if preserved in losses:
                last = after["step"].max()
                lost = count_steps_lost(losses[boundary][:last], losses[preserved][:last])
            end = ends.loc[tuple(names)].tolist()
            yield dict(zip(COLUMNS, [*names, *measures, lost, *end], strict=True))


def measure_boundary(after: pd.DataFrame, reference: pd.DataFrame | None) -> list[float]:
    """Compute the measures of ``tables.OF_BOUNDARIES`` that follow from a session's steps.

    Args:
        after: the steps of the session after the boundary.
        reference: the steps after the boundary of the run that keeps all state. If None, the
            measures relative to that run are NaN.
    """
    loss = after["loss"].to_numpy()
    early = float(loss[:EARLY_STEPS].mean())
    if reference is None:
        return [early, *[np.nan] * 4]
    kept = reference["loss"].to_numpy()
    excess = loss[:EXCESS_STEPS] - kept[:EXCESS_STEPS]
    ratio = after["update_norm"].iloc[0] / reference["update_norm"].iloc[0]
    recovery = count_recovery_steps(loss, kept)
    return [early, float(excess.sum()), float(excess.max()), recovery, float(ratio)]


def count_recovery_steps(loss: np.ndarray, kept: np.ndarray) -> float:
    """Count the steps until the loss is within the noise of that of the run that keeps all state.

    This is the first step at which the mean excess of the last ``WINDOW`` losses is at most
    ``NOISE_FACTOR`` standard errors of a mean of as many losses of that run. Their standard
    deviation is taken from differences of neighbouring steps, so that a trend does not count.

    Args:
        loss: the losses of a session's steps (steps,).
        kept: the losses of the same steps of the run that keeps all state (steps,).

    Returns:
        The number of steps, at least ``WINDOW``; infinite if the loss does not recover within the
        session; NaN if the session is shorter than ``WINDOW``, or a loss of the run that keeps all
        state is not finite.
    """
    if len(loss) < WINDOW or not np.isfinite(kept).all():
        return np.nan
    noise = np.std(np.diff(kept)) / np.sqrt(2) / np.sqrt(WINDOW)
    has_recovered = _smooth(loss - kept) <= NOISE_FACTOR * noise
    return float(np.argmax(has_recovered) + WINDOW) if has_recovered.any() else np.inf


def count_steps_lost(loss: np.ndarray, kept: np.ndarray) -> float:
    """Count by how many steps a run is behind the run that keeps all state, at a session's end.

    Losses are averaged over ``WINDOW`` steps. Count the steps at which the run that keeps all state
    is at or below this run's last loss. Subtract the steps at which this run is at or below the
    last loss of the run that keeps all state.

    Args:
        loss: the losses of a run's steps, up to the end of a session (steps,).
        kept: the losses of the same steps of the run that keeps all state (steps,).

    Returns:
        The number of steps, negative if the run that keeps all state is behind; NaN if there are
        fewer than ``WINDOW`` steps or a loss is not finite.
    """
    if len(loss) < WINDOW or not np.isfinite([*loss, *kept]).all():
        return np.nan
    smooth, smooth_kept = _smooth(loss), _smooth(kept)
    return float((smooth_kept <= smooth[-1]).sum() - (smooth <= smooth_kept[-1]).sum())


def _smooth(loss: np.ndarray) -> np.ndarray:
    """Return the mean of every ``WINDOW`` consecutive losses (steps - WINDOW + 1,)."""
    return np.lib.stride_tricks.sliding_window_view(loss, WINDOW).mean(axis=1)


PARSER = argparse.ArgumentParser(description=__doc__.split("\n")[0])
PARSER.add_argument("--tables", type=Path, required=True, help="folder of the tables")
PARSER.add_argument("--preserved", required=True, help="boundary that keeps the whole state")
PARSER.add_argument(
    "--first-boundary", type=int, default=2, help="first session that begins with a boundary"
)

if __name__ == "__main__":
    run(PARSER, main)
