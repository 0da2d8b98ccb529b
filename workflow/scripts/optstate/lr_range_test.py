"""LR range test (Smith 2017) before a session: the loss while the LR rises from tiny to huge.

The article chose its LRs by it, by eye. It is torch-lr-finder's, with its suggestion, the LR at
which the loss falls fastest; nothing takes the suggestion but the reader.
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
from optstate.training.batches import (
    ImageSet,
    as_input,
    augmented,
    batches,
    load_split,
    on_device,
    train_order,
)
from optstate.training.loop import num_steps_per_epoch
from optstate.training.schedule import make_optimizer
from optstate.training.session import autocast, set_up, start
from optstate.training.spec import SessionSpec

LOWEST, HIGHEST = 1e-7, 10.0
NUM_STEPS = 100
FEWEST_STEPS = 20  # of a curve


@dataclass(frozen=True)
class Batches:
    """The session's batches, epoch after epoch, without an end."""

    spec: SessionSpec
    images: ImageSet
    device: torch.device

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        spec, step, epoch = self.spec, 0, 0
        num_images = num_steps_per_epoch(len(self.images), spec.batch_size) * spec.batch_size
        while True:
            order = train_order(self.images, spec.seed, epoch := epoch + 1)[:num_images]
            for pixels, labels in batches(self.images, order, spec.batch_size, self.device):
                step += 1
                yield as_input(augmented(pixels, spec.augment, spec.seed, step)), labels


def main(arguments: argparse.Namespace) -> None:
    """Write the curve to ``--output`` as CSV, and beside it as a figure."""
    spec = SessionSpec.from_json(arguments.spec)
    device = set_up(spec)
    train = load_split(arguments.dataset, "train", spec.train_per_class)
    model = start(spec, train, arguments.previous, arguments.weights, device).model
    finder = tested(spec, model, Batches(spec, on_device(train, device), device))
    figure, axes = plt.subplots(figsize=(7, 4.5), dpi=150, layout="constrained")
    _, suggested = finder.plot(ax=axes)
    told = ", ".join(f"{key} {value}" for key, value in spec.learning_rate.items())
    axes.set_title(
        f"{spec.dataset}, before session {spec.session}: {suggested:.2g} is suggested\n"
        f"configured: {told}", loc="left", fontsize=10,
    )  # fmt: skip
    axes.set_xlabel("learning rate, log scale")
    axes.set_ylabel("train loss, smoothed")
    logging.info("%.3g is suggested; configured: %s", suggested, told)
    with job.write_atomically(arguments.output.with_suffix(".png")) as path:
        figure.savefig(path, format="png", metadata={"Software": None})
    with job.write_atomically(arguments.output) as path, path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["lr", "loss", "suggested"])
        for lr, loss in zip(*finder.history.values(), strict=True):
            writer.writerow([lr, loss, str(lr == suggested).lower()])


def tested(spec: SessionSpec, model: torch.nn.Module, data: Batches) -> LRFinder:
    """A finder that has been through the test, with a new optimizer of the session's kind.

    Raises:
        InputError: the loss grew beyond all bounds before there was a curve.
    """
    lowest = {"kind": "constant", "lr": LOWEST}
    optimizer = make_optimizer(model.parameters(), spec.optimizer, lowest)
    finder = LRFinder(InPrecision(model, spec, data.device), optimizer, cross_entropy, data.device)
    finder.range_test(TrainDataLoaderIter(data), end_lr=HIGHEST, num_iter=NUM_STEPS)
    num_finite = sum(map(math.isfinite, finder.history["loss"]))  # once not finite, never again
    finder.history = {name: values[:num_finite] for name, values in finder.history.items()}
    if num_finite < FEWEST_STEPS:
        raise job.InputError(
            f"{spec.dataset}, {spec.schedule}: after {num_finite} steps the loss is not finite: "
            "choose another optimizer or model"
        )
    return finder


class InPrecision(torch.nn.Module):
    """A model that runs at the configured precision."""

    def __init__(self, model: torch.nn.Module, spec: SessionSpec, device: torch.device) -> None:
        super().__init__()
        self.model = model
        self.autocast = autocast(spec, device)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits (images, classes), float32."""
        with self.autocast():
            return self.model(images).float()


PARSER = argparse.ArgumentParser(description=__doc__.split("\n")[0])
PARSER.add_argument("--spec", required=True, help="JSON of the fields of SessionSpec")
PARSER.add_argument("--dataset", type=Path, required=True, help="folder of the arrays")
PARSER.add_argument("--previous", type=Path, help="folder of the session before this one")
PARSER.add_argument("--weights", type=Path, help="state dict that the first session starts from")
PARSER.add_argument("--output", type=Path, required=True, help="CSV file")

if __name__ == "__main__":
    job.run(PARSER, main)
