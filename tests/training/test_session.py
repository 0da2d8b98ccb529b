"""What sessions write, and that validation images are never trained on."""

import resource
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

from conftest import assert_one_line, file_sha256, run_module
from optstate.job import InputError
from optstate.training import measuring, session
from optstate.training.batches import load_split
from optstate.training.model import make_model
from sessions import (
    FIRST,
    SECOND,
    assert_equal_bits,
    checkpoint,
    files_in,
    points,
    rows,
    train,
    without_seconds,
    write_arrays,
)


@pytest.fixture
def arrays(tmp_path):
    return write_arrays(tmp_path / "arrays")


def test_what_a_session_writes(tmp_path, arrays):
    first = train(tmp_path, FIRST, arrays)
    second = train(tmp_path, SECOND, arrays, previous=first)
    saved = checkpoint(second)
    assert saved["position"] == {"session": 2, "epoch": 5, "step": 20}
    assert saved["meta"]["configuration"] == asdict(SECOND)
    assert saved["meta"]["device_type"] == "cpu"
    assert saved["meta"]["deterministic"] is True
    assert saved["optimizer"]["state"][0]["step"] == 20

    steps, epochs = rows(second / "steps.csv"), rows(second / "epochs.csv")
    assert [int(row["step"]) for row in steps] == list(range(13, 21))
    assert [int(row["epoch"]) for row in steps] == [4] * 4 + [5] * 4
    assert [(int(r["epoch"]), r["split"]) for r in epochs] == [
        (4, "train"), (4, "valid"), (5, "train"), (5, "valid"),
    ]  # fmt: skip
    assert {row["method"] for row in steps + epochs} == {"onecycle-preserve"}
    assert {r["images"] for r in epochs if r["split"] == "train"} == {"16"}  # of 17: one is alone
    assert {r["images"] for r in epochs if r["split"] == "valid"} == {"10"}
    for epoch in (4, 5):
        losses = [float(row["loss"]) for row in steps if int(row["epoch"]) == epoch]
        (mean,) = (
            float(r["loss"]) for r in epochs if (r["epoch"], r["split"]) == (str(epoch), "train")
        )
        assert mean == pytest.approx(np.mean(losses))


def test_curves_are_continuous(tmp_path, arrays):
    first = train(tmp_path, FIRST, arrays)
    train(tmp_path, SECOND, arrays, previous=first)
    for tag in ("train/loss", "train/top1", "lr", "momentum"):
        assert [step for step, _ in points(tmp_path / "curves", tag)] == list(range(1, 21))
    for tag in ("valid/loss", "valid/top1", "valid/top2", "valid/top3"):
        assert [step for step, _ in points(tmp_path / "curves", tag)] == [4, 8, 12, 16, 20]


def test_a_boundary_added_later_has_the_shared_session(tmp_path, arrays):
    first = train(tmp_path / "shared", FIRST, arrays)
    train(tmp_path / "added", SECOND, arrays, previous=first)
    losses = points(tmp_path / "added" / "curves", "train/loss")
    assert [step for step, _ in losses] == list(range(1, 21))
    assert losses[:12] == points(tmp_path / "shared" / "curves", "train/loss")


def test_the_shared_session_of_a_curve_is_the_one_that_was_forked_from(tmp_path, arrays):
    """An earlier run, or one killed while writing, may have left other curves there."""
    train(tmp_path / "added", replace(FIRST, seed=5), arrays)
    first = train(tmp_path / "shared", FIRST, arrays)
    train(tmp_path / "added", SECOND, arrays, previous=first)
    for tag in ("train/loss", "valid/loss"):
        shared = points(tmp_path / "shared" / "curves", tag)
        assert points(tmp_path / "added" / "curves", tag)[: len(shared)] == shared


def test_weights_that_change_are_refused(tmp_path, arrays):
    weights = tmp_path / "weights.pt"
    torch.save(make_model("shufflenet_v2_x0_5", 32, 2).state_dict(), weights)
    spec = replace(FIRST, model="shufflenet_v2_x0_5")
    train(tmp_path, replace(spec, weights_sha256=file_sha256(weights)), arrays, weights=weights)
    with pytest.raises(InputError, match=f"{weights}: this file has changed .* Run again"):
        train(tmp_path, replace(spec, weights_sha256="0" * 64), arrays, weights=weights)


