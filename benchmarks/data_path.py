"""Measure how many images per second the data path makes ready for the model.

It is compared with torchvision's ``ImageFolder`` and ``DataLoader``, which decode every JPEG again
in every epoch. They run with one worker per core, and without workers as in the article.
"""

import argparse
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import Compose, Resize, ToTensor

from benchmarks.measure import Measure, now, ratio_of_sums, session_spec, write_measures
from optstate import job
from optstate.training.batches import (
    augment_images,
    iterate_batches,
    load_split,
    make_input,
    place_split,
    shuffle_indices,
)
from optstate.training.compute import set_up
from optstate.training.spec import SessionSpec

NUM_ROUNDS = 5
NUM_REPEATS = 20  # epochs of the fast ways in each round, since one epoch is too short to time

Epoch = Callable[[], Iterator[torch.Tensor]]


def main(arguments: argparse.Namespace) -> None:
    """Write the measures to ``--output``."""
    spec = session_spec(arguments.settings)
    device = set_up(spec).device
    num_cores = len(os.sched_getaffinity(0))
    ways: dict[str, tuple[Epoch, int]] = {
        "copy": (make_copy_epoch(spec, arguments.arrays, device), NUM_REPEATS),
        "data_path": (make_session_epoch(spec, arguments.arrays, device), NUM_REPEATS),
        "imagefolder": (make_imagefolder_epoch(spec, arguments.images, device, num_cores), 1),
        "article": (make_imagefolder_epoch(spec, arguments.images, device, 0), 1),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    num_images = [sum(map(len, epoch())) for epoch, _ in ways.values()]  # this also warms up
    if len(set(num_images)) > 1:
        raise RuntimeError(f"the ways read different numbers of images: {num_images}")
    for _ in range(NUM_ROUNDS):
        for name, (epoch, repeats) in ways.items():
            start = now(device)
            for _ in range(repeats):
                for _ in epoch():
                    pass
            seconds[name].append((now(device) - start) / repeats)
    images = [num_images[0]] * NUM_ROUNDS
    measures = [
        Measure(f"{name}_images_per_second", device.type, *ratio_of_sums(images, seconds[name]))
        for name in ways
    ]
    for name, goal in {"copy": "", "imagefolder": ">= 35", "article": ""}.items():
        ratio = ratio_of_sums(seconds[name], seconds["data_path"])
        measures.append(Measure(f"data_path_vs_{name}", device.type, *ratio, goal))
    write_measures(arguments.output, measures)


def make_session_epoch(spec: SessionSpec, arrays: Path, device: torch.device) -> Epoch:
    """Make an epoch of batches as in a session."""
    images = place_split(load_split(arrays, "train", None), device)
    order = shuffle_indices(images, spec.seed, epoch=1)

    def epoch() -> Iterator[torch.Tensor]:
        inputs = None
        for step, (pixels, _) in enumerate(iterate_batches(images, order, spec.batch_size, device)):
            pixels = augment_images(pixels, spec.augment, spec.seed, step)
            inputs = make_input(pixels, spec.normalize, inputs)
            yield inputs

    return epoch


def make_copy_epoch(spec: SessionSpec, arrays: Path, device: torch.device) -> Epoch:
    """Make an epoch that only copies as many bytes as its batches hold."""
    num_images = len(load_split(arrays, "train", None))
    shape = (spec.batch_size, 3, spec.image_size, spec.image_size)
    source, target = torch.rand(shape, device=device), torch.empty(shape, device=device)

    def epoch() -> Iterator[torch.Tensor]:
        for start in range(0, num_images, spec.batch_size):
            number = min(spec.batch_size, num_images - start)
            yield target[:number].copy_(source[:number])

    return epoch


def make_imagefolder_epoch(
    spec: SessionSpec, images: Path, device: torch.device, num_workers: int
) -> Epoch:
    """Make an epoch of batches from ``ImageFolder``, which decodes the images."""
    size = (spec.image_size, spec.image_size)
    loader = DataLoader(
        ImageFolder(images / "train", Compose([Resize(size), ToTensor()])),
        spec.batch_size,
        shuffle=True,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        pin_memory=device.type == "cuda",
    )

    def epoch() -> Iterator[torch.Tensor]:
        for pixels, _ in loader:
            yield pixels.to(device, non_blocking=True)

    return epoch


PARSER = argparse.ArgumentParser(description=__doc__.split("\n")[0])
PARSER.add_argument("--settings", type=json.loads, required=True, help="JSON")
PARSER.add_argument("--images", type=Path, required=True, help="folder of {train,val}/CLASS/IMAGE")
PARSER.add_argument("--arrays", type=Path, required=True, help="folder of their arrays")
PARSER.add_argument("--output", type=Path, required=True, help="CSV file of the measures")

if __name__ == "__main__":
    job.run(PARSER, main)
