"""That nothing is lost, and no bit changed, however a session is interrupted."""

import hashlib
import logging
import os
import signal
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from optstate import job
from optstate.training import loop, progress, session
from optstate.training.checkpoint import Position
from optstate.training.progress import EXIT_CODE, Progress, stop_on_signals
from sessions import (
    FIRST,
    SECOND,
    files_in,
    points,
    rows,
    train,
    without_seconds,
    write_arrays,
)

# It has dropout and batch norm, so that random states and buffers matter, and is small.
SPEC = FIRST | {"model": "mobilenet_v3_small"}
SHORT = SPEC | {"num_epochs": 2}


@pytest.fixture(scope="module")
def arrays(tmp_path_factory):
    return write_arrays(tmp_path_factory.mktemp("data") / "arrays")


@pytest.fixture(scope="module")
def straight(tmp_path_factory, arrays):
    """The folder of a session that nothing disturbed."""
    return train(tmp_path_factory.mktemp("straight"), SPEC, arrays)


def assert_same(output: Path, expected: Path) -> None:
    """Byte for byte, but for the seconds and for what TensorBoard notes beside the points."""
    for name in ("checkpoint.pt", "steps.csv"):
        assert (output / name).read_bytes() == (expected / name).read_bytes(), name
    assert without_seconds(output / "epochs.csv") == without_seconds(expected / "epochs.csv")
    for tag in ("train/loss", "train/top1", "lr", "momentum", "valid/loss", "valid/top3"):
        curves = output.parent / "curves", expected.parent / "curves"
        assert points(curves[0], tag) == points(curves[1], tag), tag


def interrupted_at(monkeypatch, step: int, how=signal.SIGTERM) -> None:
    """Send this process a signal during a training step, and never again."""
    train_step = loop.train_step

    def with_signal(session_, trained, *arguments):
        if trained.position.step + 1 == step:
            monkeypatch.setattr(loop, "train_step", train_step)
            os.kill(os.getpid(), how)
        return train_step(session_, trained, *arguments)

    monkeypatch.setattr(loop, "train_step", with_signal)


