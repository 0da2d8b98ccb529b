"""Run the commands of the stages without Snakemake, for machines that do not have it."""

import os
import subprocess
import sys
import time
from collections.abc import Mapping

from optstate.job import InputError

SAVE_SECONDS = 60  # a command that takes longer to save its state and end is killed


class OutOfTimeError(Exception):
    """The time limit has passed. Finished work stays, and the next call continues."""


def run_module(module: str, options: Mapping[str, object], deadline: float) -> None:
    """Run a module with options, and stop it with SIGTERM at the ``deadline``.

    Args:
        options: a value for each option. The values of a list are passed as several arguments.
        deadline: a time of ``time.monotonic()``.

    Raises:
        InputError: the command failed. It has printed its error.
        OutOfTimeError: the deadline passed before the command ended.
    """
    command = [sys.executable, "-m", module]
    for option, value in options.items():
        command += [option, *map(str, value if isinstance(value, list) else [value])]
    seconds = deadline - time.monotonic()
    if seconds <= 0:
        raise OutOfTimeError
    environment = os.environ | {"OPTSTATE_PARENT": str(os.getpid())}
    with subprocess.Popen(command, env=environment) as process:
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            stop(process)
            raise OutOfTimeError from None
    if process.returncode:
        raise InputError(f"{module} failed. Its log is {options['--log']}.")


def stop(process: subprocess.Popen) -> None:
    """End a process, and give it time to save its state."""
    process.terminate()
    try:
        process.wait(SAVE_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
