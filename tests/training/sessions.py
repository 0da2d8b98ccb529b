"""Sessions of training on planted arrays, run in this process, and what they made."""

import csv
import json
from pathlib import Path

import numpy as np
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from optstate.training import session

SPEC = {
    "dataset": "noise",
    "schedule": "onecycle",
    "seed": 3,
    "image_size": 32,
    "train_per_class": None,
    "valid_per_class": None,
    "model": "resnet18",
    "weights_sha256": None,
    "batch_size": 4,
    "augment": "crop_flip",
    "optimizer": {"name": "Adam"},
    "learning_rate": {"kind": "onecycle", "initial_lr": 1e-4, "max_lr": 1e-3},
    "device": "cpu",
    "precision": "auto",
    "compile": "auto",
    "cpu_threads": 1,
    "deterministic": "auto",
    "keep": [],
    "warmup_steps": 0,
    "stream": 0,
}
FIRST = SPEC | {"boundary": "", "method": "onecycle", "session": 1, "num_epochs": 3}
SECOND = SPEC | {
    "boundary": "preserve", "method": "onecycle-preserve", "session": 2, "num_epochs": 2,
    "keep": "all",
}  # fmt: skip


def write_arrays(folder: Path, valid_labels: list[int] | None = None) -> Path:
    """Two classes of noise, bright at the left or at the right; validation labels as planted."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for split, labels in (("train", [0] * 8 + [1] * 9), ("valid", [0] * 5 + [1] * 5)):
        images = rng.integers(0, 100, (len(labels), 32, 32, 3))
        for image, label in zip(images, labels, strict=True):
            image[:, 16 * label : 16 * (label + 1)] += 150
        planted = labels if split == "train" else valid_labels or labels
        np.save(folder / f"{split}_images.npy", images.astype(np.uint8))
        np.save(folder / f"{split}_labels.npy", np.array(planted))
    (folder / "dataset.json").write_text("{}")
    return folder


def train(
    root: Path,
    spec: dict,
    arrays: Path,
    previous: Path | None = None,
    every: dict | None = None,
    weights: Path | None = None,
) -> Path:
    """Train one session below ``root``; returns its folder."""
    output = root / f"session{spec['session']}"
    arguments = [
        "--spec", json.dumps(spec), "--dataset", arrays, "--output", output,
        "--progress", root / "in_progress", "--curves", root / "curves",
    ]  # fmt: skip
    if every:
        arguments += ["--checkpoint-every", json.dumps(every)]
    if weights:
        arguments += ["--weights", weights]
    if previous:
        arguments += ["--previous", previous]
    session.main(session.PARSER.parse_args([str(a) for a in arguments]))
    return output


def rows(path: Path) -> list[dict]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def without_seconds(path: Path) -> list[dict]:
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows(path)]


def assert_equal_bits(first, second, where: str = "checkpoint") -> None:
    assert type(first) is type(second), where
    if torch.is_tensor(first):
        assert torch.equal(first, second), where
    elif isinstance(first, dict):
        assert first.keys() == second.keys(), where
        for key in first:
            assert_equal_bits(first[key], second[key], f"{where}.{key}")
    elif isinstance(first, (list, tuple)):
        assert len(first) == len(second), where
        for index, pair in enumerate(zip(first, second, strict=True)):
            assert_equal_bits(*pair, f"{where}[{index}]")
    else:
        assert first == second, where


def checkpoint(folder: Path) -> dict:
    return torch.load(folder / "checkpoint.pt", weights_only=True)


def points(folder: Path, tag: str) -> list[tuple[int, float]]:
    accumulator = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    accumulator.Reload()
    return [(event.step, event.value) for event in accumulator.Scalars(tag)]


def files_in(folder: Path) -> list[str]:
    """The names of all files in and below a folder, sorted."""
    return sorted(path.name for path in folder.rglob("*") if path.is_file())
