"""Check that the tables of sessions have exactly the rows that the configuration requires."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from optstate.analysis.files import FIX, Row, read_rows
from optstate.experiment.runs import Session
from optstate.job import InputError

NUMBERS = {"steps": ("loss",), "epochs": ("loss", "top1", "seconds")}  # columns that are summarized


@dataclass(frozen=True)
class Layout:
    """The configured epochs of all sessions and steps of all epochs.

    Attributes:
        epochs: the number of epochs of each session.
        num_steps: the number of training steps in an epoch, by data set.
        validate_every: epochs between validations. The last epoch of a session is always validated.
        has_weights: whether the first session starts from given weights, validated as epoch 0.
    """

    epochs: Sequence[int]
    num_steps: dict[str, int]
    validate_every: int
    has_weights: bool

    def list_epochs(self, session: Session) -> range:
        """Return a session's epochs, counted through all sessions from 1."""
        if session.is_whole_run:
            return range(1, sum(self.epochs) + 1)
        first = sum(self.epochs[: session.number - 1]) + 1
        return range(first, first + self.epochs[session.number - 1])

    def list_rows(self, session: Session, name: str) -> Iterator[Row]:
        """Yield the known cells of each row of a session's table ``name``."""
        names = {
            "dataset": session.dataset, "schedule": session.schedule, "boundary": session.boundary,
            "method": session.name, "seed": str(session.seed), "session": str(session.number),
        }  # fmt: skip
        num_steps = self.num_steps[session.dataset]
        epochs = self.list_epochs(session)
        if name == "epochs" and session.number == 1 and self.has_weights:
            yield names | {"epoch": "0", "split": "valid"}
        for epoch in epochs:
            if name == "steps":
                steps = range((epoch - 1) * num_steps + 1, epoch * num_steps + 1)
                rows = [{"step": str(step)} for step in steps]
            else:
                is_validated = epoch % self.validate_every == 0 or epoch == epochs[-1]
                rows = [{"split": split} for split in ("train", "valid")[: 1 + is_validated]]
            yield from (names | {"epoch": str(epoch)} | row for row in rows)


def count_steps(card: dict[str, Any], batch_size: int, train_per_class: int | None) -> int:
    """Return the number of training steps in an epoch.

    A last batch of a single image is left out of training.

    Args:
        card: the content of ``dataset.json``.
        batch_size: images in a batch.
        train_per_class: images of each class that are used; None: all.
    """
    of_classes = [entry["train"] for entry in card["classes"]]
    num_images = sum(min(number, train_per_class or number) for number in of_classes)
    return num_images // batch_size + (num_images % batch_size > 1)


def check_sessions(runs_folder: Path, sessions: Sequence[Session], layout: Layout) -> None:
    """Check that all tables of all sessions are complete, and have the same columns.

    Raises:
        InputError: a row is missing, from elsewhere, or too much, or a cell is not a number.
    """
    columns: dict[str, list[str]] = {}
    for session in sessions:
        for name in NUMBERS:
            path = runs_folder / session.folder / f"{name}.csv"
            rows = read_rows(path)
            check_rows(path, rows, layout.list_rows(session, name))
            check_numbers(path, rows, NUMBERS[name])
            if list(rows[0]) != columns.setdefault(name, list(rows[0])):
                raise InputError(f"{path}: has other columns than the other sessions. {FIX}")


def check_rows(path: Path, rows: Sequence[Row], expected: Iterator[Row]) -> None:
    """Check that ``rows``, read from ``path``, have the ``expected`` cells.

    Raises:
        InputError: they do not.
    """
    for number, (row, cells) in enumerate(zip_longest(rows, expected), 1):
        if cells is None:
            raise InputError(f"{path}: has more rows than the {number - 1} configured. {FIX}")
        if row is None:
            which = ", ".join(f"{column} {cells[column]}" for column in list(cells)[-2:])
            raise InputError(f"{path}: row {number} ({which}) is missing. {FIX}")
        for column, cell in cells.items():
            if row.get(column) != cell:
                found = repr(row[column]) if column in row else "missing"
                raise InputError(f"{path}: row {number}: {column} is {found}, not {cell!r}. {FIX}")


def check_numbers(path: Path, rows: Sequence[Row], columns: Sequence[str]) -> None:
    """Check that every cell of ``columns`` is a number, possibly infinite or NaN.

    Raises:
        InputError: a cell is not.
    """
    for number, row in enumerate(rows, 1):
        for column in columns:
            try:
                float(row.get(column, ""))
            except ValueError:
                cell = repr(row.get(column))
                message = f"{path}: row {number}: {column} is {cell}, not a number. {FIX}"
                raise InputError(message) from None
