# The configuration, checked, and the names and paths that the rules share.

import json
import os
import re
import shlex
import subprocess
import sys
import time
from hashlib import sha256
from pathlib import Path

from snakemake.settings.types import DeploymentMethod

SCRIPTS = f"{workflow.basedir}/workflow/scripts"
PACKAGE = "workflow/scripts/optstate"
sys.path.insert(0, SCRIPTS)

from optstate import UNINTERRUPTED, configuration, guard, slurm
from optstate.data.manifest import file_sha256, folder_sha256
from optstate.job import InputError, explain_os_error

CACHE = Path(".snakemake/optstate")  # of hashes and checks, which can be made again
LOCK = Path(f"{workflow.basedir}/envs/requirements.lock").read_text()
SCHEMA = Path(f"{workflow.basedir}/workflow/schemas/config.schema.yaml")


def locked(*packages):
    """The locked versions of packages: a parameter of the stages that import them."""
    lines = (re.findall(rf"^{package}==[^\\\n]*", LOCK, re.MULTILINE) for package in packages)
    return [line.strip() for found in lines for line in found]


def require_works(config):
    """Try model and optimizers with torch, once for each configuration and version of it."""
    what = json.dumps(configuration.tried_by_torch(config), sort_keys=True)
    versions = " ".join(locked("torch", "torchvision"))
    passed = CACHE / f"passed-{sha256(f'{what} {versions}'.encode()).hexdigest()[:16]}"
    if not passed.exists():
        check = [sys.executable, "-m", "optstate.experiment.check", what]
        tried = subprocess.run(check, cwd=SCRIPTS, stderr=subprocess.PIPE, text=True)
        if tried.returncode:
            raise InputError(tried.stderr.strip())
        passed.parent.mkdir(parents=True, exist_ok=True)
        passed.touch()


def content_sha256(dataset, source):
    """What a data set is, by content: the SHA-256 of its archive, or of its folder's manifest."""
    if "folder" not in source:
        return configuration.archive_sha256(source)
    return folder_sha256(Path(source["folder"]), CACHE / f"{dataset}.json")


def weights_sha256(weights):
    """What the first session starts from, by content."""
    return weights and file_sha256(Path(weights), CACHE / "weights.json")


def find(config):
    """The configuration, checked, and what the data sets and weights that it names are by content."""
    config = configuration.checked(config, SCHEMA)
    require_works(config)
    datasets = {name: content_sha256(name, source) for name, source in config["datasets"].items()}
    return config, datasets, weights_sha256(config["weights"])


try:
    told = None if workflow.is_main_process else guard.told()
    config, DATASET_SHA256, WEIGHTS_SHA256 = told or find(config)
except InputError as error:
    sys.exit(f"configuration: {error}")
except OSError as error:
    sys.exit(f"configuration: {InputError(explain_os_error(error))}")

STARTED = time.time()
RESULTS = f"results/{config['experiment']}"
RUNS = f"{RESULTS}/runs"
IN_PROGRESS = f"{RESULTS}/in_progress"  # what interrupted sessions continue from
LOGS = f"logs/{config['experiment']}"
DATASETS = sorted(config["datasets"])
METHODS = sorted(config["methods"])
SEEDS = sorted(config["seeds"])
NUM_SESSIONS = len(config["sessions"])
HAS_BOUNDARIES = NUM_SESSIONS > 1 and any(m.partition("-")[2] != UNINTERRUPTED for m in METHODS)
TARGETS = {
    name: source["target_top1"]
    for name, source in config["datasets"].items()
    if "target_top1" in source
}

# Jobs use the interpreter that Snakemake runs on, unless each rule has an environment of its own.
# `exec` makes them its own children, which end when it is killed: a shell between them would not.
uses_conda = DeploymentMethod.CONDA in workflow.deployment_settings.deployment_method
interpreter = "python" if uses_conda else shlex.quote(sys.executable)
prefix = (
    f'export PYTHONPATH={shlex.quote(SCRIPTS)}"${{PYTHONPATH:+:$PYTHONPATH}}" '
    f'OPTSTATE_PARENT={os.getpid()}; python() {{ exec {interpreter} "$@"; }}; '
)
shell.prefix(prefix.replace("{", "{{").replace("}", "}}"))

if not workflow.is_main_process and "SLURM_JOB_ID" in os.environ:
    slurm.requeue_when_warned()

