"""States in progress on disk, and the signals that interrupt a session."""

import hashlib
import os
import signal
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from optstate.training import progress
from optstate.training.checkpoint import Position
from optstate.training.progress import Progress, keep_final, stop_on_signals


def make_state(step: int, epoch: int = 0) -> dict:
    return {"training": {"position": {"session": 1, "epoch": epoch, "step": step}}, "step": step}


def open_progress(folder: Path, every: dict | None = None, in_background=False) -> Progress:
    return Progress(folder, every or {"epochs": 1}, Position(1, 0, 0), in_background)


def list_files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_handlers_survive_a_second_signal_and_are_restored():
    before = [signal.getsignal(number) for number in progress.SIGNALS]
    with stop_on_signals() as stop_if_asked:
        stop_if_asked()
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGUSR1)
        for _ in range(2):
            with pytest.raises(progress.Interrupted, match="SIGUSR1"):
                stop_if_asked()
    assert [signal.getsignal(number) for number in progress.SIGNALS] == before


@pytest.mark.parametrize("is_detached", [False, True])
def test_a_closed_terminal_stops_the_job_unless_it_is_detached(is_detached):
    before = signal.getsignal(signal.SIGHUP)
    signal.signal(signal.SIGHUP, signal.SIG_IGN if is_detached else signal.SIG_DFL)
    try:
        with stop_on_signals() as stop_if_asked:
            os.kill(os.getpid(), signal.SIGHUP)
            if is_detached:
                stop_if_asked()
            else:
                with pytest.raises(progress.Interrupted, match="SIGHUP"):
                    stop_if_asked()
    finally:
        signal.signal(signal.SIGHUP, before)


def test_the_last_two_are_kept_and_named_by_their_checksums(tmp_path):
    kept = open_progress(tmp_path)
    (tmp_path / ".of-a-killed-job.tmp").touch()
    for step in (5, 10, 15):
        kept.save(make_state(step))
    assert [n.split(".")[0] for n in list_files(tmp_path)] == [
        "epoch000000-step000000010", "epoch000000-step000000015",
    ]  # fmt: skip
    for path in tmp_path.iterdir():
        assert hashlib.sha256(path.read_bytes()).hexdigest() == path.name.split(".")[1]
    assert open_progress(tmp_path).load()["step"] == 15


def test_a_state_of_another_folder_is_not_continued_from(tmp_path, caplog):
    """It was made with other inputs, as the folder's name says."""
    open_progress(tmp_path / "a").save(make_state(5))
    (tmp_path / "a").rename(tmp_path / "b")
    assert open_progress(tmp_path / "b").load() is None
    assert "damaged or exchanged" in caplog.text


def test_the_state_after_a_validation_is_the_newest(tmp_path):
    kept = open_progress(tmp_path)
    kept.save(make_state(10, epoch=0))
    kept.save(make_state(10, epoch=1))
    assert open_progress(tmp_path).load()["training"]["position"]["epoch"] == 1


@pytest.mark.parametrize("damage", ["torn", "flipped", "empty"])
def test_the_previous_state_is_loaded_instead_of_a_damaged_one(tmp_path, caplog, damage):
    kept = open_progress(tmp_path)
    for step in (5, 10):
        kept.save(make_state(step))
    newest = sorted(tmp_path.iterdir())[-1]
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes({"torn": content[:-10], "flipped": content, "empty": b""}[damage])
    resumed = open_progress(tmp_path)
    assert resumed.load()["step"] == 5
    assert str(newest) in caplog.text
    resumed.save(make_state(10))
    assert open_progress(tmp_path).load()["step"] == 10
    assert len(list_files(tmp_path)) == 2


def test_a_damaged_state_is_removed_before_a_good_one(tmp_path):
    kept = open_progress(tmp_path)
    for step in (5, 10):
        kept.save(make_state(step))
    sorted(tmp_path.iterdir())[-1].write_bytes(b"")
    resumed = open_progress(tmp_path)
    resumed.load()
    resumed.save(make_state(7))
    assert [n.split(".")[0][-2:] for n in list_files(tmp_path)] == ["05", "07"]


def test_minutes_count_from_the_last_state(tmp_path, monkeypatch):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: clock.now))
    kept = open_progress(tmp_path, {"minutes": 2})
    due = []
    for step in range(1, 9):
        clock.now += 50
        if kept.is_due(Position(1, 0, step)):
            due.append(step)
            kept.save(make_state(step))
    assert due == [3, 6]


class TestInTheBackground:
    """As on a GPU, where training continues while a state is written."""

    def test_later_steps_do_not_change_a_saved_state(self, tmp_path):
        kept = open_progress(tmp_path, in_background=True)
        weights = torch.zeros(3)
        may_write = threading.Event()
        kept.writer.submit(may_write.wait)
        state = make_state(5) | {"weights": weights}
        kept.save(state)
        weights += 1
        state["training"]["position"]["step"] = 6
        assert list_files(tmp_path) == []
        may_write.set()
        kept.finish()
        loaded = open_progress(tmp_path).load()
        assert loaded["weights"].tolist() == [0, 0, 0]
        assert loaded["training"]["position"]["step"] == 5

    def test_states_are_written_one_at_a_time(self, tmp_path):
        kept = open_progress(tmp_path, in_background=True)
        for step in (5, 10):
            kept.save(make_state(step))
        assert any(name.startswith("epoch000000-step000000005") for name in list_files(tmp_path))

    def test_a_full_disk_is_reported_by_the_next_save(self, tmp_path, monkeypatch):
        def fail(*_):
            raise OSError(28, "No space left on device")

        kept = open_progress(tmp_path, in_background=True)
        monkeypatch.setattr(Progress, "_write", fail)
        kept.save(make_state(5))
        with pytest.raises(OSError, match="No space"):
            kept.save(make_state(10))
        kept.finish()


def test_only_the_last_state_of_a_finished_session_stays(tmp_path):
    kept = open_progress(tmp_path / "0123456789abcdef")
    for step in (5, 10):
        kept.save(make_state(step))
    open_progress(tmp_path / "fedcba9876543210").save(make_state(20))
    keep_final(kept.folder)
    assert list_files(tmp_path) == ["0123456789abcdef", "fedcba9876543210"]  # of other inputs
    (state,) = list_files(kept.folder)
    assert state.startswith("epoch000000-step000000010.")
