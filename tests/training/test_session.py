"""Sessions in one process: what they write, and that validation is held out."""

import json
import resource

import numpy as np
import pytest
import torch

from conftest import assert_one_line, file_sha256, run_module
from optstate.job import InputError
from optstate.training import loop, session
from optstate.training.checkpoint import random_states, set_random_states
from optstate.training.loop import num_correct, records_norms
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
    assert saved["meta"]["configuration"] == SECOND
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
    """Whatever an earlier run, or one killed in the midst of writing, has left there."""
    train(tmp_path / "added", FIRST | {"seed": 5}, arrays)
    first = train(tmp_path / "shared", FIRST, arrays)
    train(tmp_path / "added", SECOND, arrays, previous=first)
    for tag in ("train/loss", "valid/loss"):
        shared = points(tmp_path / "shared" / "curves", tag)
        assert points(tmp_path / "added" / "curves", tag)[: len(shared)] == shared


def test_weights_that_change_are_refused(tmp_path, arrays):
    weights = tmp_path / "weights.pt"
    torch.save(make_model("shufflenet_v2_x0_5", 32, 2).state_dict(), weights)
    spec = FIRST | {"model": "shufflenet_v2_x0_5"}
    train(tmp_path, spec | {"weights_sha256": file_sha256(weights)}, arrays, weights=weights)
    with pytest.raises(InputError, match=f"{weights}: has just changed: run again"):
        train(tmp_path, spec | {"weights_sha256": "0" * 64}, arrays, weights=weights)


def test_the_same_again_and_not_the_same_with_another_seed(tmp_path, arrays):
    one, again = (checkpoint(train(tmp_path / name, FIRST, arrays)) for name in "ab")
    assert_equal_bits(one, again)
    other = checkpoint(train(tmp_path / "c", FIRST | {"seed": 4}, arrays))
    assert not torch.equal(one["model"]["fc.weight"], other["model"]["fc.weight"])


def test_validation_reads_the_validation_images_and_training_does_not(tmp_path):
    """Planted: in one of two data sets the validation images have each other's labels."""
    epochs = []
    for name, valid_labels in (("honest", None), ("planted", [1] * 5 + [0] * 5)):
        arrays = write_arrays(tmp_path / f"{name}-arrays", valid_labels)
        output = train(tmp_path / name, FIRST | {"batch_size": 8}, arrays)
        epochs.append(without_seconds(output / "epochs.csv"))
    for honest, planted in zip(*epochs, strict=True):
        if honest["split"] == "train":
            assert honest == planted
        else:  # of two classes, one of both labels is right
            assert float(honest["top1"]) + float(planted["top1"]) == 1
            assert honest["loss"] != planted["loss"]


def test_a_loss_that_is_not_finite_ends_nothing(tmp_path, arrays):
    learning_rate = {"kind": "constant", "lr": 1e30}
    output = train(tmp_path, FIRST | {"learning_rate": learning_rate}, arrays)
    assert rows(output / "steps.csv")[-1]["loss"] == "nan"
    assert len(rows(output / "epochs.csv")) == 6


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (torch.cuda.OutOfMemoryError("x"), "`batch_size` 4 at `image_size` 32: choose smaller"),
        (
            RuntimeError("cumsum_cuda does not have a deterministic implementation, but you set"),
            "resnet18 needs cumsum_cuda, .* set `deterministic` to false",
        ),
    ],
)
def test_what_a_device_cannot_do_is_explained(error, words):
    with (
        pytest.raises(InputError, match=words),
        session.explained(session.SessionSpec(**FIRST)),
    ):
        raise error


