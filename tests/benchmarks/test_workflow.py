"""The benchmark's settings and its workflow."""

import shutil
import subprocess
import sys

import pytest

from benchmarks.measure import load_settings, settings_of
from conftest import ROOT, Project
from optstate.job import InputError


class TestSettings:
    def test_default_settings_are_valid(self):
        settings = load_settings()
        assert settings["archive"] is None
        assert settings_of(settings, "cpu", 64) == {
            "model": "resnet50",
            "batch_size": 100,
            "peers": ["timm", "lightning", "fastai", "article"],
            "epochs": {"loop": 2, "peers": 3},
            "device": "cpu",
            "threads": 1,
            "image_size": 64,
        }

    def test_overlays_are_merged(self, tmp_path):
        (tmp_path / "overlay.yaml").write_text("epochs: {loop: 1}\ncuda: {image_sizes: [96]}")
        settings = load_settings(tmp_path / "overlay.yaml")
        assert settings["epochs"] == {"loop": 1, "peers": 3}
        assert settings["cuda"] == {"image_sizes": [96], "threads": 1}

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("modell: resnet18", "unknown key `modell`. Did you mean `model`?"),
            ("batch_size: 0", "batch_size: 0 must be at least 2."),
            ("cpu: {image_sizes: []}", "cpu.image_sizes: [] must not be empty."),
        ],
    )
    def test_an_invalid_setting_is_one_line(self, tmp_path, text, message):
        (tmp_path / "overlay.yaml").write_text(text)
        with pytest.raises(InputError) as error:
            load_settings(tmp_path / "overlay.yaml")
        assert str(error.value) == message

    def test_an_invalid_setting_stops_only_the_benchmark(self, tmp_path):
        project = Project(tmp_path / "project")
        copy = project.folder / "benchmarks"
        shutil.copytree(ROOT / "benchmarks", copy, ignore=shutil.ignore_patterns("__pycache__"))
        config = copy / "config.yaml"
        config.write_text(config.read_text().replace("batch_size: 100", "batch_size: 0"))
        command = [sys.executable, "-m", "snakemake", "--cores", "1", "--dry-run", "--quiet", "all"]
        runs = {
            snakefile: subprocess.run(
                [*command, "--snakefile", snakefile], cwd=project.folder, text=True,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            )
            for snakefile in ("Snakefile", "benchmarks/Snakefile")
        }  # fmt: skip
        assert runs["Snakefile"].returncode == 0, runs["Snakefile"].stdout
        assert runs["benchmarks/Snakefile"].returncode == 1
        last = runs["benchmarks/Snakefile"].stdout.splitlines()[-1]
        assert last == "benchmarks/config.yaml: batch_size: 0 must be at least 2."


def test_the_workflow_measures_everything(tmp_path):
    """A dry run of all jobs has the command of every part."""
    command = [sys.executable, "-m", "snakemake", "--snakefile", "benchmarks/Snakefile"]
    options = ["--cores", "2", "--dry-run", "--forceall", "--printshellcmds", "--nolock"]
    run = subprocess.run([*command, *options], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    for part in ("loop", "step", "sharing", "data_path", "prepare", "peers", "overhead", "summary"):
        assert f"python -m benchmarks.{part} " in run.stdout + run.stderr
