"""The estimate of an experiment's jobs, hours and disk space."""

import pytest

from conftest import ROOT, assert_one_line, run_module
from optstate.experiment import configuration
from optstate.experiment.estimate import SECONDS_TO_START, checkpoint_bytes, estimate

CONFIG = configuration.load(
    {"methods": ["constant-new", "constant-preserve", "onecycle-new"], "seeds": [0, 1],
     "sessions": [3, 2, 1]}
)  # fmt: skip
RUNS = configuration.all_runs(CONFIG)


def test_the_first_session_of_a_schedule_is_one_job():
    total = estimate(RUNS, CONFIG, 10)
    assert (total.num_sessions, total.num_runs) == (8 + 12 + 12, 12)
    assert total.epochs == 8 * 3 + 12 * 2 + 12 * 1


def test_an_uninterrupted_run_is_one_job_of_its_own():
    config = CONFIG | {"methods": ["constant-new", "constant-uninterrupted"]}
    total = estimate(configuration.all_runs(config), config, 10)
    assert (total.num_sessions, total.epochs) == (4 * 4, 4 * (3 + 2 + 1 + 6))


def test_sessions_with_the_same_history_are_counted_once():
    boundaries = CONFIG["boundaries"] | {"late": {"keep": [], "at": [3]}}
    config = CONFIG | {"methods": ["constant-preserve", "constant-late"], "boundaries": boundaries}
    total = estimate(configuration.all_runs(config), config, 10)
    assert (total.num_sessions, total.num_runs) == (4 * 3 + 4, 8)
    assert total.epochs == 4 * (3 + 2 + 1) + 4 * 1


def test_hours_are_those_of_all_jobs_or_of_the_longest_run():
    """One GPU runs all jobs in sequence. With many GPUs, the longest run decides."""
    total = estimate(RUNS, CONFIG, 10)
    everything = 32 * SECONDS_TO_START + 10 * 60
    assert total.hours(1) == pytest.approx(everything / 3600)
    assert total.hours(2) == pytest.approx(everything / 2 / 3600)
    assert total.hours(100) == pytest.approx((3 * SECONDS_TO_START + 10 * 6) / 3600)


def test_a_session_waits_for_the_one_whose_step_sizes_it_takes_over():
    boundaries = CONFIG["boundaries"] | {"small": {"keep": [], "step_size": "preserve"}}
    config = CONFIG | {"boundaries": boundaries, "methods": ["constant-preserve", "constant-small"]}
    total = estimate(configuration.all_runs(config), config, 10)
    assert total.longest == 4 * SECONDS_TO_START + 10 * (3 + 2 + 2 + 1)


def test_the_number_of_files_is_that_of_a_simulation():
    """The numbers are from a simulation of 720 sessions of 320 runs in the order of their jobs."""
    config = configuration.load(ROOT / "docs/cluster.yaml")
    total = estimate(configuration.all_runs(config), config, 15)
    simulated = {1: (1041, 642, 324), 8: (1048, 656, 352), 100: (1140, 840, 660)}
    for num_gpus, files in simulated.items():
        assert total.files(num_gpus) == pytest.approx(files, rel=0.1)


def test_more_gpus_than_runs_need_no_more_files():
    total = estimate(RUNS, CONFIG, 10)
    assert total.files(1000) == total.files(12)
    most, *fewer = total.files(12)
    assert max(fewer) <= most


@pytest.mark.parametrize("optimizer", [{"name": "Adam"}, {"name": "SGD", "momentum": 0.9}])
def test_checkpoints_hold_parameters_buffers_and_optimizer_state(optimizer):
    """Only schedules of the methods count."""
    schedules = {
        "constant": {"lr": [1e-3]},
        "plain": {"lr": [1e-3], "optimizer": {"name": "SGD"}},
        "unused": {"lr": [1e-3], "optimizer": {"name": "Adam", "amsgrad": True}},
    }
    config = {
        "model": "resnet50", "image_size": 64, "optimizer": optimizer, "schedules": schedules,
        "methods": ["constant-new", "plain-new"],
    }  # fmt: skip
    parameters, others = (
        23_528_522,
        53_173,
    )  # with ten classes; the others are buffers of batch norm
    copies, steps = {"Adam": (3, 161), "SGD": (2, 0)}[optimizer["name"]]
    expected = 4 * (copies * parameters + others + steps)
    assert checkpoint_bytes(config) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("content", "options", "words"),
    [
        ("model: 3", ["--seconds-per-epoch", "1"], "model: "),
        ("model: resnet5", ["--seconds-per-epoch", "1"], "model: 'resnet5' is not"),
        ("optimizer: {name: Adma}", ["--seconds-per-epoch", "1"], "Did you mean `Adam"),
        ("model: resnet18", ["--seconds-per-epoch", "0"], "above 0"),
        ("model: resnet18", ["--seconds-per-epoch", "1", "--gpus", "0"], "above 0"),
    ],
)
def test_an_error_is_one_line(tmp_path, content, options, words):
    path = tmp_path / "mine.yaml"
    path.write_text(content)
    assert_one_line(run_module("optstate.experiment.estimate", path, *options), words)


def test_the_documentation_shows_the_current_output():
    shown = (ROOT / "docs/cluster.md").read_text()
    printed = run_module(
        "optstate.experiment.estimate", ROOT / "docs/cluster.yaml", "--seconds-per-epoch", 15
    ).stdout
    assert f"```\n{printed}```" in shown
