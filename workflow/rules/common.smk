# The validated configuration, and the names that the rules share.

import json
import os
import re
import shlex
import sys
from pathlib import Path

from snakemake.settings.types import DeploymentMethod

SCRIPTS = f"{workflow.basedir}/workflow/scripts"
sys.path.insert(0, SCRIPTS)

from optstate import UNINTERRUPTED
from optstate.experiment import configuration, lock, requeue, terminal
from optstate.experiment.rules import (
    Experiment,
    command_line,
    commit,
    exit_in_one_line,
    locked,
    sources,
    untracked,
)
from optstate.experiment.runs import FOLDER, choose_plain, find_first_boundary

experiment = Experiment.load(config, workflow.configfiles, workflow.is_main_process)
config = experiment.config
RESULTS = experiment.results
LOGS = experiment.logs
NUM_SESSIONS = len(config["sessions"])
DATASETS = sorted(config["datasets"])
HAS_BOUNDARIES = experiment.runs.have_boundaries
FIRST_BOUNDARY = find_first_boundary(config)
TARGETS = configuration.targets(config)
RUNS_JSON = experiment.runs.to_json()
BOUNDARIES = sorted({run.names()["boundary"] for run in experiment.runs})

# Jobs use the interpreter that Snakemake runs on, unless each rule has an environment of its own.
# `exec` makes them children of Snakemake, which end when it is killed. With a shell in between,
# they would not.
# PYTHONSAFEPATH: a user's own model must not import untracked files from the working directory.
uses_conda = DeploymentMethod.CONDA in workflow.deployment_settings.deployment_method
interpreter = "python" if uses_conda else shlex.quote(sys.executable)
prefix = (
    f'export PYTHONPATH={shlex.quote(SCRIPTS)}"${{PYTHONPATH:+:$PYTHONPATH}}" '
    f'PYTHONSAFEPATH=1 OPTSTATE_PARENT={os.getpid()}; python() {{ exec {interpreter} "$@"; }}; '
)
shell.prefix(prefix.replace("{", "{{").replace("}", "}}"))

if not workflow.is_main_process and "SLURM_JOB_ID" in os.environ:
    requeue.save_when_warned()

if workflow.is_main_process:
    terminal.shorten_messages(workflow, experiment.count_epochs)
    if "--unlock" not in sys.argv:
        experiment.distrust_results()
        with exit_in_one_line("error"):
            is_lock_left = lock.is_lock_left(Path("results"))
        if is_lock_left:
            print(lock.LEFT_LOCK_MESSAGE, file=sys.stderr)


wildcard_constraints:
    dataset="|".join(map(re.escape, config["datasets"])),
    schedule="[a-z0-9_]+",
    name="[a-z0-9_]+(-[a-z0-9_-]+)?",
    seed=r"\d+",
    number=r"[1-9]\d*",
    key="[0-9a-f]{16}",
