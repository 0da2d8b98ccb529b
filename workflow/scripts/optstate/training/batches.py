"""Batches of the prepared images, on the device, in an order determined by the seed.

On a CPU the arrays stay memory-mapped. A GPU holds the used images of a split as uint8 if they fit
into a quarter of its free memory. Otherwise each batch is copied from pinned memory while the GPU
computes earlier steps. Where the images are stored changes no bit of the results.
"""

import functools
import itertools
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from optstate import checksums
from optstate.training.spec import SessionSpec

FILES = (
    "dataset.json",
    "train_images.npy",
    "train_labels.npy",
    "valid_images.npy",
    "valid_labels.npy",
)
# Random streams: 0 and 1 order and augment training batches.
REBUILDING = 2  # batches that rebuild a state
SUBSET = 3  # the choice of training images
REESTIMATING = 4  # batches from which batch-norm statistics are estimated
IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}  # of torchvision's weights
CROP_FRACTION = 8  # a crop shifts the image by up to 1/8 of its side
CHUNK = 1024  # images copied to a device at once
MAX_MEMORY_SHARE = 0.25  # of a GPU's free memory, for one split; the rest is for training


@dataclass(frozen=True)
class ImageSet:
    """One split of a data set: memory-mapped arrays, or tensors on a device.

    Attributes:
        images: uint8 (all, size, size, 3).
        labels: int64 (all,).
        indices: int64 (used,), the indices of the images that are used.
    """

    images: np.ndarray | torch.Tensor
    labels: np.ndarray | torch.Tensor
    indices: np.ndarray

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def num_classes(self) -> int:
        """The number of classes of the data set."""
        return int(self.labels.max()) + 1


def verify_arrays(folder: Path) -> None:
    """Check that a data set's arrays and ``dataset.json`` are as they were prepared.

    Raises:
        InputError: a file is missing or has changed.
    """
    checksums.verify(*(folder / name for name in FILES), cache=True)


def load_split(
    folder: Path, split: str, per_class: int | None, seed: int | None = None
) -> ImageSet:
    """Memory-map a split.

    Args:
        folder: the folder of the arrays.
        split: ``train`` or ``valid``.
        per_class: the number of images of each class that are used. None: all.
        seed: chooses these images at random. None: the first ones are used.
    """
    images = np.load(folder / f"{split}_images.npy", mmap_mode="r")
    labels = np.load(folder / f"{split}_labels.npy")
    used = []
    for label in np.unique(labels):
        indices = np.flatnonzero(labels == label)
        if seed is not None:
            indices = np.random.default_rng([seed, label, 2 * SUBSET]).permutation(indices)
        used.append(np.sort(indices[:per_class]))
    return ImageSet(images, labels, np.concatenate(used))


def place_split(image_set: ImageSet, device: torch.device) -> ImageSet:
    """Return the split on ``device`` if this is a GPU with enough memory, else unchanged."""
    if device.type != "cuda":
        return image_set
    num_bytes = len(image_set) * image_set.images[0].nbytes
    if num_bytes > MAX_MEMORY_SHARE * torch.cuda.mem_get_info(device)[0]:
        logging.info("streaming %.1f GB of images to the GPU", num_bytes / 1e9)
        return image_set
    return copy_to_device(image_set, device)


def copy_to_device(image_set: ImageSet, device: torch.device) -> ImageSet:
    """Copy only the images that are used to the memory of ``device``."""
    order, size = image_set.indices, image_set.images.shape[1:]
    images = torch.empty((len(order), *size), dtype=torch.uint8, device=device)
    for start in range(0, len(order), CHUNK):
        chosen = order[start : start + CHUNK]
        images[start : start + CHUNK] = torch.from_numpy(image_set.images[chosen])
    labels = torch.from_numpy(image_set.labels[order]).to(device)
    return ImageSet(images, labels, np.arange(len(order)))


def count_batches(num_images: int, batch_size: int) -> int:
    """Return the number of training steps in an epoch.

    A partial last batch is a step if it has at least two images, because batch norm cannot train on
    a single image.
    """
    return num_images // batch_size + (num_images % batch_size > 1)


def shuffle_indices(image_set: ImageSet, seed: int, epoch: int, stream: int = 0) -> np.ndarray:
    """Return the used indices in the order of an epoch.

    The order depends only on seed, epoch and stream.
    """
    return np.random.default_rng([seed, epoch, 2 * stream]).permutation(image_set.indices)


