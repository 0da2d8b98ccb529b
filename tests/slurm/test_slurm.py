"""The tiny experiment on a real SLURM cluster: the same bits, whatever becomes of its jobs."""

import os
import signal
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import psutil
import pytest
import yaml
from cluster import Cluster, Unavailable, slurm

from conftest import TINY, Project, archived, wait_until
from killer import outcome

# Sessions that last long enough for something to happen to them. The GPUs of the node are fakes.
SHORT = TINY.replace("device: cpu", "device: auto")
MEDIUM = SHORT.replace("[2, 1, 1]", "[30, 2, 2]") + "methods: [constant-new, onecycle-preserve]\n"
LONG = MEDIUM.replace("[30,", "[200,")
SCHEDULES = ("constant", "onecycle")


class ClusterProject(Project):
    """A project whose jobs are submitted, asking for what the test machine has."""

    options = ("--workflow-profile", "profiles/slurm")

    def __init__(self, folder: Path, **resources: object) -> None:
        super().__init__(folder)
        self.ask(mem_mb=1500, **resources)

    def ask(self, **resources: object) -> None:
        """Set what sessions ask for, and look for the end of jobs as often as is possible."""
        path = self.folder / "profiles/slurm/profile.yaml"
        profile = yaml.safe_load(path.read_text())
        profile["slurm-init-seconds-before-status-checks"] = 7
        for rule in ("first", "later", "last"):
            profile["set-resources"][f"{rule}_session"] |= resources
        path.write_text(yaml.safe_dump(profile))

    def log(self, schedule: str) -> str:
        """What a schedule's first session has said in its last attempt: it begins the log anew."""
        path = self.folder / f"logs/tiny/train/noise/{schedule}/seed0-session1.log"
        return path.read_text() if path.exists() else ""

    def trainer(self, schedule: str) -> int | None:
        """The process that trains a schedule's first session."""
        for pid in self.trainers():
            if f"/{schedule}/seed0/session1" in " ".join(psutil.Process(pid).cmdline()):
                return pid
        return None

    def wait_until_both_train(self) -> None:
        """Wait until both first sessions have made some epochs in their attempts."""
        wait_until(lambda: all(map(self.trainer, SCHEDULES)), 200)
        wait_until(lambda: all(self.log(s).count("train loss") >= 3 for s in SCHEDULES))


def in_queue(states: str = "all") -> dict[str, str]:
    """The jobs of SLURM that wait or run, with what was trained in them."""
    lines = slurm("squeue", "--noheader", f"--states={states}", "--format=%i %k").splitlines()
    return dict(line.split(" ", 1) for line in lines)


def first_sessions(earlier: Iterable[str]) -> dict[str, str]:
    """The jobs of the first sessions, by schedule, without those that were there ``earlier``."""
    return {
        schedule: job
        for schedule in SCHEDULES
        for job, comment in in_queue().items()
        if job not in earlier and comment.endswith(f"_session_wildcards_noise_{schedule}_0_1")
    }


def shown(job: str) -> dict[str, str]:
    """What SLURM tells of a job."""
    fields = slurm("scontrol", "--oneliner", "show", "job", job).split()
    return dict(field.split("=", 1) for field in fields if "=" in field)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with tempfile.TemporaryDirectory(prefix="slurm-") as folder:
        try:
            with Cluster(Path(folder)) as cluster:
                yield cluster
        except Unavailable as reason:
            pytest.skip(f"no SLURM cluster can be started here: {reason}")
        assert not cluster.job_processes()


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> str:
    return archived(tmp_path_factory.mktemp("slurm") / "noise")


def local(folder: Path, configuration: str) -> dict[str, object]:
    """What the experiment makes on this machine alone."""
    project = Project(folder / "local")
    project.configure(configuration)
    project.run()
    return outcome(project)


@pytest.fixture(scope="module")
def expected(cluster, source, tmp_path_factory) -> dict[str, object]:
    """What the long experiment makes undisturbed."""
    return local(tmp_path_factory.mktemp("expected"), LONG.format(source=source))


def test_the_same_bits_as_without_a_cluster(cluster, source, tmp_path):
    """Meanwhile the node is drained, and returned."""
    project = ClusterProject(tmp_path / "project")
    project.configure(SHORT.format(source=source))
    with project.running() as process:
        wait_until(lambda: len(project.trainers()) == 2)
        gpus = {psutil.Process(p).environ()["CUDA_VISIBLE_DEVICES"] for p in project.trainers()}
        asked = shown(first_sessions(earlier=[])["constant"])
        slurm("scontrol", "update", f"NodeName={cluster.host}", "State=DRAIN", "Reason=test")
        wait_until(lambda: cluster.node_state() == "drained" and in_queue("pending"))
        slurm("scontrol", "update", f"NodeName={cluster.host}", "State=RESUME")
        output, errors = process.communicate()
    assert process.returncode == 0, output + errors
    assert gpus == {"0", "1"}
    assert asked["TresPerJob"].endswith("gpu:1")
    assert asked["CpusPerTres"].endswith("gpu:2")
    assert asked["TimeLimit"] == "01:00:00"
    assert asked["MinMemoryNode"] == "1500M"
    assert asked["Requeue"] == "1"
    rules = {comment.split("_wildcards_")[0] for comment in in_queue().values()}
    assert rules == {f"rule_{r}_session" for r in ("first", "later", "last")} | {"rule_prepare"}
    assert outcome(project) == local(tmp_path, SHORT.format(source=source))