class TestSignals:
    @pytest.mark.parametrize(
        ("step", "how"),
        [(1, signal.SIGTERM), (3, signal.SIGINT), (4, signal.SIGUSR1), (10, signal.SIGTERM)],
    )
    def test_the_step_is_ended_and_saved(
        self, tmp_path, arrays, straight, monkeypatch, caplog, step, how
    ):
        interrupted_at(monkeypatch, step, how)
        with pytest.raises(SystemExit) as exit_:
            train(tmp_path, SPEC, arrays)
        assert exit_.value.code == EXIT_CODE
        assert f"{how.name}: saved step {step}, {(step - 1) // 4} epochs finished" in caplog.text
        assert not (tmp_path / "session1").exists()
        steps = []
        train_step = loop.train_step
        monkeypatch.setattr(
            loop,
            "train_step",
            lambda s, t, *a: steps.append(t.position.step) or train_step(s, t, *a),
        )
        assert_same(train(tmp_path, SPEC, arrays), straight)
        assert steps == list(range(step, 12))

    def test_in_every_step_and_every_validation(self, tmp_path, arrays, straight, monkeypatch):
        def interrupting(function):
            def interrupted(*arguments):
                os.kill(os.getpid(), signal.SIGTERM)
                return function(*arguments)

            return interrupted

        monkeypatch.setattr(loop, "train_step", interrupting(loop.train_step))
        interruptions = 0
        while True:
            try:
                output = train(tmp_path, SPEC, arrays)
                break
            except SystemExit:
                interruptions += 1
        assert interruptions == 12
        assert_same(output, straight)

    def test_an_interrupted_validation_begins_again(self, tmp_path, arrays, straight, monkeypatch):
        with monkeypatch.context() as patched:
            validate = loop.validate

            def interrupted(*arguments):
                torch.rand(1)  # as a model might draw
                os.kill(os.getpid(), signal.SIGTERM)
                return validate(*arguments)

            patched.setattr(loop, "validate", interrupted)
            with pytest.raises(SystemExit):
                train(tmp_path, SPEC | {"seed": 4}, arrays)
        (state,) = files_in(tmp_path / "in_progress")
        assert state.startswith("epoch000000-step000000004.")

    def test_what_a_model_draws_in_validation_leaves_no_trace(self, arrays, monkeypatch):
        class Drawing(torch.nn.Module):
            def forward(self, images):
                return torch.rand(len(images), 2)

        validated = session.load_split(arrays, "valid", None)
        before = torch.get_rng_state()
        parts = dict.fromkeys(loop.Session.__dataclass_fields__)
        loop.validate(
            loop.Session(**parts | {
                "spec": session.SessionSpec(**SPEC), "valid": validated,
                "device": torch.device("cpu"), "stop_if_asked": lambda: None,
                "autocast": session.contextlib.nullcontext,
            }),
            Drawing(),
            1,
        )  # fmt: skip
        assert torch.equal(torch.get_rng_state(), before)

    def test_handlers_bear_a_second_delivery_and_are_put_back(self):
        before = [signal.getsignal(number) for number in progress.SIGNALS]
        with stop_on_signals() as stop_if_asked:
            stop_if_asked()
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGUSR1)
            for _ in range(2):
                with pytest.raises(progress.Interrupted, match="SIGUSR1"):
                    stop_if_asked()
        assert [signal.getsignal(number) for number in progress.SIGNALS] == before

    def test_a_later_session(self, tmp_path, arrays, monkeypatch):
        spec = SECOND | {"model": SPEC["model"]}
        outputs = []
        for name in ("straight", "interrupted"):
            first = train(tmp_path / name, SPEC, arrays)
            if name == "interrupted":
                with monkeypatch.context() as patched:
                    interrupted_at(patched, step=18)
                    with pytest.raises(SystemExit):
                        train(tmp_path / name, spec, arrays, previous=first)
            outputs.append(train(tmp_path / name, spec, arrays, previous=first))
        assert_same(outputs[1], outputs[0])

    def test_a_model_whose_modules_tell_their_version(self, tmp_path, arrays, monkeypatch):
        """MNASNet does not load a state dict without it."""
        spec = SPEC | {"model": "mnasnet0_5"}
        interrupted_at(monkeypatch, step=6)
        with pytest.raises(SystemExit):
            train(tmp_path, spec, arrays)
        assert_same(train(tmp_path, spec, arrays), train(tmp_path / "straight", spec, arrays))

    @pytest.mark.parametrize("fetch_seconds", [-1, 1000])
    def test_seconds_are_those_of_the_steps(self, tmp_path, arrays, monkeypatch, fetch_seconds):
        """By a clock that only training steps move."""
        clock = SimpleNamespace(now=0)
        monkeypatch.setattr(loop, "time", SimpleNamespace(perf_counter=lambda: clock.now))
        monkeypatch.setattr(loop, "FETCH_SECONDS", fetch_seconds)
        train_step = loop.train_step

        def ticking_step(*arguments):
            clock.now += 1
            return train_step(*arguments)

        save = Progress.save

        def slow_save(*arguments):
            clock.now += 100
            save(*arguments)

        monkeypatch.setattr(loop, "train_step", ticking_step)
        monkeypatch.setattr(Progress, "save", slow_save)
        with monkeypatch.context() as patched:
            interrupted_at(patched, step=6)
            with pytest.raises(SystemExit):
                train(tmp_path, SPEC, arrays, every={"steps": 3})
        output = train(tmp_path, SPEC, arrays, every={"steps": 3})
        epochs = [row for row in rows(output / "epochs.csv") if row["split"] == "train"]
        assert [float(row["seconds"]) for row in epochs] == [4, 4, 4]


