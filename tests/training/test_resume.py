"""An interrupted session continues from its saved state and gives the same bits."""

import logging
import os
import shutil
import signal
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from conftest import file_sha256
from optstate import job
from optstate.checksums import verify
from optstate.job import InputError
from optstate.training import loop, measuring, session
from optstate.training.compute import Compute, set_up
from optstate.training.progress import EXIT_CODE, Interrupted, Progress
from sessions import (
    CURVES,
    FIRST,
    SECOND,
    flip_a_byte,
    list_files,
    load_checkpoint,
    progress_folder,
    read_made_by,
    read_points,
    read_rows,
    read_rows_without_seconds,
    train,
    write_arrays,
)

# A small model with dropout and batch norm, so that random states and buffers matter.
SPEC = replace(FIRST, model="mobilenet_v3_small")
SHORT = replace(SPEC, num_epochs=2)


@pytest.fixture(scope="module")
def arrays(tmp_path_factory):
    return write_arrays(tmp_path_factory.mktemp("data") / "arrays")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, arrays):
    """The folder of a session that was not interrupted."""
    return train(tmp_path_factory.mktemp("uninterrupted"), SPEC, arrays)


def assert_same(output: Path, expected: Path) -> None:
    """Check that all bytes are equal, except for seconds and for times in TensorBoard's files."""
    for name in ("checkpoint.pt", "steps.csv"):
        assert (output / name).read_bytes() == (expected / name).read_bytes(), name
    assert read_rows_without_seconds(output / "epochs.csv") == read_rows_without_seconds(
        expected / "epochs.csv"
    )
    verify(*(output / name for name in session.OUTPUTS))
    for tag in (
        "loss/train",
        "accuracy/train_top1",
        "schedule/lr",
        "schedule/momentum",
        "loss/valid",
        "accuracy/valid_top3",
    ):
        curves = output.parent / CURVES, expected.parent / CURVES
        assert read_points(curves[0], tag) == read_points(curves[1], tag), tag


def stop_before_a_step(_) -> None:
    raise Interrupted("SIGTERM")


def interrupt_at(monkeypatch, step: int, how=signal.SIGTERM) -> None:
    """Send this process a signal during one training step."""
    train_step = loop.train_step

    def send_signal(session_, *batch):
        if session_.state.position.step + 1 == step:
            monkeypatch.setattr(loop, "train_step", train_step)
            os.kill(os.getpid(), how)
        return train_step(session_, *batch)

    monkeypatch.setattr(loop, "train_step", send_signal)


