"""benchmarks/gpu.sh and its commands, on the CPU with small images and models."""

import itertools
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from torchvision.models import squeezenet1_1

from benchmarks import commands, run_experiment, run_parts
from conftest import ROOT, file_sha256, wait_until, write_images, write_tar
from optstate.experiment import configuration
from optstate.job import InputError

EPOCHS = 40  # of the interrupted session: more than it can train until the signal

# Writes a file after SIGTERM and ends, as a training job saves its state.
STOPPABLE = """
import argparse, pathlib, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(pathlib.Path("saved").write_text("")))
pathlib.Path("ready").write_text("")
time.sleep(60)
"""


@pytest.fixture(autouse=True)
def modules(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{ROOT / 'workflow/scripts'}")


@pytest.fixture
def archives(tmp_path: Path) -> Path:
    folder = tmp_path / "archives"
    folder.mkdir()
    write_tar(write_images(tmp_path / "images"), folder / "noise.tgz")
    return folder


@pytest.fixture
def overlay(tmp_path: Path, archives: Path) -> Path:
    config = {
        "datasets": {
            "imagenette": None,
            "imagewoof": None,
            # Only the name counts: the archive is expected in ARCHIVES.
            "noise": {
                "archive": "https://example.org/noise.tgz",
                "sha256": file_sha256(archives / "noise.tgz"),
            },
        },
        "image_size": 32,
        "model": "squeezenet1_1",
        "batch_size": 9,
        "sessions": [EPOCHS, 1],
        "schedules": {"constant": {"lr": [1e-4, 1e-4]}, "onecycle": None},
        "methods": ["constant-new"],
    }
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def start_gpu_sh(tmp_path: Path, archives: Path, overlay: Path) -> subprocess.Popen:
    """Start benchmarks/gpu.sh in its own process group."""
    settings = {"model": "squeezenet1_1", "batch_size": 4, "epochs": {"loop": 1}}
    (tmp_path / "benchmark.yaml").write_text(
        yaml.safe_dump(settings | {"cpu": {"image_sizes": [32]}})
    )
    options = {
        "OUTPUT": tmp_path / "results", "WORK": tmp_path / "work", "ARCHIVES": archives,
        "CONFIG": overlay, "DEVICE": "cpu", "PARTS": "loop", "PYTHON": sys.executable,
        "BENCHMARK_CONFIG": tmp_path / "benchmark.yaml", "LIMIT": "300", "CUDA_VISIBLE_DEVICES": "",
    }  # fmt: skip
    return subprocess.Popen(
        [ROOT / "benchmarks/gpu.sh"], cwd=tmp_path, text=True, start_new_session=True,
        env=os.environ | {name: str(value) for name, value in options.items()},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def test_a_second_call_continues(tmp_path, archives, overlay):
    states = tmp_path / "work/article/in_progress/noise/constant/seed0/session1"
    with start_gpu_sh(tmp_path, archives, overlay) as first:
        wait_until(lambda: first.poll() is not None or any(states.rglob("*.pt")))
        os.killpg(first.pid, signal.SIGTERM)  # as `timeout` and clusters do
        printed = first.stdout.read()
    wait_until(lambda: "interrupted: SIGTERM" in read_session_log(tmp_path / "work/article/logs"))
    assert "noise/constant/seed0/session1" in printed
    assert not (tmp_path / "results/article/tables").exists()

    with start_gpu_sh(tmp_path, archives, overlay) as second:
        printed = second.stdout.read()
    assert second.returncode == 0, printed
    assert "2 of 2 sessions are done." in printed
    results = tmp_path / "results"
    log = read_session_log(results / "article/logs")
    assert "continu" in log.partition("interrupted")[2]
    assert log.count("epoch 1/") == 1
    epochs = (results / "article/tables/epochs.csv").read_text().splitlines()
    assert len(epochs) == 1 + 2 * (EPOCHS + 1)
    assert {path.name for path in (results / "article/tables").iterdir()} == {
        "steps.csv", "epochs.csv", "summary.csv", "collect.sha256",
    }  # fmt: skip
    assert "loop_efficiency,cpu" in (results / "summary.csv").read_text()
    assert json.loads((results / "machine.json").read_text())["cores"] >= 1
    assert "4 skipped" in (results / "tests.log").read_text()
    assert not list(results.rglob("*.pt"))
    assert sum(path.stat().st_size for path in results.rglob("*")) < 1e6


def read_session_log(logs: Path) -> str:
    path = logs / "noise/constant/seed0/session1.log"
    return path.read_text() if path.exists() else ""


def test_a_command_is_stopped_at_the_deadline(tmp_path, monkeypatch):
    (tmp_path / "stoppable.py").write_text(STOPPABLE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(commands.OutOfTimeError):
        commands.run_module("stoppable", {"--log": "log"}, time.monotonic() + 10)
    assert Path("ready").exists()
    assert Path("saved").exists()


def test_no_command_starts_after_the_deadline(monkeypatch):
    monkeypatch.delattr(commands.subprocess, "Popen")
    with pytest.raises(commands.OutOfTimeError):
        commands.run_module("http", {"--log": "log"}, time.monotonic())


def test_a_command_that_fails_names_its_log(tmp_path):
    with pytest.raises(InputError, match="http.nonsense failed. Its log is some.log"):
        commands.run_module("http.nonsense", {"--log": "some.log"}, time.monotonic() + 600)


def run(tmp_path: Path, archives: Path, overlay: Path, seconds: float = 600, jobs: int = 1) -> None:
    options = {
        "--configfile": overlay, "--archives": archives, "--seconds": seconds, "--device": "cpu",
        "--work": tmp_path / "work", "--output": tmp_path / "results", "--jobs": jobs,
    }  # fmt: skip
    arguments = [str(part) for option in options.items() for part in option]
    run_experiment.main(run_experiment.PARSER.parse_args(arguments))


def test_arrays_are_prepared_as_configured_until_they_are_complete(
    tmp_path, archives, overlay, monkeypatch
):
    prepared = []
    monkeypatch.setattr(run_experiment, "run_module", lambda *given: prepared.append(given[1]))
    source = {"valid_fraction": 0.5, "valid_seed": 7}
    config = configuration.load(overlay, {"datasets": {"noise": source}})
    experiment = run_experiment.Experiment(config, tmp_path / "work", deadline=0)
    arrays = experiment.arrays("noise")
    arrays.mkdir(parents=True)
    for name in ("dataset.json", "dataset.sha256", ""):
        experiment.prepare("noise", archives)
        (arrays / name).touch()
    assert len(prepared) == 2
    assert prepared[0]["--valid-fraction"] == 0.5
    assert prepared[0]["--valid-seed"] == 7


def test_another_archive_is_refused(tmp_path, archives, overlay):
    (archives / "noise.tgz").write_bytes(b"another one")
    with pytest.raises(InputError, match=r"noise\.tgz: its SHA-256 is .*datasets\.noise\.sha256"):
        run(tmp_path, archives, overlay)
    (archives / "noise.tgz").unlink()
    with pytest.raises(InputError, match=r"noise\.tgz: does not exist"):
        run(tmp_path, archives, overlay)


def test_another_configuration_is_refused(tmp_path, archives, overlay, capsys):
    run(tmp_path, archives, overlay, seconds=0)
    assert "The time limit has passed" in capsys.readouterr().out
    overlay.write_text(overlay.read_text().replace("batch_size: 9", "batch_size: 6"))
    with pytest.raises(InputError, match="holds another configuration's sessions"):
        run(tmp_path, archives, overlay, seconds=0)


@pytest.mark.parametrize(("keep", "kept"), [("none", 0), ("last", 4)])
def test_sessions_in_one_process_have_the_same_bits_as_alone(
    tmp_path, archives, overlay, monkeypatch, keep, kept
):
    config = {
        "sessions": [1, 1], "methods": ["constant-new", "constant-preserve"], "seeds": [0, 1],
        "keep_checkpoints": keep, "weights": str(tmp_path / "weights.pt"),
    }  # fmt: skip
    torch.save(squeezenet1_1(num_classes=3).state_dict(), config["weights"])
    overlay.write_text(yaml.safe_dump(yaml.safe_load(overlay.read_text()) | config))
    run(tmp_path, archives, overlay, jobs=2)
    assert "OPTSTATE_PARENT" not in os.environ
    deadline = time.monotonic() + 600
    together = run_experiment.Experiment(configuration.load(overlay), tmp_path / "work", deadline)
    assert all(map(together.is_done, together.runs.sessions))
    assert len(list(together.work.rglob("*.pt"))) == kept
    assert ",1,0,valid," in (tmp_path / "results/tables/epochs.csv").read_text()

    alone = replace(together, work=tmp_path / "alone")
    shutil.copytree(tmp_path / "work/arrays", alone.work / "arrays")
    monkeypatch.setenv("OPTSTATE_PARENT", str(os.getpid()))
    for session in together.list_groups()[-1]:
        process = multiprocessing.get_context("spawn").Process(
            target=run_experiment.train_groups, args=(alone, [[session]])
        )
        process.start()
        process.join()
        steps = [e.folder(session) / "steps.csv" for e in (alone, together)]
        assert steps[0].read_bytes() == steps[1].read_bytes()


def test_a_session_that_fails_is_reported(tmp_path, archives, overlay, capfd):
    run(tmp_path, archives, overlay, seconds=0)
    config = configuration.load(overlay, {"device": "cpu", "sessions": [1, 1]})
    experiment = run_experiment.Experiment(config, tmp_path / "work", time.monotonic() + 600)
    experiment.prepare("noise", archives)
    images = experiment.arrays("noise") / "train_images.npy"
    images.write_bytes(images.read_bytes() + b"more")
    with pytest.raises(InputError, match="a session failed"):
        run_experiment.run(experiment, archives, num_jobs=1)
    assert "train_images.npy" in capfd.readouterr().err


def test_sessions_come_after_those_that_they_need(tmp_path):
    boundaries = {
        "a-late": {"keep": [], "at": [3]},
        "a-twin": {"keep": [], "step_size": "preserve"},
    }
    config = configuration.load(
        {"boundaries": boundaries, "methods": [f"constant-{b}" for b in ("preserve", *boundaries)]}
    )
    experiment = run_experiment.Experiment(config, tmp_path, deadline=0)
    groups = experiment.list_groups()
    assert sorted(itertools.chain(*groups)) == experiment.runs.sessions
    for group in groups:
        passed = set()
        for session in group:
            needed = {
                experiment.runs.previous(session),
                configuration.followed_session(config, session),
            }
            assert needed - {None} <= passed
            passed.add(session)


def test_parts_run_once_in_order_with_their_inputs(tmp_path, monkeypatch):
    ran = []

    def run_module(module, options, deadline):
        ran.append(module)
        for option in ("--images", "--arrays", "--folder"):
            assert Path(options.get(option, tmp_path)).exists()
        if module == "benchmarks.images":
            options["--output"].mkdir(parents=True)
        elif module == "optstate.data.prepare":
            options["--output"].mkdir(parents=True)
            (options["--output"] / "dataset.sha256").touch()
        elif module != "benchmarks.summary":
            options["--output"].touch()

    monkeypatch.setattr(run_parts, "run_module", run_module)
    arguments = "--device cpu --seconds 9 --parts step data_path peers prepare".split()
    arguments += ["--work", str(tmp_path / "work"), "--output", str(tmp_path / "results")]
    for _ in range(2):
        run_parts.main(run_parts.PARSER.parse_args(arguments))
        ran.append("")
    assert " ".join(module.rpartition(".")[2] for module in ran).split("  ") == [
        "step images prepare data_path peers images prepare summary", "summary ",
    ]  # fmt: skip
