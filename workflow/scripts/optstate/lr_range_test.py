"""LR range test (Smith 2017) before a session: the loss while the LR rises from 1e-7 to 10.

The article chose its learning rates from such curves, by eye. torch-lr-finder runs the test. The
suggestion is the LR at which the loss falls fastest, if it clearly falls. No job uses it.
"""

import argparse
import contextlib
import csv
import json
import logging
import math
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("agg")

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from torch.nn.functional import cross_entropy
from torch_lr_finder import LRFinder, TrainDataLoaderIter

from optstate import job
from optstate.checksums import write_checksums
from optstate.training.batches import iterate_endlessly, load_split, place_split
from optstate.training.compute import Compute, set_up
from optstate.training.schedule import make_optimizer
from optstate.training.session import (
    explain_errors,
    load_previous,
    make_state,
    verify_inputs,
)
from optstate.training.spec import SessionSpec

LOWEST, HIGHEST = 1e-7, 10.0
NUM_STEPS = 100
MIN_STEPS = 20  # fewest steps of a curve
WINDOW = 11  # steps that a point of the smoothed curve averages, about 0.9 decades of the LR
MARGIN = WINDOW // 2  # steps at each end of the curve without a window
# About one in 1000 curves of nothing but noise falls by 2 of its standard deviations.
NUM_DEVIATIONS = 2.0
MIN_CHANGE = 0.01  # of the loss at the start; without noise, any change would be clear
LR_KEYS = ("lr", "initial_lr", "max_lr", "final_lr")  # of schedules
TITLE_WIDTH = 90  # characters
BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#555555"


@dataclass(frozen=True)
class Curve:
    """The result of an LR range test.

    Attributes:
        lrs: the LR of each step.
        losses: the train loss of each step's batch, before the step. All are finite.
    """

    lrs: Sequence[float]
    losses: Sequence[float]

    @property
    def smoothed(self) -> np.ndarray:
        """The mean loss of ``WINDOW`` steps around each step; NaN near both ends of the curve."""
        means = np.convolve(self.losses, np.ones(WINDOW) / WINDOW, mode="valid")
        return np.pad(means, MARGIN, constant_values=math.nan)

    @property
    def noise(self) -> np.ndarray:
        """The standard deviation of a step's loss, for each step.

        It is estimated from the differences between successive losses up to the end of the step's
        window, so that the curve's trend hardly counts. NaN where ``smoothed`` is.
        """
        squares = np.diff(self.losses) ** 2
        means = np.cumsum(squares) / np.arange(1, len(squares) + 1)
        return np.pad(np.sqrt(means[WINDOW - 2 :] / 2), MARGIN, constant_values=math.nan)

    def find_steepest(self) -> int | None:
        """Return the step at which the loss falls fastest; None if the loss does not descend.

        A change of the smoothed curve is clear if it is at least ``NUM_DEVIATIONS`` times the noise
        and ``MIN_CHANGE`` of the curve's first point. The loss descends if the curve falls clearly
        below its first point before it rises clearly above the lowest point so far. The steepest
        point lies before the lowest one, and after the curve has left the height of its first one.
        """
        smoothed = self.smoothed[MARGIN:-MARGIN]
        clear = np.maximum(NUM_DEVIATIONS * self.noise[MARGIN:-MARGIN], MIN_CHANGE * smoothed[0])
        has_risen = smoothed - np.minimum.accumulate(smoothed) > clear
        before_rise = smoothed[: np.argmax([*has_risen, True])]
        if not np.any(smoothed[0] - before_rise > clear[: len(before_rise)]):
            return None
        lowest = int(np.argmin(before_rise))
        start = int(np.flatnonzero(smoothed[:lowest] >= smoothed[0])[-1])
        return MARGIN + start + int(np.argmin(np.diff(smoothed[start : lowest + 1])))