class TestSignals:
    @pytest.mark.parametrize(
        ("step", "how"),
        [(1, signal.SIGTERM), (3, signal.SIGINT), (4, signal.SIGUSR1), (10, signal.SIGTERM)],
    )
    def test_the_current_step_is_finished_and_saved(
        self, tmp_path, arrays, uninterrupted, monkeypatch, caplog, step, how
    ):
        interrupt_at(monkeypatch, step, how)
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
            lambda s, *batch: steps.append(s.state.position.step) or train_step(s, *batch),
        )
        assert_same(train(tmp_path, SPEC, arrays), uninterrupted)
        assert steps == list(range(step, 12))

    @pytest.mark.parametrize("step", [1, 6])
    def test_given_weights_are_recorded_once(
        self, tmp_path, arrays, uninterrupted, monkeypatch, step
    ):
        weights = uninterrupted / "checkpoint.pt"
        spec = replace(SHORT, file_hashes={"weights": file_sha256(weights)})
        expected = train(tmp_path / "uninterrupted", spec, arrays, weights=weights)
        interrupt_at(monkeypatch, step)
        with pytest.raises(SystemExit):
            train(tmp_path / "interrupted", spec, arrays, weights=weights)
        output = train(tmp_path / "interrupted", spec, arrays, weights=weights)
        assert_same(output, expected)
        epochs = [row["epoch"] for row in read_rows(output / "epochs.csv")]
        assert epochs == ["0", "1", "1", "2", "2"]

    def test_an_interruption_in_every_step_changes_no_result(
        self, tmp_path, arrays, uninterrupted, monkeypatch
    ):
        def add_interruption(function):
            def interrupt(*arguments):
                os.kill(os.getpid(), signal.SIGTERM)
                return function(*arguments)

            return interrupt

        monkeypatch.setattr(loop, "train_step", add_interruption(loop.train_step))
        interruptions = 0
        while True:
            try:
                output = train(tmp_path, SPEC, arrays)
                break
            except SystemExit:
                interruptions += 1
        assert interruptions == 12
        assert_same(output, uninterrupted)

    def test_an_interrupted_validation_is_repeated(
        self, tmp_path, arrays, uninterrupted, monkeypatch
    ):
        with monkeypatch.context() as patched:
            validate = loop.validate

            def interrupt(*arguments):
                os.kill(os.getpid(), signal.SIGTERM)
                return validate(*arguments)

            patched.setattr(loop, "validate", interrupt)
            with pytest.raises(SystemExit):
                train(tmp_path, SPEC, arrays)
        (state,) = list_files(tmp_path / "in_progress")
        assert state.startswith("epoch000000-step000000004.")
        assert_same(train(tmp_path, SPEC, arrays), uninterrupted)

    def test_an_interruption_with_reestimated_statistics_changes_no_result(
        self, tmp_path, arrays, uninterrupted, monkeypatch
    ):
        """The saved model must not have the statistics that were only estimated once more."""
        with monkeypatch.context() as patched:
            reestimate = loop.reestimate_statistics

            def interrupt(*arguments):
                reestimate(*arguments)
                os.kill(os.getpid(), signal.SIGTERM)

            patched.setattr(loop, "reestimate_statistics", interrupt)
            with pytest.raises(SystemExit):
                train(tmp_path, SPEC, arrays)
        assert_same(train(tmp_path, SPEC, arrays), uninterrupted)

    def test_validation_restores_the_random_state(self, tmp_path, arrays):
        class Drawing(torch.nn.Module):
            def forward(self, images):
                return torch.rand(len(images), 2)

        paths = session.Paths(arrays, tmp_path / "output", tmp_path / "in_progress")
        with session.open_session(SPEC, paths, set_up(SPEC), {}, lambda: None) as session_:
            session_.state.model = Drawing()
            before = torch.get_rng_state()
            loop.validate(session_)
            assert torch.equal(torch.get_rng_state(), before)

    def test_a_later_session_continues(self, tmp_path, arrays, monkeypatch):
        spec = replace(SECOND, model=SPEC.model)
        outputs = []
        for name in ("uninterrupted", "interrupted"):
            first = train(tmp_path / name, SPEC, arrays)
            if name == "interrupted":
                with monkeypatch.context() as patched:
                    interrupt_at(patched, step=18)
                    with pytest.raises(SystemExit):
                        train(tmp_path / name, spec, arrays, previous=first)
            outputs.append(train(tmp_path / name, spec, arrays, previous=first))
        assert_same(outputs[1], outputs[0])

    def test_versions_of_modules_are_saved(self, tmp_path, arrays, monkeypatch):
        """MNASNet does not load a state dict without these versions."""
        spec = replace(SPEC, model="mnasnet0_5")
        interrupt_at(monkeypatch, step=6)
        with pytest.raises(SystemExit):
            train(tmp_path, spec, arrays)
        assert_same(train(tmp_path, spec, arrays), train(tmp_path / "uninterrupted", spec, arrays))

    @pytest.mark.parametrize("fetch_seconds", [-1, 1000])
    def test_seconds_count_steps_only(self, tmp_path, arrays, monkeypatch, fetch_seconds):
        """A step advances the fake clock by 1 s, and saving a state by 100 s."""
        clock = SimpleNamespace(now=0)
        monkeypatch.setattr(measuring, "time", SimpleNamespace(perf_counter=lambda: clock.now))
        monkeypatch.setattr(measuring, "FETCH_SECONDS", fetch_seconds)
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
            interrupt_at(patched, step=6)
            with pytest.raises(SystemExit):
                train(tmp_path, SPEC, arrays, every={"steps": 3})
        output = train(tmp_path, SPEC, arrays, every={"steps": 3})
        epochs = [row for row in read_rows(output / "epochs.csv") if row["split"] == "train"]
        assert [float(row["seconds"]) for row in epochs] == [4, 4, 4]


