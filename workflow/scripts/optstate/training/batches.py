"""Batches of the prepared images, on the device, in an order that the seed decides.

On a CPU the arrays stay memory-mapped. A GPU holds a split as it is, uint8, where its memory has
room; where it has not, each batch goes there through pinned memory, while the GPU is still at work
on the steps before. Which way they come changes no bit.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

CROP_FRACTION = 8  # a crop moves the picture by up to 1/8 of its side
CHUNK = 1024  # images sent to a device at once
ROOM = 0.5  # a split may take this part of a GPU's free memory: the rest is for training


@dataclass(frozen=True)
class ImageSet:
    """One split: uint8 ``images`` (all, size, size, 3), ``labels`` (all,), and which are used.

    Images and labels lie in memory-mapped arrays, or as tensors on a device.
    """

    images: np.ndarray | torch.Tensor
    labels: np.ndarray | torch.Tensor
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


def on_device(image_set: ImageSet, device: torch.device) -> ImageSet:
    """The split as batches are best taken from it: a GPU's memory holds it if it has room."""
    if device.type != "cuda":
        return image_set
    num_bytes = len(image_set) * image_set.images[0].nbytes
    if num_bytes > ROOM * torch.cuda.mem_get_info(device)[0]:
        logging.info("%.1f GB of images are streamed to the GPU", num_bytes / 1e9)
        return image_set
    return resident(image_set, device)


def resident(image_set: ImageSet, device: torch.device) -> ImageSet:
    """The images that are used, and no others, in the memory of ``device``."""
    order, size = image_set.indices, image_set.images.shape[1:]
    images = torch.empty((len(order), *size), dtype=torch.uint8, device=device)
    for start in range(0, len(order), CHUNK):
        chosen = order[start : start + CHUNK]
        images[start : start + CHUNK] = torch.from_numpy(image_set.images[chosen])
    labels = torch.from_numpy(image_set.labels[order]).to(device)
    return ImageSet(images, labels, np.arange(len(order)))


def train_order(image_set: ImageSet, seed: int, epoch: int, stream: int = 0) -> np.ndarray:
    """The images of an epoch, shuffled: a function of seed, epoch and stream alone."""
    return np.random.default_rng([seed, epoch, 2 * stream]).permutation(image_set.indices)


def batches(
    image_set: ImageSet, order: np.ndarray, batch_size: int, device: torch.device
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """uint8 images (batch, size, size, 3) and labels (batch,) on ``device``, batch by batch."""
    is_resident = isinstance(image_set.images, torch.Tensor)
    all_chosen = sent(order, device) if is_resident else order
    for start in range(0, len(order), batch_size):
        chosen = all_chosen[start : start + batch_size]
        images, labels = image_set.images[chosen], image_set.labels[chosen]
        yield sent(images, device), sent(labels, device)


def sent(array: np.ndarray | torch.Tensor, device: torch.device) -> torch.Tensor:
    """``array`` as a tensor on ``device``, without waiting for the work that is under way there."""
    tensor = torch.as_tensor(array)
    if tensor.device.type == device.type:
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)


def augmented(
    images: torch.Tensor, augment: str, seed: int, step: int, stream: int = 0
) -> torch.Tensor:
    """Images (batch, size, size, 3), each mirrored at random (flip), and moved (crop_flip).

    How is a function of seed, step and stream alone, so that there is no state to keep. The random
    numbers are drawn on the CPU, so that they are the same for every device.
    """
    if augment == "none":
        return images
    rng = np.random.default_rng([seed, step, 2 * stream + 1])
    num_images, size = images.shape[:2]
    drawn = np.zeros((3, num_images), np.int64)
    if augment == "crop_flip":
        reach = size // CROP_FRACTION
        drawn[:2] = rng.integers(-reach, reach + 1, (2, num_images))
    drawn[2] = rng.random(num_images) < 0.5
    down, right, mirrored = sent(drawn, images.device)[:, :, None]
    line = torch.arange(size, device=images.device)
    rows, columns = _reflected(line + down, size), _reflected(line + right, size)
    columns = torch.where(mirrored > 0, columns.flip(1), columns)
    which = torch.arange(num_images, device=images.device)
    return images[which[:, None, None], rows[:, :, None], columns[:, None, :]]


def _reflected(index: torch.Tensor, size: int) -> torch.Tensor:
    """Indices beyond an edge, reflected into 0 ... size - 1."""
    index = index.abs()
    return torch.minimum(index, 2 * (size - 1) - index)


def as_input(images: torch.Tensor, used: torch.Tensor | None = None) -> torch.Tensor:
    """uint8 (batch, size, size, 3) to float32 (batch, 3, size, size) in [0, 1], channels last.

    Not normalised by mean and variance, as in the article.

    Args:
        images: of a batch.
        used: what this returned for a batch that is done with. Its memory is taken if it is of the
            same shape, which is twice as fast as new memory.
    """
    planes = images.permute(0, 3, 1, 2)
    if used is None or used.shape != planes.shape:
        used = torch.empty_like(planes, dtype=torch.float32)
    return used.copy_(planes).div_(255)
