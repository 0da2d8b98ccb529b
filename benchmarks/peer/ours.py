"""This project: a session as its job trains it, of which an epoch ends when its state is saved.

What an epoch's seconds hold: the batches from the arrays, the steps with their norms, their
records, TensorBoard, and the state that an interrupted job would continue from, until it is on the
disk. The validation, here of an image of each class, is left out.
"""

import json
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any
from unittest import mock

from benchmarks import measure
from optstate.training import loop, session
from optstate.training.checkpoint import Trained
from optstate.training.loop import Session
from optstate.training.recording import Row

PROGRESS = Path("progress")
train_epoch, validate = loop.train_epoch, loop.validate


class InTurns:
    """Makes every epoch of a session wait for its turn."""

    def __init__(self, begin: Callable[[], None], end: Callable[..., None]) -> None:
        self.begin, self.end = begin, end
        self.row: Row = {}
        self.validated = 0.0  # seconds

    def train_epoch(self, session: Session, trained: Trained, epoch: int) -> Row:
        """End the turn of the epoch before, which is saved by now, and train one in the next."""
        num_steps = loop.num_steps_per_epoch(len(session.train), session.spec.batch_size)
        if self.row:
            wait_for_writes(epoch - 1)
            self.end(self.row["images"], num_steps, self.row["loss"], left_out=self.validated)
        self.begin()
        self.row = train_epoch(session, trained, epoch)
        return self.row

    def validate(self, *arguments: Any) -> Row:
        """Validate, and note how long it took."""
        start = time.perf_counter()
        row = validate(*arguments)
        self.validated = time.perf_counter() - start
        return row


def wait_for_writes(epoch: int) -> None:
    """Wait until the state after ``epoch`` is in place, whoever writes it."""
    while not any(PROGRESS.rglob(f"epoch{epoch:06d}-*.pt")):
        time.sleep(0.005)


def train(
    settings: dict[str, Any], arrays: Path, begin: Callable[[], None], end: Callable[..., None]
) -> None:
    """Train epochs without end, in the working directory."""
    spec = measure.session_spec(settings, num_epochs=999_999, valid_per_class=1)
    arguments = session.PARSER.parse_args(
        ["--spec", json.dumps(asdict(spec)), "--dataset", str(arrays), "--output", "output",
         "--progress", str(PROGRESS), "--curves", "curves"]
    )  # fmt: skip
    turns = InTurns(begin, end)
    with (
        mock.patch.object(loop, "train_epoch", turns.train_epoch),
        mock.patch.object(loop, "validate", turns.validate),
    ):
        session.main(arguments)
