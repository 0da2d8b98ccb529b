"""A checkpoint is checked before a session continues from it."""

from dataclasses import asdict, fields, replace

import pytest
import torch

from optstate.experiment import configuration
from optstate.experiment.runs import Session
from optstate.job import InputError
from optstate.training import checkpoint
from optstate.training.checkpoint import find_difference
from optstate.training.spec import SessionSpec

CONFIG = configuration.load(
    {
        "boundaries": {"warm": {"keep": "all", "warmup_steps": 5, "reshuffle": True}},
        "methods": ["onecycle-warm"],
    }
)
FIRST, SECOND, THIRD = (
    configuration.session_spec(CONFIG, Session("imagenette", name, 3, number), weights)
    for number, (name, weights) in enumerate(
        [("onecycle", "5" * 64), ("onecycle-warm", None), ("onecycle-warm", None)], 1
    )
)
PAIRS = {2: (FIRST, SECOND), 3: (SECOND, THIRD)}
DATASET = "d" * 64
# Settings that a session may have of its own.
OWN = {"num_epochs", "learning_rate", "weights_sha256"}


def compare(made: SessionSpec, spec: SessionSpec, **position: int) -> str:
    """Compare the checkpoint of a session ``made`` with what the session ``spec`` demands."""
    meta = {"configuration": asdict(made), "dataset_sha256": DATASET}
    usual = {"session": made.session, "epoch": made.num_epochs, "step": 7}
    return find_difference(meta, usual | position, spec, DATASET)


@pytest.mark.parametrize("session", [2, 3])
def test_the_previous_session_is_accepted(session):
    made, spec = PAIRS[session]
    assert compare(made, spec) == ""


@pytest.mark.parametrize("session", [2, 3])
@pytest.mark.parametrize("name", [f.name for f in fields(SessionSpec) if f.name not in OWN])
def test_every_other_setting_must_fit(session, name):
    made, spec = PAIRS[session]
    difference = compare(replace(made, **{name: "another"}), spec)
    assert difference.startswith(f"its {name} is 'another', not ")


def test_sessions_may_differ_in_epochs_and_learning_rates():
    made = replace(FIRST, num_epochs=99, learning_rate=FIRST.learning_rate | {"max_lr": 0.5})
    assert compare(made, SECOND) == ""
    assert compare(replace(made, weights_sha256=None), SECOND) == ""


def test_the_schedule_must_be_of_the_same_kind():
    made = replace(FIRST, learning_rate={"kind": "constant", "lr": 1e-3})
    assert compare(made, SECOND) == "its learning_rate.kind is 'constant', not 'onecycle'"


@pytest.mark.parametrize(
    ("position", "difference"),
    [
        ({"session": 2}, "its position.session is 2, not 1"),
        ({"epoch": 9}, "its position.epoch is 9, not 10"),
    ],
)
def test_the_position_must_be_the_end_of_the_session(position, difference):
    assert compare(FIRST, SECOND, **position) == difference


def test_the_arrays_must_be_the_same():
    meta = {"configuration": asdict(FIRST), "dataset_sha256": "e" * 64}
    position = {"session": 1, "epoch": FIRST.num_epochs}
    assert "its dataset_sha256 is 'eee" in find_difference(meta, position, SECOND, DATASET)


def test_a_checkpoint_that_says_nothing_is_refused():
    assert find_difference({}, {}, SECOND, DATASET) == "its dataset is None, not 'imagenette'"


@pytest.mark.parametrize(
    "content", [{"training": {}}, torch.zeros(3), {"model": {}, "optimizer": {}}]
)
def test_another_file_of_torch_is_refused(tmp_path, content):
    path = tmp_path / "checkpoint.pt"
    torch.save(content, path)
    with pytest.raises(InputError, match=f"{path}: not the checkpoint of a finished session"):
        checkpoint.load(path)


@pytest.mark.parametrize("content", [b"", b"not a checkpoint"])
def test_a_damaged_file_is_refused(tmp_path, content):
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(content)
    with pytest.raises(InputError, match=f"{path}: not a readable checkpoint. Delete it"):
        checkpoint.load(path)
