# The configuration, checked, and the names and paths that the rules share.

import json
import re
import shlex
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import yaml
from snakemake.exceptions import WorkflowError
from snakemake.utils import validate

SCRIPTS = f"{workflow.basedir}/workflow/scripts"
PACKAGE = "workflow/scripts/optstate"
sys.path.insert(0, SCRIPTS)

from optstate import configuration
from optstate.data.manifest import files_sha256, folder_sha256
from optstate.job import InputError

CACHE = Path(".snakemake/optstate")  # of hashes and checks, all of which can be made again
SCHEMA = f"{workflow.basedir}/workflow/schemas/config.schema.yaml"


def checked(given):
    """The configuration in its final types; ends with one line if something is wrong with it."""
    try:
        settled = configuration.settled(given, yaml.safe_load(Path(SCHEMA).read_text()))
        validate(settled, SCHEMA)
        configuration.require_sense(settled)
    except WorkflowError as error:
        sys.exit(f"configuration: {configuration.explain(error.__context__)}")
    except InputError as error:
        sys.exit(f"configuration: {error}")
    require_works(settled)
    return settled


def require_works(settled):
    """Try model and optimizers with torch, once for each state of configuration and lock file."""
    what = json.dumps(configuration.tried_by_torch(settled), sort_keys=True)
    lock = Path(f"{workflow.basedir}/envs/requirements.lock").read_bytes()
    passed = CACHE / f"passed-{sha256(what.encode() + lock).hexdigest()[:16]}"
    if not passed.exists():
        check = [sys.executable, "-m", "optstate.training.check", what]
        tried = subprocess.run(check, cwd=SCRIPTS, stderr=subprocess.PIPE, text=True)
        if tried.returncode:
            sys.exit(f"configuration: {tried.stderr.strip()}")
        passed.parent.mkdir(parents=True, exist_ok=True)
        passed.touch()


config = checked(config)

RESULTS = f"results/{config['experiment']}"
RUNS = f"{RESULTS}/runs"
LOGS = f"logs/{config['experiment']}"
DATASETS = sorted(config["datasets"])
METHODS = sorted(config["methods"])
SEEDS = sorted(config["seeds"])
NUM_SESSIONS = len(config["sessions"])

# Jobs use the interpreter that Snakemake runs on, unless each rule has an environment of its own.
uses_conda = "conda" in map(str, workflow.deployment_settings.deployment_method)
PYTHON = "python" if uses_conda else sys.executable
shell.prefix(f"export PYTHONPATH='{SCRIPTS}'; ")


wildcard_constraints:
    dataset="|".join(map(re.escape, DATASETS)),
    schedule="[a-z0-9_]+",
    method="[a-z0-9_]+-[a-z0-9_-]+",
    seed=r"\d+",
    session=r"\d+",
    key="[0-9a-f]{16}",


def sources(*names):
    """The source files that a stage runs: inputs, so that what they make is stale when they change."""
    files = [f"{PACKAGE}/__init__.py", f"{PACKAGE}/job.py"]
    for name in names:
        path = Path(f"{PACKAGE}/{name}")
        files += sorted(map(str, path.glob("*.py"))) if path.is_dir() else [str(path)]
    return files


def locked(*packages):
    """The locked versions of the packages that a stage imports: a parameter, for the same reason."""
    lock = Path(f"{workflow.basedir}/envs/requirements.lock").read_text()
    lines = (re.findall(rf"^{package}==[^\\\n]*", lock, re.MULTILINE) for package in packages)
    return [line.strip() for found in lines for line in found]


def untracked(function):
    """A parameter whose change makes nothing stale: Snakemake does not track those of `threads`."""
    return lambda wildcards, threads: function(wildcards)
