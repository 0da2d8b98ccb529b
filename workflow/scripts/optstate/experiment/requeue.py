"""Inside a SLURM job: hand the warning of its end to the training, and queue the job up again."""

import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path

import psutil

WARNING = signal.SIGUSR1  # as profiles/slurm asks for with `--signal`
SECONDS_BETWEEN_LOOKS = 0.5


def requeue_when_warned() -> None:
    """Take SLURM's warning for the processes that this one starts.

    SLURM sends it to the first process of a job alone (under proctrack/cgroup, the usual setting):
    to the Snakemake in it, which would die of it, and not to the session that it runs.
    """
    signal.signal(WARNING, _save_and_requeue)


def _save_and_requeue(*_: object) -> None:
    """Let the sessions save and stop; then queue the job up again, as the same SLURM job.

    Meanwhile Snakemake, whose main thread is here, cannot end the job as failed. A session that has
    just started is told as soon as it listens.
    """
    signal.signal(WARNING, signal.SIG_IGN)  # some ways of tracking processes send it more than once
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a job that is cancelled now stays cancelled
    trained = False
    while sessions := list(filter(_is_session, psutil.Process().children())):
        trained = True
        for session in filter(_listens, sessions):
            with contextlib.suppress(psutil.NoSuchProcess):
                session.send_signal(WARNING)
        time.sleep(SECONDS_BETWEEN_LOOKS)
    if trained:
        subprocess.run(["scontrol", "requeue", _own_id()])  # noqa: S607 - where that is, SLURM knows


def _own_id() -> str:
    """The number of this job. Of an array's last task SLURM_JOB_ID is that of the whole array."""
    job, task = (os.environ.get(f"SLURM_ARRAY_{name}_ID") for name in ("JOB", "TASK"))
    return f"{job}_{task}" if task else os.environ["SLURM_JOB_ID"]


def _is_session(process: psutil.Process) -> bool:
    """Whether a process trains, or is the shell that is about to become one that does."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return "optstate.training.session" in " ".join(process.cmdline())
    return False


def _listens(process: psutil.Process) -> bool:
    """Whether a process has a handler of its own for the warning, of which others would die."""
    with contextlib.suppress(OSError):  # it has ended
        status = Path(f"/proc/{process.pid}/status").read_text()
        caught = next(line for line in status.splitlines() if line.startswith("SigCgt:"))
        return bool(int(caught.split()[1], 16) >> (WARNING - 1) & 1)
    return False
