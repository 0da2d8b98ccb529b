"""Measure the loop efficiency: the speed of a training session compared with the bare step.

Both train in this process and take turns of a few steps. The speed of separate processes differs
by more than the effect to be measured.
"""

import argparse
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import data_path
from benchmarks.measure import (
    Measure,
    median,
    now,
    ratio_of_sums,
    session_spec,
    write_measures,
)
from benchmarks.step import NUM_CLASSES, NUM_WARM_UP, Step, make_bare_step
from optstate import job
from optstate.checksums import write_checksums
from optstate.training.batches import FILES, verify_arrays
from optstate.training.checkpoint import Position
from optstate.training.compute import Compute, set_up
from optstate.training.loop import finish_epoch, train_epoch, validate
from optstate.training.session import Paths, open_session, write_outputs
from optstate.training.spec import SessionSpec

STEPS_PER_TURN = 10
STEPS_PER_EPOCH = 100  # about as many as in the article, all with full batches
NUM_VALID = 100  # images: few, since validation is not measured
DATA_EPOCHS = 8


def main(arguments: argparse.Namespace) -> None:
    """Write the measures to ``--output``."""
    spec = session_spec(arguments.settings, num_epochs=arguments.settings["epochs"]["loop"])
    compute = set_up(spec)
    stretches = Stretches(make_bare_step(spec, compute), compute.device)
    with tempfile.TemporaryDirectory(dir=arguments.output.parent) as name:
        folder = Path(name)
        arrays = write_noise(folder / "arrays", spec)
        train(spec, arrays, compute, folder, stretches)
        share = measure_data_path_share(spec, arrays, compute.device, stretches)
    images = [steps * spec.batch_size for steps in stretches.steps]
    rows = [
        ("loop_efficiency", ratio_of_sums(stretches.bare, stretches.session), ">= 0.98"),
        ("session_images_per_second", ratio_of_sums(images, stretches.session), ""),
        ("bare_step_images_per_second", ratio_of_sums(images, stretches.bare), ""),
        ("data_path_share_of_step", share, "<= 0.01"),
    ]
    write_measures(
        arguments.output,
        [Measure(name, compute.device.type, *values, goal) for name, values, goal in rows],
    )


def write_noise(folder: Path, spec: SessionSpec) -> Path:
    """Write arrays of noise as a prepared data set: the content does not affect the speed."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for split, number in {"train": STEPS_PER_EPOCH * spec.batch_size, "valid": NUM_VALID}.items():
        shape = (number, spec.image_size, spec.image_size, 3)
        images = np.lib.format.open_memmap(folder / f"{split}_images.npy", "w+", np.uint8, shape)
        for image in images:
            image[:] = rng.integers(0, 256, shape[1:], np.uint8)
        np.save(folder / f"{split}_labels.npy", np.arange(number) % NUM_CLASSES)
    (folder / "dataset.json").write_text("{}")
    write_checksums(folder / "dataset.sha256", [folder / name for name in FILES])
    verify_arrays(folder)  # as a job does before its session; later it reads only changed files
    return folder


class Stretches:
    """Time a session and the bare step, in turns of ``STEPS_PER_TURN`` steps each.

    Attributes:
        steps: number of steps of each turn.
        session: seconds of the session's turns.
        bare: seconds of the bare step's turns.
    """

    def __init__(self, bare_step: Step, device: torch.device) -> None:
        self.bare_step, self.device = bare_step, device
        self.steps: list[int] = []
        self.session: list[float] = []
        self.bare: list[float] = []
        self.is_left_out = False
        for _ in range(NUM_WARM_UP):
            bare_step()
        self.begin()

    def begin(self) -> None:
        """Begin a turn of the session."""
        self.num_steps, self.left_out = 0, 0.0
        self.start = now(self.device)

    def end(self) -> None:
        """End the session's turn, and take as many bare steps as the turn had."""
        turn = now(self.device)
        self.session.append(turn - self.start - self.left_out)
        self.steps.append(self.num_steps)
        for _ in range(self.num_steps):
            self.bare_step()
        self.bare.append(now(self.device) - turn)

    def after_step(self) -> None:
        """Count a step of the session. End its turn after ``STEPS_PER_TURN`` steps."""
        if self.is_left_out:
            return
        self.num_steps += 1
        if self.num_steps == STEPS_PER_TURN:
            self.end()
            self.begin()

    def end_session(self) -> None:
        """End the last turn, which includes everything after the session's last step."""
        if self.num_steps:
            self.end()
        else:
            self.session[-1] += now(self.device) - self.start - self.left_out

    def leave_out(self, function: Callable) -> Callable:
        """Wrap ``function`` so that its time does not count."""

        def uncounted(*args: Any) -> Any:
            start, self.is_left_out = now(self.device), True
            result = function(*args)
            self.left_out, self.is_left_out = self.left_out + now(self.device) - start, False
            return result

        return uncounted


def train(
    spec: SessionSpec, arrays: Path, compute: Compute, folder: Path, stretches: Stretches
) -> Position:
    """Train a session that two runs share, as its job does. Returns its last position.

    The time before the first step and the validations are not measured.
    """
    paths = Paths(
        arrays, folder / "session1", folder / "progress",
        curves=[folder / f"images/constant-{name}/seed0" for name in ("new", "preserve")],
    )  # fmt: skip
    validate_uncounted = stretches.leave_out(validate)
    with open_session(spec, paths, compute, {"epochs": 1}, stretches.after_step) as session:
        stretches.begin()
        for _ in range(spec.num_epochs):
            train_row = train_epoch(session)
            finish_epoch(session, train_row, validate_uncounted(session))
        write_outputs(session, paths.output)
    stretches.end_session()
    return session.state.position


def measure_data_path_share(
    spec: SessionSpec, arrays: Path, device: torch.device, stretches: Stretches
) -> tuple[float, float, float]:
    """Measure the time to make a batch ready for the model, as a share of the bare step's time."""
    epoch = data_path.make_session_epoch(spec, arrays, device)
    step_seconds = sum(stretches.bare) / sum(stretches.steps)
    shares = []
    for _ in range(DATA_EPOCHS):
        start = now(device)
        for _ in epoch():
            pass
        shares.append((now(device) - start) / STEPS_PER_EPOCH / step_seconds)
    return median(shares)


PARSER = argparse.ArgumentParser(description=__doc__.split("\n")[0])
PARSER.add_argument("--settings", type=json.loads, required=True, help="JSON")
PARSER.add_argument("--output", type=Path, required=True, help="CSV file of the measures")

if __name__ == "__main__":
    job.run(PARSER, main)
