"""The turns, pairs and measures of the comparison, with contestants that do not train."""

import contextlib
import logging
import math
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from benchmarks import peers
from benchmarks.peers import Contestant, Epoch, NotMeasured, Pair
from conftest import write_images
from optstate.job import InputError

# A contestant that appends its name to a shared file. Its answer may depend on the `turn`.
FAKE = """
import json, pathlib, sys
for turn, _ in enumerate(sys.stdin):
    with pathlib.Path("../order").open("a") as order:
        print({name!r}, file=order)
    {before}
    epoch = {{"seconds": 1.0 + turn, "images": 8, "steps": 2, "loss": 0.5}} | {changes}
    print(json.dumps(epoch), flush=True)
"""


@pytest.fixture
def contestant(tmp_path: Path) -> Iterator:
    with contextlib.ExitStack() as stack:

        def start(name: str, before: str = "pass", changes: str = "{}") -> Contestant:
            program = FAKE.format(name=name, before=before, changes=changes)
            command = [sys.executable, "-c", program]
            fake = Contestant(name, command, tmp_path / name, os.environ)
            return stack.enter_context(contextlib.closing(fake))

        yield start


def test_contestants_take_turns_and_neighbouring_epochs_are_paired(contestant, tmp_path):
    pairs = peers.race(contestant("ours"), [contestant("a"), contestant("b")], num_epochs=2)
    order = (tmp_path / "order").read_text().split()
    assert order == "ours a ours b  a ours b ours  ours a ours b".split()
    seconds = {
        name: [(pair.peer.seconds, pair.ours.seconds) for pair in counted]
        for name, counted in pairs.items()
    }
    assert seconds == {"a": [(2, 3), (3, 5)], "b": [(2, 4), (3, 6)]}  # without the first round


@pytest.mark.parametrize(
    ("before", "changes", "reason"),
    [
        ("sys.exit('no module named timm')", "{}", "it ended: no module named timm"),
        ("turn < 2 or sys.exit(1)", "{}", "it ended: without an error message"),
        ("print('Epoch 1')", "{}", "it ended"),
        ("pass", "{'images': 7}", "it trained 7 images in 2 steps, and this project 8 in 2"),
        ("pass", "{'steps': 1}", "it trained 8 images in 1 steps, and this project 8 in 2"),
        ("pass", "{'loss': float('nan')}", "its loss is nan"),
    ],
)
def test_a_peer_that_fails_is_left_out(contestant, caplog, before, changes, reason):
    contestants = [contestant("timm", before, changes), contestant("fastai")]
    with caplog.at_level(logging.WARNING):
        pairs = peers.race(contestant("ours"), contestants, num_epochs=2)
    assert [measure.measure for measure in peers.pair_measures([*pairs], pairs, "cpu")] == [
        "epoch_vs_fastai", "epoch_seconds_fastai", "epoch_seconds_ours",
    ]  # fmt: skip
    (message,) = caplog.messages
    assert message.startswith(f"timm: not measured: {reason}")
    assert "\n" not in message


def test_an_error_of_this_project_ends_the_comparison(contestant):
    with pytest.raises(NotMeasured, match="ours: not measured: it ended: boom"):
        peers.race(contestant("ours", "turn and sys.exit('boom')"), [contestant("a")], 1)


def make_pairs(seconds: Sequence[tuple[float, float]]) -> list[Pair]:
    return [Pair(Epoch(peer, 8, 2, 0.5), Epoch(ours, 8, 2, 0.5)) for peer, ours in seconds]


def test_ratios_and_medians_are_computed_from_pairs():
    pairs = {"a": make_pairs([(4, 1), (8, 3), (6, 2)]), "b": make_pairs([(1, 2), (1, 2), (1, 2)])}
    rows = {row.measure: row for row in peers.pair_measures([*pairs], pairs, "cpu")}
    ratio = rows["epoch_vs_a"]
    assert ratio.value == 3
    assert 8 / 3 <= ratio.low < 3 < ratio.high <= 4
    assert ratio.is_met
    assert rows["epoch_vs_b"].value == 0.5
    assert rows["epoch_vs_b"].is_met is False
    assert rows["epoch_seconds_a"].value == 6
    assert rows["epoch_seconds_ours"].value == 2
    assert rows["epoch_seconds_ours"].goal == ""


def test_a_peer_without_pairs_is_not_measured():
    (row,) = peers.pair_measures(["a"], {}, "cpu")
    assert math.isnan(row.value)
    assert row.measure == "epoch_vs_a"


def test_every_batch_must_be_full(tmp_path):
    images = write_images(tmp_path / "images", per_class=4)  # of three classes
    peers.require_full_batches(images, 6)
    with pytest.raises(InputError, match="12 images are not a multiple of the batch size 5"):
        peers.require_full_batches(images, 5)


def test_a_peer_that_cannot_be_installed_is_left_out(tmp_path, monkeypatch, caplog):
    def run(command, **_):
        raise subprocess.CalledProcessError(1, command, stderr="error: no network\n  Caused by: x")

    monkeypatch.setattr(subprocess, "run", run)
    with caplog.at_level(logging.WARNING):
        found = dict(peers.find_interpreters(list(peers.MODULES), tmp_path))
    assert found == {"ours": Path(sys.executable), "article": Path(sys.executable)}
    assert caplog.messages == [
        f"{name}: not measured: error: no network Caused by: x"
        for name in ("timm", "lightning", "fastai")
    ]


def test_no_peer_sees_the_packages_of_this_project(tmp_path, monkeypatch):
    started = []
    monkeypatch.setenv("PYTHONPATH", "workflow/scripts")
    monkeypatch.chdir(peers.ROOT)
    monkeypatch.setattr(peers, "Contestant", lambda *arguments: started.append(arguments))
    arguments = peers.PARSER.parse_args(
        ["--settings", '{"device": "cpu"}', "--images", "images", "--arrays", "arrays",
         "--environments", "environments", "--output", "peers.csv"]
    )  # fmt: skip
    interpreters = dict.fromkeys(("ours", "timm"), Path("python"))
    list(peers.start_all(arguments, interpreters, tmp_path))
    (_, command, _, ours), (_, other_command, _, timm) = started
    paths = list(map(Path, ours["PYTHONPATH"].split(os.pathsep)))
    assert all(path.is_absolute() for path in paths)
    for package in ("optstate", "benchmarks"):
        assert any((path / package).is_dir() for path in paths)
    assert "PYTHONPATH" not in timm
    assert [Path(command[-1]).name, Path(other_command[-1]).name] == ["arrays", "images"]


def test_every_contestant_has_a_module_and_its_packages():
    for name, module in peers.MODULES.items():
        assert (peers.TURNS.parent / f"{module}.py").is_file()
        if name not in ("ours", "article"):
            pinned = (peers.HERE / f"envs/{name}.txt").read_text()
            assert f"\n{name}==" in pinned
            assert "\ntorch==" not in pinned
