"""The profile for SLURM, as far as it can be seen without a cluster."""

import collections

import yaml

from conftest import ROOT, Project, jobs
from optstate.experiment import configuration

PROFILES = {
    name: yaml.safe_load((ROOT / f"profiles/{name}/profile.yaml").read_text())
    for name in ("default", "slurm")
}


def test_a_dry_run_at_scale_has_a_job_for_every_session(tmp_path):
    project = Project(tmp_path / "project")
    project.options = ("--workflow-profile", "profiles/slurm")
    project.configure((ROOT / "docs/cluster.yaml").read_text())
    counts = jobs(project)
    runs = configuration.all_runs(configuration.load(ROOT / "docs/cluster.yaml"))
    expected = collections.Counter(session.number for session in runs.sessions)
    trained = [counts.pop(f"{rule}_session") for rule in ("first", "later", "last")]
    assert trained == [expected[number] for number in (1, 2, 3)] == [80, 320, 320]
    of_a_data_set = ("fetch", "prepare", "curves", "boundary", "differences")
    assert [counts.pop(rule) for rule in of_a_data_set] == [2] * 5
    assert set(counts.values()) == {1}


def test_keys_that_the_profile_must_not_have():
    """A global gpu would cap the cluster; gres next to gpu is refused; retries retry a scancel."""
    slurm = PROFILES["slurm"]
    assert "resources" not in slurm
    assert "gres" not in str(slurm)
    assert slurm["retries"] == 0


def test_it_has_every_key_of_the_profile_that_it_replaces():
    for key, value in PROFILES["default"].items():
        assert PROFILES["slurm"][key] == value
