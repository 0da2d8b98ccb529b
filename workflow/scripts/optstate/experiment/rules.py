"""What the rules ask of an experiment: the inputs and the parameters of each job.

Paths are relative to the working directory, so that no absolute path gets into a job's parameters.
"""

import contextlib
import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from snakemake.io import ancient, temp
from snakemake.iocontainers import Wildcards
from snakemake.settings.types import ConfigSettings

from optstate.checksums import SUFFIX, hash_files, read_checksums
from optstate.data import packaged
from optstate.data.manifest import folder_sha256
from optstate.experiment import changes, configuration, integrity, lock, plan, records
from optstate.experiment.consistency import is_published, list_files, list_notes
from optstate.experiment.runs import SESSION_FILES, Runs, Session, choose_plain
from optstate.experiment.schema import Config
from optstate.experiment.yaml_files import read_yaml
from optstate.job import InputError, explain_os_error
from optstate.training.spec import SessionSpec

if TYPE_CHECKING:  # snakemake.dag and snakemake.workflow import each other
    from snakemake.dag import DAG
    from snakemake.jobs import Job

PACKAGE = "workflow/scripts/optstate"
CACHE = Path(".snakemake/optstate")  # of hashes and checks; it may be deleted at any time
LOCK_FILE = configuration.ROOT / "envs/requirements.lock"
CHECKED_KEYS = (
    "model", "weights", "optimizer_state", "image_size", "optimizer", "schedules", "boundaries",
    "methods",
)  # fmt: skip
TRAINING_RULES = ("first_session", "later_session", "last_session", "uninterrupted_run")
LR_RANGE_TEST = "{dataset}/{schedule}-session{number}"  # a test's files, without their suffixes
ARRAYS = [f"{split}_{kind}.npy" for split in ("train", "valid") for kind in ("images", "labels")]


def sources(*names: str) -> list[str]:
    """The source files of a stage: inputs of its rules, so that editing one makes them stale.

    Args:
        names: files and folders below the package.
    """
    files = [f"{PACKAGE}/{name}.py" for name in ("__init__", "checksums", "job")]
    for name in names:
        path = Path(f"{PACKAGE}/{name}")
        files += sorted(map(str, path.glob("*.py"))) if path.is_dir() else [str(path)]
    return files


def locked(*packages: str) -> list[str]:
    """The locked versions of the packages that a stage imports: a parameter of its rules."""
    text = LOCK_FILE.read_text()
    lines = (re.findall(rf"^{package}==[^\\\n]*", text, re.MULTILINE) for package in packages)
    return [line.strip() for found in lines for line in found]


def untracked(function: Callable[[Wildcards], Any]) -> Callable[[Wildcards, int], Any]:
    """A parameter that makes nothing stale: Snakemake does not track those that use ``threads``."""
    return lambda wildcards, threads: function(wildcards)  # noqa: ARG005 - see above


@contextlib.contextmanager
def exit_in_one_line(what: str) -> Iterator[None]:
    """Exit with one line, which begins with ``what``, if the block raises an expected error."""
    try:
        yield
    except InputError as error:
        sys.exit(f"{what}: {error}")
    except OSError as error:
        sys.exit(f"{what}: {InputError(explain_os_error(error))}")


