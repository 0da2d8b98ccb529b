"""The warning of a SLURM job's end reaches the session; then the job is queued up again."""

import os
import signal
import subprocess
import sys

import pytest

from conftest import ROOT

# A session, by its name in the process table: it is warned, saves, and ends.
SESSION = """
import signal, sys, time
time.sleep(1)  # not listening yet
said = []
signal.signal(signal.SIGUSR1, lambda *_: said.append("warned"))
print("listens", flush=True)
while not said:
    time.sleep(0.01)
time.sleep(0.7)  # warned again meanwhile
print("saved", flush=True)
sys.exit(75)
"""
# A Snakemake within the job: it starts the session, and something else.
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
@pytest.mark.parametrize("when", ["as it starts", "as it trains", "twice"])
def test_it_saves_and_the_job_is_queued_up_again(tmp_path, environment, job, when):
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
        if when != "as it starts":
            assert process.stdout.readline() == "listens\n"
        process.send_signal(signal.SIGUSR1)
        if when == "twice":
            process.send_signal(signal.SIGUSR1)
        *_, saved, ended = process.communicate(timeout=60)[0].splitlines()
    assert process.returncode == 0
    assert (saved, ended) == ("saved", "ended 75")
    assert (tmp_path / "orders").read_text() == f"requeue {job}\n"
