"""Run an experiment without Snakemake until a time limit. Run it again to continue.

The stages are those of the workflow, from the archives to the tables. Nothing is fetched, and no
TensorBoard files are written. Sessions are trained one after the other in the same process, so that
short ones need not wait for torch to start. Finished sessions stay in ``--work``, and so does the
saved state of a session that the time limit interrupts. ``--output`` gets the tables and the logs.
"""

import argparse
import itertools
import json
import multiprocessing
import os
import shutil
import signal
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

from benchmarks.commands import SAVE_SECONDS, OutOfTimeError, run_module
from optstate import job
from optstate.checksums import file_sha256, write_checksums
from optstate.experiment import configuration
from optstate.experiment.consistency import is_published, list_files
from optstate.experiment.runs import SESSION_FILES, Runs, Session
from optstate.experiment.schema import Config
from optstate.training import session as training
from optstate.training.progress import EXIT_CODE
from optstate.training.spec import SessionSpec

COLLECT_SECONDS = 600  # allowed after the time limit


@dataclass(frozen=True)
class Experiment:
    """An experiment in a folder.

    Attributes:
        work: the folder of arrays, sessions, saved states and logs.
        deadline: a time of ``time.monotonic()``.
    """

    config: Config
    work: Path
    deadline: float

    @cached_property
    def runs(self) -> Runs:
        """All runs."""
        return configuration.all_runs(self.config)

    def arrays(self, dataset: str) -> Path:
        """The folder of a data set's arrays."""
        return self.work / "arrays" / dataset

    def folder(self, session: Session) -> Path:
        """The folder of a session's outputs."""
        return self.work / "runs" / session.folder

    def progress(self, session: Session) -> Path:
        """The folder of the state that an interrupted session continues from."""
        return self.work / "in_progress" / session.folder

    def is_done(self, session: Session) -> bool:
        """Whether a session has all its outputs, except for a checkpoint that is not kept."""
        return all((self.folder(session) / name).exists() for name in SESSION_FILES)

    def count_followed(self, session: Session) -> int:
        """Return how many sessions must come first because of ``step_size``."""
        followed = configuration.followed_session(self.config, session)
        return 1 + self.count_followed(followed) if followed else 0

    def list_groups(self) -> list[list[Session]]:
        """Return groups of sessions that need no session of another group, by seed.

        Within a group, each session comes after those that it continues from or follows.
        """

        def order(session: Session) -> tuple[int, int, Session]:
            return session.number, self.count_followed(session), session

        groups = defaultdict(list)
        for session in sorted(self.runs.sessions, key=order):
            groups[session.seed, session.schedule, session.dataset].append(session)
        return [groups[key] for key in sorted(groups)]

    def prepare(self, dataset: str, archives: Path) -> None:
        """Verify a data set's archive and decode its images.

        Raises:
            InputError: the archive does not exist or has another checksum.
        """
        if (self.arrays(dataset) / "dataset.sha256").exists():
            return
        source = self.config["datasets"][dataset]
        found = find_archive(dataset, source, archives)
        archive = self.work / "archives" / dataset / "archive"
        archive.parent.mkdir(parents=True, exist_ok=True)
        archive.unlink(missing_ok=True)
        archive.symlink_to(found.resolve())
        write_checksums(archive.with_name("archive.sha256"), [archive])
        options = {
            "--archive": archive, "--image-size": self.config["image_size"],
            "--workers": len(os.sched_getaffinity(0)), "--output": self.arrays(dataset),
            "--log": self.work / f"logs/prepare-{dataset}.log",
        }  # fmt: skip
        for key in source.keys() & {"valid_fraction", "valid_seed"}:
            options[f"--{key.replace('_', '-')}"] = source[key]
        run_module("optstate.data.prepare", options, self.deadline)

    def spec(self, session: Session) -> SessionSpec:
        """Return a session's settings."""
        hashes = {key: file_sha256(Path(file)) for key, file in list_files(self.config).items()}
        return configuration.session_spec(self.config, session, hashes)

    def train(self, session: Session) -> None:
        """Train a session, or the rest of one that an earlier call interrupted."""
        spec, files = self.spec(session), list_files(self.config)
        options: dict[str, Any] = {key: Path(files[key]) for key in spec.file_hashes}
        if followed := configuration.followed_session(self.config, session):
            options |= {"step_sizes": self.folder(followed)}
        if previous := self.runs.previous(session):
            options |= {"previous": self.folder(previous)}
            options |= {"previous_spec": self.spec(previous).to_json()}
        paths = training.Paths(
            arrays=self.arrays(session.dataset),
            output=self.folder(session),
            progress=self.progress(session),
            **options,
        )
        job.start_log(self.work / "logs" / f"{session.folder}.log")
        training.train(spec, paths, self.config["checkpoint_every"])
        shutil.rmtree(self.progress(session))
        self.remove_checkpoints(session)

    def remove_checkpoints(self, session: Session) -> None:
        """Remove the checkpoints that were last used for this session, unless they are kept."""
        for other in (*self.runs.earlier(session)[-1:], session):
            following = [s for s in self.runs.sessions if self.runs.previous(s) == other]
            removed = ("last", "none") if following else ("none",)
            if self.config["keep_checkpoints"] in removed and all(map(self.is_done, following)):
                (self.folder(other) / "checkpoint.pt").unlink(missing_ok=True)


