"""What an experiment takes, told before it runs."""

import pytest

from conftest import ROOT, assert_one_line, run_module
from optstate.experiment.estimate import SECONDS_TO_START, checkpoint_bytes, simulate, training_jobs

CONFIG = {
    "datasets": {"one": {}, "other": {}},
    "methods": ["constant-new", "constant-preserve", "onecycle-new"],
    "seeds": [0, 1],
    "sessions": [3, 2, 1],
}


def test_the_first_session_of_a_schedule_is_one_job():
    jobs = training_jobs(CONFIG)
    assert [sum(job.number == n for job in jobs) for n in (1, 2, 3)] == [8, 12, 12]
    assert {len(job.forks) for job in jobs if job.number == 1} == {1, 2}


def test_an_uninterrupted_run_is_one_job_of_its_own():
    jobs = training_jobs(CONFIG | {"methods": ["constant-new", "constant-uninterrupted"]})
    assert sorted((job.number, job.epochs) for job in jobs[:4]) == [(1, 3), (1, 6), (2, 2), (3, 1)]
    assert len(jobs) == 4 * 4


def test_on_one_gpu_the_jobs_come_one_after_the_other():
    course = simulate(training_jobs(CONFIG), 1, 10, most_in_queue=100)
    assert course.seconds == 32 * SECONDS_TO_START + 10 * (8 * 3 + 12 * 2 + 12 * 1)
    assert course.in_queue == 12


def test_on_enough_gpus_the_longest_run_decides():
    course = simulate(training_jobs(CONFIG), 100, 10, most_in_queue=100)
    assert course.seconds == 3 * SECONDS_TO_START + 10 * (3 + 2 + 1)
    assert course.in_queue == 12


def test_of_a_single_run_what_is_on_the_disk():
    """Its last session writes a third state beside the checkpoints of those before it."""
    config = CONFIG | {"datasets": {"one": {}}, "methods": ["constant-new"], "seeds": [0]}
    course = simulate(training_jobs(config), 1, 10, most_in_queue=1)
    assert course.files == {"all": 5, "last": 4, "none": 4}


def test_a_short_queue_finishes_runs_before_it_begins_others():
    jobs = training_jobs(CONFIG)
    short, long = (simulate(jobs, 1, 10, most_in_queue=number) for number in (1, 100))
    assert short.seconds == long.seconds
    assert short.files["none"] < long.files["none"]


@pytest.mark.parametrize("optimizer", [{"name": "Adam"}, {"name": "SGD", "momentum": 0.9}])
def test_the_size_of_a_checkpoint(optimizer):
    schedules = {"constant": {"lr": [1e-3]}, "plain": {"lr": [1e-3], "optimizer": {"name": "SGD"}}}
    config = {"model": "resnet50", "image_size": 64, "optimizer": optimizer, "schedules": schedules}
    parameters, others = 23_528_522, 53_173  # with ten classes; the others are batch norm's
    copies, steps = {"Adam": (3, 161), "SGD": (2, 0)}[optimizer["name"]]
    expected = 4 * (copies * parameters + others + steps)
    assert checkpoint_bytes(config) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("content", "options", "words"),
    [
        ("model: 3", ["--seconds-per-epoch", "1"], "`model` "),
        ("model: resnet18", ["--seconds-per-epoch", "0"], "above zero"),
        ("model: resnet18", ["--seconds-per-epoch", "1", "--gpus", "0"], "above zero"),
    ],
)
def test_a_mistake_is_one_line(tmp_path, content, options, words):
    path = tmp_path / "mine.yaml"
    path.write_text(content)
    assert_one_line(run_module("optstate.experiment.estimate", path, *options), words)


def test_the_documentation_shows_what_it_prints():
    shown = (ROOT / "docs/cluster.md").read_text()
    printed = run_module(
        "optstate.experiment.estimate", ROOT / "docs/cluster.yaml", "--seconds-per-epoch", 15
    ).stdout
    assert f"```\n{printed}```" in shown
