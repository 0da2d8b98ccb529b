"""Train sessions on generated arrays in this process, and read their outputs."""

import csv
import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from optstate.checksums import file_sha256, write_checksums
from optstate.experiment import configuration
from optstate.experiment.runs import Session
from optstate.training import batches, session
from optstate.training.spec import SessionSpec

CONFIG = configuration.load(
    {
        # Any source: the tests write their own arrays.
        "datasets": {"imagenette": None, "imagewoof": None, "noise": {"packaged": "digits"}},
        "image_size": 32,
        "model": "shufflenet_v2_x0_5",
        "batch_size": 4,
        "augment": "crop_flip",
        "sessions": [3, 2],
        "schedules": {
            "constant": None,
            "onecycle": {"initial_lr": [1e-4, 1e-4], "max_lr": [1e-3, 1e-3]},
        },
        "methods": ["onecycle-preserve"],
        "seeds": [3],
        "device": "cpu",
    }
)
CURVES = "curves/noise/onecycle-preserve/seed3"  # the TensorBoard folder of a run
FIRST = configuration.session_spec(CONFIG, Session("noise", "onecycle", 3, 1))
SECOND = configuration.session_spec(CONFIG, Session("noise", "onecycle-preserve", 3, 2))


def write_arrays(folder: Path, valid_labels: list[int] | None = None, card: str = "{}") -> Path:
    """Write noise in two classes: bright on the left, and bright on the right."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for split, labels in (("train", [0] * 8 + [1] * 9), ("valid", [0] * 5 + [1] * 5)):
        images = rng.integers(0, 100, (len(labels), 32, 32, 3))
        for image, label in zip(images, labels, strict=True):
            image[:, 16 * label : 16 * (label + 1)] += 150
        written = labels if split == "train" else valid_labels or labels
        np.save(folder / f"{split}_images.npy", images.astype(np.uint8))
        np.save(folder / f"{split}_labels.npy", np.array(written))
    (folder / "dataset.json").write_text(card)
    write_checksums(folder / "dataset.sha256", [folder / name for name in batches.FILES])
    return folder


def make_own_spec(folder: Path, text: str) -> SessionSpec:
    """Write a model of one's own next to the arrays. Returns the settings of its first session."""
    file = folder / "net.py"
    file.write_text(text)
    return replace(FIRST, model=":make", file_hashes={"model": file_sha256(file)})


def train(
    root: Path,
    spec: SessionSpec,
    arrays: Path,
    previous: Path | None = None,
    every: dict | None = None,
    weights: Path | None = None,
    previous_spec: SessionSpec | None = None,
    step_sizes: Path | None = None,
    optimizer_state: Path | None = None,
) -> Path:
    """Train one session below ``root``; returns its folder.

    The previous session is expected to have the settings with which it was made, unless others are
    given.
    """
    output = root / f"session{spec.session}"
    arguments = [
        "--spec", spec.to_json(), "--arrays", arrays, "--output", output,
        "--progress", progress_folder(root, spec.session), "--curves", root / CURVES,
    ]  # fmt: skip
    if every:
        arguments += ["--checkpoint-every", json.dumps(every)]
    model = arrays.with_name("net.py") if spec.model.startswith(":") else None
    files = {"--model": model, "--weights": weights, "--optimizer-state": optimizer_state}
    for option, file in files.items():
        arguments += [option, file] if file else []
    if previous:
        made = read_made_by(previous)["configuration"]
        expected = previous_spec or SessionSpec(**made)
        arguments += ["--previous", previous, "--previous-spec", expected.to_json()]
        arguments += ["--previous-progress", progress_folder(root, spec.session - 1)]
        arguments += [
            "--earlier",
            *[previous.with_name(f"session{n}") for n in range(1, spec.session)],
        ]
    if step_sizes:
        arguments += ["--step-sizes", step_sizes]
    session.main(session.PARSER.parse_args([str(a) for a in arguments]))
    return output


def train_methods(root: Path, config: dict, arrays: Path) -> dict[str, list[Path]]:
    """Train all sessions of one data set and seed.

    Returns:
        For each method, the folders of its sessions.
    """
    runs = configuration.all_runs(config)
    done: dict[Session, Path] = {}

    def train_once(wanted: Session | None) -> Path | None:
        if wanted and wanted not in done:
            done[wanted] = train(
                root / wanted.name,
                configuration.session_spec(config, wanted),
                arrays,
                previous=train_once(runs.previous(wanted)),
                step_sizes=train_once(configuration.followed_session(config, wanted)),
            )
        return done.get(wanted)

    return {run.method: [train_once(wanted) for wanted in run.sessions] for run in runs}


def progress_folder(root: Path, number: int) -> Path:
    """Return the folder of a session's states in progress."""
    return root / "in_progress" / f"session{number}"


def read_rows(path: Path) -> list[dict]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def read_rows_without_seconds(path: Path) -> list[dict]:
    return [{k: v for k, v in row.items() if k != "seconds"} for row in read_rows(path)]


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


def load_checkpoint(folder: Path) -> dict:
    return torch.load(folder / "checkpoint.pt", weights_only=True)


def read_made_by(folder: Path) -> dict:
    return json.loads((folder / "made_by.json").read_text())


def read_points(folder: Path, tag: str) -> list[tuple[int, float]]:
    accumulator = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    accumulator.Reload()
    return [(event.step, event.value) for event in accumulator.Scalars(tag)]


def flip_a_byte(path: Path) -> None:
    """Change the last byte but one, and leave the size and the modification time as they were."""
    before = path.stat()
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def list_files(folder: Path) -> list[str]:
    """Return the names of all files in and below a folder, sorted."""
    return sorted(path.name for path in folder.rglob("*") if path.is_file())
