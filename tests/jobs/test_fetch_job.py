"""The command that fetches an archive: checksum file, one-line errors, no partial output."""

import hashlib
import resource
import subprocess
from pathlib import Path

import pytest

from conftest import assert_one_line, run_module
from optstate.data import packaged

CONTENT = bytes(range(256)) * 8000  # 2 MB
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "archive"


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    archive = tmp_path / "images.tgz"
    archive.write_bytes(CONTENT)
    return archive


def fetch(output: Path, *arguments: object, **options) -> subprocess.CompletedProcess:
    options_of_job = ("--output", output, "--log", output.with_name("log"))
    return run_module("optstate.data.fetch", *arguments, *options_of_job, **options)


def test_a_wrong_checksum_is_one_line(archive, output):
    result = fetch(output, "--archive", archive, "--sha256", "0" * 64)
    assert_one_line(result, "images.tgz", SHA256, "0" * 64, "Correct the file, its address")
    assert sorted(path.name for path in output.parent.iterdir()) == ["images.tgz", "log"]


def test_the_checksum_file_verifies_the_archive(output):
    digest = packaged.SHA256["digits"]
    assert fetch(output, "--packaged", "digits", "--sha256", digest).returncode == 0
    check = subprocess.run(["sha256sum", "-c", "archive.sha256"], cwd=output.parent)
    assert check.returncode == 0


def test_a_missing_file_in_the_mirror_is_one_line(tmp_path, output):
    result = fetch(output, "--archive", "http://x/a.tgz", "--mirror", tmp_path, "--sha256", SHA256)
    assert_one_line(result, f"{tmp_path / 'a.tgz'}: no such file", "mirror")


def test_a_file_size_limit_is_one_line(archive, output):
    def limit_file_size() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))

    result = fetch(output, "--archive", archive, "--sha256", SHA256, preexec_fn=limit_file_size)
    assert_one_line(result, "ulimit -f")
    assert sorted(path.name for path in output.parent.iterdir()) == ["images.tgz", "log"]
