"""Kills at random moments, and alterations of finished files, change no result."""

import random

from killer import alter_finished_files, kill_repeatedly


def test_no_kill_changes_a_bit(tmp_path, request, capsys):
    kills, seed = request.config.getoption("--kills"), random.randrange(10**6)
    with capsys.disabled():
        print(f"\nkiller, seed {seed}")
        assert kill_repeatedly(tmp_path, kills, seed) == []


def test_no_altered_file_is_believed(tmp_path, request, capsys):
    alterations, seed = request.config.getoption("--alterations"), random.randrange(10**6)
    with capsys.disabled():
        print(f"\nalterations, seed {seed}")
        assert alter_finished_files(tmp_path, alterations, seed) == []
