"""Kills at random moments, and alterations of finished files, change no result."""

import random

import pytest

from conftest import Project
from killer import alter_finished_files, kill_repeatedly, run_undisturbed


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Project:
    return run_undisturbed(tmp_path_factory.mktemp("undisturbed"))


def test_no_kill_changes_a_bit(undisturbed, tmp_path, request, capsys):
    kills, seed = request.config.getoption("--kills"), random.randrange(10**6)
    with capsys.disabled():
        print(f"\nkiller, seed {seed}")
        assert kill_repeatedly(undisturbed, tmp_path, kills, seed) == []


def test_no_altered_file_is_believed(undisturbed, tmp_path, request, capsys):
    alterations, seed = request.config.getoption("--alterations"), random.randrange(10**6)
    with capsys.disabled():
        print(f"\nalterations, seed {seed}")
        assert alter_finished_files(undisturbed, tmp_path, alterations, seed) == []
