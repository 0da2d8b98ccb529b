"""LR range test (Smith 2017) before a session: the loss while the LR rises from 1e-7 to 10.

The article chose its learning rates from such curves, by eye. torch-lr-finder runs the test and
suggests the LR at which the loss falls fastest. No job uses the suggestion.
"""

import argparse
import csv
import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("agg")

import matplotlib.pyplot as plt
import torch
from torch.nn.functional import cross_entropy
from torch_lr_finder import LRFinder, TrainDataLoaderIter

from optstate import job
from optstate.training.batches import ImageSet, iterate_endlessly, load_split, place_split
from optstate.training.compute import Compute, set_up
from optstate.training.schedule import make_optimizer
from optstate.training.session import load_previous, make_state, verify_inputs
from optstate.training.spec import SessionSpec

LOWEST, HIGHEST = 1e-7, 10.0
NUM_STEPS = 100
MIN_STEPS = 20  # fewest steps of a curve


@dataclass(frozen=True)
class Batches:
    """Endless batches of a session, in the order of epochs 1, 2, ..."""

    spec: SessionSpec
    images: ImageSet
    device: torch.device

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        return iterate_endlessly(self.images, self.spec, self.device, first_epoch=1)


def main(arguments: argparse.Namespace) -> None:
    """Write the curve as CSV to ``--output``, and as a PNG figure with the same name."""
    spec = SessionSpec.from_json(arguments.spec)
    verify_inputs(arguments.arrays, arguments.previous)
    compute = set_up(spec)
    train = load_split(arguments.arrays, "train", spec.train_per_class, spec.subset_seed)
    before = load_previous(arguments.arrays, arguments.previous, arguments.previous_spec)
    files = {"weights": arguments.weights} if arguments.weights else {}
    model = make_state(spec, train, before, files, compute.device).model
    batches = Batches(spec, place_split(train, compute.device), compute.device)
    finder = run_test(spec, compute, model, batches)
    suggested = draw(finder, spec, arguments.output.with_suffix(".png"))
    with job.write_atomically(arguments.output) as path, path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["lr", "loss", "suggested"])
        for lr, loss in zip(*finder.history.values(), strict=True):
            writer.writerow([lr, loss, str(lr == suggested).lower()])


def draw(finder: LRFinder, spec: SessionSpec, path: Path) -> float:
    """Draw the curve to ``path``. Returns the suggested LR."""
    figure, axes = plt.subplots(figsize=(7, 4.5), dpi=150, layout="constrained")
    _, suggested = finder.plot(ax=axes)
    configured = ", ".join(f"{key} {value}" for key, value in spec.learning_rate.items())
    axes.set_title(
        f"{spec.dataset}, before session {spec.session}: suggested LR {suggested:.2g}\n"
        f"configured: {configured}", loc="left", fontsize=10,
    )  # fmt: skip
    axes.set_xlabel("learning rate, log scale")
    axes.set_ylabel("train loss, smoothed")
    logging.info("suggested LR %.3g; configured: %s", suggested, configured)
    with job.write_atomically(path) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": None})
    return suggested


def run_test(
    spec: SessionSpec, compute: Compute, model: torch.nn.Module, batches: Batches
) -> LRFinder:
    """Run the test with a new optimizer of the session's kind. Returns the finder with its history.

    Raises:
        InputError: the loss diverged within the first ``MIN_STEPS`` steps.
    """
    lowest = {"kind": "constant", "lr": LOWEST}
    optimizer = make_optimizer(model.parameters(), spec.optimizer, lowest)
    finder = LRFinder(Autocast(model, compute), optimizer, cross_entropy, compute.device)
    finder.range_test(TrainDataLoaderIter(batches), end_lr=HIGHEST, num_iter=NUM_STEPS)
    # The losses are smoothed, so none is finite after the first that is not.
    num_finite = sum(map(math.isfinite, finder.history["loss"]))
    finder.history = {name: values[:num_finite] for name, values in finder.history.items()}
    if num_finite < MIN_STEPS:
        raise job.InputError(
            f"{spec.dataset}, {spec.schedule}: the loss diverged after {num_finite} steps, too few "
            "for a curve. Choose a larger batch_size, or another optimizer or model."
        )
    return finder


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
PARSER.add_argument("--arrays", type=Path, required=True, help="folder of the data set's arrays")
PARSER.add_argument("--previous", type=Path, help="output folder of the previous session")
PARSER.add_argument("--previous-spec", help="JSON of the settings of the previous session")
PARSER.add_argument("--weights", type=Path, help="state dict that the first session starts from")
PARSER.add_argument("--output", type=Path, required=True, help="CSV file")

if __name__ == "__main__":
    job.run(PARSER, main)
