# The validated configuration, and the names that the rules share.

import json
import os
import re
import shlex
import sys
import time
from pathlib import Path

from snakemake.settings.types import DeploymentMethod

SCRIPTS = f"{workflow.basedir}/workflow/scripts"
sys.path.insert(0, SCRIPTS)

from optstate import UNINTERRUPTED
from optstate.experiment import configuration, lock, requeue
from optstate.experiment.rules import (
    Experiment,
    command_line,
    commit,
    errors_in_logs,
    locked,
    sources,
    untracked,
)
from optstate.experiment.runs import FOLDER
from optstate.job import InputError, explain_os_error

try:
    submitted = None if workflow.is_main_process else lock.load_submitted()
    experiment = Experiment(*submitted) if submitted else Experiment.from_config(config)
except InputError as error:
    sys.exit(f"configuration: {error}")
except OSError as error:
    sys.exit(f"configuration: {InputError(explain_os_error(error))}")

config = experiment.config
STARTED = time.time()
RESULTS = experiment.results
LOGS = f"logs/{config['experiment']}"
NUM_SESSIONS = len(config["sessions"])
DATASETS = sorted(config["datasets"])
HAS_BOUNDARIES = experiment.runs.have_boundaries
TARGETS = configuration.targets(config)
RUNS_JSON = experiment.runs.to_json()
BOUNDARIES = sorted({run.names()["boundary"] for run in experiment.runs})
of_all_sessions = experiment.of_all_sessions
prepared = experiment.prepared

# Jobs use the interpreter that Snakemake runs on, unless each rule has an environment of its own.
# `exec` makes them children of Snakemake, which end when it is killed. With a shell in between,
# they would not.
uses_conda = DeploymentMethod.CONDA in workflow.deployment_settings.deployment_method
interpreter = "python" if uses_conda else shlex.quote(sys.executable)
prefix = (
    f'export PYTHONPATH={shlex.quote(SCRIPTS)}"${{PYTHONPATH:+:$PYTHONPATH}}" '
    f'OPTSTATE_PARENT={os.getpid()}; python() {{ exec {interpreter} "$@"; }}; '
)
shell.prefix(prefix.replace("{", "{{").replace("}", "}}"))

if not workflow.is_main_process and "SLURM_JOB_ID" in os.environ:
    requeue.requeue_when_warned()

if workflow.is_main_process:
    lock.distrust_unrecorded(Path(RESULTS), [s.folder for s in experiment.runs.sessions])
    if "--unlock" not in sys.argv and lock.is_lock_left(Path("results")):
        print(lock.LEFT_LOCK_MESSAGE, file=sys.stderr)


wildcard_constraints:
    dataset="|".join(map(re.escape, config["datasets"])),
    schedule="[a-z0-9_]+",
    name="[a-z0-9_]+(-[a-z0-9_-]+)?",
    seed=r"\d+",
    number=r"[1-9]\d*",
    key="[0-9a-f]{16}",


def claim_results():
    """Refuse to work alongside another Snakemake. The lock lasts as long as this process."""
    global claimed
    try:
        claimed = lock.claim(Path(RESULTS))
    except InputError as error:
        sys.exit(f"error: {error}")
    lock.save_submitted(
        Path(RESULTS), [config, experiment.dataset_sha256, experiment.weights_sha256]
    )


def repeat_errors():
    """Repeat each failed job's error after Snakemake's output."""
    for error in errors_in_logs(Path(LOGS), since=STARTED):
        print(error, file=sys.stderr)
