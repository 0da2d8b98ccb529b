"""Features that all jobs share: atomic outputs, locks, and their end with their parent."""

import argparse
import errno
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from conftest import ROOT
from optstate import job
from optstate.experiment import lock
from optstate.job import InputError, hold_lock, write_atomically


def start_python(code: str, **options) -> subprocess.Popen:
    """Run ``code`` in another process, which can import the package."""
    return subprocess.Popen(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": str(ROOT / "workflow/scripts")},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options,
    )  # fmt: skip


@pytest.fixture
def holder(tmp_path):
    """A process that holds the lock file ``lock``."""
    code = f"""
import pathlib, time
from optstate.job import hold_lock
with hold_lock(pathlib.Path({str(tmp_path / "lock")!r})):
    print("held", flush=True)
    time.sleep(600)
"""
    with start_python(code) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


class TestHoldLock:
    def test_a_file_system_without_locks_is_named(self, tmp_path, monkeypatch):
        def refuse(*_: object) -> None:
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

        monkeypatch.setattr(job.fcntl, "flock", refuse)
        with pytest.raises(OSError, match="No locks") as caught, hold_lock(tmp_path / "lock"):
            pass
        words = job.explain_os_error(caught.value)
        assert words.startswith(f"{tmp_path / 'lock'}: ")
        assert words.endswith("put the folder on another one.")

    def test_a_second_holder_is_refused(self, tmp_path, holder, monkeypatch, caplog):
        monkeypatch.setattr(job, "LOCK_SECONDS", 0.2)
        with (
            pytest.raises(InputError, match="has held this lock .*fuser"),
            hold_lock(tmp_path / "lock"),
        ):
            pass
        assert "waiting for it to end" in caplog.text

    def test_a_second_holder_waits_for_the_end_of_the_first(self, tmp_path, holder):
        events = []

        def kill() -> None:
            events.append("killed")
            holder.kill()

        threading.Timer(0.5, kill).start()
        with hold_lock(tmp_path / "lock"):
            assert events == ["killed"]

    def test_a_released_lock_leaves_no_file(self, tmp_path):
        for _ in range(2):
            with hold_lock(tmp_path / "lock"):
                pass
        assert list(tmp_path.iterdir()) == []

    def test_only_one_process_holds_the_lock(self, tmp_path):
        """This also holds when the lock file is removed while others wait for it."""
        code = f"""
import pathlib, time
from optstate.job import hold_lock
for _ in range(20):
    with hold_lock(pathlib.Path({str(tmp_path / "lock")!r})):
        inside = pathlib.Path({str(tmp_path / "inside")!r})
        inside.touch(exist_ok=False)
        time.sleep(0.002)
        inside.unlink()
"""
        processes = [start_python(code) for _ in range(4)]
        assert [(p.communicate()[1].count("Error"), p.returncode) for p in processes] == [
            (0, 0)
        ] * 4


