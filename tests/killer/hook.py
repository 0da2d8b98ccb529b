"""Count a job's operations (training steps, writes, fsyncs, renames) and strike at one of them.

Environment variables, which Snakemake passes to its jobs, control the hook:

- ``STRIKE_IN``: the stage to strike in;
- ``STRIKE_WITHOUT``: operations on files with this text in their names do not count;
- ``STRIKE_AT``: number of the operation to strike at, counted from 1 in each process;
- ``STRIKE_FIRED``: a file that the first struck process writes, so that no other one is struck;
- ``STRIKE``: ``ENOSPC`` or ``EIO``, the error of the operation, or a signal and its receiver, for
  example ``SIGKILL group``. A write is struck after half of its content;
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


def count_operation(name: str, path: object = "") -> None:
    """Count an operation, and strike if it is the one to strike at."""
    if is_next(name, path):
        strike(path)


def is_next(name: str, path: object) -> bool:
    """Count an operation. Returns whether to strike at it, which at most one process does."""
    global count
    count += 1
    if count != int(os.environ["STRIKE_AT"]) or not is_in_stage():
        return False
    try:
        with real_open(os.environ["STRIKE_FIRED"], "x") as file:
            file.write(f"{name} {path}")
    except FileExistsError:
        return False
    return True


def is_in_stage() -> bool:
    """Return whether this process is a job of the stage to strike in."""
    return any(f".{os.environ['STRIKE_IN']}." in argument for argument in sys.orig_argv)


def strike(path: object) -> None:
    """Raise the error of the operation, or send the signal."""
    what, _, receiver = os.environ["STRIKE"].partition(" ")
    if not receiver:
        number = getattr(errno, what)
        raise OSError(number, os.strerror(number), str(path))
    if receiver == "group":
        os.killpg(0, signal.Signals[what])
    else:
        os.kill(os.getpid() if receiver == "process" else os.getppid(), signal.Signals[what])
    time.sleep(0.2)  # until a signal to another process arrives


real_open, real_fsync, real_replace = io.open, os.fsync, os.replace


def striking_open(path, mode="r", *args, **kwargs):
    file = real_open(path, mode, *args, **kwargs)
    if not set("wax+") & set(mode) or any(name in str(path) for name in unwatched):
        return file
    write = file.write

    def striking_write(content):
        if not is_next("write", path):
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
    count_operation("fsync", Path(f"/proc/self/fd/{descriptor}").readlink())
    real_fsync(descriptor)


def striking_replace(source, target, **kwargs):
    count_operation("rename", target)
    real_replace(source, target, **kwargs)


def record_steps(loop: ModuleType) -> None:
    """Make every training step count as an operation, and write it to the journal."""
    train_step = loop.train_step

    def recorded_step(session, *batch):
        spec, step = session.spec, session.state.position.step + 1
        count_operation("step", f"{step}")
        if journal := os.environ.get("STEP_JOURNAL"):
            with real_open(journal, "a") as file:
                run = f"{spec.dataset}/{spec.method}/seed{spec.seed}"
                file.write(f"{run} {session.epoch} {step}\n")
        return train_step(session, *batch)

    loop.train_step = recorded_step


class AfterImport(importlib.abc.MetaPathFinder):
    """Calls :func:`record_steps` after the module of the training loop is imported."""

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
    """Count the operations of this process from now on."""
    builtins.open = io.open = striking_open
    os.fsync, os.replace = striking_fsync, striking_replace
    if loop := sys.modules.get("optstate.training.loop"):
        record_steps(loop)
    else:
        sys.meta_path.insert(0, AfterImport())