class TestProgress:
    def state(self, step: int, epoch: int = 0) -> dict:
        return {"trained": {"position": {"session": 1, "epoch": epoch, "step": step}}, "step": step}

    def progress(self, folder: Path, every: dict | None = None) -> Progress:
        return Progress(folder, every or {"epochs": 1}, Position(1, 0, 0))

    def test_the_last_two_are_kept_each_named_by_its_checksum(self, tmp_path):
        kept = self.progress(tmp_path)
        (tmp_path / ".of-a-killed-one.tmp").touch()
        for step in (5, 10, 15):
            kept.save(self.state(step))
        assert [n.split(".")[0] for n in files_in(tmp_path)] == [
            "epoch000000-step000000010", "epoch000000-step000000015",
        ]  # fmt: skip
        for path in tmp_path.iterdir():
            assert hashlib.sha256(path.read_bytes()).hexdigest() == path.name.split(".")[1]
        assert self.progress(tmp_path).load()["step"] == 15

    def test_the_validated_epoch_is_later_than_its_last_step(self, tmp_path):
        kept = self.progress(tmp_path)
        kept.save(self.state(10, epoch=0))
        kept.save(self.state(10, epoch=1))
        assert self.progress(tmp_path).load()["trained"]["position"]["epoch"] == 1

    @pytest.mark.parametrize("damage", ["torn", "flipped", "empty"])
    def test_a_damaged_one_is_named_and_the_one_before_is_taken(self, tmp_path, caplog, damage):
        kept = self.progress(tmp_path)
        for step in (5, 10):
            kept.save(self.state(step))
        newest = sorted(tmp_path.iterdir())[-1]
        content = bytearray(newest.read_bytes())
        content[len(content) // 2] ^= 1
        newest.write_bytes({"torn": content[:-10], "flipped": content, "empty": b""}[damage])
        resumed = self.progress(tmp_path)
        assert resumed.load()["step"] == 5
        assert str(newest) in caplog.text
        resumed.save(self.state(10))
        assert self.progress(tmp_path).load()["step"] == 10
        assert len(files_in(tmp_path)) == 2

    def test_a_damaged_one_does_not_push_a_good_one_out(self, tmp_path):
        kept = self.progress(tmp_path)
        for step in (5, 10):
            kept.save(self.state(step))
        sorted(tmp_path.iterdir())[-1].write_bytes(b"")
        resumed = self.progress(tmp_path)
        resumed.load()
        resumed.save(self.state(7))
        assert [n.split(".")[0][-2:] for n in files_in(tmp_path)] == ["05", "07"]

    @pytest.mark.parametrize(
        ("every", "saved"),
        [
            ({"epochs": 1}, ["4/1", "8/2", "12/3"]),
            ({"epochs": 2}, ["8/2", "12/3"]),
            ({"steps": 3}, ["3/0", "6/1", "9/2", "12/2", "12/3"]),
            ({"epochs": 1, "steps": 3}, ["3/0", "4/1", "7/1", "8/2", "11/2", "12/3"]),
            ({"minutes": 60}, ["12/3"]),
            (
                {"minutes": 1e-9},
                "1/0 2/0 3/0 4/0 4/1 5/1 6/1 7/1 8/1 8/2 9/2 10/2 11/2 12/2 12/3".split(),
            ),
        ],
    )
    def test_when_it_is_saved(self, tmp_path, arrays, straight, monkeypatch, every, saved):
        seen = []
        save = Progress.save

        def noted(self, state):
            position = state["trained"]["position"]
            seen.append(f"{position['step']}/{position['epoch']}")
            save(self, state)

        monkeypatch.setattr(Progress, "save", noted)
        output = train(tmp_path, SPEC, arrays, every=every)
        assert seen == saved
        assert_same(output, straight)

    def test_minutes_count_from_the_last_state(self, tmp_path, monkeypatch):
        clock = SimpleNamespace(now=0.0)
        monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: clock.now))
        kept = self.progress(tmp_path, {"minutes": 2})
        due = []
        for step in range(1, 9):
            clock.now += 50
            if kept.is_due(Position(1, 0, step)):
                due.append(step)
                kept.save(self.state(step))
        assert due == [3, 6]

    def test_the_state_of_another_configuration_is_not_taken(self, tmp_path, arrays, monkeypatch):
        interrupted_at(monkeypatch, step=6)
        with pytest.raises(SystemExit):
            train(tmp_path, SPEC, arrays)
        other = SPEC | {"batch_size": 8}
        output = train(tmp_path, other, arrays)
        assert_same(output, train(tmp_path / "straight", other, arrays))
        # Of the session that ended, and of it the final state alone: such a file can be large.
        assert len(list((tmp_path / "in_progress").rglob("*.pt"))) == 1

    @pytest.mark.parametrize(
        ("what", "taken"),
        [("versions", False), ("device_type", False), ("precision", False), ("device", True)],
    )
    def test_the_state_that_something_else_made_is_not_taken(
        self, tmp_path, arrays, monkeypatch, caplog, what, taken
    ):
        caplog.set_level("INFO")
        with monkeypatch.context() as patched:
            interrupted_at(patched, step=6)
            with pytest.raises(SystemExit):
                train(tmp_path, SPEC, arrays)
        describe = session.describe
        monkeypatch.setattr(session, "describe", lambda *a: describe(*a) | {what: "another"})
        train(tmp_path, SPEC, arrays)
        assert ("going on after step 6" in caplog.text) is taken

    def test_it_is_there_until_the_next_session_begins(self, tmp_path, arrays, monkeypatch):
        """Snakemake deletes the outputs of a job that it has not recorded as done."""
        first = train(tmp_path, SPEC, arrays)
        content = {path.name: path.read_bytes() for path in first.iterdir()}
        for path in first.iterdir():
            path.unlink()
        with monkeypatch.context() as patched:
            patched.setattr(loop, "train_epoch", lambda *_: 1 / 0)
            train(tmp_path, SPEC, arrays)
        assert {path.name: path.read_bytes() for path in first.iterdir()} == content
        train(tmp_path, SECOND | {"model": SPEC["model"]}, arrays, previous=first)
        assert not list((tmp_path / "in_progress").glob("*/onecycle/seed3/session1/*"))


