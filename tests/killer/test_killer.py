"""Kills at random moments change no result."""

import random

from killer import kill_repeatedly


def test_no_kill_changes_a_bit(tmp_path, request, capsys):
    kills, seed = request.config.getoption("--kills"), random.randrange(10**6)
    with capsys.disabled():
        print(f"\nkiller, seed {seed}")
        assert kill_repeatedly(tmp_path, kills, seed) == []
