"""Snakemake parses and lints the workflow, draws its graph and plans its jobs by itself.

It needs no other package for that. A host without torch can therefore submit the jobs. With
``--sdm conda``, the jobs' environment need not exist before Snakemake starts.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import ROOT, TINY, Project

UV = Path(sys.prefix) / "bin/uv"


@pytest.fixture(scope="module")
def python(tmp_path_factory) -> Path:
    """The interpreter of an environment that has only the locked Snakemake and its dependencies."""
    folder = tmp_path_factory.mktemp("bare")
    python = folder / "bin/python"
    for command in (
        ["venv", "--python", sys.executable, folder],
        ["pip", "install", "--python", python, "snakemake", "--constraint",
         ROOT / "envs/requirements.lock"],
    ):  # fmt: skip
        if subprocess.run([UV, *command, "--quiet"]).returncode:
            pytest.skip("Snakemake cannot be installed without a network")
    for package in ("torch", "numpy", "filelock", "pandas"):
        assert subprocess.run([python, "-c", f"import {package}"], capture_output=True).returncode
    return python


# A fake conda. It answers Snakemake's queries before the creation of an environment.
CONDA = """#!/bin/sh
case "$*" in
  "info --json") echo '{"conda_prefix": "/opt", "platform": "linux-64"}' ;;
  "--version") echo conda 25.1.0 ;;
  "config --get channel_priority --json") echo '{"get": {"channel_priority": "strict"}}' ;;
  *) exit 1 ;;
esac
"""


@pytest.mark.parametrize(
    ("arguments", "output"),
    [
        (["--lint"], "your workflow is in a good condition"),
        (["--rulegraph"], "digraph"),
        (["--dry-run"], "first_session"),
        (["--dry-run", "--sdm", "conda"], "Conda environment envs/optstate.yaml will be created"),
    ],
)
def test_snakemake_is_the_only_required_package(python, tmp_path, images, arguments, output):
    project = Project(tmp_path / "project")
    packaged = "digits: {packaged: digits}\n  noise:"
    project.configure(TINY.format(source=f"folder: {images}").replace("noise:", packaged))
    command = [python, "-m", "snakemake", "--cores", "1", "--configfile", "tiny.yaml", *arguments]
    conda = tmp_path / "bin/conda"
    conda.parent.mkdir()
    conda.write_text(CONDA)
    conda.chmod(0o755)
    environment = os.environ | {"PATH": f"{conda.parent}:{os.environ['PATH']}"}
    result = subprocess.run(
        command, cwd=project.folder, env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert output in result.stdout + result.stderr
    assert result.stderr.count("torch is not installed here") == 1
    assert "Traceback" not in result.stderr
