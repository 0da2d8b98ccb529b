"""The profile for SLURM, without a cluster."""

import collections

import yaml

from conftest import ROOT, Project, count_jobs
from optstate.experiment import configuration

PROFILES = {
    name: yaml.safe_load((ROOT / f"profiles/{name}/profile.yaml").read_text())
    for name in ("default", "slurm")
}


def test_a_large_dry_run_has_a_job_for_every_session(tmp_path):
    project = Project(tmp_path / "project")
    project.options = ("--workflow-profile", "profiles/slurm")
    project.configure((ROOT / "docs/cluster.yaml").read_text())
    counts = count_jobs(project)
    runs = configuration.all_runs(configuration.load(ROOT / "docs/cluster.yaml"))
    expected = collections.Counter(session.number for session in runs.sessions)
    trained = [counts.pop(f"{rule}_session") for rule in ("first", "later", "last")]
    assert trained == [expected[number] for number in (1, 2, 3)] == [80, 320, 320]
    rules_per_dataset = ("fetch", "prepare", "curves", "boundary", "differences")
    assert [counts.pop(rule) for rule in rules_per_dataset] == [2] * 5
    assert set(counts.values()) == {1}


def test_the_profile_has_no_harmful_keys():
    """A global `gpu` would limit the whole cluster. The plugin refuses `gres` together with `gpu`.
    `retries` would start cancelled jobs again.
    """
    slurm = PROFILES["slurm"]
    assert "resources" not in slurm
    assert "gres" not in str(slurm)
    assert slurm["retries"] == 0


def test_the_profile_has_every_key_of_the_default_profile():
    for key, value in PROFILES["default"].items():
        assert PROFILES["slurm"][key] == value
