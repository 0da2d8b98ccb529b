"""An experiment on a real SLURM cluster gives the same bits, however its jobs are interrupted."""

import os
import signal
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import psutil
import pytest
import torch
import yaml
from cluster import Cluster, Unavailable, run_slurm

from conftest import TINY, Project, wait_until, write_archived_images
from killer import read_results

# The longer the sessions, the more can happen to them, so this model is larger than elsewhere.
# `auto` requests the node's fake GPUs.
SHORT = TINY.replace("shufflenet_v2_x0_5", "resnet18").replace("device: cpu", "device: auto")
MEDIUM = SHORT.replace("[2, 1, 1]", "[30, 2, 2]") + "methods: [constant-new, onecycle-preserve]\n"
LONG = MEDIUM.replace("[30,", "[200,")
SCHEDULES = ("constant", "onecycle")


class ClusterProject(Project):
    """A project whose jobs are submitted, with resources that fit the test machine."""

    options = ("--workflow-profile", "profiles/slurm")

    def __init__(self, folder: Path, **resources: object) -> None:
        super().__init__(folder)
        self.set_resources(mem_mb=1500, **resources)

    def set_resources(self, **resources: object) -> None:
        """Set the resources of sessions, and check for ended jobs as often as the plugin allows."""
        path = self.folder / "profiles/slurm/profile.yaml"
        profile = yaml.safe_load(path.read_text())
        profile["slurm-init-seconds-before-status-checks"] = 7
        for rule in ("first", "later", "last"):
            profile["set-resources"][f"{rule}_session"] |= resources
        path.write_text(yaml.safe_dump(profile))

    def read_log(self, schedule: str) -> str:
        """Return the log of the last attempt of a schedule's first session."""
        path = self.folder / f"logs/tiny/train/noise/{schedule}/seed0-session1.log"
        return path.read_text() if path.exists() else ""

    def find_trainer(self, schedule: str) -> int | None:
        """Return the id of the process that trains a schedule's first session."""
        for pid in self.find_trainers():
            if f"/{schedule}/seed0/session1" in " ".join(psutil.Process(pid).cmdline()):
                return pid
        return None

    def wait_until_both_train(self) -> None:
        """Wait until both first sessions have trained some epochs in their current attempts."""
        wait_until(lambda: all(map(self.find_trainer, SCHEDULES)), 200)
        wait_until(lambda: all(self.read_log(s).count("train loss") >= 3 for s in SCHEDULES))


def list_jobs(states: str = "all") -> dict[str, str]:
    """Return the comment of each SLURM job in these states, which names its rule and wildcards."""
    lines = run_slurm("squeue", "--noheader", f"--states={states}", "--format=%i %k").splitlines()
    return dict(line.split(" ", 1) for line in lines)


def find_first_sessions(earlier: Iterable[str]) -> dict[str, str]:
    """Return the job of each schedule's first session that is not one of the ``earlier`` jobs."""
    return {
        schedule: job
        for schedule in SCHEDULES
        for job, comment in list_jobs().items()
        if job not in earlier and comment.endswith(f"_session_wildcards_noise_{schedule}_0_1")
    }


def describe_job(job: str) -> dict[str, str]:
    """Return the properties of a job, as SLURM shows them."""
    fields = run_slurm("scontrol", "--oneliner", "show", "job", job).split()
    return dict(field.split("=", 1) for field in fields if "=" in field)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    if torch.cuda.is_available():
        pytest.skip("the sessions would train on the real GPU, and not on the simulated ones")
    with tempfile.TemporaryDirectory(prefix="slurm-") as folder:
        try:
            with Cluster(Path(folder)) as cluster:
                yield cluster
        except Unavailable as reason:
            pytest.skip(f"no SLURM cluster can be started here: {reason}")
        assert not cluster.find_job_processes()


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> str:
    return write_archived_images(tmp_path_factory.mktemp("slurm") / "noise")


def run_locally(folder: Path, configuration: str) -> dict[str, object]:
    """Run an experiment without SLURM, and return its results."""
    project = Project(folder / "local")
    project.configure(configuration)
    project.run()
    return read_results(project)


@pytest.fixture(scope="module")
def expected(cluster, source, tmp_path_factory) -> dict[str, object]:
    """The results of the long experiment without interruptions."""
    return run_locally(tmp_path_factory.mktemp("expected"), LONG.format(source=source))


def test_a_cluster_gives_the_same_bits_as_one_machine(cluster, source, tmp_path):
    """The node is drained and resumed while the jobs run."""
    project = ClusterProject(tmp_path / "project")
    project.configure(SHORT.format(source=source))
    with project.running() as process:
        wait_until(lambda: len(project.find_trainers()) == 2)
        gpus = {
            psutil.Process(p).environ()["CUDA_VISIBLE_DEVICES"] for p in project.find_trainers()
        }
        requested = describe_job(find_first_sessions(earlier=[])["constant"])
        run_slurm("scontrol", "update", f"NodeName={cluster.host}", "State=DRAIN", "Reason=test")
        wait_until(lambda: cluster.get_node_state() == "drained" and list_jobs("pending"))
        run_slurm("scontrol", "update", f"NodeName={cluster.host}", "State=RESUME")
        output, errors = process.communicate()
    assert process.returncode == 0, output + errors
    assert gpus == {"0", "1"}
    assert requested["TresPerJob"].endswith("gpu:1")
    assert requested["CpusPerTres"].endswith("gpu:2")
    assert requested["TimeLimit"] == "01:00:00"
    assert requested["MinMemoryNode"] == "1500M"
    assert requested["Requeue"] == "1"
    rules = {comment.split("_wildcards_")[0] for comment in list_jobs().values()}
    assert rules == {f"rule_{r}_session" for r in ("first", "later", "last")} | {"rule_prepare"}
    assert read_results(project) == run_locally(tmp_path, SHORT.format(source=source))


