"""Collect the sessions of all runs: tables of every step, every epoch and every run.

Each run has the rows of all of its sessions under its own method's name. A session that several
runs share appears in each of them.
"""

import argparse
import contextlib
import csv
import json
import math
import shutil
from collections.abc import Container
from pathlib import Path
from typing import IO

from optstate import job
from optstate.analysis.files import Row, read_json, read_rows
from optstate.analysis.sessions import Layout, check_sessions, count_steps
from optstate.checksums import verify, write_checksums
from optstate.experiment.runs import Run, Runs

TABLES = ("steps", "epochs", "summary")


def main(arguments: argparse.Namespace) -> None:
    """Write the tables to ``--output``, then remove the states in progress of all sessions.

    Nothing is written unless every session is unchanged and complete. Snakemake starts this job
    after it has recorded all sessions as done, so nothing continues from their states in progress.
    """
    runs = Runs.from_json(arguments.runs)
    layout = verify_sessions(arguments, runs)
    counted = list_validated(layout, runs)
    targets = json.loads(arguments.targets)
    with contextlib.ExitStack() as stack:
        files = {}
        for name in TABLES:
            path = stack.enter_context(job.write_atomically(arguments.output / f"{name}.csv"))
            files[name] = stack.enter_context(path.open("w", newline="", encoding="utf-8"))
        for run in runs:
            steps, epochs = (read_run(arguments.runs_folder, run, name) for name in TABLES[:2])
            summary = summarize_run(run, steps, epochs, counted, targets.get(run.dataset))
            for name, rows in zip(TABLES, (steps, epochs, [summary]), strict=True):
                append_rows(files[name], rows)
    paths = [arguments.output / f"{name}.csv" for name in TABLES]
    listings = [arguments.runs_folder / s.folder / "session.sha256" for s in runs.sessions]
    write_checksums(arguments.output / "collect.sha256", paths, listings)
    for session in runs.sessions:
        shutil.rmtree(arguments.progress / session.folder, ignore_errors=True)


def verify_sessions(arguments: argparse.Namespace, runs: Runs) -> Layout:
    """Check that the tables of all sessions are as their jobs wrote them, and complete.

    Returns:
        What rows they have.

    Raises:
        InputError: a table has changed, or does not have the configured rows.
    """
    folders = [arguments.runs_folder / session.folder for session in runs.sessions]
    tables = [folder / f"{name}.csv" for folder in folders for name in TABLES[:2]]
    verify(*tables, *arguments.cards)
    num_steps = {
        dataset: count_steps(
            read_json(card, "classes"), arguments.batch_size, arguments.train_per_class
        )
        for dataset, card in zip(sorted(runs.datasets), arguments.cards, strict=True)
    }
    layout = Layout(arguments.epochs, num_steps, arguments.validate_every, arguments.has_weights)
    check_sessions(arguments.runs_folder, runs.sessions, layout)
    return layout


def list_validated(layout: Layout, runs: Runs) -> set[int]:
    """Return the epochs, without epoch 0, after which all runs were validated.

    An uninterrupted run is not validated where the sessions of the others end.
    """
    validated = [
        {
            int(row["epoch"])
            for session in run.sessions
            for row in layout.list_rows(session, "epochs")
            if row["split"] == "valid"
        }
        for run in runs
    ]
    return set.intersection(*validated) - {0}


def read_run(runs_folder: Path, run: Run, name: str) -> list[Row]:
    """Read the rows of all sessions of a run, as text, with the run's own names.

    Args:
        runs_folder: the folder of all runs.
        run: the run.
        name: the table to read, ``steps`` or ``epochs``.
    """
    rows: list[Row] = []
    for session in run.sessions:
        path = runs_folder / session.folder / f"{name}.csv"
        rows += [row | run.names() for row in read_rows(path)]
    return rows


def append_rows(file: IO[str], rows: list[Row]) -> None:
    """Append ``rows``, at least one, to a CSV file. Write the header first if the file is empty."""
    writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
    if not file.tell():
        writer.writeheader()
    writer.writerows(rows)


def summarize_run(
    run: Run,
    steps: list[Row],
    epochs: list[Row],
    counted: Container[int],
    target_top1: float | None,
) -> Row:
    """Summarize a run in one row.

    The best epoch is the first counted one with the highest valid top-1. A run has diverged if any
    of its losses is not finite. ``epochs_to_target`` is the first counted epoch that reached the
    target. It is infinite if none did, and empty without a target.

    Args:
        run: the run.
        steps: its rows of ``steps.csv``.
        epochs: its rows of ``epochs.csv``.
        counted: the epochs that may be the best and reach the target, with the last one.
        target_top1: the valid top-1 to reach, a fraction; None: no target.
    """
    train = [row for row in epochs if row["split"] == "train"]
    validated = [row for row in epochs if row["split"] == "valid"]
    valid = [row for row in validated if int(row["epoch"]) in counted]
    best = max(valid, key=lambda row: float(row["top1"]))
    diverged = not all(math.isfinite(float(row["loss"])) for row in steps + epochs)
    losses = [row["loss"] for row in valid if not math.isnan(float(row["loss"]))]
    reached = (row["epoch"] for row in valid if float(row["top1"]) >= (target_top1 or 0))
    return run.names() | {
        "final_valid_top1": valid[-1]["top1"],
        "final_valid_loss": valid[-1]["loss"],
        "best_valid_top1": best["top1"],
        "best_epoch": best["epoch"],
        "final_train_loss": train[-1]["loss"],
        "train_seconds": _sum_seconds(train),
        "valid_seconds": _sum_seconds(validated),
        "diverged": str(diverged).lower(),
        "best_valid_loss": min(losses, key=float, default="nan"),
        "epochs_to_target": "" if target_top1 is None else next(reached, "inf"),
        "final_valid_balanced_top1": valid[-1]["balanced_top1"],
    }


def _sum_seconds(rows: list[Row]) -> str:
    return f"{math.fsum(float(row['seconds']) for row in rows):.3f}"


PARSER = argparse.ArgumentParser(description=__doc__.split("\n")[0])
PARSER.add_argument("--runs-folder", type=Path, required=True, help="folder of all runs")
PARSER.add_argument("--runs", required=True, help="JSON of the runs")
PARSER.add_argument("--epochs", type=int, nargs="+", required=True, help="epochs of each session")
PARSER.add_argument("--validate-every", type=int, required=True, help="epochs between validations")
PARSER.add_argument("--has-weights", action="store_true", help="session 1 validates given weights")
PARSER.add_argument(
    "--cards", type=Path, nargs="+", required=True, help="dataset.json files, by data set name"
)
PARSER.add_argument("--batch-size", type=int, required=True, help="images in a training batch")
PARSER.add_argument(
    "--train-per-class", type=json.loads, help="training images of each class; null: all"
)
PARSER.add_argument("--targets", default="{}", help="JSON: target valid top-1 of each data set")
PARSER.add_argument("--progress", type=Path, required=True, help="folder of states in progress")
PARSER.add_argument("--output", type=Path, required=True, help="folder of the tables")

if __name__ == "__main__":
    job.run(PARSER, main)
