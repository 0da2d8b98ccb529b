"""Loop efficiency: a real training session against the bare step.

Both train in this process in turns of a few steps, since separate runs differ by more than what is
to be seen.
"""

import argparse
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

from optstate import job
from benchmarks import data_path
from benchmarks.measure import (
    Measure,
    median,
    now,
    ratio_of_sums,
    session_spec,
    write_measures,
)
from benchmarks.step import NUM_CLASSES, WARM_UP, Step, make_bare_step
from optstate.training import loop, session
from optstate.training.spec import SessionSpec

STRETCH = 10  # steps: each of the two takes so many, then the other
STEPS_PER_EPOCH = 100  # about as in the article, and all of full batches
NUM_VALID = 100  # images: few, since validation is left out
DATA_EPOCHS = 8


def main(arguments: argparse.Namespace) -> None:
    """Write the measures to ``--output``."""
    spec = session_spec(arguments.settings, num_epochs=arguments.settings["epochs"]["loop"])
    device = session.set_up(spec)
    stretches = Stretches(make_bare_step(spec, device), device)
    with tempfile.TemporaryDirectory(dir=arguments.output.parent) as name:
        folder = Path(name)
        noise = write_noise(folder / "arrays", spec)
        train(spec, noise, device, folder, stretches)
        share = data_path_share(spec, noise, device, stretches)
    images = [steps * spec.batch_size for steps in stretches.steps]
    rows = [
        ("loop_efficiency", ratio_of_sums(stretches.bare, stretches.session), ">= 0.98"),
        ("session_images_per_second", ratio_of_sums(images, stretches.session), ""),
        ("bare_step_images_per_second", ratio_of_sums(images, stretches.bare), ""),
        ("data_path_share_of_step", share, "<= 0.01"),
    ]
    write_measures(
        arguments.output,
        [Measure(name, device.type, *values, goal) for name, values, goal in rows],
    )


def write_noise(folder: Path, spec: SessionSpec) -> Path:
    """Prepared arrays: what is in the images costs no time."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for split, number in {"train": STEPS_PER_EPOCH * spec.batch_size, "valid": NUM_VALID}.items():
        shape = (number, spec.image_size, spec.image_size, 3)
        images = np.lib.format.open_memmap(folder / f"{split}_images.npy", "w+", np.uint8, shape)
        for image in images:
            image[:] = rng.integers(0, 256, shape[1:], np.uint8)
        np.save(folder / f"{split}_labels.npy", np.arange(number) % NUM_CLASSES)
    return folder


class Stretches:
    """Seconds of a session and of the bare step, in turns of ``STRETCH`` steps."""

    def __init__(self, bare_step: Step, device: torch.device) -> None:
        self.bare_step, self.device = bare_step, device
        self.steps: list[int] = []
        self.session: list[float] = []
        self.bare: list[float] = []
        self.is_aside = False
        for _ in range(WARM_UP):
            bare_step()
        self.begin()

    def begin(self) -> None:
        """Begin a stretch of the session."""
        self.num_steps, self.aside = 0, 0.0
        self.started_at = now(self.device)

    def end(self) -> None:
        """End it, and let the bare step take as many steps."""
        turn = now(self.device)
        self.session.append(turn - self.started_at - self.aside)
        self.steps.append(self.num_steps)
        for _ in range(self.num_steps):
            self.bare_step()
        self.bare.append(now(self.device) - turn)

    def after_step(self) -> None:
        """Count a step of the session; after a full stretch, give the turn to the bare step."""
        if self.is_aside:
            return
        self.num_steps += 1
        if self.num_steps == STRETCH:
            self.end()
            self.begin()

    def end_session(self) -> None:
        """End the last stretch, to which all belongs that a session does after its last step."""
        if self.num_steps:
            self.end()
        else:
            self.session[-1] += now(self.device) - self.started_at - self.aside

    def leave_out(self, function: Callable) -> Callable:
        """``function``, whose time is not counted."""

        def aside(*args: Any) -> Any:
            start, self.is_aside = now(self.device), True
            result = function(*args)
            self.aside, self.is_aside = self.aside + now(self.device) - start, False
            return result

        return aside


def train(
    spec: SessionSpec, arrays: Path, device: torch.device, folder: Path, stretches: Stretches
) -> None:
    """Train a session as its job does, for two runs, with bare steps between stretches.

    What a job does before the first step is its start, and not counted here.
    """
    arguments = session.PARSER.parse_args(
        ["--spec", "", "--dataset", str(arrays), "--output", str(folder / "session1"),
         "--progress", str(folder), "--curves", str(folder / "new"), str(folder / "preserve")]
    )  # fmt: skip
    train_session = session.train_session

    def begin_and_train(*args: Any) -> None:
        stretches.begin()
        train_session(*args)

    with (
        mock.patch.object(session, "train_session", begin_and_train),
        mock.patch.object(loop, "validate", stretches.leave_out(loop.validate)),
    ):
        session.train(spec, arguments, device, folder / "progress", stretches.after_step)
        stretches.end_session()


def data_path_share(
    spec: SessionSpec, arrays: Path, device: torch.device, stretches: Stretches
) -> tuple[float, float, float]:
    """Seconds that a batch takes until it is ready for the model, over those of the bare step."""
    epoch = data_path.ours(spec, arrays, device)
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
