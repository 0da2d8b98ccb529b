"""What every job shares: outputs that are whole or not there, locks, and the end of its parent."""

import argparse
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


def python(code: str, **options) -> subprocess.Popen:
    """Run ``code`` in a process of its own, with the package at hand."""
    return subprocess.Popen(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": str(ROOT / "workflow/scripts")},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options,
    )  # fmt: skip


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock file ``lock``."""
    code = f"""
import pathlib, time
from optstate.job import hold_lock
with hold_lock(pathlib.Path({str(tmp_path / "lock")!r})):
    print("held", flush=True)
    time.sleep(600)
"""
    with python(code) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


class TestHoldLock:
    def test_a_second_is_refused(self, tmp_path, holder, monkeypatch, caplog):
        monkeypatch.setattr(job, "LOCK_SECONDS", 0.2)
        with (
            pytest.raises(InputError, match="has held this lock .*fuser"),
            hold_lock(tmp_path / "lock"),
        ):
            pass
        assert "waiting for it to end" in caplog.text

    def test_a_second_waits_for_one_that_ends(self, tmp_path, holder):
        threading.Timer(0.5, holder.kill).start()
        with hold_lock(tmp_path / "lock"):
            assert holder.wait() == -signal.SIGKILL

    def test_it_is_free_again_afterwards(self, tmp_path):
        for _ in range(2):
            with hold_lock(tmp_path / "lock"):
                pass
        assert list(tmp_path.iterdir()) == []

    def test_never_two_at_once(self, tmp_path):
        """Also when the lock file is removed while others wait for it."""
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
        processes = [python(code) for _ in range(4)]
        assert [(p.communicate()[1].count("Error"), p.returncode) for p in processes] == [
            (0, 0)
        ] * 4


class TestLock:
    def test_one_snakemake_in_an_experiment(self, tmp_path):
        results = tmp_path / "results"
        code = f"""
import pathlib
from optstate.experiment import lock
lock.claim(pathlib.Path({str(results)!r}))
"""
        with lock.claim(results), python(code) as second:
            assert "another Snakemake is running on" in second.communicate()[1]
        with python(code) as third:
            assert third.wait() == 0

    def test_a_left_lock_is_one_that_nobody_holds(self, tmp_path, monkeypatch):
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


def test_ctrl_c_is_one_line(tmp_path):
    def interrupted(_: argparse.Namespace) -> None:
        # As in a terminal: a shell lets what it starts in the background ignore SIGINT.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(SystemExit) as exit_:
        job.run(argparse.ArgumentParser(), interrupted, ["--log", str(tmp_path / "log")])
    assert exit_.value.code == 130
    assert "interrupted: SIGINT: run again to continue" in (tmp_path / "log").read_text()


class TestParent:
    def job(self, parent: str) -> str:
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
subprocess.Popen([sys.executable, "-c", {self.job("os.getppid()")!r}])
time.sleep(600)
"""
        with python(code) as parent:
            child = int(parent.stdout.readline())
            assert Path(f"/proc/{child}").exists()
            parent.kill()
            parent.wait()
            end = time.monotonic() + 20
            while not has_ended(child) and time.monotonic() < end:
                time.sleep(0.05)
            assert has_ended(child)

    def test_nor_does_it_begin_without_it(self):
        with python(self.job("1")) as child:
            assert child.wait() == -signal.SIGTERM


class TestWriteAtomically:
    def test_a_reader_sees_the_old_or_the_new(self, tmp_path):
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

    def test_it_is_on_disk_before_it_has_its_name(self, tmp_path, monkeypatch):
        done = []
        fsync, replace = os.fsync, os.replace

        def noted_fsync(descriptor: int) -> None:
            done.append(f"fsync {Path(f'/proc/self/fd/{descriptor}').readlink().name}")
            fsync(descriptor)

        def noted_replace(source: Path, target: Path) -> None:
            done.append(f"rename to {target.name}")
            replace(source, target)

        monkeypatch.setattr(os, "fsync", noted_fsync)
        monkeypatch.setattr(os, "replace", noted_replace)
        with write_atomically(tmp_path / "file") as temporary:
            temporary.write_text("content")
        assert done == ["fsync .file.tmp", "rename to file", f"fsync {tmp_path.name}"]