def test_the_same_again_and_not_the_same_with_another_seed(tmp_path, arrays):
    one, again = (checkpoint(train(tmp_path / name, FIRST, arrays)) for name in "ab")
    assert_equal_bits(one, again)
    other = checkpoint(train(tmp_path / "c", replace(FIRST, seed=4), arrays))
    assert not torch.equal(one["model"]["fc.weight"], other["model"]["fc.weight"])


def test_validation_reads_the_validation_images_and_training_does_not(tmp_path):
    """In one of two data sets, the labels of the validation images are exchanged."""
    epochs = []
    for name, valid_labels in (("honest", None), ("planted", [1] * 5 + [0] * 5)):
        arrays = write_arrays(tmp_path / f"{name}-arrays", valid_labels)
        output = train(tmp_path / name, replace(FIRST, batch_size=8), arrays)
        epochs.append(without_seconds(output / "epochs.csv"))
    for honest, planted in zip(*epochs, strict=True):
        if honest["split"] == "train":
            assert honest == planted
        else:  # of two labels, one is right
            assert float(honest["top1"]) + float(planted["top1"]) == 1
            assert honest["loss"] != planted["loss"]


def test_a_loss_that_is_not_finite_ends_nothing(tmp_path, arrays):
    learning_rate = {"kind": "constant", "lr": 1e30}
    output = train(tmp_path, replace(FIRST, learning_rate=learning_rate), arrays)
    assert rows(output / "steps.csv")[-1]["loss"] == "nan"
    assert len(rows(output / "epochs.csv")) == 6


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            torch.cuda.OutOfMemoryError("x"),
            "batch_size: 4 images of 32 pixels do not fit .* Choose a smaller",
        ),
        (
            RuntimeError("cumsum_cuda does not have a deterministic implementation, but you set"),
            "model: resnet18 uses cumsum_cuda, .* Set `deterministic` to false",
        ),
    ],
)
def test_errors_of_a_device_are_explained(error, words):
    with (
        pytest.raises(InputError, match=words),
        session.explain_errors(FIRST),
    ):
        raise error


def test_a_full_disk_is_one_line_and_no_output(tmp_path, arrays):
    """Caused here by a limit on file sizes, below the 100 MB of a state in progress."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))

    result = run_module(
        "optstate.training.session", "--spec", FIRST.to_json(), "--arrays", arrays,
        "--output", tmp_path / "out", "--progress", tmp_path / "in_progress",
        "--log", tmp_path / "log", preexec_fn=limit,
    )  # fmt: skip
    assert_one_line(result, str(tmp_path / "in_progress"), "ulimit -f")
    assert not (tmp_path / "out").exists()
    assert files_in(tmp_path / "in_progress") == []


def test_bfloat16(tmp_path, arrays):
    output = train(tmp_path, replace(FIRST, precision="bfloat16"), arrays)
    saved = checkpoint(output)
    assert saved["meta"]["precision"] == "bfloat16"
    assert saved["model"]["fc.weight"].dtype == torch.float32


def test_norms_are_recorded_early_and_every_tenth_step(tmp_path, arrays):
    output = train(tmp_path, replace(FIRST, num_epochs=14, augment="none"), arrays)
    steps = rows(output / "steps.csv")
    recorded = [int(row["step"]) for row in steps if row["update_norm"]]
    assert recorded == [*range(1, 51)]
    assert all(bool(row["grad_norm"]) == bool(row["update_norm"]) for row in steps)
    assert len(steps) == 56


def test_when_records_are_fetched_changes_nothing(tmp_path, arrays, monkeypatch):
    once_an_epoch = train(tmp_path / "slow", FIRST, arrays)
    monkeypatch.setattr(measuring, "FETCH_SECONDS", -1)
    every_step = train(tmp_path / "fast", FIRST, arrays)
    assert (once_an_epoch / "steps.csv").read_text() == (every_step / "steps.csv").read_text()
    assert without_seconds(once_an_epoch / "epochs.csv") == without_seconds(
        every_step / "epochs.csv"
    )


def test_random_states_continue_at_the_fork(tmp_path, arrays):
    """A model with dropout must not repeat the masks of the first session."""
    spec = replace(FIRST, model="mobilenet_v3_small", num_epochs=1)
    first = train(tmp_path, spec, arrays)
    drawn_from = checkpoint(first)["random"]["torch"]
    later = replace(spec, session=2, keep="all")
    images = load_split(arrays, "train", None)
    session.make_state(later, images, first, None, torch.device("cpu"))
    assert torch.equal(torch.get_rng_state(), drawn_from)
    torch.manual_seed(spec.seed)
    make_model(spec.model, 32, 2)
    assert not torch.equal(torch.get_rng_state(), drawn_from)
