"""timm: the parts of its training script, combined as in that script.

The script, ``train.py``, is not in the package. This module does the same as its
``train_one_epoch`` with these options: ``--no-aug``, ``--smoothing 0``, ``--opt adam``,
``--weight-decay 0``, ``--workers CORES``, ``--channels-last``, and on a GPU ``--pin-mem`` and
``--amp --amp-dtype bfloat16``. The loader squashes images to a square, keeps its workers from
epoch to epoch (idle in between), converts bytes to floats on the device, and drops a partial
batch. The checkpoint that the script writes after a validation is not part of an epoch here.
"""

import functools
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from timm.data import create_dataset, create_loader  # type: ignore[import-not-found]
from timm.optim import create_optimizer_v2  # type: ignore[import-not-found]
from timm.scheduler import create_scheduler_v2  # type: ignore[import-not-found]
from timm.utils import AverageMeter  # type: ignore[import-not-found]
from torchvision import models


def train(
    settings: dict[str, Any], images: Path, begin: Callable[[], None], end: Callable[..., None]
) -> None:
    """Train until the process ends."""
    device, size = torch.device(settings["device"]), settings["image_size"]
    on_gpu = device.type == "cuda"
    torch.backends.cudnn.benchmark = True
    dataset = create_dataset("", root=str(images), split="train", is_training=True)
    loader = create_loader(
        dataset, (3, size, size), settings["batch_size"], is_training=True, no_aug=True,
        num_workers=settings["workers"], pin_memory=on_gpu, device=device,
    )  # fmt: skip
    model = models.get_model(settings["model"], num_classes=len(dataset.reader.class_to_idx))
    model.to(device, memory_format=torch.channels_last)
    optimizer = create_optimizer_v2(model, "adam", lr=settings["lr"], weight_decay=0.0)
    scheduler, num_epochs = create_scheduler_v2(
        optimizer, num_epochs=1_000_000, warmup_epochs=0, updates_per_epoch=len(loader)
    )
    autocast = functools.partial(torch.autocast, "cuda", torch.bfloat16) if on_gpu else nullcontext
    for epoch in range(num_epochs):
        begin()
        losses = train_one_epoch(epoch, model, loader, optimizer, scheduler, autocast)
        end(images=losses.count, steps=len(loader), loss=losses.avg)
        scheduler.step(epoch + 1)


def train_one_epoch(
    epoch: int, model: Any, loader: Any, optimizer: Any, scheduler: Any, autocast: Any
) -> Any:
    """Train an epoch like timm's function of this name, and return the meter of the losses."""
    update_time, data_time, losses = AverageMeter(), AverageMeter(), AverageMeter()
    loss_fn = torch.nn.CrossEntropyLoss()
    model.train()
    start = time.time()
    optimizer.zero_grad()
    for step, (inputs, target) in enumerate(loader, start=1):
        inputs = inputs.contiguous(memory_format=torch.channels_last)
        data_time.update(time.time() - start)
        with autocast():
            loss = loss_fn(model(inputs), target)
        loss.backward()
        optimizer.step()
        losses.update(loss.item(), inputs.size(0))
        optimizer.zero_grad()
        update_time.update(time.time() - start)
        scheduler.step_update(num_updates=epoch * len(loader) + step, metric=losses.avg)
        start = time.time()
    return losses
