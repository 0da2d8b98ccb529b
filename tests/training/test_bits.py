"""The same configuration gives the same bits, and another configuration gives other ones."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from conftest import file_sha256, run_module
from optstate.training import loop
from sessions import FIRST, assert_equal_bits, load_checkpoint, read_rows, train, write_arrays

# Without batch norm and Adam, rounding errors stay small, so that all processors give these losses.
# They were computed with torch 2.15.0. Change them only if a change to training is intended.
GOLDEN = replace(
    FIRST, model="squeezenet1_1", batch_size=8, optimizer={"name": "SGD", "momentum": 0.9},
    learning_rate={"kind": "onecycle", "initial_lr": 5e-4, "max_lr": 5e-3},
)  # fmt: skip
GOLDEN_LOSSES = [0.699894, 0.694858, 0.694554, 0.692891, 0.695318, 0.691702]


@pytest.fixture(scope="module")
def arrays(tmp_path_factory):
    return write_arrays(tmp_path_factory.mktemp("data") / "arrays")


def train_in_new_process(folder, spec, arrays, **environment) -> str:
    """Train in another process. Returns the checkpoint's SHA-256."""
    result = run_module(
        "optstate.training.session", "--spec", spec.to_json(), "--arrays", arrays,
        "--output", folder, "--progress", folder / "in_progress", "--log", folder / "log",
        environment=environment,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return file_sha256(folder / "checkpoint.pt")


def test_losses_equal_the_committed_ones(tmp_path, arrays):
    losses = [
        float(row["loss"]) for row in read_rows(train(tmp_path, GOLDEN, arrays) / "steps.csv")
    ]
    assert losses == pytest.approx(GOLDEN_LOSSES, rel=1e-5)


def test_every_run_on_a_machine_gives_the_same_bytes(tmp_path, arrays):
    here = train(tmp_path / "here", FIRST, arrays)
    apart = [train_in_new_process(tmp_path / name, FIRST, arrays) for name in "ab"]
    assert apart == [file_sha256(here / "checkpoint.pt")] * 2
    for name in "ab":
        assert (tmp_path / name / "steps.csv").read_bytes() == (here / "steps.csv").read_bytes()


@pytest.mark.parametrize("threads", [1, 2])
def test_the_configuration_sets_the_number_of_threads(tmp_path, arrays, threads):
    """Snakemake sets these variables to the number of cores of a job. They must not matter."""
    digests = {
        train_in_new_process(
            tmp_path / outside, replace(FIRST, cpu_threads=threads), arrays,
            OMP_NUM_THREADS=outside, MKL_NUM_THREADS=outside,
        )
        for outside in ("1", "2")
    }  # fmt: skip
    assert len(digests) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 4},
        {"batch_size": 5},
        {"augment": "flip"},
        {"reshuffle": True},
        {"warmup_steps": 3},
        {"num_epochs": 2},
        {"learning_rate": {"kind": "onecycle", "initial_lr": 1e-4, "max_lr": 1.0001e-3}},
    ],
)
def test_another_configuration_gives_other_weights(tmp_path, arrays, change):
    first = load_checkpoint(train(tmp_path / "a", FIRST, arrays))["model"]
    other = load_checkpoint(train(tmp_path / "b", replace(FIRST, **change), arrays))["model"]
    assert not torch.equal(first["conv1.0.weight"], other["conv1.0.weight"])


def test_sessions_that_keep_everything_equal_an_uninterrupted_run(tmp_path, arrays):
    same = replace(FIRST, schedule="constant", learning_rate={"kind": "constant", "lr": 1e-3})
    first = train(tmp_path, replace(same, method="constant", num_epochs=1), arrays)
    named = {"boundary": "preserve", "method": "constant-preserve", "session": 2, "keep": "all"}
    second = train(tmp_path, replace(same, **named, num_epochs=2), arrays, previous=first)
    own = {"boundary": "uninterrupted", "method": "constant-uninterrupted", "num_epochs": 3}
    whole = train(tmp_path / "whole", replace(same, **own), arrays)
    interrupted, uninterrupted = load_checkpoint(second), load_checkpoint(whole)
    for part in ("model", "optimizer", "random"):
        assert_equal_bits(interrupted[part], uninterrupted[part])
    measures = ("step", "loss", "top1", "lr")
    steps = [*read_rows(first / "steps.csv"), *read_rows(second / "steps.csv")]
    assert [[row[m] for m in measures] for row in steps] == [
        [row[m] for m in measures] for row in read_rows(whole / "steps.csv")
    ]


def test_another_order_of_batches_gives_other_weights(tmp_path, arrays, monkeypatch):
    first = train(tmp_path / "a", FIRST, arrays)
    shuffle = loop.shuffle_indices
    monkeypatch.setattr(loop, "shuffle_indices", lambda *a: np.roll(shuffle(*a), FIRST.batch_size))
    other = train(tmp_path / "b", FIRST, arrays)
    assert file_sha256(first / "checkpoint.pt") != file_sha256(other / "checkpoint.pt")


@pytest.mark.parametrize(("setting", "expected"), [("auto", True), (True, True), (False, False)])
def test_determinism_is_recorded(tmp_path, arrays, restore_determinism, setting, expected):
    output = train(tmp_path, replace(FIRST, deterministic=setting, num_epochs=1), arrays)
    assert load_checkpoint(output)["meta"]["deterministic"] is expected
    assert torch.are_deterministic_algorithms_enabled() is expected


@pytest.fixture
def restore_determinism(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    yield
    torch.use_deterministic_algorithms(before[0])
    torch.backends.cudnn.benchmark = before[1]