class TestProgress:
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
    def test_states_are_saved_as_configured(
        self, tmp_path, arrays, uninterrupted, monkeypatch, every, saved
    ):
        seen = []
        save = Progress.save

        def record_save(self, state):
            position = state["training"]["position"]
            seen.append(f"{position['step']}/{position['epoch']}")
            save(self, state)

        monkeypatch.setattr(Progress, "save", record_save)
        output = train(tmp_path, SPEC, arrays, every=every)
        assert seen == saved
        assert_same(output, uninterrupted)

    def test_the_state_of_another_configuration_is_not_loaded(self, tmp_path, arrays, monkeypatch):
        interrupt_at(monkeypatch, step=6)
        with pytest.raises(SystemExit):
            train(tmp_path, SPEC, arrays)
        other = replace(SPEC, batch_size=8)
        output = train(tmp_path, other, arrays)
        assert_same(output, train(tmp_path / "uninterrupted", other, arrays))
        # Only the final state is kept, since these files can be large, and that of the other
        # configuration, which may come back.
        counts = Counter(path.parent for path in (tmp_path / "in_progress").rglob("*.pt"))
        assert sorted(counts.values()) == [1, 2]

    def test_arrays_that_change_while_a_session_trains_are_refused(
        self, tmp_path, arrays, monkeypatch
    ):
        copied = shutil.copytree(arrays, tmp_path / "arrays")
        finish_epoch = loop.finish_epoch

        def alter_then_finish(*arguments):
            flip_a_byte(copied / "train_images.npy")
            finish_epoch(*arguments)

        monkeypatch.setattr(loop, "finish_epoch", alter_then_finish)
        with pytest.raises(InputError, match=r"train_images.npy: changed since it was made"):
            train(tmp_path, SPEC, copied)
        assert not list(tmp_path.rglob("*.pt"))

    @pytest.mark.parametrize(
        ("what", "is_loaded"),
        [
            ("versions", False),
            ("device_type", False),
            ("precision", False),
            ("dataset_sha256", False),
            ("device", True),
            ("compute", True),
        ],
    )
    def test_a_state_from_another_environment_is_not_loaded(
        self, tmp_path, arrays, monkeypatch, caplog, what, is_loaded
    ):
        caplog.set_level("INFO")
        with monkeypatch.context() as patched:
            interrupt_at(patched, step=6)
            with pytest.raises(SystemExit):
                train(tmp_path, SPEC, arrays)
        describe = session.describe
        monkeypatch.setattr(session, "describe", lambda *a: describe(*a) | {what: "another"})
        train(tmp_path, SPEC, arrays)
        assert ("continuing after step 6" in caplog.text) is is_loaded

    def test_each_kind_of_processor_that_took_part_is_recorded(
        self, tmp_path, arrays, uninterrupted, monkeypatch
    ):
        """A job that is stopped before its first step takes no part."""
        here = Compute.describe_kind
        kinds = [here(set_up(SPEC)) | {"name": name} for name in "abc"]
        for kind, step in zip(kinds, (6, None, 9), strict=True):
            with monkeypatch.context() as patched:
                patched.setattr(Compute, "describe_kind", lambda _, kind=kind: kind)
                if step:
                    interrupt_at(patched, step)
                else:
                    patched.setattr(loop, "train_epoch", stop_before_a_step)
                with pytest.raises(SystemExit):
                    train(tmp_path, SPEC, arrays)
        monkeypatch.setattr(Compute, "describe_kind", lambda _: kinds[0])
        output = train(tmp_path, SPEC, arrays)
        assert read_made_by(output)["compute"] == [kinds[0], kinds[2]]
        assert load_checkpoint(output)["meta"] == read_made_by(output)
        assert read_made_by(uninterrupted)["compute"] == [here(set_up(SPEC))]
        assert (output / "steps.csv").read_bytes() == (uninterrupted / "steps.csv").read_bytes()

    def test_writing_the_outputs_again_elsewhere_changes_nothing(
        self, tmp_path, arrays, monkeypatch
    ):
        first = train(tmp_path, SPEC, arrays)
        content = {path.name: path.read_bytes() for path in first.iterdir()}
        kind = {"name": "another", "capability": "", "variables": {}}
        monkeypatch.setattr(Compute, "describe_kind", lambda _: kind)
        train(tmp_path, SPEC, arrays)
        assert {path.name: path.read_bytes() for path in first.iterdir()} == content

    def test_the_final_state_stays_until_the_next_session(self, tmp_path, arrays, monkeypatch):
        """It restores the outputs if Snakemake, killed before it recorded the job, deletes them."""
        first = train(tmp_path, SPEC, arrays)
        content = {path.name: path.read_bytes() for path in first.iterdir()}
        for path in first.iterdir():
            path.unlink()
        with monkeypatch.context() as patched:
            patched.setattr(loop, "train_epoch", lambda *_: 1 / 0)
            train(tmp_path, SPEC, arrays)
        assert {path.name: path.read_bytes() for path in first.iterdir()} == content
        train(tmp_path, replace(SECOND, model=SPEC.model), arrays, previous=first)
        assert not progress_folder(tmp_path, 1).exists()
        assert list_files(progress_folder(tmp_path, 2))