def main(arguments: argparse.Namespace) -> None:
    """Write the curve as CSV, PNG and JSON files called ``--output``, and list their checksums."""
    spec = SessionSpec.from_json(arguments.spec)
    require_uses_lr(spec)
    verify_inputs(arguments.arrays, arguments.previous)
    compute = set_up(spec)
    train = load_split(arguments.arrays, "train", spec.train_per_class, spec.subset_seed)
    before = load_previous(arguments.arrays, arguments.previous, arguments.previous_spec)
    given = {"model": arguments.model, "weights": arguments.weights}
    files = {key: path for key, path in given.items() if path}
    with explain_errors(spec):
        model = make_state(spec, train, before, files, compute.device).model
        del before  # as large as the model and the optimizer's state
        images = place_split(train, compute.device)
        batches = iterate_endlessly(images, spec, compute.device, first_epoch=1)
        curve = run_test(spec, compute, model, batches)
    write_outputs(curve, spec, arguments.key, arguments.output)


def require_uses_lr(spec: SessionSpec) -> None:
    """Check that the optimizer uses the LR at every step.

    Raises:
        InputError: it does not.
    """
    if spec.optimizer["name"] == "Rprop":
        raise job.InputError(
            f"{spec.dataset}, {spec.schedule}: Rprop uses the LR only in its first step, so there "
            "is no LR range to test. Choose another optimizer."
        )


def write_outputs(curve: Curve, spec: SessionSpec, key: str, output: Path) -> None:
    """Write the files of a test, and log its suggestion.

    Args:
        curve: the result of the test.
        spec: the settings of the session.
        key: identifies the settings of this session and of all earlier ones.
        output: the path of the CSV file. The others differ in their suffix.
    """
    suggested = curve.find_steepest()
    lr = None if suggested is None else curve.lrs[suggested]
    words = "none: the loss does not descend" if lr is None else f"{lr:.2g}"
    configured = list_configured(spec)
    in_words = ", ".join(f"{name} {value:g}" for name, value in configured.items())
    logging.info("suggested LR %s; configured: %s", words, in_words)
    figure, made_from = output.with_suffix(".png"), output.with_suffix(".json")
    draw(curve, suggested, configured, f"{describe(spec)}\nsuggested LR {words}", figure)
    with job.write_atomically(made_from) as path:
        path.write_text(json.dumps({"key": key, "suggested_lr": lr}))
    with job.write_atomically(output) as path, path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["lr", "loss", "smoothed_loss", "suggested"])
        for step, row in enumerate(zip(curve.lrs, curve.losses, curve.smoothed, strict=True)):
            cells = ["" if math.isnan(value) else value for value in row]
            writer.writerow([*cells, str(step == suggested).lower()])
    write_checksums(output.with_suffix(".sha256"), [output, figure, made_from])


def list_configured(spec: SessionSpec) -> dict[str, float]:
    """Return the LRs of the session by their keys of the schedule, after ``lr_factor``."""
    given = spec.learning_rate
    return {key: spec.lr_factor * given[key] for key in LR_KEYS if key in given}


def describe(spec: SessionSpec) -> str:
    """Return what was tested: data set, schedule, optimizer and session."""
    options = ", ".join(f"{key}={value}" for key, value in spec.optimizer.items() if key != "name")
    optimizer = f"{spec.optimizer['name']}({options})" if options else spec.optimizer["name"]
    tested = f"{spec.dataset}, {spec.schedule}, {optimizer}, before session {spec.session}"
    return textwrap.fill(tested, TITLE_WIDTH)


