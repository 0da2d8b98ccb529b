"""The signals with which SLURM ends a job reach the session, which saves."""

import os
import signal
import subprocess
import sys

import psutil
import pytest

from conftest import ROOT

# A process with the name of a session. After the signal it "saves" and ends.
SESSION = """
import signal, sys, time
time.sleep(1)  # the signal may arrive before the handler is installed
received = []
signal.signal(signal.SIGUSR1, lambda *_: received.append("signal"))
print("ready", flush=True)
while not received:
    time.sleep(0.01)
time.sleep(0.7)  # a second signal may arrive
print("saved", flush=True)
sys.exit(75)
"""
# The Snakemake in the job. It starts the session and another process, which gets no signal.
HANDLERS = """
import signal, subprocess, sys, threading, types
from snakemake.scheduling.job_scheduler import JobScheduler
from optstate.experiment.requeue import save_when_warned
save_when_warned()
scheduler = types.SimpleNamespace(_lock=threading.Lock(), _open_jobs=threading.Semaphore(0))
signal.signal(signal.SIGTERM, types.MethodType(JobScheduler.exit_gracefully, scheduler))
"""
SNAKEMAKE = f"""{HANDLERS}
session = [sys.executable, "-c", {SESSION!r}, "optstate.training.session"]
with subprocess.Popen(session) as session, subprocess.Popen(["sleep", "600"]) as other:
    print("started", flush=True)
    print("ended", session.wait(), flush=True)
    assert other.poll() is None
    other.kill()
"""


@pytest.mark.parametrize(
    ("environment", "job"),
    [
        ({"SLURM_JOB_ID": "12"}, "12"),
        (
            {"SLURM_JOB_ID": "12", "SLURM_ARRAY_JOB_ID": "11", "SLURM_ARRAY_TASK_ID": "3"},
            "11_3",
        ),
    ],
)
@pytest.mark.parametrize("when", ["at the start", "in training", "twice"])
def test_a_warned_session_saves_and_its_job_is_requeued(tmp_path, environment, job, when):
    scontrol = tmp_path / "scontrol"
    # Snakemake's plugin for SLURM also runs `scontrol show config`.
    scontrol.write_text(f"#!/bin/sh\n[ $1 = show ] || echo $* >> {tmp_path}/orders\n")
    scontrol.chmod(0o755)
    environment |= {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT / "workflow/scripts"),
    }
    command = [sys.executable, "-c", SNAKEMAKE]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "started\n"
        if when != "at the start":
            assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGUSR1)
        if when == "twice":
            process.send_signal(signal.SIGUSR1)
        *_, saved, ended = process.communicate(timeout=60)[0].splitlines()
    assert process.returncode == 0
    assert (saved, ended) == ("saved", "ended 75")
    assert (tmp_path / "orders").read_text() == f"requeue {job}\n"


def test_a_preempted_session_saves_and_its_job_waits_until_slurm_ends_it():
    """If the job ended by itself, SLURM would not requeue it."""
    environment = os.environ | {"PYTHONPATH": str(ROOT / "workflow/scripts")}
    command = [sys.executable, "-c", SNAKEMAKE]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "started\n"
        process.send_signal(signal.SIGTERM)
        assert [process.stdout.readline() for _ in range(2)] == ["ready\n", "saved\n"]
        process.send_signal(signal.SIGTERM)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(2)
        psutil.Process(process.pid).children()[0].kill()
        process.kill()


def test_a_preempted_job_that_does_not_train_is_left_to_snakemake():
    script = HANDLERS + "signal.raise_signal(signal.SIGTERM); print(scheduler._user_kill)"
    environment = os.environ | {"PYTHONPATH": str(ROOT / "workflow/scripts")}
    command = [sys.executable, "-c", script]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (result.stdout, result.stderr) == ("graceful\n", "")