def test_a_full_disk_is_one_line_and_no_output(tmp_path, arrays):
    """Here a limit on file sizes, which a state in progress, of 100 MB and more, runs into."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))

    result = run_module(
        "optstate.training.session", "--spec", json.dumps(FIRST), "--dataset", arrays,
        "--output", tmp_path / "out", "--progress", tmp_path / "in_progress",
        "--log", tmp_path / "log", preexec_fn=limit,
    )  # fmt: skip
    assert_one_line(result, str(tmp_path / "in_progress"), "ulimit -f")
    assert not (tmp_path / "out").exists()
    assert files_in(tmp_path / "in_progress") == []


def test_bfloat16(tmp_path, arrays):
    output = train(tmp_path, FIRST | {"precision": "bfloat16"}, arrays)
    saved = checkpoint(output)
    assert saved["meta"]["precision"] == "bfloat16"
    assert saved["model"]["fc.weight"].dtype == torch.float32


def test_top_k_is_capped_at_the_number_of_classes():
    logits = torch.tensor([[3.0, 2, 1, 0], [0, 1, 2, 3], [0, 3, 2, 1]])
    labels = torch.tensor([0, 1, 0])
    assert [int(n) for n in num_correct(logits, labels)] == [1, 1, 2]
    assert [int(n) for n in num_correct(logits[:, :2], torch.tensor([0, 0, 0]))] == [1, 3, 3]


def test_norms_are_recorded_early_and_every_tenth_step(tmp_path, arrays):
    assert [step for step in range(1, 81) if records_norms(step)] == [*range(1, 51), 60, 70, 80]
    output = train(tmp_path, FIRST | {"num_epochs": 14, "augment": "none"}, arrays)
    steps = rows(output / "steps.csv")
    recorded = [int(row["step"]) for row in steps if row["update_norm"]]
    assert recorded == [*range(1, 51)]
    assert all(bool(row["grad_norm"]) == bool(row["update_norm"]) for row in steps)
    assert len(steps) == 56


@pytest.mark.parametrize("optimizer", ["Adam", "SGD", "RMSprop"])
def test_norms_are_of_the_gradient_and_of_the_change(optimizer):
    parameters = [torch.nn.Parameter(torch.randn(3, 4)), torch.nn.Parameter(torch.randn(5))]
    unused = torch.nn.Parameter(torch.randn(2))
    made = getattr(torch.optim, optimizer)([*parameters, unused], lr=0.1)
    step = loop.OptimizerStep(made)
    for with_norms in (True, False, True, True):
        before = [p.detach().clone() for p in parameters]
        for parameter in parameters:
            parameter.grad = torch.randn_like(parameter)
        gradient = torch.cat([p.grad.flatten() for p in parameters])
        norms = step(with_norms)
        change = torch.cat(
            [(p - b).flatten() for p, b in zip(parameters, before, strict=True)]
        ).detach()
        assert [float(n) for n in norms] == (
            [pytest.approx(float(vector.norm())) for vector in (gradient, change)]
            if with_norms
            else []
        )


def test_when_records_are_fetched_changes_nothing(tmp_path, arrays, monkeypatch):
    once_an_epoch = train(tmp_path / "slow", FIRST, arrays)
    monkeypatch.setattr(loop, "FETCH_SECONDS", -1)
    every_step = train(tmp_path / "fast", FIRST, arrays)
    assert (once_an_epoch / "steps.csv").read_text() == (every_step / "steps.csv").read_text()
    assert without_seconds(once_an_epoch / "epochs.csv") == without_seconds(
        every_step / "epochs.csv"
    )


def test_random_states_go_on_at_the_fork(tmp_path, arrays):
    """A model with dropout must not see the masks of the first session again."""
    spec = FIRST | {"model": "mobilenet_v3_small", "num_epochs": 1}
    first = train(tmp_path, spec, arrays)
    drawn_from = checkpoint(first)["random"]["torch"]
    later = session.SessionSpec(**spec | {"session": 2, "keep": "all"})
    images = session.load_split(arrays, "train", None)
    session.start(later, images, first, None, torch.device("cpu"))
    assert torch.equal(torch.get_rng_state(), drawn_from)
    torch.manual_seed(spec["seed"])
    session.make_model(spec["model"], 32, 2)
    assert not torch.equal(torch.get_rng_state(), drawn_from)


def test_random_states_return():
    states = random_states()
    drawn = torch.rand(3), np.random.rand(3)
    set_random_states(states)
    assert torch.equal(torch.rand(3), drawn[0])
    assert np.array_equal(np.random.rand(3), drawn[1])