class TestInTheBackground:
    """As on a GPU, where training continues while a state is written."""

    @pytest.fixture(autouse=True)
    def in_background(self, monkeypatch):
        def open_progress(*arguments, in_background):
            return Progress(*arguments, in_background=True)

        monkeypatch.setattr(session, "Progress", open_progress)

    def test_results_are_the_same(self, tmp_path, arrays, uninterrupted):
        assert_same(train(tmp_path, SPEC, arrays, every={"steps": 3}), uninterrupted)

    def test_a_session_continues_after_a_signal(self, tmp_path, arrays, uninterrupted, monkeypatch):
        interrupt_at(monkeypatch, step=6)
        with pytest.raises(SystemExit):
            train(tmp_path, SPEC, arrays)
        assert any(name.startswith("epoch000001-step000000006") for name in list_files(tmp_path))
        assert_same(train(tmp_path, SPEC, arrays), uninterrupted)


def test_two_jobs_do_not_write_to_one_folder(tmp_path, arrays, monkeypatch):
    monkeypatch.setattr(job, "LOCK_SECONDS", 0.1)
    lock = progress_folder(tmp_path, 1) / "lock"
    with job.hold_lock(lock), pytest.raises(job.InputError, match=f"{lock}: another process"):
        train(tmp_path, SPEC, arrays)
    assert list_files(tmp_path) == []


STRIKES = ["SIGKILL process", "ENOSPC", "EIO"]


def test_a_strike_at_any_operation_changes_no_result(tmp_path, arrays, request):
    """Kill the process, or let the disk be full or fail, at each write, fsync, rename and step.

    With --exhaustive, each operation gets all three kinds of strike. Otherwise they take turns.
    """
    uninterrupted = train(tmp_path / "uninterrupted", SHORT, arrays)
    operations = train_and_strike(tmp_path / "counted", arrays, STRIKES[0], at=0)
    assert operations >= 25
    exhaustive = request.config.getoption("--exhaustive")
    for at in range(1, operations + 1):
        for what in STRIKES if exhaustive else [STRIKES[at % len(STRIKES)]]:
            folder = tmp_path / f"{what}{at}"
            code = train_and_strike(folder, arrays, what, at)
            where = f"{what} at {(folder / 'fired').read_text()}"
            assert code == (-signal.SIGKILL if what.startswith("SIG") else 1), where
            for name in ("checkpoint.pt", "steps.csv"):  # a file with its final name is complete
                path = folder / "session1" / name
                if path.exists():
                    assert path.read_bytes() == (uninterrupted / name).read_bytes(), where
            assert_same(train(folder, SHORT, arrays), uninterrupted)


def train_and_strike(folder: Path, arrays: Path, what: str, at: int) -> int:
    """Train in another process, and strike at one operation.

    Returns the exit code. With ``at`` 0 there is no strike, and it is the number of operations.
    """
    child = os.fork()
    if child == 0:
        try:
            folder.mkdir()
            os.environ |= {
                "STRIKE": what, "STRIKE_IN": "", "STRIKE_WITHOUT": "tfevents",
                "STRIKE_AT": str(at), "STRIKE_FIRED": str(folder / "fired"),
            }  # fmt: skip
            import hook

            hook.is_in_stage = lambda: True
            hook.install()
            logging.disable()
            train(folder, SHORT, arrays)
            os._exit(hook.count)
        except OSError:
            os._exit(1)
        finally:
            os._exit(2)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
