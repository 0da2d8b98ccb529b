"""Counts a job's operations (training steps; writes, fsyncs, renames) and strikes at one of them.

Told by the environment, so that it reaches the jobs through Snakemake:

- ``STRIKE_IN``: the stage; ``STRIKE_WITHOUT``: what is in the names of files to leave alone;
  ``STRIKE_AT``: which operation of its processes, from 1; ``STRIKE_FIRED``: a file that says that
  one process has been struck, so that no other will;
- ``STRIKE``: ``ENOSPC`` or ``EIO`` (the operation fails so), or a signal and whom it is sent to,
  as in ``SIGKILL group``. A write is torn: half of it is done before;
- ``STEP_JOURNAL``: a file that gets a line for every training step.
"""

import builtins
import errno
import importlib.abc
import importlib.util
import io
import os
import signal
import sys
import time
from pathlib import Path
from types import ModuleType

count = 0
unwatched = [".log", os.environ["STRIKE_WITHOUT"]]


def operation(name: str, path: object = "") -> None:
    """Count an operation, and strike if it is the one."""
    if is_the_one(name, path):
        strike(path)


def is_the_one(name: str, path: object) -> bool:
    """Count an operation; whether it is the one to strike at, and no other process has struck."""
    global count
    count += 1
    if count != int(os.environ["STRIKE_AT"]) or not in_the_stage():
        return False
    try:
        with real_open(os.environ["STRIKE_FIRED"], "x") as file:
            file.write(f"{name} {path}")
    except FileExistsError:
        return False
    return True


def in_the_stage() -> bool:
    """Whether this process is a job of the stage to strike at."""
    return any(f".{os.environ['STRIKE_IN']}." in argument for argument in sys.orig_argv)


def strike(path: object) -> None:
    """Let the operation fail, or send the signal."""
    what, _, whom = os.environ["STRIKE"].partition(" ")
    if not whom:
        number = getattr(errno, what)
        raise OSError(number, os.strerror(number), str(path))
    if whom == "group":
        os.killpg(0, signal.Signals[what])
    else:
        os.kill(os.getpid() if whom == "process" else os.getppid(), signal.Signals[what])
    time.sleep(0.2)  # a signal to another process takes its time


real_open, real_fsync, real_replace = io.open, os.fsync, os.replace


def striking_open(path, mode="r", *args, **kwargs):
    file = real_open(path, mode, *args, **kwargs)
    if not set("wax+") & set(mode) or any(name in str(path) for name in unwatched):
        return file
    write = file.write

    def striking_write(content):
        if not is_the_one("write", path):
            return write(content)
        half = len(content) // 2
        write(content[:half])
        file.flush()
        strike(path)
        write(content[half:])
        return len(content)

    file.write = striking_write
    return file


def striking_fsync(descriptor):
    operation("fsync", Path(f"/proc/self/fd/{descriptor}").readlink())
    real_fsync(descriptor)


def striking_replace(source, target, **kwargs):
    operation("rename", target)
    real_replace(source, target, **kwargs)


def record_steps(loop: ModuleType) -> None:
    """Let every training step write a line and be an operation."""
    train_step = loop.train_step

    def recorded_step(session, trained, epoch, *batch):
        spec = session.spec
        operation("step", f"{trained.position.step + 1}")
        if journal := os.environ.get("STEP_JOURNAL"):
            with real_open(journal, "a") as file:
                run = f"{spec.dataset}/{spec.method}/seed{spec.seed}"
                file.write(f"{run} {epoch} {trained.position.step + 1}\n")
        return train_step(session, trained, epoch, *batch)

    loop.train_step = recorded_step


class AfterImport(importlib.abc.MetaPathFinder):
    """Calls :func:`record_steps` with the module of the training loop, once it is imported."""

    def find_spec(self, name, path=None, target=None):
        if name != "optstate.training.loop":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        execute = spec.loader.exec_module

        def execute_and_patch(module):
            execute(module)
            record_steps(module)

        spec.loader.exec_module = execute_and_patch
        return spec


def install() -> None:
    """Watch this process."""
    builtins.open = io.open = striking_open
    os.fsync, os.replace = striking_fsync, striking_replace
    if loop := sys.modules.get("optstate.training.loop"):
        record_steps(loop)
    else:
        sys.meta_path.insert(0, AfterImport())