class TestLock:
    def test_an_experiment_accepts_one_snakemake_at_a_time(self, tmp_path):
        results = tmp_path / "results"
        code = f"""
import pathlib
from optstate.experiment import lock
lock.claim(pathlib.Path({str(results)!r}))
"""
        with lock.claim(results), start_python(code) as second:
            assert "another Snakemake is running on" in second.communicate()[1]
        with start_python(code) as third:
            assert third.wait() == 0

    def test_a_lock_that_no_process_holds_is_left_over(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        results = Path("results")
        assert not lock.is_lock_left(results)
        (tmp_path / ".snakemake/locks").mkdir(parents=True)
        (tmp_path / ".snakemake/locks/0.output.lock").touch()
        assert lock.is_lock_left(results)
        with lock.claim(results / "tiny"):
            assert not lock.is_lock_left(results)
        assert lock.is_lock_left(results)


def has_ended(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().split()[2] == "Z"
    except OSError:
        return True


def test_ctrl_c_ends_in_one_line(tmp_path):
    def interrupt(_: argparse.Namespace) -> None:
        # Set the handler of a process in a terminal: background processes of a shell ignore SIGINT.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(SystemExit) as exit_:
        job.run(argparse.ArgumentParser(), interrupt, ["--log", str(tmp_path / "log")])
    assert exit_.value.code == 130
    assert "interrupted: SIGINT: run again to continue" in (tmp_path / "log").read_text()


@pytest.mark.parametrize("in_job", [False, True])
def test_ctrl_c_during_the_imports_of_a_job_needs_no_traceback(in_job, monkeypatch):
    code = "import signal, optstate; print(signal.getsignal(signal.SIGINT) is signal.SIG_DFL)"
    if in_job:
        monkeypatch.setenv("OPTSTATE_PARENT", str(os.getpid()))
    with start_python(code) as process:
        assert process.communicate()[0].strip() == str(in_job)


def test_a_job_whose_terminal_was_closed_succeeds(tmp_path):
    code = f"""
import argparse, logging
from optstate import job
def main(_):
    logging.log(job.PROGRESS, "some progress")
job.run(argparse.ArgumentParser(), main, ["--log", {str(tmp_path / "log")!r}])
job.exit_without_cleanup()
"""
    terminal, stdout = os.openpty()
    os.close(terminal)
    scripts = str(ROOT / "workflow/scripts")
    environment = os.environ | {"PYTHONPATH": scripts, "PYTHONUNBUFFERED": ""}  # the default
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, stdout=stdout, stderr=subprocess.PIPE)
    os.close(stdout)
    assert (done.returncode, done.stderr) == (0, b"")


class TestParent:
    def make_job(self, parent: str) -> str:
        return f"""
import os, signal, time
from optstate.job import end_with_parent
end_with_parent(signal.SIGTERM, {parent})
print(os.getpid(), flush=True)
time.sleep(600)
"""

    def test_a_job_ends_with_its_parent(self):
        code = f"""
import subprocess, sys, time
subprocess.Popen([sys.executable, "-c", {self.make_job("os.getppid()")!r}])
time.sleep(600)
"""
        with start_python(code) as parent:
            child = int(parent.stdout.readline())
            assert Path(f"/proc/{child}").exists()
            parent.kill()
            parent.wait()
            end = time.monotonic() + 20
            while not has_ended(child) and time.monotonic() < end:
                time.sleep(0.05)
            assert has_ended(child)

    def test_a_job_without_its_parent_ends_at_once(self):
        with start_python(self.make_job("1")) as child:
            assert child.wait() == -signal.SIGTERM


class TestWriteAtomically:
    def test_a_reader_sees_the_old_or_the_new_content(self, tmp_path):
        path, size = tmp_path / "file", 1_000_000
        path.write_bytes(b"0" * size)
        seen, done = [], threading.Event()

        def read() -> None:
            while not done.is_set():
                try:
                    content = path.read_bytes()
                    seen.append((len(content), len(set(content))))
                except OSError as error:
                    seen.append(error)

        reader = threading.Thread(target=read)
        reader.start()
        for number in range(1, 100):
            with write_atomically(path) as temporary:
                temporary.write_bytes(b"%d" % (number % 10) * size)
        done.set()
        reader.join()
        assert len(seen) > 10
        assert set(seen) == {(size, 1)}

    def test_a_file_is_synced_before_it_is_renamed(self, tmp_path, monkeypatch):
        calls = []
        fsync, replace = os.fsync, os.replace

        def record_fsync(descriptor: int) -> None:
            calls.append(f"fsync {Path(f'/proc/self/fd/{descriptor}').readlink().name}")
            fsync(descriptor)

        def record_replace(source: Path, target: Path) -> None:
            calls.append(f"rename to {target.name}")
            replace(source, target)

        monkeypatch.setattr(os, "fsync", record_fsync)
        monkeypatch.setattr(os, "replace", record_replace)
        with write_atomically(tmp_path / "file") as temporary:
            temporary.write_text("content")
        assert calls == ["fsync .file.tmp", "rename to file", f"fsync {tmp_path.name}"]
