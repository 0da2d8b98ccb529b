"""A second Snakemake, or one after a killed one, is safe or ends with a one-line error."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import TINY, Project, count_jobs, exchange_session, wait_until
from optstate.checksums import file_sha256
from optstate.job import take_lock

ONE_METHOD = "methods=[constant-new]"


@pytest.fixture
def slow(project, images) -> Project:
    """An experiment whose first session takes minutes."""
    project.configure(
        TINY.format(source=f"folder: {images}").replace("[2, 1, 1]", "[2000, 1, 1]")
        + "methods: [constant-new]\ncheckpoint_every: {steps: 1}\n"
    )
    return project


def has_saved(project: Project) -> bool:
    return any((project.folder / "results/tiny/in_progress").rglob("epoch*.pt"))


def make_would_unlock(project: Project) -> bool:
    command = [sys.executable, "-m", "optstate.experiment.lock"]
    scripts = {"PYTHONPATH": str(project.folder / "workflow/scripts")}
    return subprocess.run(command, cwd=project.folder, env=os.environ | scripts).returncode == 0


def test_a_second_snakemake_is_refused(slow):
    with slow.running():
        wait_until(lambda: has_saved(slow))
        assert not make_would_unlock(slow)
        second = slow.snakemake()
        assert second.returncode != 0
        assert "cannot be locked" in second.stderr
        # Each Snakemake that ends removes the locks of all, so the project has its own lock.
        for lock in (slow.folder / ".snakemake/locks").iterdir():
            lock.unlink()
        third = slow.snakemake()
        assert third.returncode != 0
        assert "error: another Snakemake is running on results/tiny" in third.stderr
        assert "Traceback" not in second.stderr + third.stderr
        assert len(slow.find_trainers()) == 1


def test_an_experiment_continues_after_a_killed_snakemake(slow):
    """The job saves its state and ends. The next Snakemake says how to clear the lock."""
    with slow.running() as process:
        wait_until(lambda: has_saved(slow))
        process.kill()
        wait_until(lambda: not slow.find_trainers(), seconds=20)
    log = slow.folder / "logs/tiny/train/noise/constant/seed0-session1.log"
    assert "interrupted: SIGTERM: saved step " in log.read_text()
    assert make_would_unlock(slow)
    refused = slow.snakemake()
    assert refused.returncode != 0
    assert "Clear it by `.venv/bin/snakemake --unlock`, then run again" in refused.stderr
    assert slow.snakemake("--unlock").returncode == 0
    assert not make_would_unlock(slow)
    with slow.running() as process:
        wait_until(lambda: log.exists() and "continuing after step " in log.read_text())
        os.killpg(process.pid, signal.SIGTERM)
        assert "interrupted: SIGTERM" in process.communicate()[1]


def test_an_unrecorded_job_does_not_train_again(project):
    """Snakemake was killed after the job had ended and before it recorded that."""
    project.run("--config", ONE_METHOD, "--until", "first_session")
    session = project.folder / "results/tiny/runs/noise/constant/seed0/session1"
    before = {path.name: path.read_bytes() for path in session.iterdir()}
    for record in (project.folder / ".snakemake/metadata").rglob("*"):
        incomplete = project.folder / ".snakemake/incomplete" / record.name
        if record.is_file():
            incomplete.write_text('{"external_jobid": null}')
            record.unlink()
    project.run("--config", ONE_METHOD, "--until", "first_session")
    log = project.folder / "logs/tiny/train/noise/constant/seed0-session1.log"
    assert "continuing after step 10, 2 epochs finished" in log.read_text()
    assert "epoch 1/2" not in log.read_text()
    assert {path.name: path.read_bytes() for path in session.iterdir()} == before


def test_an_unrecorded_session_is_stale(finished, tmp_path):
    """On a cluster, jobs continue without a killed Snakemake. Nobody records their settings."""
    name = "noise/constant/seed0/session1"
    project = Project(tmp_path / "touched", finished)
    (project.folder / "results/tiny/in_progress" / name).mkdir(parents=True)
    assert count_jobs(project) == {}
    # The record now has an earlier time.
    (project.folder / "results/tiny/runs" / name / "steps.csv").touch()
    assert count_jobs(project)["first_session"] == 1

    project = Project(tmp_path / "unrecorded", finished)
    (project.folder / "results/tiny/in_progress" / name).mkdir(parents=True)
    for record in (project.folder / ".snakemake/metadata").rglob("*"):
        if record.is_file():
            record.unlink()
    # Another Snakemake is running and may still record it.
    with take_lock(project.folder / "results/tiny/.lock"):
        assert "first_session" not in count_jobs(project)
    assert count_jobs(project)["first_session"] == 1
    shutil.rmtree(project.folder / "results/tiny/in_progress")
    project.run("--touch")
    assert "first_session" not in count_jobs(project)


EXCHANGED = {  # last sessions, and what is changed in their `made_by.json`
    "constant-new": "configuration",
    "constant-preserve": "dataset_sha256",
    "onecycle-new": "previous_sha256",
}


def test_an_exchanged_session_is_stale(finished, tmp_path):
    project = Project(tmp_path / "project", finished)
    runs = project.folder / "results/tiny/runs/noise"
    sessions = [runs / f"{method}/seed0/session3" for method in EXCHANGED]
    before = [(session / "made_by.json").read_bytes() for session in sessions]
    for session, key in zip(sessions, EXCHANGED.values(), strict=True):
        exchange_session(session, key)
    last = ("--until", "last_session")
    assert count_jobs(project, *last) == {"last_session": 3}
    project.run(*last)
    assert [(session / "made_by.json").read_bytes() for session in sessions] == before
    assert count_jobs(project, *last) == {}


class TestExchangedTables:
    """They agree with their checksums, but were made from other files, or are not listed."""

    @staticmethod
    def exchange(tables: Path, name: str, listing: str, is_listed: bool = True) -> None:
        """Repeat the last row of a table, under the times that the files had."""
        times = {path: path.stat().st_mtime for path in tables.iterdir()}
        content = (tables / name).read_bytes()
        (tables / name).write_bytes(content + content.splitlines(True)[-1])
        listed = (tables / f"{listing}.sha256").read_text()
        for line in listed.splitlines():
            if line.endswith(f"  {name}"):
                changed = line.replace(line[:64], file_sha256(tables / name)) + "\n"
                listed = listed.replace(f"{line}\n", changed if is_listed else "")
            if line.endswith(("session.sha256", "./summary.csv", "./steps.csv")):
                listed = listed.replace(line[:64], "0" * 64)
        (tables / f"{listing}.sha256").write_text(listed)
        for path, time in times.items():
            os.utime(path, (time, time))

    @pytest.mark.parametrize(
        ("name", "listing", "is_listed", "rules"),
        [
            ("boundaries.csv", "boundaries", True, {"measure_boundaries", "compare"}),
            ("comparisons.csv", "compare", True, {"compare"}),
            ("comparisons.csv", "compare", False, {"compare"}),
        ],
    )
    def test_they_are_stale(self, finished, tmp_path, name, listing, is_listed, rules):
        project = Project(tmp_path / "project", finished)
        self.exchange(project.folder / "results/tiny/tables", name, listing, is_listed)
        assert count_jobs(project, "--until", "compare").keys() == rules

    def test_they_are_made_again(self, finished, tmp_path):
        project = Project(tmp_path / "project", finished)
        tables = project.folder / "results/tiny/tables"
        before = {path.name: path.read_bytes() for path in tables.iterdir()}
        self.exchange(tables, "epochs.csv", "collect")
        compare = ("--until", "compare")
        rules = {"collect", "measure_boundaries", "compare"}
        assert count_jobs(project, *compare).keys() == rules
        project.run(*compare)
        assert {path.name: path.read_bytes() for path in tables.iterdir()} == before
        assert count_jobs(project, *compare) == {}


def test_a_configuration_that_is_changed_and_changed_back_makes_nothing_stale(finished):
    assert count_jobs(finished, "--config", "batch_size=9")["first_session"] == 2
    assert count_jobs(finished) == {}


def test_a_cluster_job_uses_the_submitted_configuration(slow, monkeypatch):
    """The job may start hours later, when the configuration file has changed."""
    job = ("--dry-run", "--force", "--nolock", "--printshellcmds", "--mode", "remote")
    target = ("--target-jobs", "first_session:dataset=noise,name=constant,seed=0,number=1")
    with slow.running() as process:
        wait_until(lambda: has_saved(slow))
        (run,) = slow.folder.glob("results/tiny/.run-*.json")
        monkeypatch.setenv("OPTSTATE_RUN", str(run.relative_to(slow.folder)))
        configuration = (slow.folder / "tiny.yaml").read_text()
        slow.configure(configuration.replace("constant: {lr: [1.0", "constant: {lr: [2.0"))
        assert '"lr": 0.001}' in slow.run(*job, *target)
        assert '"lr": 0.002}' in slow.run("--dry-run", "--nolock", "--printshellcmds")
        process.kill()
    assert '"lr": 0.001}' in slow.run(*job, *target)
    run.unlink()  # as this Snakemake does if it is not killed, and otherwise the next one
    refused = slow.snakemake(*job, *target)
    assert refused.returncode != 0
    assert "the Snakemake that submitted this job has ended. Nothing was done" in refused.stderr


def test_two_experiments_share_the_arrays(project):
    first_sessions = ("--until", "first_session")
    with project.running("--config", ONE_METHOD, *first_sessions) as first:
        wait_until(lambda: any((project.folder / ".snakemake/locks").glob("*")))
        during_first = project.snakemake("--config", ONE_METHOD, "experiment=other")
        assert "cannot be locked" in during_first.stderr
        printed = first.communicate()
        assert first.returncode == 0, printed
    both = [
        project.start("--config", ONE_METHOD, f"experiment={name}", *first_sessions)
        for name in ("one", "two")
    ]
    for process in both:
        assert process.communicate() and process.returncode == 0
    session = "runs/noise/constant/seed0/session1"
    tables = [project.folder / f"results/{name}/{session}/steps.csv" for name in ("one", "two")]
    assert tables[0].read_bytes() == tables[1].read_bytes()
    assert count_jobs(project, "--config", ONE_METHOD, *first_sessions) == {}
