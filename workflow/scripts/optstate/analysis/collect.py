"""Put the sessions of all runs together: tables of every step, every epoch, every run.

In the tables each run has all of its sessions under its own method's name, the first one, which the
boundaries of a schedule share, included.
"""

import argparse
import csv
import itertools
import json
import math
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from optstate import UNINTERRUPTED
from optstate.job import write_atomically, run

Row = dict[str, str]

SUMMARY_COLUMNS = [
    "dataset", "schedule", "boundary", "method", "seed", "final_valid_top1", "final_valid_loss",
    "best_valid_top1", "best_epoch", "final_train_loss", "train_seconds", "valid_seconds",
    "diverged", "best_valid_loss", "epochs_to_target",
]  # fmt: skip


def main(arguments: argparse.Namespace) -> None:
    """Write ``steps.csv``, ``epochs.csv`` and ``summary.csv`` to ``--output``."""
    # Sorted, so that the order in the configuration changes no byte.
    runs = sorted(itertools.product(arguments.datasets, arguments.methods, arguments.seeds))
    for name in ("steps", "epochs"):
        tables = (session_rows(arguments.runs, *r, arguments.sessions, name) for r in runs)
        write(arguments.output / f"{name}.csv", itertools.chain.from_iterable(tables))
    summaries = (
        summary(
            list(session_rows(arguments.runs, *r, arguments.sessions, "steps")),
            list(session_rows(arguments.runs, *r, arguments.sessions, "epochs")),
            json.loads(arguments.targets).get(r[0]),
        )
        for r in runs
    )
    write(arguments.output / "summary.csv", summaries)
    forget_progress(arguments.progress, runs)


def session_rows(
    root: Path, dataset: str, method: str, seed: int, num_sessions: int, name: str
) -> Iterator[Row]:
    """The rows, as text, of all sessions of a run, under its own method's name."""
    schedule, _, boundary = method.partition("-")
    shared = [schedule, *[method] * (num_sessions - 1)]
    for session, folder in enumerate([method] if boundary == UNINTERRUPTED else shared, 1):
        path = root / dataset / folder / f"seed{seed}" / f"session{session}" / f"{name}.csv"
        with path.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                yield row | {"boundary": boundary, "method": method}


def summary(steps: list[Row], epochs: list[Row], target_top1: float | None) -> Row:
    """A run in one row.

    The best epoch is the first of those with the highest top-1. A run has diverged if any of its
    losses is not finite. Until a target that was missed the epochs are infinite.
    """
    train = [row for row in epochs if row["split"] == "train"]
    valid = [row for row in epochs if row["split"] == "valid"]
    best = max(valid, key=lambda row: float(row["top1"]))
    diverged = not all(math.isfinite(float(row["loss"])) for row in steps + epochs)
    last = valid[-1]
    losses = [row["loss"] for row in valid if not math.isnan(float(row["loss"]))]
    reached = [row["epoch"] for row in valid if float(row["top1"]) >= (target_top1 or 0)]
    return {column: last[column] for column in SUMMARY_COLUMNS[:5]} | {
        "final_valid_top1": last["top1"],
        "final_valid_loss": last["loss"],
        "best_valid_top1": best["top1"],
        "best_epoch": best["epoch"],
        "final_train_loss": train[-1]["loss"],
        "train_seconds": _total_seconds(train),
        "valid_seconds": _total_seconds(valid),
        "diverged": str(diverged).lower(),
        "best_valid_loss": min(losses, key=float, default="nan"),
        "epochs_to_target": "" if target_top1 is None else next(iter(reached), "inf"),
    }


def forget_progress(root: Path, runs: Iterable[tuple[str, str, int]]) -> None:
    """Remove what the sessions would have continued from, had they been cut off.

    Not before their rows are read here, which Snakemake lets happen when it has recorded all of
    them as done, is that of no use any more.
    """
    for dataset, method, seed in runs:
        for name in (method.partition("-")[0], method):
            shutil.rmtree(root / dataset / name / f"seed{seed}", ignore_errors=True)


def _total_seconds(rows: list[Row]) -> str:
    return f"{math.fsum(float(row['seconds']) for row in rows):.3f}"


def write(path: Path, rows: Iterable[Row]) -> None:
    """A CSV file with the columns of the first row; there is at least one."""
    rows = iter(rows)
    first = next(rows)
    with write_atomically(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(first), lineterminator="\n")
        writer.writeheader()
        writer.writerow(first)
        writer.writerows(rows)


PARSER = argparse.ArgumentParser(description=__doc__.split("\n")[0])
PARSER.add_argument("--runs", type=Path, required=True, help="folder of the runs")
PARSER.add_argument("--datasets", nargs="+", required=True)
PARSER.add_argument("--methods", nargs="+", required=True)
PARSER.add_argument("--seeds", nargs="+", type=int, required=True)
PARSER.add_argument("--sessions", type=int, required=True, help="their number")
PARSER.add_argument("--targets", default="{}", help="JSON: the valid top-1 aimed at, by data set")
PARSER.add_argument("--progress", type=Path, required=True, help="folder of states in progress")
PARSER.add_argument("--output", type=Path, required=True, help="folder")

if __name__ == "__main__":
    run(PARSER, main)
