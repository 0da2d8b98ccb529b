"""What every job shares: its log, its one-line errors, its atomic outputs, its lock, its parent."""

import argparse
import contextlib
import ctypes
import errno
import logging
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import filelock

LOCK_SECONDS = 60  # how long a job waits for one that was told to stop and is still saving
PR_SET_PDEATHSIG = 1  # of prctl(2)


class InputError(Exception):
    """Something the user can mend: the message names the file or key, what is wrong, the mend."""

    def __str__(self) -> str:
        """The message as one line that any terminal shows, whatever is in names and values."""
        characters = super().__str__()
        return "".join(c if c.isprintable() else repr(c)[1:-1] for c in characters)


def run(
    parser: argparse.ArgumentParser,
    main: Callable[[argparse.Namespace], None],
    argv: list[str] | None = None,
) -> None:
    """Run ``main`` with the parsed arguments, logging to the file ``--log`` and errors to stderr.

    Bad input and a full or failing disk end in one clear line and exit code 1. Anything else is
    a defect of this program and keeps its traceback.
    """
    parser.add_argument("--log", type=Path, required=True, help="log file of the job")
    arguments = parser.parse_args(argv)
    start_log(arguments.log)
    if parent := os.environ.get("OPTSTATE_PARENT"):
        end_with_parent(signal.SIGTERM, int(parent))
    try:
        main(arguments)
    except InputError as error:
        fail(str(error))
    except OSError as error:
        fail(str(InputError(describe(error))))
    except KeyboardInterrupt:
        logging.warning("interrupted: SIGINT: run again to go on")
        sys.exit(128 + signal.SIGINT)
    except Exception:
        logging.exception("unexpected error: please report it with this log")
        sys.exit(1)


def leave() -> NoReturn:
    """End this process, whose work is done, at once: to unload torch would take a second."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def end_with_parent(with_signal: signal.Signals, parent: int) -> None:
    """Let the kernel send this process a signal as soon as its ``parent`` is gone (on Linux).

    Nothing else tells a job that the Snakemake that started it was killed: it would go on, beside
    the job that the next Snakemake starts.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, with_signal)
        if os.getppid() != parent:  # it went before it could be asked for
            os.kill(os.getpid(), with_signal)


@contextlib.contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold the lock file ``path``, which the kernel gives back whatever becomes of this process.

    Raises:
        InputError: another process has held it for ``LOCK_SECONDS``.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(path)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        logging.warning("%s: another process writes here: waiting for it to end", path.parent)
        try:
            lock.acquire(timeout=LOCK_SECONDS)
        except filelock.Timeout as error:
            raise InputError(
                f"{path}: another process has held this lock for {LOCK_SECONDS} s: wait until it "
                f"ends, or stop it (`fuser {path}` tells its number; on a cluster, `squeue --me`), "
                "then run again"
            ) from error
    try:
        yield
    finally:
        path.unlink(missing_ok=True)  # those who wait for it see that, and lock a new one
        lock.release()


def start_log(path: Path) -> None:
    """Add everything from INFO upwards to ``path``, warnings and errors to stderr as well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    to_file = logging.FileHandler(path, encoding="utf-8")
    to_file.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
    to_terminal = logging.StreamHandler()
    to_terminal.setFormatter(logging.Formatter("%(message)s"))
    to_terminal.setLevel(logging.WARNING)
    logging.basicConfig(level=logging.INFO, handlers=[to_file, to_terminal], force=True)


def fail(message: str) -> None:
    """Say ``message`` as one line and end the job with exit code 1."""
    logging.error("error: %s", message)
    sys.exit(1)


def describe(error: OSError) -> str:
    """One line for an operating-system error, with the mend where there is a usual one."""
    where = f"{error.filename}: " if error.filename else ""
    mends = {
        errno.ENOSPC: "; free some disk space, then run again",
        errno.EDQUOT: "; your disk quota is used up: free some space, then run again",
        errno.EFBIG: "; a limit on file sizes is in force (ulimit -f): raise it, then run again",
        errno.EACCES: "; make it accessible, then run again",
        errno.EROFS: "; choose a writable place",
    }
    return f"{where}{error.strerror or error}{mends.get(error.errno or 0, '')}"


def require_space(folder: Path, num_bytes: int) -> None:
    """Refuse to begin what would fill the disk.

    Raises:
        InputError: fewer than ``num_bytes`` are free where ``folder`` lies.
    """
    free = shutil.disk_usage(folder).free
    if free < num_bytes:
        raise InputError(
            f"{folder}: {num_bytes / 1e6:,.1f} MB are needed and {free / 1e6:,.1f} MB are free: "
            "free some disk space, then run again"
        )


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path that becomes ``path`` if the block succeeds, and is removed if it fails.

    The file and its folder are on disk (fsync) before the new name is seen, so that no crash
    leaves half a file under the final name.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        yield temporary
        _sync(temporary)
        temporary.replace(path)
        _sync(path.parent)
    except OSError as error:
        error.filename = error.filename or str(path)  # a full disk does not say for which file
        raise
    finally:
        temporary.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
