"""What an interrupted session continues from, and the signals that interrupt one."""

import contextlib
import hashlib
import io
import logging
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from optstate.job import write_atomically
from optstate.training.checkpoint import Position, on_host, serialized

EXIT_CODE = os.EX_TEMPFAIL  # of a job that was told to stop and has saved: run it again
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class Interrupted(Exception):  # noqa: N818 - it is no error
    """The job was told to stop: the message is the name of the signal."""


@contextlib.contextmanager
def stop_on_signals() -> Iterator[Callable[[], None]]:
    """Within the block the ``SIGNALS`` are only taken note of.

    Yields:
        A function that raises ``Interrupted`` if one of them has come.
    """
    received: list[int] = []

    def stop_if_asked() -> None:
        if received:
            raise Interrupted(signal.Signals(received[0]).name)

    before = {s: signal.signal(s, lambda number, _: received.append(number)) for s in SIGNALS}
    try:
        yield stop_if_asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Progress:
    """The last two states of a session in progress, each in a file named by its position.

    The name ends with the SHA-256 of the file, so that a damaged one is told from a good one, and
    one rename brings both.

    Args:
        folder: of this session and all that its bits depend on, and of nothing else.
        every: when to save, as configured: ``epochs``, ``steps`` and ``minutes``, whichever is
            first.
        start: where the session began.
        in_background: whether training goes on while a state is written, at the price of as much
            memory, and of losing as much more in a kill as was trained meanwhile.
    """

    def __init__(
        self, folder: Path, every: dict[str, float], start: Position, in_background: bool = False
    ) -> None:
        self.folder = folder
        self.every = every
        self.writer = ThreadPoolExecutor(1) if in_background else None
        self.writing: Future[None] | None = None
        self.kept: list[Path] = []  # oldest first
        self._saved_at(start)

    def load(self) -> dict[str, Any] | None:
        """The latest state that is whole, if there is one."""
        for path in sorted(self.folder.glob("epoch*.pt"), reverse=True):
            try:
                content = path.read_bytes()
            except OSError:  # of a failing disk
                content = b""
            if hashlib.sha256(content).hexdigest() == path.name.split(".")[1]:
                state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
                self.kept = [path]
                self._saved_at(Position(**state["trained"]["position"]))
                return state
            logging.warning("%s: damaged: going on from the state before it, if any", path)
        return None

    def is_due(self, position: Position) -> bool:
        """Whether enough epochs, steps or minutes have gone by since the last state was saved."""
        gone_by = {
            "epochs": position.epoch - self.position.epoch,
            "steps": position.step - self.position.step,
            "minutes": (time.monotonic() - self.time) / 60,
        }
        return any(gone_by[unit] >= number for unit, number in self.every.items())

    def save(self, state: dict[str, Any]) -> None:
        """Keep ``state`` and the one before it; all else in the folder is removed."""
        self.finish()
        position = Position(**state["trained"]["position"])
        if self.writer:
            self.writing = self.writer.submit(self._write, position, on_host(state))
        else:
            self._write(position, state)
        self._saved_at(position)

    def finish(self) -> None:
        """Wait until what was saved is on the disk.

        Raises:
            OSError: it could not be written.
        """
        writing, self.writing = self.writing, None
        if writing:
            writing.result()

    def _write(self, position: Position, state: dict[str, Any]) -> None:
        content = serialized(state)
        digest = hashlib.sha256(content).hexdigest()
        path = self.folder / f"epoch{position.epoch:06d}-step{position.step:09d}.{digest}.pt"
        with write_atomically(path) as temporary:
            temporary.write_bytes(content)
        self.kept = [*(p for p in self.kept if p != path), path][-2:]
        for other in self.folder.iterdir():
            if other not in self.kept:
                other.unlink()

    def _saved_at(self, position: Position) -> None:
        self.position, self.time = position, time.monotonic()


def keep_final(folder: Path) -> None:
    """Keep the final state of a session alone, and nothing of what it left when told otherwise."""
    for other in folder.parent.iterdir():
        if other.is_dir() and other != folder:
            shutil.rmtree(other)
    for earlier in sorted(folder.glob("epoch*.pt"))[:-1]:
        earlier.unlink()