class TestInTheBackground:
    """As on a GPU, where training goes on while a state is written."""

    @pytest.fixture(autouse=True)
    def in_background(self, monkeypatch):
        def progress(*arguments, in_background):
            return Progress(*arguments, in_background=True)

        monkeypatch.setattr(session, "Progress", progress)

    def test_nothing_else_is_different(self, tmp_path, arrays, straight):
        assert_same(train(tmp_path, SPEC, arrays, every={"steps": 3}), straight)

    def test_it_goes_on_after_a_signal(self, tmp_path, arrays, straight, monkeypatch):
        interrupted_at(monkeypatch, step=6)
        with pytest.raises(SystemExit):
            train(tmp_path, SPEC, arrays)
        assert any(name.startswith("epoch000001-step000000006") for name in files_in(tmp_path))
        assert_same(train(tmp_path, SPEC, arrays), straight)

    def test_what_is_saved_is_the_state_when_it_was_saved(self, tmp_path):
        kept = Progress(tmp_path, {"epochs": 1}, Position(1, 0, 0), in_background=True)
        weights = torch.zeros(3)
        may_write = threading.Event()
        kept.writer.submit(may_write.wait)
        state = TestProgress().state(5) | {"weights": weights}
        kept.save(state)
        weights += 1
        state["trained"]["position"]["step"] = 6
        assert files_in(tmp_path) == []
        may_write.set()
        kept.finish()
        loaded = Progress(tmp_path, {"epochs": 1}, Position(1, 0, 0)).load()
        assert loaded["weights"].tolist() == [0, 0, 0]
        assert loaded["trained"]["position"]["step"] == 5

    def test_one_at_a_time(self, tmp_path, monkeypatch):
        kept = Progress(tmp_path, {"epochs": 1}, Position(1, 0, 0), in_background=True)
        for step in (5, 10):
            kept.save(TestProgress().state(step))
        assert any(name.startswith("epoch000000-step000000005") for name in files_in(tmp_path))

    def test_a_full_disk_is_told_of_by_the_next(self, tmp_path, monkeypatch):
        def full(*_):
            raise OSError(28, "No space left on device")

        kept = Progress(tmp_path, {"epochs": 1}, Position(1, 0, 0), in_background=True)
        monkeypatch.setattr(Progress, "_write", full)
        kept.save(TestProgress().state(5))
        with pytest.raises(OSError, match="No space"):
            kept.save(TestProgress().state(10))
        kept.finish()


def test_nobody_writes_beside_another(tmp_path, arrays, monkeypatch):
    monkeypatch.setattr(job, "LOCK_SECONDS", 0.1)
    lock = tmp_path / "in_progress/noise/onecycle/seed3/session1/lock"
    with job.hold_lock(lock), pytest.raises(job.InputError, match=f"{lock}: another process"):
        train(tmp_path, SPEC, arrays)
    assert files_in(tmp_path) == []


STRIKES = ["SIGKILL process", "ENOSPC", "EIO"]


def test_struck_at_every_operation(tmp_path, arrays, request):
    """At each write, fsync, rename and step: killed, or the disk is full, or fails.

    With --exhaustive each of these at each; otherwise they take turns.
    """
    straight = train(tmp_path / "straight", SHORT, arrays)
    operations = struck(tmp_path / "counted", arrays, STRIKES[0], at=0)
    assert operations >= 25
    exhaustive = request.config.getoption("--exhaustive")
    for at in range(1, operations + 1):
        for what in STRIKES if exhaustive else [STRIKES[at % len(STRIKES)]]:
            folder = tmp_path / f"{what}{at}"
            code = struck(folder, arrays, what, at)
            where = f"{what} at {(folder / 'fired').read_text()}"
            assert code == (-signal.SIGKILL if what.startswith("SIG") else 1), where
            for name in ("checkpoint.pt", "steps.csv"):  # what has its final name is whole
                path = folder / "session1" / name
                if path.exists():
                    assert path.read_bytes() == (straight / name).read_bytes(), where
            assert_same(train(folder, SHORT, arrays), straight)


def struck(folder: Path, arrays: Path, what: str, at: int) -> int:
    """Train in a process that is struck. Returns its exit code, or its operations if it was not."""
    child = os.fork()
    if child == 0:
        try:
            folder.mkdir()
            os.environ |= {
                "STRIKE": what, "STRIKE_IN": "", "STRIKE_WITHOUT": "tfevents",
                "STRIKE_AT": str(at), "STRIKE_FIRED": str(folder / "fired"),
            }  # fmt: skip
            import hook

            hook.in_the_stage = lambda: True
            hook.install()
            logging.disable()
            train(folder, SHORT, arrays)
            os._exit(hook.count)
        except OSError:
            os._exit(1)
        finally:
            os._exit(2)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