if workflow.is_main_process:
    guard.distrust_unrecorded(Path(RESULTS))
    if "--unlock" not in sys.argv and guard.left_lock(Path("results")):
        print(guard.STALE, file=sys.stderr)


wildcard_constraints:
    dataset="|".join(map(re.escape, DATASETS)),
    schedule="[a-z0-9_]+",
    method="[a-z0-9_]+-[a-z0-9_-]+",
    seed=r"\d+",
    session=r"[2-9]|[1-9]\d+",
    key="[0-9a-f]{16}",


def sources(*names):
    """The source files that a stage runs: inputs, so that what they make is stale when they change."""
    files = [f"{PACKAGE}/__init__.py", f"{PACKAGE}/job.py"]
    for name in names:
        path = Path(f"{PACKAGE}/{name}")
        files += sorted(map(str, path.glob("*.py"))) if path.is_dir() else [str(path)]
    return files


def claim_results():
    """Refuse to work beside another Snakemake; the lock is held as long as this process lives."""
    global claimed
    try:
        claimed = guard.claim(Path(RESULTS))
    except InputError as error:
        sys.exit(f"error: {error}")
    guard.tell_jobs(Path(RESULTS), [config, DATASET_SHA256, WEIGHTS_SHA256])


def repeat_errors():
    """Say again, below all that Snakemake prints, the one line with which each failed job ended."""
    for log in sorted(Path(LOGS).rglob("*.log")):
        last = log.read_text(errors="replace").rstrip().rpartition("\n")[2]
        said = re.search("(error|interrupted): .*", last)
        if log.stat().st_mtime >= STARTED and said:
            print(said[0], file=sys.stderr)


def untracked(function):
    """A parameter whose change makes nothing stale: Snakemake does not track those of `threads`."""
    return lambda wildcards, threads: function(wildcards)


# Data sets


def prepared(dataset):
    """The folder of a data set's arrays."""
    return f"results/datasets/{dataset}/{DATASET_SHA256[dataset][:16]}/{config['image_size']}px"


def location(wildcards):
    """Where an archive comes from: the option for it."""
    source = config["datasets"][wildcards.dataset]
    if "packaged" in source:
        return f"--packaged {source['packaged']}"
    mirror = f" --mirror={shlex.quote(config['mirror'])}" if config["mirror"] else ""
    return f"--archive={shlex.quote(source['archive'])}{mirror}"


def archive_to_prepare(wildcards):
    """The verified archive, whose content is told by the file beside it; a folder needs none."""
    if "folder" in config["datasets"][wildcards.dataset]:
        return []
    archive = f"results/datasets/{wildcards.dataset}/{wildcards.key}/archive"
    return [ancient(archive), f"{archive}.sha256"]


def images_to_prepare(wildcards):
    """The option that says where the images are."""
    source = config["datasets"][wildcards.dataset]
    if "folder" in source:
        sha256 = DATASET_SHA256[wildcards.dataset]
        return f"--folder={shlex.quote(source['folder'])} --sha256 {sha256}"
    return f"--archive results/datasets/{wildcards.dataset}/{wildcards.key}/archive"


# Sessions


def weights_option(wildcards):
    """Where that is."""
    return f"--weights={shlex.quote(config['weights'])}" if config["weights"] else ""


def schedule_of(method):
    """A method is SCHEDULE-BOUNDARY."""
    return method.partition("-")[0]


def is_uninterrupted(method):
    """Whether a method has one session of its own, and no boundary."""
    return method.partition("-")[2] == UNINTERRUPTED


def interrupted_methods(schedule):
    """The methods that share the first session of a schedule."""
    return [m for m in METHODS if schedule_of(m) == schedule and not is_uninterrupted(m)]


def session_folder(dataset, method, seed, session):
    """Where a session of a run lies: the first one under its schedule's name alone."""
    is_shared = int(session) == 1 and not is_uninterrupted(method)
    name = schedule_of(method) if is_shared else method
    return f"{RUNS}/{dataset}/{name}/seed{seed}/session{session}"


def spec(wildcards):
    """What a job is told: all that its bits depend on, and nothing else."""
    return json.dumps(
        configuration.session_spec(
            config,
            dataset=wildcards.dataset,
            method=wildcards.get("method", wildcards.get("schedule")),
            seed=int(wildcards.seed),
            session=int(wildcards.get("session", 1)),
            weights_sha256=WEIGHTS_SHA256,
        ),
        sort_keys=True,
    )


