"""The plan is written once, and withdrawn only if nothing has been trained."""

import json

import pytest

from optstate.checksums import verify
from optstate.experiment.plan import NAME, withdraw_plan, write_plan

FIRST, SECOND = {"seeds": [0]}, {"seeds": [1]}
STATE = "in_progress/d/constant/seed0/session1/0123456789abcdef/epoch1.pt"
CURVES = "tensorboard/d/constant-new/seed0/events.out.tfevents.1.session1"
SESSION = "runs/d/constant/seed0/session1/session.sha256"


def read(results) -> dict:
    verify(results / NAME)
    return json.loads((results / NAME).read_text())["plan"]


@pytest.fixture
def results(tmp_path):
    write_plan(tmp_path, FIRST, "abc")
    (tmp_path / "in_progress/d/constant/seed0/session1").mkdir(parents=True)
    return tmp_path


def test_a_plan_is_written_once(results):
    write_plan(results, SECOND, "abc")
    assert read(results) == FIRST


def test_a_plan_whose_checksum_was_not_written_is_replaced(results):
    (results / NAME).with_suffix(".sha256").unlink()
    write_plan(results, SECOND, "abc")
    assert read(results) == SECOND


@pytest.mark.parametrize("file", [STATE, SESSION, CURVES])
def test_a_plan_is_kept_once_a_session_has_begun(results, file):
    (results / file).parent.mkdir(parents=True, exist_ok=True)
    (results / file).write_text("x")
    withdraw_plan(results)
    assert read(results) == FIRST
    (results / NAME).with_suffix(".sha256").unlink()
    write_plan(results, SECOND, "abc")
    assert json.loads((results / NAME).read_text())["plan"] == FIRST


@pytest.mark.parametrize("file", [None, CURVES, "report.sha256"])
def test_a_plan_says_whether_sessions_had_begun(tmp_path, file):
    if file:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text("x")
    write_plan(tmp_path, FIRST, "abc")
    assert json.loads((tmp_path / NAME).read_text())["has_begun"] is (file is not None)


def test_a_plan_is_withdrawn_if_no_state_was_saved(results):
    withdraw_plan(results)
    assert not (results / NAME).exists()
    assert not (results / NAME).with_suffix(".sha256").exists()
