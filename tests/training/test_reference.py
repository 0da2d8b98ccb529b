"""docs/reference.py, which imports nothing of the project, computes the same losses to the bit."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image

from conftest import ROOT, run_module
from optstate.experiment import configuration
from sessions import read_rows, train

CLASSES = ("bee", "bee-eater", "Cat")  # in another order if whole paths or small letters are sorted
KINDS = (("RGB", "jpeg"), ("RGB", "png"), ("L", "jpeg"), ("P", "gif"), ("L", "png"))
SCHEDULES = {
    "session": {
        "constant": {"lr": [1e-3, 5e-4, 3e-4]},
        "onecycle": {"initial_lr": [5e-5, 2e-5, 5e-6], "max_lr": [1e-3, 6e-4, 1e-4]},
    },
    "run": {
        "constant": {"over": "run", "lr": 1e-3},
        "onecycle": {"over": "run", "initial_lr": 5e-5, "max_lr": 1e-3},
    },
}


def write_pictures(folder: Path, num_train: int) -> Path:
    """Write noise of several sizes, modes, formats and EXIF orientations, in three classes."""
    rng = np.random.default_rng(0)
    for split, num_images in ("train", num_train), ("val", 3):
        for index in range(num_images):
            mode, extension = KINDS[index % len(KINDS)]
            pixels = rng.integers(0, 256, (*rng.integers(20, 90, 2), 3), np.uint8)
            path = folder / split / CLASSES[index % len(CLASSES)] / f"{index}.{extension}"
            path.parent.mkdir(parents=True, exist_ok=True)
            exif = Image.Exif()
            exif[ExifTags.Base.Orientation] = index % 9  # 0 is invalid
            Image.fromarray(pixels).convert(mode).save(path, exif=exif)
        (folder / split / CLASSES[0] / ".hidden").touch()
    return folder


def run_reference(pictures: Path, over: str) -> list[str]:
    """Run the script in an environment that asks for more threads. Returns its lines."""
    command = [sys.executable, ROOT / "docs/reference.py", pictures, "--over", over]
    environment = os.environ | {"OMP_NUM_THREADS": "2", "MKL_NUM_THREADS": "2"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    return result.stdout.splitlines()


def run_pipeline(folder: Path, pictures: Path, over: str) -> list[str]:
    """Prepare and train as the jobs do. Returns the name, epoch and loss of every step."""
    config = configuration.load(
        {
            "datasets": {"imagenette": None, "imagewoof": None, "x": {"folder": str(pictures)}},
            "image_size": 32,
            "model": "shufflenet_v2_x0_5",
            "batch_size": 4,
            "sessions": [2, 1, 1],
            "schedules": SCHEDULES[over],
            "device": "cpu",
        }
    )
    arrays, lines, folders = folder / "arrays", [], {None: None}
    result = run_module(
        "optstate.data.prepare", "--folder", pictures, "--image-size", config["image_size"],
        "--output", arrays, "--log", folder / "log",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    runs = configuration.all_runs(config)
    for session in runs.sessions:
        spec = configuration.session_spec(config, session)
        previous = folders[runs.previous(session)]
        folders[session] = train(folder / session.name, spec, arrays, previous)
        rows = read_rows(folders[session] / "steps.csv")
        lines += [f"{session.name} {row['epoch']} {row['loss']}" for row in rows]
    return lines


@pytest.mark.parametrize(
    ("over", "num_images", "steps_per_epoch"),
    [
        ("session", 13, 3),  # the last batch of every epoch would be a single image
        ("session", 14, 4),  # the last batch is smaller than the others
        ("run", 14, 4),
    ],
)
def test_every_loss_equals_the_pipelines_to_the_bit(tmp_path, over, num_images, steps_per_epoch):
    pictures = write_pictures(tmp_path / "pictures", num_images)
    printed = run_reference(pictures, over)
    assert len(printed) == 2 * (2 + 2 * 2) * steps_per_epoch
    assert printed == run_pipeline(tmp_path, pictures, over)