def draw(
    curve: Curve, suggested: int | None, configured: dict[str, float], title: str, path: Path
) -> None:
    """Draw the curve, the ``suggested`` step and the ``configured`` LRs to ``path``."""
    figure, axes = plt.subplots(figsize=(7, 4.5), dpi=150, layout="constrained")
    axes.plot(curve.lrs, curve.losses, ".", color=GREY, alpha=0.35, label="loss of a batch")
    axes.plot(curve.lrs, curve.smoothed, color=BLUE, label=f"mean of {WINDOW} steps")
    if suggested is not None:
        lr, loss = curve.lrs[suggested], curve.smoothed[suggested]
        axes.plot(lr, loss, "o", color=BLUE, markersize=9, label=f"suggested: {lr:.2g}")
    mark_configured(axes, configured)
    shown = curve.losses[: max(int(np.nanargmin(curve.smoothed)), MIN_STEPS)]
    # Losses after the lowest point may be huge. They must not flatten the rest of the curve.
    margin = 0.1 * (max(shown) - min(shown)) or 0.1
    axes.set_ylim(min(shown) - margin, max(shown) + 3 * margin)
    axes.set_xscale("log")
    axes.set_title(title, loc="left", fontsize=10)
    axes.set_xlabel("learning rate, log scale")
    axes.set_ylabel("train loss")
    axes.legend(frameon=False, fontsize=8)
    with job.write_atomically(path) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": None})
    plt.close(figure)


def mark_configured(axes: Axes, configured: dict[str, float]) -> None:
    """Draw a vertical line at each configured LR, and shade the range between several of them."""
    styles = dict(zip(configured, ("--", ":", "-."), strict=False))
    positive = {key: lr for key, lr in configured.items() if lr > 0}  # others have no logarithm
    for key, lr in positive.items():
        axes.axvline(lr, color=ORANGE, linestyle=styles[key], label=f"configured: {key} {lr:g}")
    if len(positive) > 1:
        axes.axvspan(min(positive.values()), max(positive.values()), color=ORANGE, alpha=0.1)


def run_test(
    spec: SessionSpec,
    compute: Compute,
    model: torch.nn.Module,
    batches: Iterator[tuple[torch.Tensor, torch.Tensor]],
) -> Curve:
    """Run the test with a new optimizer of the session's kind.

    Raises:
        InputError: the loss diverged within the first ``MIN_STEPS`` steps.
    """
    losses = []

    def measure_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        loss = cross_entropy(logits, labels)
        losses.append(loss.item())  # LRFinder keeps only smoothed losses, which lag behind the LR
        return loss

    lowest = {"kind": "constant", "lr": LOWEST}
    optimizer = make_optimizer(model.parameters(), spec.optimizer, lowest)
    finder = LRFinder(Autocast(model, compute), optimizer, measure_loss, compute.device)
    with contextlib.redirect_stdout(None):  # LRFinder prints advice for its own Python interface
        finder.range_test(TrainDataLoaderIter(batches), end_lr=HIGHEST, num_iter=NUM_STEPS)
    is_finite = [*map(math.isfinite, losses), False]
    num_finite = is_finite.index(False)
    if num_finite < MIN_STEPS:
        raise job.InputError(
            f"{spec.dataset}, {spec.schedule}: the loss diverged after {num_finite} steps, too few "
            "for a curve. Choose a larger batch_size, or another optimizer or model."
        )
    return Curve(finder.history["lr"][:num_finite], losses[:num_finite])


class Autocast(torch.nn.Module):
    """A wrapper that runs a model at the configured precision."""

    def __init__(self, model: torch.nn.Module, compute: Compute) -> None:
        super().__init__()
        self.model = model
        self.compute = compute

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return float32 logits (images, classes)."""
        with self.compute.autocast():
            return self.model(images).float()


PARSER = argparse.ArgumentParser(description=__doc__.split("\n")[0])
PARSER.add_argument("--spec", required=True, help="JSON of the fields of SessionSpec")
PARSER.add_argument("--key", required=True, help="identifies the settings of all sessions so far")
PARSER.add_argument("--arrays", type=Path, required=True, help="folder of the data set's arrays")
PARSER.add_argument("--previous", type=Path, help="output folder of the previous session")
PARSER.add_argument("--previous-spec", help="JSON of the settings of the previous session")
PARSER.add_argument("--model", type=Path, help="the user's file that makes the model")
PARSER.add_argument("--weights", type=Path, help="state dict that the first session starts from")
PARSER.add_argument("--output", type=Path, required=True, help="CSV file")

if __name__ == "__main__":
    job.run(PARSER, main)