@dataclass(frozen=True)
class Experiment:
    """A validated configuration, with the contents of the files that it names.

    Attributes:
        config: the configuration.
        dataset_sha256: for each data set, the SHA-256 of its archive or of its folder's manifest.
        file_hashes: the SHA-256 of each file that a key names, by this key. Of torchvision's
            weights, its first digits.
        weights_url: the address of torchvision's weights, if the first session starts from them.
        locks: held as long as the object lives.
        start: when Snakemake started, in seconds since 1970.
    """

    config: Config
    dataset_sha256: dict[str, str]
    file_hashes: dict[str, str] = field(default_factory=dict)
    weights_url: str | None = None
    locks: list[IO[str]] = field(default_factory=list, repr=False)
    start: float = field(default_factory=time.time, repr=False)

    @classmethod
    def load(
        cls, given: Config, files: Iterable[str | Path], is_main_process: bool
    ) -> "Experiment":
        """Build the experiment of a configuration, in a job as it was submitted.

        Exits with one line if it is not valid.
        """
        with exit_in_one_line("configuration"):
            submitted = None if is_main_process else lock.load_submitted()
            if submitted:
                return cls(*submitted)
            for file in files:  # Snakemake has read them less strictly
                if Path(file).suffix != ".json":
                    read_yaml(Path(file))
            experiment = cls.from_config(given)
        if is_main_process:
            if "--unlock" not in sys.argv:
                experiment.require_unchanged()
            unanswered = configuration.list_unanswered(experiment.config)
            for note in [*list_notes(experiment.config), *unanswered, *experiment.list_changes()]:
                print(f"note: {note}", file=sys.stderr)
        return experiment

    @classmethod
    def from_config(cls, given: Config) -> "Experiment":
        """Validate a configuration, try its model and optimizers, and hash the files it names.

        Raises:
            InputError: it is not valid, or names something that does not exist or does not work.
        """
        config = configuration.validate(given)
        files = list_files(config)
        hashes = hash_files([*files.values()], CACHE / "files.json")
        file_hashes = dict(zip(files, hashes, strict=True))
        weights_url = require_works(config, file_hashes)
        if weights_url:  # such as https://download.pytorch.org/models/resnet50-11ad3fa6.pth
            file_hashes["weights"] = Path(weights_url).stem.rpartition("-")[2]
        datasets = {
            name: content_sha256(name, source) for name, source in config["datasets"].items()
        }
        return cls(config, datasets, file_hashes, weights_url)

    # Snakemake's start and end

    @exit_in_one_line("error")
    def claim(self) -> None:
        """Keep other Snakemakes out of the experiment, and save its configuration and its plan.

        Exits if another Snakemake is running on it.
        """
        self.locks.append(lock.claim(Path(self.results)))
        submitted = [self.config, self.dataset_sha256, self.file_hashes, self.weights_url]
        lock.save_submitted(Path(self.results), submitted)
        plan.write_plan(Path(self.results), self.plan, commit())

    @exit_in_one_line("error")
    def require_unchanged(self) -> None:
        """Exit with one line if a finished file has changed since it was made."""
        folders = {name: Path(self.prepared(name)).parent for name in self.config["datasets"]}
        for name, folder in folders.items():
            sha256 = self.dataset_sha256[name]
            integrity.require_archive(folder, sha256)
            integrity.require_prepared(Path(self.prepared(name)), self._describe_arrays(name))
        cache = CACHE / f"verified-{self.config['experiment']}.json"
        integrity.require_unchanged(self._list_listings(folders.values()), cache)

    def _describe_arrays(self, dataset: str) -> Config:
        """What ``dataset.json`` must say of the arrays of a data set."""
        source = self.config["datasets"][dataset]
        holdout = {key: source.get(key) for key in ("valid_fraction", "valid_seed")}
        return {
            "source_sha256": self.dataset_sha256[dataset],
            "image_size": self.config["image_size"],
            "split": holdout if "valid_fraction" in source else None,
        }

    def _list_listings(self, datasets: Iterable[Path]) -> Iterator[Path]:
        """Yield the files that list the checksums of finished files."""
        for folder, _, names in os.walk(self.results, followlinks=True):
            yield from (Path(folder, name) for name in names if name.endswith(SUFFIX))
        yield from Path("results/weights").glob(f"*{SUFFIX}")
        for data in datasets:  # deeper files may be those of an archive that is being unpacked
            yield from (*data.glob(f"*{SUFFIX}"), *data.glob(f"*/*{SUFFIX}"))

    def list_changes(self) -> list[str]:
        """A line for each key of the configuration that makes finished results stale."""
        return changes.list_changes(Path(self.results), self.config, self.runs, self.specs)

    @exit_in_one_line("error")
    def distrust_results(self) -> None:
        """Make results stale that Snakemake would wrongly take for finished ones."""
        cards = {
            name: Path(self.prepared(name), "dataset.json") for name in self.config["datasets"]
        }
        previous = {
            session.folder: before.folder
            for session in self.runs.sessions
            if (before := self.runs.previous(session))
        }
        if number := records.count_unrecorded(Path(self.results), self.specs):
            print(
                f"note: {self.results}: Snakemake has no record of "
                f"{changes.count_sessions(number)}, and trains those again that are older than a "
                "source file. If the results were copied, copy `.snakemake/metadata`, too, or run "
                "once with --touch to keep them.",
                file=sys.stderr,
            )
        followed = {
            session.folder: other.folder
            for session in self.runs.sessions
            if (other := configuration.followed_session(self.config, session))
        }
        records.distrust_sessions(Path(self.results), self.specs, cards, previous, followed)
        records.distrust_analysis(Path(self.results), self.config)

    def count_epochs(self, job: "Job") -> int:
        """The number of epochs that a job trains."""
        if job.rule.name not in TRAINING_RULES:
            return 0
        return self.specs[self.session_of(job.wildcards).folder].num_epochs

    def print_errors(self) -> None:
        """Repeat each failed job's error after Snakemake's output.

        If no session has begun, the plan is withdrawn.
        """
        plan.withdraw_plan(Path(self.results))
        for error in errors_in_logs(Path(self.logs), since=self.start):
            print(error, file=sys.stderr)

    def print_results(self, dag: "DAG") -> None:
        """Print the answer and where the results are that this run has made or found up to date.

        Results that the run's targets do not need are not printed, because they may be outdated.
        """
        is_done = (job for job in dag.jobs if dag.finished(job) or not dag.needrun(job))
        jobs = {job.rule.name: job for job in is_done}
        if "lr_range_test" in jobs:
            print(f"LR range test: {self.tests_folder}")
        # A report that was already finished lacks the curves that were made in this run.
        if "report" in jobs and jobs["report"].params.lr_range_tests == self.finished_tests():
            print_answer(Path(self.results))

    @property
    def plan(self) -> Config:
        """What must be fixed before the runs are seen, with the contents of data sets and files."""
        contents = {"datasets": self.dataset_sha256, "files": self.file_hashes}
        return configuration.make_plan(self.config) | {"contents": contents}

    # Folders

    @property
    def results(self) -> str:
        """The folder of the experiment's results."""
        return f"results/{self.config['experiment']}"

    @property
    def logs(self) -> str:
        """The folder of the jobs' logs."""
        return f"logs/{self.config['experiment']}"

    @property
    def runs_folder(self) -> str:
        """The folder of all sessions."""
        return f"{self.results}/runs"

    @property
    def tests_folder(self) -> str:
        """The folder of the LR range tests."""
        return f"{self.results}/lr_range_test"

    @property
    def progress_folder(self) -> str:
        """The folder of the states that interrupted sessions continue from."""
        return f"{self.results}/in_progress"

    def prepared(self, dataset: str) -> str:
        """The folder of a data set's arrays. Its name says how the validation images are chosen."""
        source, key = self.config["datasets"][dataset], self.dataset_sha256[dataset][:16]
        fraction = f"-valid{source['valid_fraction']}" if "valid_fraction" in source else ""
        seed = f"-seed{source['valid_seed']}" if "valid_seed" in source else ""
        size = f"{self.config['image_size']}px"
        return f"results/datasets/{dataset}/{key}/{size}{fraction}{seed}"

    # Data sets

    def archive_options(self, wildcards: Wildcards) -> str:
        """The options of ``fetch`` that say where an archive comes from."""
        source = self.config["datasets"][wildcards.dataset]
        if "packaged" in source:
            return f"--packaged {source['packaged']}"
        return self._address_options(source["archive"])

    def weights_options(self, _: Wildcards) -> str:
        """The options of ``fetch`` that say where torchvision's weights come from."""
        return self._address_options(str(self.weights_url))

    def _address_options(self, address: str) -> str:
        mirror = self.config["mirror"]
        mirror_option = f" --mirror={shlex.quote(mirror)}" if mirror else ""
        return f"--archive={shlex.quote(address)}{mirror_option}"

    def archive(self, wildcards: Wildcards) -> list[str]:
        """The verified archive, whose checksum file tracks its content; nothing for a folder."""
        if "folder" in self.config["datasets"][wildcards.dataset]:
            return []
        archive = f"results/datasets/{wildcards.dataset}/{wildcards.key}/archive"
        return [ancient(archive), f"{archive}.sha256"]

    def images_options(self, wildcards: Wildcards) -> str:
        """The options of ``prepare`` that say where the images of both splits are."""
        source = self.config["datasets"][wildcards.dataset]
        archive = f"--archive results/datasets/{wildcards.dataset}/{wildcards.key}/archive"
        folder = f"--folder={shlex.quote(source['folder'])}" if "folder" in source else archive
        options = [folder, f"--sha256 {self.dataset_sha256[wildcards.dataset]}"]
        if "valid_fraction" in source:
            options.append(f"--valid-fraction {source['valid_fraction']}")
        if "valid_seed" in source:
            options.append(f"--valid-seed {source['valid_seed']}")
        return " ".join(options)

    # Sessions

    @cached_property
    def runs(self) -> Runs:
        """All runs of the experiment."""
        return configuration.all_runs(self.config)

    @cached_property
    def specs(self) -> dict[str, SessionSpec]:
        """The settings of each session, by its folder below ``runs``."""
        return {
            session.folder: configuration.session_spec(self.config, session, self.file_hashes)
            for session in self.runs.sessions
        }

    def session_of(self, wildcards: Wildcards) -> Session:
        """The session that the wildcards of a training rule name."""
        name, seed, number = wildcards.name, int(wildcards.seed), int(wildcards.number)
        return Session(wildcards.dataset, name, seed, number)

    def spec(self, wildcards: Wildcards) -> str:
        """The session's settings as JSON: everything that can change its results, no more."""
        return self._spec(self.session_of(wildcards))

    def _spec(self, session: Session) -> str:
        return self.specs[session.folder].to_json()

    def arrays(self, wildcards: Wildcards) -> list[str]:
        """The arrays, whose content is tracked by the checksums in dataset.json."""
        return [
            ancient(f"{self.prepared(wildcards.dataset)}/{name}")
            for name in (*ARRAYS, "dataset.sha256")
        ]

    def card(self, wildcards: Wildcards) -> str:
        """The file that describes the arrays."""
        return f"{self.prepared(wildcards.dataset)}/dataset.json"

    def previous(self, wildcards: Wildcards) -> list[str]:
        """The files that a session starts from, and those of other sessions that it depends on.

        These are torchvision's weights, or the previous session, whose ``steps.csv`` has every
        loss, so that it tracks the content of the checkpoint as well, and the session whose update
        norms are taken over.
        """
        session = self.session_of(wildcards)
        files = self._files_before(session)
        if followed := configuration.followed_session(self.config, session):
            folder = f"{self.runs_folder}/{followed.folder}"
            files += [ancient(f"{folder}/session.sha256"), f"{folder}/steps.csv"]
        return files

    def _files_before(self, session: Session) -> list[str]:
        before = self.runs.previous(session)
        if before is None:
            return [ancient(str(self.weights_file))] if self.weights_url else []
        folder = f"{self.runs_folder}/{before.folder}"
        names = ("checkpoint.pt", "epochs.csv", "session.sha256")
        return [*[ancient(f"{folder}/{name}") for name in names], f"{folder}/steps.csv"]

    def start_options(self, wildcards: Wildcards) -> str:
        """The options that say what a session starts from, and whose update norms it takes over."""
        session = self.session_of(wildcards)
        before = self.runs.previous(session)
        options = self._file_options(session, "model", "weights", "optimizer_state")
        if before:
            earlier = " ".join(f"{self.runs_folder}/{s.folder}" for s in self.runs.earlier(session))
            options += (
                f" {self._previous_options(before)} --earlier {earlier} "
                f"--previous-progress {self.progress_folder}/{before.folder}"
            )
        followed = configuration.followed_session(self.config, session)
        norms = f" --step-sizes {self.runs_folder}/{followed.folder}" if followed else ""
        return options + norms

    def _file_options(self, session: Session, *keys: str) -> str:
        """The options that name those of the user's files ``keys`` that a session depends on."""
        files = list_files(self.config) | {"weights": str(self.weights_file)}
        used = self.specs[session.folder].file_hashes.keys() & {*keys}
        options = (f"--{key.replace('_', '-')}={shlex.quote(files[key])}" for key in sorted(used))
        return " ".join(options)

    def _previous_options(self, before: Session) -> str:
        spec = shlex.quote(self._spec(before))
        return f"--previous {self.runs_folder}/{before.folder} --previous-spec {spec}"

    @property
    def weights_file(self) -> str | None:
        """The file with the weights that the first session starts from, if there is one."""
        if self.weights_url:
            return f"results/weights/{Path(self.weights_url).name}"
        return self.config["weights"]

    def progress(self, wildcards: Wildcards) -> str:
        """The folder of the states that a session continues from when it was interrupted."""
        return f"{self.progress_folder}/{self.session_of(wildcards).folder}"

    def curves(self, wildcards: Wildcards) -> list[str]:
        """The TensorBoard folders of the runs that a session is part of.

        A run whose later session is finished with the present settings has all its curves already.
        If that session is trained again as well, it writes them anew.
        """
        session = self.session_of(wildcards)
        return [
            f"{self.results}/tensorboard/{run.folder}"
            for run in self.runs.runs_of[session]
            if not any(self._is_finished(later) for later in run.sessions[session.number :])
        ]

    def _is_finished(self, session: Session) -> bool:
        made_by = Path(self.runs_folder, session.folder, "made_by.json")
        return changes.read_value(made_by, "configuration") == json.loads(self._spec(session))

    def session_files(self, folder: str, is_last: bool) -> list[str]:
        """The outputs of a session. A checkpoint that is not kept is removed after its last use."""
        keep = self.config["keep_checkpoints"]
        checkpoint = f"{folder}/checkpoint.pt"
        is_kept = keep == "all" or (keep == "last" and is_last)
        return [
            checkpoint if is_kept else temp(checkpoint),
            *[f"{folder}/{name}" for name in SESSION_FILES],
        ]

    def of_all_sessions(self, name: str) -> list[str]:
        """The files called ``name`` of all sessions of all runs."""
        return [f"{self.runs_folder}/{session.folder}/{name}" for session in self.runs.sessions]

    # LR range tests

    @property
    def tested_schedules(self) -> list[str]:
        """The schedules of runs in sessions."""
        runs = (run for run in self.runs if not run.sessions[0].is_whole_run)
        return sorted({run.sessions[0].schedule for run in runs})

    def tested_session(self, wildcards: Wildcards) -> Session:
        """The session before which the LR range test is made.

        Later ones are those of the method with the boundary that keeps nothing, if there is one.
        """
        usual = choose_plain(self.config, keep=[])
        candidates = [
            run
            for run in self.runs
            if run.dataset == wildcards.dataset
            and run.sessions[0].schedule == wildcards.schedule
            and not run.sessions[0].is_whole_run
        ]
        run = min(candidates, key=lambda run: (run.names()["boundary"] != usual, run))
        return run.sessions[int(wildcards.number) - 1]

    def tested_spec(self, wildcards: Wildcards) -> str:
        """The settings of the session before which the LR range test is made, as JSON."""
        return self._spec(self.tested_session(wildcards))

    def before_test(self, wildcards: Wildcards) -> list[str]:
        """The files of the session that the LR range test continues from."""
        return self._files_before(self.tested_session(wildcards))

    def test_start_options(self, wildcards: Wildcards) -> str:
        """The options that say what the LR range test starts from."""
        session = self.tested_session(wildcards)
        before = self.runs.previous(session)
        previous = f" {self._previous_options(before)}" if before else ""
        return self._file_options(session, "model", "weights") + previous

    def test_key(self, wildcards: Wildcards) -> str:
        """A hash of everything in the configuration that can change the LR range test."""
        session = self.tested_session(wildcards)
        specs = [self._spec(one) for one in (*self.runs.earlier(session), session)]
        text = "\n".join([self.prepared(session.dataset), *specs])
        return sha256(text.encode()).hexdigest()[:16]

    def finished_tests(self) -> str:
        """The LR range tests that were made with this configuration and still exist, as JSON.

        Each has ``dataset``, ``schedule``, ``number`` of the session, the path of its ``figure``,
        and the ``sha256`` that is listed for the figure.
        """
        found = []
        numbers = range(1, len(self.config["sessions"]) + 1)
        for values in product(sorted(self.config["datasets"]), self.tested_schedules, numbers):
            wanted = dict(zip(("dataset", "schedule", "number"), values, strict=True))
            path = Path(self.tests_folder, LR_RANGE_TEST.format(**wanted) + ".png")
            listed = read_checksums(path.parent).get(path.name)
            key = self.test_key(Wildcards(fromdict=wanted))
            made_with = changes.read_value(path.with_suffix(".json"), "key")
            if path.exists() and listed and made_with == key:
                found.append(wanted | {"figure": str(path), "sha256": listed})
        return json.dumps(found)


