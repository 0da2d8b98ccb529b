"""Allow one Snakemake at a time in an experiment, and handle what a killed one leaves behind.

Also run by ``make unlock``: exit code 0 if Snakemake's own lock was left behind and may be cleared.
"""

import atexit
import json
import os
import sys
import uuid
from pathlib import Path
from typing import IO, Any

from optstate.job import InputError, take_lock, write_atomically

SNAKEMAKE_LOCKS = Path(".snakemake/locks")
RUN_VARIABLE = "OPTSTATE_RUN"  # names the file of the submitted configuration to the jobs
LEFT_LOCK_MESSAGE = (
    "A Snakemake that was killed left its lock here, and none is running. Clear it by "
    "`.venv/bin/snakemake --unlock`, then run again (on a cluster, once `squeue --me` shows "
    "none of its jobs)."
)


def claim(results: Path) -> IO[str]:
    """Keep other Snakemakes out of an experiment's ``results`` until this process ends.

    Returns:
        The lock, which is held as long as this file is open.

    Raises:
        InputError: another Snakemake is running on them.
    """
    path = results / ".lock"
    lock = take_lock(path, seconds=1)
    if lock is None:
        raise InputError(
            f"another Snakemake is running on {results}. Wait until it ends, or stop it "
            f"(`fuser {path}` prints its process ID)."
        )
    atexit.register(path.absolute().unlink, missing_ok=True)
    return lock


def save_submitted(results: Path, configuration: Any) -> None:
    """Save the submitted ``configuration`` for jobs that start later.

    They may start hours later, on another machine, and the configuration's files may have changed
    by then.
    """
    for ended in results.glob(".run-*.json"):
        ended.unlink()
    path = results / f".run-{uuid.uuid4().hex}.json"
    with write_atomically(path) as temporary:
        temporary.write_text(json.dumps(configuration))
    os.environ[RUN_VARIABLE] = str(path)
    atexit.register(path.absolute().unlink, missing_ok=True)


def load_submitted() -> Any:
    """The configuration that the submitting Snakemake saved for this job; None if it saved none.

    Raises:
        InputError: that Snakemake has ended, or another one has started and does the job itself,
            or the saved file is damaged.
    """
    if RUN_VARIABLE not in os.environ:
        return None
    try:
        return json.loads(Path(os.environ[RUN_VARIABLE]).read_text())
    except FileNotFoundError as error:
        raise InputError(
            "the Snakemake that submitted this job has ended. Nothing was done: start it again."
        ) from error
    except ValueError as error:
        raise InputError(
            f"{os.environ[RUN_VARIABLE]}: damaged. Nothing was done: start Snakemake again."
        ) from error


def is_lock_left(results: Path) -> bool:
    """Whether Snakemake's own lock exists while no Snakemake is running on any of ``results``."""
    has_lock = any(SNAKEMAKE_LOCKS.glob("*.lock"))
    return has_lock and not any(map(is_held, results.glob("*/.lock")))


def is_held(path: Path) -> bool:
    """Whether another process holds the lock ``path``."""
    lock = take_lock(path)
    if lock is None:
        return True
    lock.close()
    return False


if __name__ == "__main__":
    sys.exit(not is_lock_left(Path("results")))