def main(arguments: argparse.Namespace) -> None:
    """Write the tables and logs of all finished sessions to ``--output``."""
    overlays: list[Path | Config] = [*arguments.configfile]
    if arguments.device:
        overlays.append({"device": arguments.device})
    config = configuration.load(*overlays)
    if is_published(config["weights"]):
        raise job.InputError(f"weights: {config['weights']} is not fetched here. Give a file.")
    claim_folder(arguments.work, config)
    (arguments.work / "logs").mkdir(exist_ok=True)
    deadline = time.monotonic() + arguments.seconds
    experiment = Experiment(config, arguments.work, deadline)
    try:
        run(experiment, arguments.archives, arguments.jobs)
    except OutOfTimeError:
        print("The time limit has passed. Run again to continue.")
    finally:
        copy_results(experiment, arguments.output)


def claim_folder(work: Path, config: Config) -> None:
    """Check that the sessions in a folder have this configuration, and save it there.

    Raises:
        InputError: they have another configuration.
    """
    path = work / "config.json"
    text = json.dumps(config, indent=1) + "\n"
    if path.exists() and path.read_text() != text:
        raise job.InputError(f"{work}: holds another configuration's sessions. Use another --work.")
    with job.write_atomically(path) as temporary:
        temporary.write_text(text)


def find_archive(dataset: str, source: dict[str, str], archives: Path) -> Path:
    """Return the path of a data set's archive, and verify its checksum.

    Raises:
        InputError: the archive does not exist or has another checksum.
    """
    if "archive" not in source:
        raise job.InputError(f"datasets.{dataset}: must be an archive to run without Snakemake.")
    path = archives / Path(source["archive"]).name
    if not path.is_file():
        raise job.InputError(f"{path}: does not exist. Put it there, or correct --archives.")
    if (found := file_sha256(path)) != source["sha256"]:
        raise job.InputError(
            f"{path}: its SHA-256 is {found}, but datasets.{dataset}.sha256 is {source['sha256']}. "
            "Replace the archive."
        )
    return path


