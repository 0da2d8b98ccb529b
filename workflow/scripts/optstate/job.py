"""Functions that all jobs share: logging, progress, one-line errors, locks, and atomic writes."""

import argparse
import contextlib
import ctypes
import errno
import fcntl
import io
import logging
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from tqdm import tqdm

LOCK_SECONDS = 60  # how long a job waits for an earlier job that is still saving
POLL_SECONDS = 0.02  # between two attempts to take a lock
PR_SET_PDEATHSIG = 1  # of prctl(2)
PROGRESS = 25  # a level between INFO and WARNING
PROGRESS_SECONDS = 15  # between two such messages within a download, a decoding or an epoch


class InputError(Exception):
    """An error that the user can fix. The message says what is wrong, where, and how to fix it."""

    def __str__(self) -> str:
        """Return the message as one printable line, with other characters escaped."""
        characters = super().__str__()
        return "".join(c if c.isprintable() else repr(c)[1:-1] for c in characters)


def run(
    parser: argparse.ArgumentParser,
    main: Callable[[argparse.Namespace], None],
    argv: list[str] | None = None,
) -> None:
    """Run ``main`` with the parsed arguments, logging to the file ``--log`` and errors to stderr.

    Any error produces one line and exit code 1. If it is neither bad input nor a full or failing
    disk, it is a bug, and the log has its traceback.
    """
    parser.add_argument("--log", type=Path, required=True, help="log file of the job")
    arguments = parser.parse_args(argv)
    start_log(arguments.log)
    if parent := os.environ.get("OPTSTATE_PARENT"):
        signal.signal(signal.SIGINT, signal.default_int_handler)  # see optstate/__init__.py
        end_with_parent(signal.SIGTERM, int(parent))
    try:
        main(arguments)
    except InputError as error:
        fail(str(error))
    except OSError as error:
        fail(str(InputError(explain_os_error(error))))
    except KeyboardInterrupt:
        logging.warning("interrupted: SIGINT: run again to continue")
        sys.exit(128 + signal.SIGINT)
    except Exception as error:
        logging.info("traceback:", exc_info=True)
        what = str(InputError(f"{type(error).__name__}: {error}"))
        fail(f"unexpected {what}. If the error is not in your own code, report it with its log.")
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:  # the terminal was closed, which must not fail the finished job
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def exit_without_cleanup() -> NoReturn:
    """End this finished process at once, because unloading torch would take a second."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def end_with_parent(with_signal: signal.Signals, parent: int) -> None:
    """Ask the kernel to send this process a signal when its ``parent`` ends (Linux only).

    Without this, a job would continue after its Snakemake was killed, in parallel with the same
    job started by the next Snakemake.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, with_signal)
        if os.getppid() != parent:  # the parent ended before the request
            os.kill(os.getpid(), with_signal)


def take_lock(path: Path, seconds: float = 0.0) -> IO[str] | None:
    """Lock the file ``path`` until the returned file is closed or this process ends.

    Returns:
        The open lock file, or None if another process still holds the lock after ``seconds``.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + seconds
    while True:
        file = path.open("a")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(path.stat(), os.fstat(file.fileno())):
                return file
        except BlockingIOError:
            if time.monotonic() >= end:
                file.close()
                return None
            time.sleep(POLL_SECONDS)
        except FileNotFoundError:
            pass
        except OSError as error:
            error.filename = str(path)
            raise
        file.close()  # the lock is held, or its last holder has removed the file: try again


@contextlib.contextmanager
def hold_lock(path: Path) -> Iterator[None]:
    """Hold the lock file ``path`` within the block, and remove it afterwards.

    Raises:
        InputError: another process has held it for ``LOCK_SECONDS``.
    """
    lock = take_lock(path)
    if lock is None:
        logging.warning("%s: another process writes here: waiting for it to end", path.parent)
        lock = take_lock(path, LOCK_SECONDS)
    if lock is None:
        raise InputError(
            f"{path}: another process has held this lock for {LOCK_SECONDS} s. Wait until it ends, "
            f"or stop it (`fuser {path}` prints its process ID; on a cluster, `squeue --me`), then "
            "run again. If the machine that held it has crashed, delete this file."
        )
    with lock:
        try:
            yield
        finally:
            path.unlink(missing_ok=True)  # waiting processes notice this and lock a new file


def start_log(path: Path) -> None:
    """Log messages from INFO upwards to ``path``.

    Progress is printed as well, and warnings and errors go to stderr.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    to_file = logging.FileHandler(path, encoding="utf-8")
    to_file.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
    to_terminal = logging.StreamHandler(sys.stdout)
    to_terminal.setFormatter(logging.Formatter("%(message)s"))
    to_terminal.addFilter(lambda record: record.levelno == PROGRESS)
    to_stderr = logging.StreamHandler()
    to_stderr.setFormatter(logging.Formatter("%(message)s"))
    to_stderr.setLevel(logging.WARNING)
    logging.basicConfig(level=logging.INFO, handlers=[to_file, to_terminal, to_stderr], force=True)
    logging.raiseExceptions = False  # on a full disk, each message would print a traceback