def test_jobs_that_slurm_interrupts_continue_by_themselves(cluster, source, expected, tmp_path):
    """SLURM ends the jobs at their time limit, for a preemption, and by the failure of the node."""
    warning = {"runtime": 2, "slurm_extra": "'--signal=USR1@60'"}
    project = ClusterProject(tmp_path / "project", **warning)
    project.configure(LONG.format(source=source))
    earlier = list_jobs()
    with project.running() as process:
        wait_until(lambda: len(find_first_sessions(earlier)) == 2)
        jobs = find_first_sessions(earlier).values()
        wait_until(lambda: all(describe_job(job)["Restarts"] == "1" for job in jobs), 300)
        for job in jobs:
            run_slurm("scontrol", "update", f"JobId={job}", "TimeLimit=60")
        project.wait_until_both_train()
        run_slurm("sbatch", "--partition=urgent", "--gpus=2", "--output=/dev/null", "--wrap=true")
        wait_until(lambda: not project.find_trainers())
        for schedule in SCHEDULES:
            assert "interrupted: SIG" in project.read_log(schedule)
        project.wait_until_both_train()
        cluster.kill_node()
        assert not project.find_trainers()
        cluster.start_node()
        output, errors = process.communicate()
    assert process.returncode == 0, output + errors
    for job in jobs:
        assert describe_job(job)["Restarts"] == "3"
        assert describe_job(job)["JobState"] == "COMPLETED"
    assert read_results(project) == expected


def test_failed_and_cancelled_jobs_continue_in_the_next_run(cluster, source, expected, tmp_path):
    """A killed process, a job that reaches its time limit without a warning, and a cancelled job
    are not repeated automatically.
    """
    project = ClusterProject(tmp_path / "project", runtime=1, slurm_extra="''")
    project.configure(LONG.format(source=source))
    ended = {}
    for how in ("killed", "cancelled"):
        earlier = list_jobs()
        with project.running() as process:
            wait_until(lambda: len(find_first_sessions(earlier)) == 2)  # noqa: B023
            jobs = find_first_sessions(earlier)
            project.wait_until_both_train()
            if how == "killed":
                os.kill(project.find_trainer("constant"), signal.SIGKILL)
            else:
                run_slurm("scancel", jobs["constant"], jobs["onecycle"])
            output, errors = process.communicate()
        assert process.returncode == 1, output + errors
        ended[how] = {schedule: describe_job(job)["JobState"] for schedule, job in jobs.items()}
        own = [comment for job, comment in list_jobs().items() if job not in earlier]
        assert sum("first_session" in comment for comment in own) == 2
        assert not any("later_session" in comment for comment in own)
    assert ended == {
        "killed": {"constant": "FAILED", "onecycle": "TIMEOUT"},
        "cancelled": {"constant": "CANCELLED", "onecycle": "CANCELLED"},
    }
    project.set_resources(runtime=60)
    project.run()
    for schedule in SCHEDULES:
        assert "continuing after step " in project.read_log(schedule)
    assert read_results(project) == expected


def test_jobs_continue_when_snakemake_is_killed(cluster, source, tmp_path):
    """If the configuration changes in the meantime, the new one does not use their results."""
    project = ClusterProject(tmp_path / "project")
    configuration = MEDIUM.format(source=source)
    project.configure(configuration.replace("constant: {lr: [1.0", "constant: {lr: [2.0"))
    with project.running() as process:
        project.wait_until_both_train()
        process.kill()
        process.wait()
        wait_until(lambda: not list_jobs("pending,running,completing"), 300)
    assert len(list(project.folder.glob("results/tiny/runs/noise/*/seed0/session1/steps.csv"))) == 2
    project.configure(configuration)
    assert project.snakemake("--unlock").returncode == 0
    project.run()
    assert "continuing after step 150, 30 epochs finished" in project.read_log("onecycle")
    assert "continuing" not in project.read_log("constant")
    assert read_results(project) == run_locally(tmp_path, MEDIUM.format(source=source))


def test_an_unreachable_archive_is_one_error_and_no_job(cluster, tmp_path):
    """The submitting host fetches the archive. If that fails, no job is submitted."""
    project = ClusterProject(tmp_path / "project")
    url = "http://127.0.0.1:9/images.tgz"
    project.configure(SHORT.format(source=f"archive: '{url}', sha256: {'ab' * 32}"))
    earlier = list_jobs()
    result = project.snakemake()
    assert result.returncode == 1
    (line,) = [x for x in result.stderr.splitlines() if x.startswith("error: ")][-1:]
    assert url in line
    assert "mirror" in line
    assert list_jobs() == earlier
