"""Let the session of a SLURM job save its state before SLURM ends the job."""

import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path

import psutil
from snakemake.scheduling.job_scheduler import JobScheduler

WARNING = signal.SIGUSR1  # requested by profiles/slurm with `--signal`
POLL_SECONDS = 0.5


def save_when_warned() -> None:
    """Handle SLURM's signals on behalf of the processes that this one starts.

    SLURM sends them only to a job's first process (under proctrack/cgroup, the usual setting). This
    is the job's Snakemake, not the session. A warning before the time limit would end Snakemake.
    After SIGTERM, with which SLURM announces that it will preempt or cancel the job, Snakemake
    would wait for the session to end.
    """
    signal.signal(WARNING, _save_and_requeue)
    wait_for_jobs = JobScheduler.exit_gracefully  # Snakemake's handler of SIGTERM

    def save_and_wait(scheduler: JobScheduler, *arguments: object) -> None:
        if not _stop_sessions():
            wait_for_jobs(scheduler, *arguments)
            return
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        while True:  # until SLURM kills this process; a job that ends by itself is not requeued
            signal.pause()

    JobScheduler.exit_gracefully = save_and_wait


def _save_and_requeue(*_: object) -> None:
    """Let the sessions save and stop, then requeue this SLURM job."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a job that is cancelled now stays cancelled
    if _stop_sessions():
        subprocess.run(["scontrol", "requeue", _get_job_id()])  # noqa: S607 - SLURM's PATH has it


def _stop_sessions() -> bool:
    """Let the sessions save and stop. Returns whether there were any.

    Snakemake's main thread runs this in a handler, so Snakemake cannot report the job as failed in
    the meantime. A session that has just started gets the signal once it has a handler for it.
    """
    signal.signal(WARNING, signal.SIG_IGN)  # some proctrack plugins send it repeatedly
    has_trained = False
    while sessions := list(filter(_is_session, psutil.Process().children())):
        has_trained = True
        for session in filter(_handles_warning, sessions):
            with contextlib.suppress(psutil.NoSuchProcess):
                session.send_signal(WARNING)
        time.sleep(POLL_SECONDS)
    return has_trained


def _get_job_id() -> str:
    """Return this job's ID. In an array's last task, SLURM_JOB_ID is the ID of the whole array."""
    job, task = (os.environ.get(f"SLURM_ARRAY_{name}_ID") for name in ("JOB", "TASK"))
    return f"{job}_{task}" if task else os.environ["SLURM_JOB_ID"]


def _is_session(process: psutil.Process) -> bool:
    """Return whether a process trains, or is a shell that is about to run the training."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return "optstate.training.session" in " ".join(process.cmdline())
    return False


def _handles_warning(process: psutil.Process) -> bool:
    """Return whether a process handles the warning. Otherwise the warning would end it."""
    with contextlib.suppress(OSError):  # the process has ended
        status = Path(f"/proc/{process.pid}/status").read_text()
        caught = next(line for line in status.splitlines() if line.startswith("SigCgt:"))
        return bool(int(caught.split()[1], 16) >> (WARNING - 1) & 1)
    return False
