"""Run Snakemake in copies of a process that has imported it. A dry run takes half of the time."""

import atexit
import multiprocessing
import os
import subprocess
import sys
import tempfile
from pathlib import Path

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["snakemake.cli"])


def run_snakemake(arguments: list[str], folder: Path) -> subprocess.CompletedProcess:
    """Run Snakemake in ``folder``, as a command would."""
    with tempfile.TemporaryDirectory() as temporary:
        printed = [Path(temporary, name) for name in ("stdout", "stderr")]
        process = CONTEXT.Process(target=_main, args=(arguments, folder, printed, dict(os.environ)))
        process.start()
        process.join()
        texts = [path.read_text() for path in printed]
        return subprocess.CompletedProcess(arguments, process.exitcode, *texts)


def _main(arguments: list[str], folder: Path, printed: list[Path], environment: dict) -> None:
    from snakemake.cli import main  # not in the process that only starts others

    for number, path in enumerate(printed, start=1):
        os.dup2(os.open(path, os.O_CREAT | os.O_WRONLY), number)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["snakemake", *arguments]
    try:
        main()
    finally:
        atexit._run_exitfuncs()  # multiprocessing leaves them out