def run(experiment: Experiment, archives: Path, num_jobs: int) -> None:
    """Prepare the data sets and train all sessions, in ``num_jobs`` processes side by side.

    Raises:
        InputError: a session failed. It has printed its error.
        OutOfTimeError: the deadline passed before all sessions were trained.
    """
    for dataset in experiment.runs.datasets:
        experiment.prepare(dataset, archives)
    context = multiprocessing.get_context("spawn")
    groups = experiment.list_groups()
    processes = [
        context.Process(target=train_groups, args=(experiment, groups[number::num_jobs]))
        for number in range(num_jobs)
    ]
    os.environ["OPTSTATE_PARENT"] = str(os.getpid())
    for process in processes:
        process.start()
    del os.environ["OPTSTATE_PARENT"]  # processes that start later are no jobs
    try:
        for process in processes:
            process.join(max(experiment.deadline - time.monotonic(), 0))
    finally:
        codes = {process.exitcode for process in processes}  # None: it is still training
        stop_all(processes)
    if codes - {0, EXIT_CODE, None}:
        raise job.InputError(f"a session failed. Its log is in {experiment.work / 'logs'}.")
    if codes != {0}:
        raise OutOfTimeError


def stop_all(processes: Sequence[SpawnProcess]) -> None:
    """End processes, and give them time to save their states."""
    for process in processes:
        process.terminate()
    end = time.monotonic() + SAVE_SECONDS
    for process in processes:
        process.join(max(end - time.monotonic(), 0))
        process.kill()
        process.join()


def train_groups(experiment: Experiment, groups: list[list[Session]]) -> None:
    """Train groups of sessions one after the other, and print their names."""
    job.end_with_parent(signal.SIGTERM, int(os.environ["OPTSTATE_PARENT"]))
    for session in itertools.chain(*groups):
        if not experiment.is_done(session):
            print(session.folder, flush=True)
            try:
                experiment.train(session)
            except job.InputError as error:
                job.fail(str(error))


def copy_results(experiment: Experiment, output: Path) -> None:
    """Copy the tables of finished sessions and all logs, and collect the finished data sets."""
    runs = experiment.runs
    done = [session for session in runs.sessions if experiment.is_done(session)]
    for session in done:
        for name in SESSION_FILES:
            target = output / "runs" / session.folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(experiment.folder(session) / name, target)
    shutil.copytree(experiment.work / "logs", output / "logs", dirs_exist_ok=True)
    print(f"{len(done)} of {len(runs.sessions)} sessions are done.")
    missing = {session.dataset for session in runs.sessions if session not in done}
    if datasets := [dataset for dataset in runs.datasets if dataset not in missing]:
        finished = replace(runs, datasets=datasets)
        options = {
            "--runs-folder": experiment.work / "runs", "--runs": finished.to_json(),
            "--targets": json.dumps(configuration.targets(experiment.config)),
            "--cards": [experiment.arrays(d) / "dataset.json" for d in sorted(datasets)],
            "--epochs": experiment.config["sessions"],
            "--batch-size": experiment.config["batch_size"],
            "--train-per-class": json.dumps(experiment.config["train_per_class"]),
            "--validate-every": experiment.config["validate_every"],
            "--progress": experiment.work / "in_progress", "--output": output / "tables",
            "--log": output / "logs/collect.log",
        } | ({"--has-weights": []} if experiment.config["weights"] else {})  # fmt: skip
        run_module("optstate.analysis.collect", options, time.monotonic() + COLLECT_SECONDS)


PARSER = argparse.ArgumentParser(description=__doc__.split("\n")[0])
PARSER.add_argument(
    "--configfile", type=Path, nargs="*", default=[], help="overlays on config/config.yaml"
)
PARSER.add_argument("--device", choices=["cpu", "cuda"], help="overrides the configured device")
PARSER.add_argument("--archives", type=Path, required=True, help="folder of the archives")
PARSER.add_argument("--seconds", type=float, required=True, help="time limit")
PARSER.add_argument("--jobs", type=int, default=1, help="processes that train side by side")
PARSER.add_argument("--work", type=Path, required=True, help="folder of arrays and checkpoints")
PARSER.add_argument("--output", type=Path, required=True, help="folder of the results")

if __name__ == "__main__":
    job.run(PARSER, main)