def print_answer(results: Path) -> None:
    """Print the answer of an experiment, and the paths of its results."""
    answer = results / "answer.txt"
    if not answer.exists():  # with --touch, Snakemake counts jobs as finished without running them
        return
    print(f"\n{answer.read_text(encoding='utf-8')}")
    print(f"Report: {results}/report.html")
    print(f"Figures: {results}/figures")
    print(f"Tables: {results}/tables")


def require_works(config: Config, file_hashes: dict[str, str]) -> str | None:
    """Try model, weights, optimizers and boundaries with torch.

    This happens once for each configuration, content of the files that it names, and version.

    Returns:
        The address of the weights, if they are torchvision's.

    Raises:
        InputError: one of them does not work.
    """
    if not find_spec("torch"):
        if is_published(config["weights"]):
            raise InputError(
                f"weights: torch, which knows the address of {config['weights']}, is not installed "
                "here. Install it, or download the weights and give the file."
            )
        message = "torch is not installed here: model and optimizers are not tried before the jobs"
        print(message, file=sys.stderr)
        return None
    what = json.dumps({key: config[key] for key in CHECKED_KEYS}, sort_keys=True)
    versions = " ".join([*file_hashes.values(), *locked("torch", "torchvision")])
    passed = CACHE / f"passed-{sha256(f'{what} {versions}'.encode()).hexdigest()[:16]}"
    known = passed.read_text() if passed.exists() else None
    if known is not None and bool(known) == is_published(config["weights"]):
        return known or None
    scripts = str(Path(__file__).parents[2])
    command = [sys.executable, "-m", "optstate.experiment.check", what]
    environment = os.environ | {"PYTHONPATH": scripts, "PYTHONSAFEPATH": "1"}  # as in jobs
    tried = subprocess.run(command, env=environment, capture_output=True, text=True)
    if tried.returncode:
        last = tried.stderr.strip().rpartition("\n")[2] or f"exit code {tried.returncode}"
        raise InputError(
            tried.stdout.strip()
            or f"model and optimizers cannot be tried: torch fails ({last}). Is there too little "
            "memory (`ulimit -v`, `free`), or is `.venv` incomplete (`make install`)?"
        )
    passed.parent.mkdir(parents=True, exist_ok=True)
    temporary = passed.with_suffix(f".{os.getpid()}")  # other Snakemakes may write the same
    temporary.write_text(tried.stdout.strip())
    temporary.replace(passed)
    return tried.stdout.strip() or None


