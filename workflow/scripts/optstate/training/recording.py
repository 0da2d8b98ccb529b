"""The record of a session: a row per step, rows per epoch, and live TensorBoard curves."""

import contextlib
import csv
import io
import logging
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from optstate.job import PROGRESS, format_duration, write_atomically
from optstate.training.spec import SessionSpec

RUN_COLUMNS = ["dataset", "schedule", "boundary", "method", "seed", "session"]
STEP_COLUMNS = [
    *RUN_COLUMNS, "epoch", "step", "loss", "top1", "lr", "momentum", "grad_norm", "update_norm",
]  # fmt: skip
EPOCH_COLUMNS = [
    *RUN_COLUMNS, "epoch", "split", "loss", "top1", "top2", "top3", "images", "seconds",
    "balanced_top1", "reestimated_top1", "reestimated_loss",
]  # fmt: skip

Row = dict[str, Any]


class Table:
    """A growing CSV file in memory. Floats keep every digit; None becomes an empty cell."""

    def __init__(self, columns: list[str]) -> None:
        self.text = io.StringIO()
        self.writer = csv.DictWriter(self.text, columns, lineterminator="\n")
        self.writer.writeheader()

    def add(self, rows: Iterable[Row]) -> None:
        """Append rows."""
        self.writer.writerows(rows)

    def load(self, text: str) -> list[Row]:
        """Continue from ``text``. Returns its rows, with values as text."""
        self.text.seek(0)
        self.text.write(text)
        return list(csv.DictReader(io.StringIO(text)))

    def write(self, path: Path) -> None:
        """Write the file."""
        with write_atomically(path) as temporary:
            temporary.write_text(self.text.getvalue(), newline="")


class Recorder:
    """A session's rows in memory, which are also added to TensorBoard.

    Args:
        spec: the session's settings.
        curves: the session's curves.
        last_epoch: the session's last epoch, counted through all sessions from 1.
    """

    def __init__(self, spec: SessionSpec, curves: "Curves", last_epoch: int) -> None:
        self.run = {column: getattr(spec, column) for column in RUN_COLUMNS}
        self.title = spec.title
        self.curves = curves
        self.last_epoch = last_epoch
        self.steps = Table(STEP_COLUMNS)
        self.epochs = Table(EPOCH_COLUMNS)

    def record_steps(self, rows: Iterable[Row]) -> None:
        """Add the rows of the latest steps."""
        new = [self.run | row for row in rows]
        self.steps.add(new)
        self.curves.add_steps(new)

    def record_epoch(self, train: Row, valid: Row | None) -> None:
        """Add the rows of an epoch. Its steps must already be recorded."""
        rows = [row for row in (train, valid) if row]
        results = self._add_epochs(rows)
        seconds = sum(row["seconds"] for row in rows)
        remaining = self.last_epoch - train["epoch"]
        left = f", {format_duration(remaining * seconds)} left" if remaining else ""
        logging.log(
            PROGRESS, "%s, epoch %d/%d: %s, %.1f s%s",
            self.title, train["epoch"], self.last_epoch, results, seconds, left,
        )  # fmt: skip

    def record_given_weights(self, valid: Row) -> None:
        """Add the validation of the given weights, as epoch 0."""
        results = self._add_epochs([valid | {"epoch": 0}])
        logging.log(PROGRESS, "%s: the given weights have %s", self.title, results)

    def _add_epochs(self, rows: Iterable[Row]) -> str:
        """Add rows of epochs. Returns their results in words."""
        new = [self.run | row for row in rows]
        self.epochs.add(new)
        self.curves.add_epochs(new)
        return ", ".join(
            f"{row['split']} loss {row['loss']:.4f} top-1 {100 * row['top1']:.1f} %" for row in new
        )

    def state_dict(self) -> dict[str, str]:
        """Return the rows so far as CSV: one text is saved much faster than many rows."""
        return {"steps": self.steps.text.getvalue(), "epochs": self.epochs.text.getvalue()}

    def load_state_dict(self, state: dict[str, str]) -> None:
        """Continue from the rows of ``state``."""
        self.curves.add_steps(self.steps.load(state["steps"]))
        self.curves.add_epochs(self.epochs.load(state["epochs"]))

    def write(self, folder: Path) -> None:
        """Write ``steps.csv`` and ``epochs.csv``."""
        self.steps.write(folder / "steps.csv")
        self.epochs.write(folder / "epochs.csv")


def read_rows(path: Path) -> list[Row]:
    """Read the rows of a CSV file, with values as text."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


class Curves:
    """A run's TensorBoard events so far, in one or more folders.

    Whenever a session starts or continues, it replaces the event file that an earlier session has
    left. A file per session would not do: TensorBoard reads files in the order of their names,
    which is not that of the sessions if there are more than ten.

    Args:
        folders: the TensorBoard folders.
        session: the session's number.
        earlier: the output folders of all earlier sessions. Those without tables are left out.
    """

    def __init__(self, folders: Iterable[Path], session: int, earlier: Iterable[Path] = ()) -> None:
        self.writers = []
        self.last_step = {0: 0}  # by epoch; epoch 0 is before the first step
        for folder in folders:
            for path in folder.glob("events.out.tfevents.*.session*"):
                path.unlink()
            writer = EventFileWriter(str(folder), filename_suffix=f".session{session}")
            writer.add_event(Event(wall_time=time.time(), summary=_describe_run(folder)))
            self.writers.append(writer)
        for output in earlier:
            with contextlib.suppress(FileNotFoundError):
                steps, epochs = (read_rows(output / f"{name}.csv") for name in ("steps", "epochs"))
                self.add_steps(steps)
                self.add_epochs(epochs)

    def add_steps(self, rows: Iterable[Row]) -> None:
        """Add a point per step."""
        for row in rows:
            step = self.last_step[int(row["epoch"])] = int(row["step"])
            values = {
                "loss/train": row["loss"],
                "accuracy/train_top1": row["top1"],
                "schedule/lr": row["lr"],
                "schedule/momentum": row["momentum"],
            }
            self._add({tag: v for tag, v in values.items() if v not in (None, "")}, step)
        self._flush()

    def add_epochs(self, rows: Iterable[Row]) -> None:
        """Add the valid metrics of an epoch, at its last step."""
        for row in rows:
            if row["split"] == "valid":
                values = {f"accuracy/valid_{name}": row[name] for name in ("top1", "top2", "top3")}
                self._add(values | {"loss/valid": row["loss"]}, self.last_step[int(row["epoch"])])
        self._flush()

    def close(self) -> None:
        """Finish the event files."""
        for writer in self.writers:
            writer.close()

    def _add(self, values: dict[str, Any], step: int) -> None:
        points = [Summary.Value(tag=tag, simple_value=float(v)) for tag, v in values.items()]
        # SummaryWriter would write an event per value, which takes four times as long.
        event = Event(wall_time=time.time(), step=step, summary=Summary(value=points))
        for writer in self.writers:
            writer.add_event(event)

    def _flush(self) -> None:
        for writer in self.writers:
            writer.flush()


def _describe_run(folder: Path) -> Summary:
    """The run of a folder ``DATASET/METHOD/seedN``, for the table of TensorBoard's HParams page."""
    from tensorboard.plugins.hparams.summary_v2 import hparams_pb  # takes a fifth of a second

    dataset, method, seed = folder.parts[-3:]
    schedule, _, boundary = method.partition("-")
    names = {"dataset": dataset, "schedule": schedule, "boundary": boundary}
    number = {"seed": int(seed.removeprefix("seed"))}
    return hparams_pb(names | number, trial_id=f"{dataset}/{method}/{seed}")
