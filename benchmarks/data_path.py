"""The data path: images per second that are ready for the model, ours and others' ways.

The others decode every JPEG again in every epoch: torchvision's ``ImageFolder`` through a
``DataLoader`` with a worker for each core, and without workers, as the article did.
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

from optstate import job
from benchmarks.measure import Measure, now, ratio_of_sums, session_spec, write_measures
from optstate.training import session
from optstate.training.batches import (
    as_input,
    augmented,
    batches,
    load_split,
    on_device,
    train_order,
)
from optstate.training.spec import SessionSpec

ROUNDS = 5
REPEATS = 20  # epochs of the fast ways in a round: of one alone the clock would be too coarse

Epoch = Callable[[], Iterator[torch.Tensor]]


def main(arguments: argparse.Namespace) -> None:
    """Write the measures to ``--output``."""
    spec = session_spec(arguments.settings)
    device = session.set_up(spec)
    cores = len(os.sched_getaffinity(0))
    ways: dict[str, tuple[Epoch, int]] = {
        "copy": (copies(spec, arguments.arrays, device), REPEATS),
        "data_path": (ours(spec, arguments.arrays, device), REPEATS),
        "imagefolder": (image_folder(spec, arguments.images, device, cores), 1),
        "article": (image_folder(spec, arguments.images, device, 0), 1),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    num_images = [sum(map(len, epoch())) for epoch, _ in ways.values()]  # and all warm up
    if len(set(num_images)) > 1:
        raise RuntimeError(f"not the same number of images: {num_images}")
    for _ in range(ROUNDS):
        for name, (epoch, repeats) in ways.items():
            start = now(device)
            for _ in range(repeats):
                for _ in epoch():
                    pass
            seconds[name].append((now(device) - start) / repeats)
    images = [num_images[0]] * ROUNDS
    measures = [
        Measure(f"{name}_images_per_second", device.type, *ratio_of_sums(images, seconds[name]))
        for name in ways
    ]
    for name, goal in {"copy": "", "imagefolder": ">= 35", "article": ""}.items():
        ratio = ratio_of_sums(seconds[name], seconds["data_path"])
        measures.append(Measure(f"data_path_vs_{name}", device.type, *ratio, goal))
    write_measures(arguments.output, measures)


def ours(spec: SessionSpec, arrays: Path, device: torch.device) -> Epoch:
    """Batches as a session takes them."""
    images = on_device(load_split(arrays, "train", None), device)
    order = train_order(images, spec.seed, epoch=1)

    def epoch() -> Iterator[torch.Tensor]:
        inputs = None
        for step, (pixels, _) in enumerate(batches(images, order, spec.batch_size, device)):
            inputs = as_input(augmented(pixels, spec.augment, spec.seed, step), inputs)
            yield inputs

    return epoch


def copies(spec: SessionSpec, arrays: Path, device: torch.device) -> Epoch:
    """As many bytes as such batches have, copied to memory that is used again."""
    num_images = len(load_split(arrays, "train", None))
    shape = (spec.batch_size, 3, spec.image_size, spec.image_size)
    source, target = torch.rand(shape, device=device), torch.empty(shape, device=device)

    def epoch() -> Iterator[torch.Tensor]:
        for start in range(0, num_images, spec.batch_size):
            number = min(spec.batch_size, num_images - start)
            yield target[:number].copy_(source[:number])

    return epoch


def image_folder(spec: SessionSpec, images: Path, device: torch.device, workers: int) -> Epoch:
    """Batches of images that are decoded when they are asked for."""
    size = (spec.image_size, spec.image_size)
    loader = DataLoader(
        ImageFolder(images / "train", Compose([Resize(size), ToTensor()])),
        spec.batch_size,
        shuffle=True,
        num_workers=workers,
        persistent_workers=workers > 0,
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