def test_what_slurm_cuts_off_goes_on(cluster, source, expected, tmp_path):
    """By its time limit, by a preemption, by the death of the node: without its user."""
    warning = {"runtime": 2, "slurm_extra": "'--signal=USR1@60'"}
    project = ClusterProject(tmp_path / "project", **warning)
    project.configure(LONG.format(source=source))
    earlier = in_queue()
    with project.running() as process:
        wait_until(lambda: len(first_sessions(earlier)) == 2)
        jobs = first_sessions(earlier).values()
        wait_until(lambda: all(shown(job)["Restarts"] == "1" for job in jobs), 300)
        for job in jobs:
            slurm("scontrol", "update", f"JobId={job}", "TimeLimit=60")
        project.wait_until_both_train()
        slurm("sbatch", "--partition=urgent", "--gpus=2", "--output=/dev/null", "--wrap=true")
        wait_until(lambda: not project.trainers())
        project.wait_until_both_train()
        cluster.kill_node()
        assert not project.trainers()
        cluster.start_node()
        output, errors = process.communicate()
    assert process.returncode == 0, output + errors
    for job in jobs:
        assert shown(job)["Restarts"] == "3"
        assert shown(job)["JobState"] == "COMPLETED"
    assert outcome(project) == expected


def test_what_its_user_ends_waits_for_the_next_start(cluster, source, expected, tmp_path):
    """Nothing is tried again by itself: a process that is killed, a job that exceeds its time
    limit since it was not warned, one that is cancelled."""
    project = ClusterProject(tmp_path / "project", runtime=1, slurm_extra="''")
    project.configure(LONG.format(source=source))
    ended = {}
    for how in ("killed", "cancelled"):
        earlier = in_queue()
        with project.running() as process:
            wait_until(lambda: len(first_sessions(earlier)) == 2)  # noqa: B023
            jobs = first_sessions(earlier)
            project.wait_until_both_train()
            if how == "killed":
                os.kill(project.trainer("constant"), signal.SIGKILL)
            else:
                slurm("scancel", jobs["constant"], jobs["onecycle"])
            output, errors = process.communicate()
        assert process.returncode == 1, output + errors
        ended[how] = {schedule: shown(job)["JobState"] for schedule, job in jobs.items()}
        own = [comment for job, comment in in_queue().items() if job not in earlier]
        assert sum("first_session" in comment for comment in own) == 2
        assert not any("later_session" in comment for comment in own)
    assert ended == {
        "killed": {"constant": "FAILED", "onecycle": "TIMEOUT"},
        "cancelled": {"constant": "CANCELLED", "onecycle": "CANCELLED"},
    }
    project.ask(runtime=60)
    project.run()
    for schedule in SCHEDULES:
        assert "continuing after step " in project.log(schedule)
    assert outcome(project) == expected


def test_jobs_go_on_when_snakemake_is_killed(cluster, source, tmp_path):
    """What they have made is not taken for the new configuration's if that is changed meanwhile."""
    project = ClusterProject(tmp_path / "project")
    configuration = MEDIUM.format(source=source)
    project.configure(configuration.replace("constant: {lr: [1.0", "constant: {lr: [2.0"))
    with project.running() as process:
        project.wait_until_both_train()
        process.kill()
        process.wait()
        wait_until(lambda: not in_queue("pending,running,completing"), 300)
    assert len(list(project.folder.glob("results/tiny/runs/noise/*/seed0/session1/steps.csv"))) == 2
    project.configure(configuration)
    assert project.snakemake("--unlock").returncode == 0
    project.run()
    assert "continuing after step 150, 30 epochs finished" in project.log("onecycle")
    assert "continuing" not in project.log("constant")
    assert outcome(project) == local(tmp_path, MEDIUM.format(source=source))


def test_an_archive_that_cannot_be_reached(cluster, tmp_path):
    """Is fetched by the submitting host, and said in one line; nothing is submitted."""
    project = ClusterProject(tmp_path / "project")
    url = "http://127.0.0.1:9/images.tgz"
    project.configure(SHORT.format(source=f"archive: '{url}', sha256: {'ab' * 32}"))
    earlier = in_queue()
    result = project.snakemake()
    assert result.returncode == 1
    (line,) = [x for x in result.stderr.splitlines() if x.startswith("error: ")][-1:]
    assert url in line
    assert "mirror" in line
    assert in_queue() == earlier
