"""One Snakemake at a time in an experiment, and what a killed one leaves behind."""

import atexit
import os
import sys
from pathlib import Path

import filelock
from snakemake.io import IOFile
from snakemake.persistence.file import FilePersistence

from optstate.job import InputError

SNAKEMAKES_LOCKS = Path(".snakemake/locks")
STALE = (
    "a Snakemake that was killed left its lock here, and none is at work: clear it by "
    "`.venv/bin/snakemake --unlock`, then run again"
)


def claim(results: Path) -> filelock.FileLock:
    """Keep others out of an experiment's ``results``, until this process ends, however it does.

    Raises:
        InputError: another Snakemake is at work on them.
    """
    results.mkdir(parents=True, exist_ok=True)
    path = results / ".lock"
    lock = filelock.FileLock(path)
    try:
        lock.acquire(timeout=1)
    except filelock.Timeout as error:
        raise InputError(
            f"another Snakemake is at work on {results}: wait until it ends, or stop it "
            f"(`fuser {results}/.lock` tells its number)"
        ) from error
    atexit.register(path.unlink, missing_ok=True)
    return lock


def left_lock(results: Path) -> bool:
    """Whether Snakemake's own lock is there, and no Snakemake at work on any of ``results``."""
    return any(SNAKEMAKES_LOCKS.glob("*.lock")) and not any(map(_is_held, results.glob("*/.lock")))


def distrust_unrecorded(results: Path) -> None:
    """Make sessions stale that have ended without a Snakemake to record what they were made from.

    On a cluster, jobs go on when it is killed; of what they leave it would later see no change of
    the configuration. They end anew from their last state, which is still there, in seconds.
    """
    states = list(results.glob("in_progress/*/*/seed*/session*"))
    if not states or any(map(_is_held, results.glob(".lock"))):
        return
    records = FilePersistence(nolock=True)
    for state in states:
        rows = results / "runs" / state.relative_to(results / "in_progress") / "steps.csv"
        if rows.exists() and records.metadata(IOFile(str(rows))) is None:
            os.utime(rows, (1, 1))  # 1970: older than what it was made from


def _is_held(path: Path) -> bool:
    try:
        with filelock.FileLock(path, timeout=0):
            return False
    except filelock.Timeout:
        return True


if __name__ == "__main__":  # for `make`: exit code 0 if the lock may be cleared
    sys.exit(not left_lock(Path("results")))
