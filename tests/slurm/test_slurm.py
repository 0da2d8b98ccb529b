"""The tiny experiment on a real SLURM cluster: the same bits, whatever becomes of its jobs."""

import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import yaml
from cluster import Cluster, Unavailable, slurm

from conftest import TINY, Project, archived, wait_until
from killer import outcome

# Sessions that last long enough for something to happen to them. The GPUs of the node are fakes.
SHORT = TINY.replace("device: cpu", "device: auto")
LONG = SHORT.replace("[2, 1, 1]", "[30, 2, 2]") + "methods: [constant-new, onecycle-preserve]\n"
VERY_LONG = LONG.replace("[30,", "[90,")
SCHEDULES = ("constant", "onecycle")


class ClusterProject(Project):
    """A project whose jobs are submitted, asking for what the test machine has."""

    options = ("--workflow-profile", "profiles/slurm")

    def __init__(self, folder: Path, **resources: object) -> None:
        super().__init__(folder)
        path = folder / "profiles/slurm/profile.yaml"
        profile = yaml.safe_load(path.read_text())
        profile["slurm-init-seconds-before-status-checks"] = 7
        profile["set-resources"]["first_session"] |= {"mem_mb": 1500, **resources}
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

    def wait_until_both_train(self) -> list[str]:
        """Wait until both first sessions have made some epochs. Returns their jobs in SLURM."""
        wait_until(lambda: all(map(self.trainer, SCHEDULES)), 200)
        wait_until(lambda: all(self.log(s).count("train loss") >= 3 for s in SCHEDULES))
        return [job_of(self.trainer(schedule)) for schedule in SCHEDULES]


def in_queue(states: str = "all") -> dict[str, str]:
    """The jobs of SLURM that wait or run, with what was trained in them."""
    lines = slurm("squeue", "--noheader", f"--states={states}", "--format=%i %k").splitlines()
    return dict(line.split(" ", 1) for line in lines)


def job_of(pid: int) -> str:
    """The job of SLURM that a process belongs to."""
    return psutil.Process(pid).environ()["SLURM_JOB_ID"]


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
        gpus = {psutil.Process(pid).environ()["CUDA_VISIBLE_DEVICES"] for pid in project.trainers()}
        asked = shown(job_of(project.trainers()[0]))
        slurm("scontrol", "update", f"NodeName={cluster.host}", "State=DRAIN", "Reason=test")
        wait_until(lambda: cluster.node_state() == "drained" and in_queue("pending"))
        slurm("scontrol", "update", f"NodeName={cluster.host}", "State=RESUME")
        output, errors = process.communicate()
    assert process.returncode == 0, output + errors
    assert gpus == {"0", "1"}
    assert asked["TresPerJob"] == "gres:gpu:1"
    assert asked["CpusPerTres"] == "gres:gpu:2"
    assert asked["TimeLimit"] == "01:00:00"
    assert asked["MinMemoryNode"] == "1500M"
    assert asked["Requeue"] == "1"
    rules = {comment.split("_wildcards_")[0] for comment in in_queue().values()}
    assert rules == {f"rule_{r}_session" for r in ("first", "later", "last")} | {"rule_prepare"}
    assert outcome(project) == local(tmp_path, SHORT.format(source=source))


def test_what_slurm_cuts_off_goes_on(cluster, source, tmp_path):
    """By its time limit, by a preemption, by the death of the node: without its user."""
    warning = {"runtime": 2, "slurm_extra": "'--signal=USR1@60'"}
    project = ClusterProject(tmp_path / "project", **warning)
    project.configure(VERY_LONG.format(source=source))
    with project.running() as process:
        for schedule in SCHEDULES:
            wait_until(lambda: "interrupted: SIGUSR1: saved" in project.log(schedule))  # noqa: B023
        wait_until(lambda: not project.trainers())
        jobs = project.wait_until_both_train()
        slurm("sbatch", "--partition=urgent", "--gpus=2", "--output=/dev/null", "--wrap=true")
        wait_until(lambda: not project.trainers())
        assert project.wait_until_both_train() == jobs
        cluster.kill_node()
        assert not project.trainers()
        cluster.start_node()
        output, errors = process.communicate()
    assert process.returncode == 0, output + errors
    assert "error" not in errors
    for job in jobs:
        assert int(shown(job)["Restarts"]) >= 3
        assert shown(job)["JobState"] == "COMPLETED"
    assert outcome(project) == local(tmp_path, VERY_LONG.format(source=source))


def test_what_its_user_ends_waits_for_the_next_start(cluster, source, expected, tmp_path):
    """A process that is killed and a job that is cancelled are not tried again by themselves."""
    project = ClusterProject(tmp_path / "project")
    project.configure(LONG.format(source=source))
    earlier = set(in_queue())
    with project.running() as process:
        _, cancelled = project.wait_until_both_train()
        os.kill(project.trainer("constant"), signal.SIGKILL)
        slurm("scancel", cancelled)
        output, errors = process.communicate()
    assert process.returncode == 1, output + errors
    assert shown(cancelled)["JobState"] == "CANCELLED"
    own = [comment for job, comment in in_queue().items() if job not in earlier]
    assert sorted(comment.split("_wildcards_")[0] for comment in own) == [
        "rule_first_session", "rule_first_session", "rule_prepare",
    ]  # fmt: skip
    project.run()
    for schedule in SCHEDULES:
        assert "going on after step " in project.log(schedule)
    assert outcome(project) == expected


def test_jobs_go_on_when_snakemake_is_killed(cluster, source, expected, tmp_path):
    """What they have made is not taken for the new configuration's if that is changed meanwhile."""
    project = ClusterProject(tmp_path / "project")
    configuration = LONG.format(source=source)
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
    assert "going on after step 150, 30 epochs finished" in project.log("onecycle")
    assert "going on" not in project.log("constant")
    assert outcome(project) == expected


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
