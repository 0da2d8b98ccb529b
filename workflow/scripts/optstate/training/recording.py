"""The record of a session: a row per step, rows per epoch, and live TensorBoard curves."""

import csv
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from optstate.job import replacing
from optstate.training.spec import SessionSpec

RUN_COLUMNS = ["dataset", "schedule", "boundary", "method", "seed", "session"]
STEP_COLUMNS = [
    *RUN_COLUMNS, "epoch", "step", "loss", "top1", "lr", "momentum", "grad_norm", "update_norm",
]  # fmt: skip
EPOCH_COLUMNS = [
    *RUN_COLUMNS, "epoch", "split", "loss", "top1", "top2", "top3", "images", "seconds",
]  # fmt: skip

Row = dict[str, Any]


class Recorder:
    """Rows of a session in memory, each sent to TensorBoard as it comes."""

    def __init__(self, spec: SessionSpec, curves: "Curves", num_epochs: int) -> None:
        self.run = {column: getattr(spec, column) for column in RUN_COLUMNS}
        self.curves = curves
        self.num_epochs = num_epochs  # up to the end of the session
        self.steps: list[Row] = []
        self.epochs: list[Row] = []

    def record_steps(self, rows: Iterable[Row]) -> None:
        """Take the rows of the latest steps."""
        new = [self.run | row for row in rows]
        self.steps += new
        self.curves.add_steps(new)

    def record_epoch(self, train: Row, valid: Row) -> None:
        """Take the rows of an epoch whose steps are recorded."""
        new = [self.run | train, self.run | valid]
        self.epochs += new
        self.curves.add_epochs(new)
        logging.info(
            "epoch %d/%d  train loss %.4f top1 %.4f  valid loss %.4f top1 %.4f  %.1f s",
            train["epoch"], self.num_epochs, train["loss"], train["top1"],
            valid["loss"], valid["top1"], train["seconds"] + valid["seconds"],
        )  # fmt: skip

    def state_dict(self) -> dict[str, list[Row]]:
        """The rows so far."""
        return {"steps": self.steps, "epochs": self.epochs}

    def load_state_dict(self, state: dict[str, list[Row]]) -> None:
        """Go on after the rows of ``state``."""
        self.steps, self.epochs = list(state["steps"]), list(state["epochs"])
        self.curves.add_steps(self.steps)
        self.curves.add_epochs(self.epochs)

    def write(self, folder: Path) -> None:
        """Write ``steps.csv`` and ``epochs.csv``."""
        write_rows(folder / "steps.csv", STEP_COLUMNS, self.steps)
        write_rows(folder / "epochs.csv", EPOCH_COLUMNS, self.epochs)


def write_rows(path: Path, columns: list[str], rows: Iterable[Row]) -> None:
    """A CSV file; floats keep every digit, None becomes an empty cell."""
    with replacing(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def read_rows(path: Path) -> list[Row]:
    """The rows of a CSV file, as text."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


class Curves:
    """One session's TensorBoard events, in the folder of every run that the session is part of.

    A folder holds an event file per session, which together are one curve. They repeat the CSV
    files, so a session's file is written anew whenever the session starts or continues, and those
    of later sessions, which follow from it, are removed.
    """

    def __init__(self, folders: Iterable[Path], session: int) -> None:
        self.writers = []
        self.last_step: dict[int, int] = {}  # by epoch
        for folder in folders:
            for path in _event_files(folder):
                if _session_of(path) >= session:
                    path.unlink()
            self.writers.append(SummaryWriter(str(folder), filename_suffix=f".session{session}"))

    def add_steps(self, rows: Iterable[Row]) -> None:
        """Add a point per step."""
        for row in rows:
            step = self.last_step[int(row["epoch"])] = int(row["step"])
            values = {
                "train/loss": row["loss"],
                "train/top1": row["top1"],
                "lr": row["lr"],
                "momentum": row["momentum"],
            }
            for tag, value in values.items():
                if value not in (None, ""):
                    self._add(tag, value, step)
        self._flush()

    def add_epochs(self, rows: Iterable[Row]) -> None:
        """Add the valid metrics of an epoch, at its last step."""
        for row in rows:
            if row["split"] == "valid":
                for metric in ("loss", "top1", "top2", "top3"):
                    self._add(f"valid/{metric}", row[metric], self.last_step[int(row["epoch"])])
        self._flush()

    def close(self) -> None:
        """Finish the event files."""
        for writer in self.writers:
            writer.close()

    def _add(self, tag: str, value: Any, step: int) -> None:
        for writer in self.writers:
            writer.add_scalar(tag, float(value), step)

    def _flush(self) -> None:
        for writer in self.writers:
            writer.flush()


def add_shared_session(folder: Path, previous: Path) -> None:
    """Give a run the curve of the first session, which may be older than the run."""
    curves = Curves([folder], session=1)
    curves.add_steps(read_rows(previous / "steps.csv"))
    curves.add_epochs(read_rows(previous / "epochs.csv"))
    curves.close()


def _event_files(folder: Path) -> list[Path]:
    return list(folder.glob("events.out.tfevents.*.session*"))


def _session_of(path: Path) -> int:
    return int(path.name.rpartition("session")[2])