def curves(wildcards):
    """The TensorBoard folders of the runs that a session is part of."""
    methods = (
        [wildcards.method]
        if "method" in wildcards.keys()
        else interrupted_methods(wildcards.schedule)
    )
    root = f"{RESULTS}/tensorboard/{wildcards.dataset}"
    return [f"{root}/{method}/seed{wildcards.seed}" for method in methods]


def arrays(wildcards):
    """The arrays, whose content is told by the checksums in dataset.json, not by their times."""
    names = [f"{s}_{w}.npy" for s in ("train", "valid") for w in ("images", "labels")]
    return [ancient(f"{prepared(wildcards.dataset)}/{name}") for name in names]


def previous(wildcards):
    """The session before. Its steps.csv has every loss: it is another if the checkpoint is."""
    number = int(wildcards.session) - 1
    folder = session_folder(wildcards.dataset, wildcards.method, wildcards.seed, number)
    files = [ancient(f"{folder}/{name}") for name in ("checkpoint.pt", "epochs.csv")]
    return [*files, f"{folder}/steps.csv"]


def checkpoint_of(folder, is_last):
    """A checkpoint, removed when nothing needs it any more, if the configuration says so."""
    keep = config["keep_checkpoints"]
    kept = keep == "all" or (keep == "last" and is_last)
    return f"{folder}/checkpoint.pt" if kept else temp(f"{folder}/checkpoint.pt")


def of_all_sessions(name):
    """A file of every session of every run."""
    folders = {
        session_folder(dataset, method, seed, session)
        for dataset in DATASETS
        for method in METHODS
        for seed in SEEDS
        for session in range(1, 2 if is_uninterrupted(method) else NUM_SESSIONS + 1)
    }
    return [f"{folder}/{name}" for folder in sorted(folders)]


# LR range tests


def method_tested(schedule):
    """The method whose sessions are gone on from: that of the baseline, if it is there."""
    methods = interrupted_methods(schedule)
    usual = f"{schedule}-{configuration.plain(config, keep=[], usual='new')}"
    return usual if usual in methods else methods[0]


def before_test(wildcards):
    """The session that the test goes on from."""
    if wildcards.number == "1":
        return []
    method, number = method_tested(wildcards.schedule), int(wildcards.number) - 1
    folder = session_folder(wildcards.dataset, method, SEEDS[0], number)
    return [f"{folder}/steps.csv", ancient(f"{folder}/checkpoint.pt")]


def tested_spec(wildcards):
    """The session before which it is."""
    number = int(wildcards.number)
    method = wildcards.schedule if number == 1 else method_tested(wildcards.schedule)
    weights = WEIGHTS_SHA256
    return json.dumps(
        configuration.session_spec(config, wildcards.dataset, method, SEEDS[0], number, weights),
        sort_keys=True,
    )


# Figures and the report


def figure_sources(module):
    """What draws a kind of figure."""
    names = ["__init__", "tables", "figures/__init__", "figures/style", f"figures/{module}"]
    return sources(*[f"analysis/{name}.py" for name in names])


def invocation():
    """The command that Snakemake was run by, but for what it should make."""
    settings = workflow.config_settings
    files = [shlex.quote(os.path.relpath(path)) for path in settings.configfiles]
    values = [shlex.quote(f"{key}={json.dumps(value)}") for key, value in settings.config.items()]
    options = [["--configfile", *files]] * bool(files) + [["--config", *values]] * bool(values)
    return " ".join([".venv/bin/snakemake --cores 1 --resources gpu=1", *sum(options, [])])


def commit():
    """The commit of the project's sources; empty if they are not in a repository."""
    git = ["git", "-C", workflow.basedir, "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        return subprocess.run(git, capture_output=True, text=True).stdout.strip()
    except OSError:  # there is no git
        return ""


# Measurements


def bench_settings():
    """What to measure with."""
    schema = Path(f"{workflow.basedir}/workflow/schemas/bench.schema.yaml")
    try:
        return configuration.bench_settings(Path(f"{workflow.basedir}/config/bench.yaml"), schema)
    except InputError as error:
        sys.exit(f"configuration: {error}")


def settings_at_size(wildcards):
    """What a measurement at an image size is told."""
    same = {key: BENCH[key] for key in ("model", "batch_size", "peers", "epochs")}
    threads = BENCH[BENCH_DEVICE]["threads"]
    here = {"device": BENCH_DEVICE, "threads": threads, "image_size": int(wildcards.size)}
    return json.dumps(same | here, sort_keys=True)
