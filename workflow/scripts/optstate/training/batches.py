"""Images from the memory-mapped arrays, in batches, in an order that the seed decides."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

CROP_FRACTION = 8  # a crop moves the picture by up to 1/8 of its side


@dataclass(frozen=True)
class ImageSet:
    """One split: uint8 ``images`` (all, size, size, 3), ``labels`` (all,), and which are used."""

    images: np.ndarray
    labels: np.ndarray
    indices: np.ndarray  # (used,) int64

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def num_classes(self) -> int:
        """Classes of the data set."""
        return int(self.labels.max()) + 1


def load_split(folder: Path, split: str, per_class: int | None) -> ImageSet:
    """Memory-map a split, using the first ``per_class`` images of each class, or all."""
    images = np.load(folder / f"{split}_images.npy", mmap_mode="r")
    labels = np.load(folder / f"{split}_labels.npy")
    each = [np.flatnonzero(labels == label)[:per_class] for label in np.unique(labels)]
    return ImageSet(images, labels, np.concatenate(each))


def train_order(image_set: ImageSet, seed: int, epoch: int) -> np.ndarray:
    """The images of an epoch, shuffled: a function of seed and epoch alone, in every method."""
    return np.random.default_rng([seed, epoch]).permutation(image_set.indices)


def batches(
    image_set: ImageSet, order: np.ndarray, batch_size: int, device: torch.device
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """uint8 images (batch, size, size, 3) and labels (batch,) on ``device``, batch by batch."""
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        images = torch.from_numpy(image_set.images[chosen])
        labels = torch.from_numpy(image_set.labels[chosen])
        yield images.to(device), labels.to(device)


def augmented(images: torch.Tensor, augment: str, seed: int, step: int) -> torch.Tensor:
    """Images (batch, size, size, 3), each mirrored at random (flip), and moved (crop_flip).

    How is a function of seed and step alone, so that there is no state to keep. The random numbers
    are drawn on the CPU, so that they are the same for every device.
    """
    if augment == "none":
        return images
    rng = np.random.default_rng([seed, step, 1])  # of two numbers: the order of an epoch
    num_images, size = images.shape[:2]
    columns = np.tile(np.arange(size), (num_images, 1))
    rows = columns.copy()
    if augment == "crop_flip":
        reach = size // CROP_FRACTION
        rows += rng.integers(-reach, reach + 1, (num_images, 1))
        columns += rng.integers(-reach, reach + 1, (num_images, 1))
    mirrored = rng.random(num_images) < 0.5
    columns[mirrored] = columns[mirrored, ::-1]
    row_index, column_index = (
        torch.from_numpy(_reflected(index, size)).to(images.device) for index in (rows, columns)
    )
    which = torch.arange(num_images, device=images.device)
    return images[which[:, None, None], row_index[:, :, None], column_index[:, None, :]]


def _reflected(index: np.ndarray, size: int) -> np.ndarray:
    """Indices beyond an edge, reflected into 0 ... size - 1."""
    index = np.abs(index)
    return np.minimum(index, 2 * (size - 1) - index)


def as_input(images: torch.Tensor) -> torch.Tensor:
    """uint8 (batch, size, size, 3) to float32 (batch, 3, size, size) in [0, 1], channels last.

    Not normalised by mean and variance, as in the article.
    """
    return images.permute(0, 3, 1, 2).float().div_(255)
