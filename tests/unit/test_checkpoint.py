"""A checkpoint is checked before a session continues from it."""

from dataclasses import asdict, fields, replace

import pytest
import torch

from optstate.experiment import configuration
from optstate.experiment.runs import Session
from optstate.job import InputError
from optstate.training import checkpoint
from optstate.training.checkpoint import Position, find_difference
from optstate.training.spec import SessionSpec

SPEC = configuration.session_spec(
    configuration.load({}), Session("imagewoof", "onecycle-new", 3, 2)
)
DATASET = "d" * 64
END = Position(session=2, epoch=20, step=1900)


def compare(found: SessionSpec, **position: int) -> str:
    """Compare a checkpoint that was made with the settings ``found`` with that of ``SPEC``."""
    meta = {"configuration": asdict(found), "dataset_sha256": DATASET}
    return find_difference(meta, asdict(END) | position, SPEC, DATASET, END)


def test_the_checkpoint_of_the_session_is_accepted():
    assert compare(SPEC) == ""


@pytest.mark.parametrize("name", [f.name for f in fields(SessionSpec)])
def test_every_setting_must_fit(name):
    difference = compare(replace(SPEC, **{name: "another"}))
    assert difference.startswith(f"its {name} is 'another', not ")


def test_every_learning_rate_must_fit():
    found = compare(replace(SPEC, learning_rate=SPEC.learning_rate | {"max_lr": 0.5}))
    assert found.startswith("its learning_rate is {")


@pytest.mark.parametrize("name", ["session", "epoch", "step"])
def test_the_position_must_be_the_end_of_the_session(name):
    assert compare(SPEC, **{name: 9}) == f"its position.{name} is 9, not {getattr(END, name)}"


def test_the_arrays_must_be_the_same():
    meta = {"configuration": asdict(SPEC), "dataset_sha256": "e" * 64}
    assert "its dataset_sha256 is 'eee" in find_difference(meta, asdict(END), SPEC, DATASET, END)


def test_a_checkpoint_that_says_nothing_is_refused():
    assert find_difference({}, {}, SPEC, DATASET, END) == "its dataset is None, not 'imagewoof'"


def test_a_setting_that_this_version_does_not_know_is_refused():
    meta = {"configuration": asdict(SPEC) | {"dropout": 0.5}, "dataset_sha256": DATASET}
    found = find_difference(meta, asdict(END), SPEC, DATASET, END)
    assert found == "its dropout is 0.5, not None"


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
