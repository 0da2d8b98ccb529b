"""What the pipeline adds to its jobs: formulas on planted times, and the copies it is run in."""

import json

import pytest

from benchmarks import orchestration
from benchmarks.orchestration import Job, Run, growth, job_and_start, recorded_jobs
from optstate.job import InputError


def test_two_runs_tell_a_job_from_the_start():
    """Each run starts in 3 s, each of its jobs in 2, and they train for as long as they like."""
    short = Run(seconds=3 + 2 + 10, num_jobs=1, training=10)
    long = Run(seconds=3 + 4 * 2 + 50, num_jobs=4, training=50)
    assert job_and_start(short, long) == (2, 3)


@pytest.mark.parametrize("power", [0.5, 1.0, 1.3, 2.0])
def test_growth_is_the_power_of_what_comes_on_top_of_the_start(power):
    seconds = {0: 1.2, 1_000: 1.2 + 0.003 * 1_000**power, 10_000: 1.2 + 0.003 * 10_000**power}
    assert growth(seconds) == pytest.approx(power)


def test_linear_growth_is_1_whatever_the_start_and_the_fewest_jobs():
    for start in (0.0, 1.5, 20.0):
        seconds = {jobs: start + 0.0035 * jobs for jobs in (200, 1_000, 10_000)}
        assert growth(seconds) == pytest.approx(1.0)
    seconds = {jobs: 1.2 + 0.0035 * jobs + 1e-6 * jobs**2 for jobs in (200, 1_000, 10_000)}
    assert growth(seconds) > 1.1


def test_a_job_with_several_outputs_is_one_job(tmp_path):
    records = tmp_path / ".snakemake/metadata"
    records.mkdir(parents=True)
    for name, rule, job_hash in (("a", "fetch", 1), ("b", "fetch", 1), ("c", "collect", 2)):
        record = {"rule": rule, "job_hash": job_hash, "starttime": 5.0, "endtime": 7.5}
        (records / name).write_text(json.dumps(record))
    found = sorted(recorded_jobs(tmp_path), key=lambda job: job.rule)
    assert found == [Job("collect", 5.0, 7.5), Job("fetch", 5.0, 7.5)]


def test_nothing_of_an_outer_snakemake_is_seen_in_a_copy(tmp_path, monkeypatch):
    for name in ("OPTSTATE_PARENT", "OPTSTATE_RUN", "SNAKEMAKE_PROFILE", "PYTHONPATH"):
        monkeypatch.setenv(name, "outer")
    show = ("-c", "import os; print(*[k for k, v in os.environ.items() if v == 'outer'])")
    seconds, printed = orchestration.snakemake(tmp_path, program=show)
    assert (printed.strip(), seconds > 0) == ("", True)
    with pytest.raises(InputError, match="failed: the last line"):
        orchestration.snakemake(tmp_path, program=("-c", "raise SystemExit('the last line')"))


def test_a_copy_has_all_that_a_run_needs_and_no_results(tmp_path):
    copy = orchestration.copy_project(tmp_path / "copy")
    assert {p.name for p in copy.iterdir()} == set(orchestration.PROJECT)
    assert not list(copy.rglob("__pycache__"))
