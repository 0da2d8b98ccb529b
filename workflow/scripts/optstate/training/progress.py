"""States in progress, from which an interrupted session continues, and the signals that stop it."""

import contextlib
import hashlib
import io
import logging
import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from optstate.job import write_atomically
from optstate.training.checkpoint import Position, copy_to_host, serialize

# Of a job that saved its state and stopped because of a signal. Run the job again to continue.
EXIT_CODE = os.EX_TEMPFAIL
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)


class Interrupted(Exception):  # noqa: N818 - not an error
    """A signal asked the job to stop. The message is the name of the signal."""


@contextlib.contextmanager
def stop_on_signals() -> Iterator[Callable[[], None]]:
    """Record received ``SIGNALS`` within the block, instead of ending the process.

    Yields:
        A function that raises ``Interrupted`` if a signal was received.
    """
    received: list[int] = []

    def stop_if_asked() -> None:
        if received:
            raise Interrupted(signal.Signals(received[0]).name)

    # After `nohup`, SIGHUP is ignored, and a closed terminal must not stop the job.
    is_detached = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    handled = [s for s in SIGNALS if not (s == signal.SIGHUP and is_detached)]
    before = {s: signal.signal(s, lambda number, _: received.append(number)) for s in handled}
    try:
        yield stop_if_asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Progress:
    """The last two states of a session in progress, each in a file named by its position.

    The name contains the SHA-256 of the file, to recognize a damaged file. A single rename creates
    the file together with its checksum.

    Args:
        folder: a folder for this session with exactly these inputs.
        every: the number of ``epochs``, ``steps`` or ``minutes`` between two saves. Of several,
            the first to be reached counts.
        start: the position at the start of the session.
        in_background: whether training continues while a state is written. This needs memory for a
            second copy. If the job is killed, the steps trained during the write are lost too.
    """

    def __init__(
        self, folder: Path, every: dict[str, float], start: Position, in_background: bool = False
    ) -> None:
        self.folder = folder
        self.every = every
        self.writer = ThreadPoolExecutor(1) if in_background else None
        self.writing: Future[None] | None = None
        self.kept: list[Path] = []  # oldest first
        self._note_save(start)

    def load(self) -> dict[str, Any] | None:
        """Return the latest undamaged state, or None if there is none."""
        for path in sorted(self.folder.glob("epoch*.pt"), reverse=True):
            try:
                content = path.read_bytes()
            except OSError:  # the disk fails
                content = b""
            if hashlib.sha256(content).hexdigest() == path.name.split(".")[1]:
                state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
                if state.pop("folder", None) == self.folder.name:
                    self.kept = [path]
                    self._note_save(Position(**state["training"]["position"]))
                    return state
            logging.warning(
                "%s: damaged or exchanged: continuing from the previous state, or the start", path
            )
        return None

    def is_due(self, position: Position) -> bool:
        """Return whether enough epochs, steps or minutes have passed since the last save."""
        passed = {
            "epochs": position.epoch - self.position.epoch,
            "steps": position.step - self.position.step,
            "minutes": (time.monotonic() - self.time) / 60,
        }
        return any(passed[unit] >= number for unit, number in self.every.items())

    def save(self, state: dict[str, Any]) -> None:
        """Save ``state``. Keeps the previous state and removes all other files in the folder."""
        self.finish()
        position = Position(**state["training"]["position"])
        state = state | {"folder": self.folder.name}  # to recognize a state that was exchanged
        if self.writer:
            self.writing = self.writer.submit(self._write, position, copy_to_host(state))
        else:
            self._write(position, state)
        self._note_save(position)

    def finish(self) -> None:
        """Wait until the saved state is on disk.

        Raises:
            OSError: the state could not be written.
        """
        writing, self.writing = self.writing, None
        if writing:
            writing.result()

    def _write(self, position: Position, state: dict[str, Any]) -> None:
        content = serialize(state)
        digest = hashlib.sha256(content).hexdigest()
        path = self.folder / f"epoch{position.epoch:06d}-step{position.step:09d}.{digest}.pt"
        with write_atomically(path) as temporary:
            temporary.write_bytes(content)
        self.kept = [*self.kept[-1:], path]
        for other in self.folder.iterdir():
            if other not in self.kept:
                other.unlink()

    def _note_save(self, position: Position) -> None:
        self.position, self.time = position, time.monotonic()


def keep_final(folder: Path) -> None:
    """Remove all states of a finished session except the last one."""
    for earlier in sorted(folder.glob("epoch*.pt"))[:-1]:
        earlier.unlink()
