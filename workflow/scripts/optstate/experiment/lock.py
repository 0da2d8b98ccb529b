"""One Snakemake at a time in an experiment, and what a killed one leaves behind."""

import atexit
import json
import os
import sys
import uuid
from pathlib import Path
from typing import Any

import filelock
from snakemake.io import IOFile
from snakemake.persistence.file import FilePersistence

from optstate.job import InputError

SNAKEMAKES_LOCKS = Path(".snakemake/locks")
RUN = "OPTSTATE_RUN"  # the variable that names a run's file to its jobs
STALE = (
    "a Snakemake that was killed left its lock here, and none is at work: clear it by "
    "`.venv/bin/snakemake --unlock`, then run again (on a cluster once `squeue --me` shows "
    "none of its jobs)"
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


def tell_jobs(results: Path, what: Any) -> None:
    """Leave for the jobs of this run ``what`` they are recorded to have been told.

    They may start hours later, on another machine, and the configuration's files may say something
    else by then.
    """
    for ended in results.glob(".run-*.json"):
        ended.unlink()
    path = results / f".run-{uuid.uuid4().hex}.json"
    path.write_text(json.dumps(what))
    os.environ[RUN] = str(path)
    atexit.register(path.unlink, missing_ok=True)


def told() -> Any:
    """What the Snakemake that submitted this job has left for it; None if it has left nothing.

    Raises:
        InputError: it has ended, or another has begun, which does this job's work itself.
    """
    if RUN not in os.environ:
        return None
    try:
        return json.loads(Path(os.environ[RUN]).read_text())
    except FileNotFoundError as error:
        raise InputError("the Snakemake that submitted this job has ended: nothing done") from error


def left_lock(results: Path) -> bool:
    """Whether Snakemake's own lock is there, and no Snakemake at work on any of ``results``."""
    return any(SNAKEMAKES_LOCKS.glob("*.lock")) and not any(map(_is_held, results.glob("*/.lock")))


def distrust_unrecorded(results: Path) -> None:
    """Make sessions stale that have ended without a Snakemake to record what they were made from.

    On a cluster, jobs go on when it is killed; of what they leave it would later see no change of
    the configuration. They end anew from their last state, which is still there, in seconds. No
    result is removed, so that a dry run may do this.
    """
    states = list(results.glob("in_progress/*/*/seed*/session*"))
    if not states or any(map(_is_held, results.glob(".lock"))):
        return
    records = FilePersistence(nolock=True)
    for state in states:
        rows = results / "runs" / state.relative_to(results / "in_progress") / "steps.csv"
        if rows.exists():
            output = IOFile(str(rows))
            record = records.metadata(output)
            if record is None or record.endtime < rows.stat().st_mtime:
                records.cleanup_metadata(output)  # of what was there before
                os.utime(rows, (1, 1))  # 1970: older than what it was made from


def _is_held(path: Path) -> bool:
    try:
        with filelock.FileLock(path, timeout=0):
            return False
    except filelock.Timeout:
        return True


if __name__ == "__main__":  # for `make`: exit code 0 if the lock may be cleared
    sys.exit(not left_lock(Path("results")))
