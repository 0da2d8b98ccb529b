"""This project: a session as its job trains it. An epoch ends when its state is saved.

The seconds of an epoch include loading batches from the arrays, the steps with their norms and
records, TensorBoard, and saving the state from which an interrupted job would continue. They do not
include the validation, which has one image per class here.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.measure import session_spec
from optstate.training.batches import count_batches, verify_arrays
from optstate.training.compute import set_up
from optstate.training.loop import finish_epoch, train_epoch, validate
from optstate.training.session import Paths, open_session

NUM_EPOCHS = 999_999  # more than are ever trained


def train(
    settings: dict[str, Any], arrays: Path, begin: Callable[[], None], end: Callable[..., None]
) -> None:
    """Train epochs until ``begin`` ends the process, in the working directory."""
    spec = session_spec(settings, num_epochs=NUM_EPOCHS, valid_per_class=1)
    verify_arrays(arrays)  # later, a session reads only changed files
    curves = Path("curves/images/constant-new/seed0")
    paths = Paths(arrays, Path("output"), Path("progress"), curves=[curves])
    with open_session(spec, paths, set_up(spec), {"epochs": 1}, lambda: None) as session:
        num_steps = count_batches(len(session.train), spec.batch_size)
        while True:
            begin()
            train_row = train_epoch(session)
            start = time.perf_counter()
            valid_row = validate(session)
            validation_seconds = time.perf_counter() - start
            finish_epoch(session, train_row, valid_row)
            session.progress.finish()
            end(train_row["images"], num_steps, train_row["loss"], left_out=validation_seconds)
