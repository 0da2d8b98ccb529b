"""fastai: a ``Learner`` on ``ImageDataLoaders.from_folder``, with its default callbacks.

Its options are torch's Adam in its ``OptimWrapper`` (fastai's own Adam takes other steps),
``drop_last=False`` and ``to_channelslast``, and on a GPU pinned memory and bfloat16 mixed
precision. The validation of each epoch is cancelled.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from fastai.vision import all as vision  # type: ignore[import-not-found]
from torchvision import models


class InTurns(vision.Callback):
    """Makes every epoch wait for its turn."""

    order = 100  # after fastai's default callbacks

    def __init__(self, begin: Callable[[], None], end: Callable[..., None]) -> None:
        self.begin, self.end = begin, end
        self.num_images = 0

    def before_train(self) -> None:
        """Wait for the turn, before the epoch's first batch is loaded."""
        self.begin()
        self.num_images = 0

    def before_batch(self) -> None:
        """Count the images."""
        self.num_images += len(self.learn.yb[0])

    def after_train(self) -> None:
        """Report the epoch after its last step."""
        loss = self.learn.smooth_loss.item()
        self.end(images=self.num_images, steps=self.learn.n_iter, loss=loss)

    def before_validate(self) -> None:
        """Cancel the validation."""
        raise vision.CancelValidException


def train(
    settings: dict[str, Any], images: Path, begin: Callable[[], None], end: Callable[..., None]
) -> None:
    """Train until the process ends."""
    on_gpu = settings["device"] == "cuda"
    vision.default_device(use=on_gpu)
    data = vision.ImageDataLoaders.from_folder(
        images, valid="val", bs=settings["batch_size"], num_workers=settings["workers"],
        item_tfms=vision.Resize(settings["image_size"], method=vision.ResizeMethod.Squish),
        drop_last=False, pin_memory=on_gpu,
    )  # fmt: skip
    model = models.get_model(settings["model"], num_classes=data.c)
    adam = functools.partial(vision.OptimWrapper, opt=torch.optim.Adam)
    learner = vision.Learner(data, model, opt_func=adam, lr=settings["lr"], wd=0.0)
    learner.to_channelslast(use_amp=on_gpu, amp_mode=vision.AMPMode.BF16)
    learner.fit(1_000_000, cbs=InTurns(begin, end))
