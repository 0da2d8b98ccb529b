"""The signal before a SLURM job's time limit reaches the session, and the job is requeued."""

import os
import signal
import subprocess
import sys

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
SNAKEMAKE = f"""
import subprocess, sys
from optstate.experiment.requeue import requeue_when_warned
requeue_when_warned()
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
    scontrol.write_text(f"#!/bin/sh\necho $* >> {tmp_path}/orders\n")
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