def content_sha256(dataset: str, source: Config) -> str:
    """The content of a data set: the SHA-256 of its archive, or of its folder's manifest.

    Raises:
        InputError: the layout of the folder is wrong.
    """
    if "packaged" in source:
        return packaged.SHA256[source["packaged"]]
    if "archive" in source:
        return source["sha256"]
    has_valid_folder = "valid_fraction" not in source
    return folder_sha256(Path(source["folder"]), CACHE / f"{dataset}.json", has_valid_folder)


def command_line(workflow: Any) -> str:
    """The command that was run; in a job of its own process, one with the same configuration."""
    if workflow.is_main_process:
        return shlex.join([".venv/bin/snakemake", *sys.argv[1:]])
    settings: ConfigSettings = workflow.config_settings
    files = [shlex.quote(os.path.relpath(path)) for path in settings.configfiles]
    values = [shlex.quote(f"{key}={json.dumps(value)}") for key, value in settings.config.items()]
    command = [".venv/bin/snakemake --cores 1"]
    command += ["--configfile", *files] if files else []
    command += ["--config", *values] if values else []
    return " ".join(command)


def commit() -> str:
    """The commit of the project's sources; empty if they are not in a repository."""
    git = ["git", "-C", str(configuration.ROOT), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        return subprocess.run(git, capture_output=True, text=True).stdout.strip()
    except OSError:  # git is not installed
        return ""


def errors_in_logs(logs: Path, since: float) -> list[str]:
    """Each log written after ``since`` whose job failed, with the line with which it ended."""
    found = []
    for log in sorted(logs.rglob("*.log")):
        last = log.read_text(errors="replace").rstrip().rpartition("\n")[2]
        error = re.search("(error|interrupted): .*", last)
        if error and log.stat().st_mtime >= since:
            found.append(f"{log}: {error[0]}")
    return found