def show_progress(
    description: str, total: int | None, unit: str, initial: int = 0, unit_scale: bool = False
) -> "tqdm":
    """Return a counter that logs a line every ``PROGRESS_SECONDS``.

    Bars that redraw a line would overwrite each other, because several jobs share the terminal.
    """
    from tqdm import tqdm  # not on the submitting host, which imports this module as well

    return tqdm(
        desc=description,
        total=total,
        initial=initial,
        unit=unit,
        unit_scale=unit_scale,
        file=_ProgressLog(),
        leave=False,
        delay=PROGRESS_SECONDS,
        mininterval=PROGRESS_SECONDS,
        maxinterval=0,
        miniters=1,
        bar_format="{desc}: {n_fmt}/{total_fmt} {unit}, {remaining} left",
    )


class _ProgressLog(io.TextIOBase):
    def write(self, text: str) -> int:
        if line := text.strip():
            logging.log(PROGRESS, line)
        return len(text)


def format_duration(seconds: float) -> str:
    """Return a duration for people, such as ``50 s``, ``12 min`` or ``3.4 h``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"


def fail(message: str) -> NoReturn:
    """Log ``message`` as one line and end the job with exit code 1."""
    logging.error("error: %s", message)
    sys.exit(1)


def explain_os_error(error: OSError) -> str:
    """Describe an operating-system error in one line, with the usual fix where there is one."""
    where = f"{error.filename}: " if error.filename else ""
    no_locks = ". Its file system may lack file locks (`flock`): put the folder on another one."
    fixes = {
        errno.ENOSPC: ". Free some disk space, then run again.",
        errno.EDQUOT: ". Your disk quota is used up: free some space, then run again.",
        errno.EFBIG: ". File sizes are limited (`ulimit -f`): raise the limit, then run again.",
        errno.EACCES: ". Make it accessible, then run again.",
        errno.EROFS: ". Choose a writable folder.",
        errno.ENOLCK: no_locks,
        errno.ENOSYS: no_locks,
    }
    return f"{where}{error.strerror or error}{fixes.get(error.errno or 0, '')}"


def require_space(folder: Path, num_bytes: int) -> None:
    """Check that the disk of ``folder`` has ``num_bytes`` free.

    Raises:
        InputError: less is free.
    """
    free = shutil.disk_usage(folder).free
    if free < num_bytes:
        raise InputError(
            f"{folder}: {num_bytes / 1e6:,.1f} MB are needed and {free / 1e6:,.1f} MB are free. "
            "Free some disk space, then run again."
        )


@contextlib.contextmanager
def write_atomically(path: Path) -> Iterator[Path]:
    """Yield a temporary path that becomes ``path`` if the block succeeds, else is removed.

    The file is on disk (fsync) before its final name appears, so that no crash leaves part of a
    file under this name. On return, the name is on disk as well.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        yield temporary
        sync(temporary)
        temporary.replace(path)
        sync(path.parent)
    except OSError as error:
        error.filename = error.filename or str(path)  # "no space left" does not name the file
        raise
    finally:
        temporary.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Wait until a file's content, or a folder's names, are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