def iterate_batches(
    image_set: ImageSet, order: np.ndarray, batch_size: int, device: torch.device
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield uint8 images (batch, size, size, 3) and labels (batch,) on ``device``."""
    is_on_device = isinstance(image_set.images, torch.Tensor)
    all_chosen = move_to_device(order, device) if is_on_device else order
    for start in range(0, len(order), batch_size):
        chosen = all_chosen[start : start + batch_size]
        images, labels = image_set.images[chosen], image_set.labels[chosen]
        yield move_to_device(images, device), move_to_device(labels, device)


def iterate_endlessly(
    image_set: ImageSet, spec: SessionSpec, device: torch.device, first_epoch: int, stream: int = 0
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield a session's inputs (batch, 3, size, size) and labels (batch,), epoch after epoch.

    Args:
        image_set: the training split.
        spec: the session's settings: ``batch_size``, ``augment`` and ``seed``.
        device: the device of the batches.
        first_epoch: the epoch whose order is the first.
        stream: each number gives different random numbers.
    """
    num_images = count_batches(len(image_set), spec.batch_size) * spec.batch_size
    steps = itertools.count(1)
    for epoch in itertools.count(first_epoch):
        order = shuffle_indices(image_set, spec.seed, epoch, stream)[:num_images]
        for images, labels in iterate_batches(image_set, order, spec.batch_size, device):
            images = augment_images(images, spec.augment, spec.seed, next(steps), stream)
            yield make_input(images, spec.normalize), labels


def move_to_device(array: np.ndarray | torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return ``array`` as a tensor on ``device``, without waiting for the device."""
    tensor = torch.as_tensor(array)
    if tensor.device.type == device.type:
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)


def augment_images(
    images: torch.Tensor, augment: str, seed: int, step: int, stream: int = 0
) -> torch.Tensor:
    """Mirror each image at random (``flip``), and also shift it (``crop_flip``).

    The result depends only on images, seed, step and stream, so there is no state to save. Random
    numbers are drawn on the CPU, so that they are the same for every device.

    Args:
        images: uint8 (batch, size, size, 3).
        augment: ``none``, ``flip`` or ``crop_flip``.
        seed: the seed of the run.
        step: the step, counted through all sessions from 1.
        stream: each number gives different random numbers.

    Returns:
        Images of the same shape and type.
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
    down, right, is_mirrored = move_to_device(drawn, images.device)[:, :, None]
    line = torch.arange(size, device=images.device)
    rows, columns = _reflect(line + down, size), _reflect(line + right, size)
    columns = torch.where(is_mirrored > 0, columns.flip(1), columns)
    which = torch.arange(num_images, device=images.device)
    return images[which[:, None, None], rows[:, :, None], columns[:, None, :]]


def _reflect(index: torch.Tensor, size: int) -> torch.Tensor:
    """Reflect indices beyond an edge into 0 ... size - 1."""
    index = index.abs()
    return torch.minimum(index, 2 * (size - 1) - index)


def make_input(
    images: torch.Tensor,
    normalize: str | dict[str, list[float]] = "none",
    buffer: torch.Tensor | None = None,
) -> torch.Tensor:
    """Convert uint8 (batch, size, size, 3) to float32 (batch, 3, size, size), channels last.

    Values are scaled to [0, 1], and then normalized.

    Args:
        images: the images of a batch.
        normalize: ``none``, ``imagenet``, or the ``mean`` that is subtracted from each channel and
            the ``std`` by which it is then divided.
        buffer: an earlier result that is no longer needed. If it has the right shape, it is
            overwritten and returned, which is twice as fast as new memory.
    """
    planes = images.permute(0, 3, 1, 2)
    if buffer is None or buffer.shape != planes.shape:
        buffer = torch.empty_like(planes, dtype=torch.float32)
    inputs = buffer.copy_(planes).div_(255)
    if normalize == "none":
        return inputs
    values = IMAGENET if isinstance(normalize, str) else normalize
    mean, std = (_place_channels(tuple(values[k]), inputs.device) for k in ("mean", "std"))
    return inputs.sub_(mean).div_(std)


@functools.cache
def _place_channels(values: tuple[float, ...], device: torch.device) -> torch.Tensor:
    """Return a value for each channel as float32 (3, 1, 1) on ``device``."""
    return torch.tensor(values, device=device)[:, None, None]
