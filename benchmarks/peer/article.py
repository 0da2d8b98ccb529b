"""The article's loop, which decodes every JPEG in every epoch, in the training thread.

As in the article's notebooks, the ``DataLoader`` has no workers, ``loss.item()`` follows every
step, and top-k is counted image by image. The notebooks' TensorBoard output is left out.
"""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader
from torchvision import models
from torchvision.datasets import ImageFolder
from torchvision.transforms import Compose, Resize, ToTensor


def train(
    settings: dict[str, Any], images: Path, begin: Callable[[], None], end: Callable[..., None]
) -> None:
    """Train until the process ends."""
    device, size = torch.device(settings["device"]), settings["image_size"]
    dataset = ImageFolder(str(images / "train"), Compose([Resize((size, size)), ToTensor()]))
    loader = DataLoader(dataset, settings["batch_size"], shuffle=True)
    model = models.get_model(settings["model"], num_classes=len(dataset.classes)).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=settings["lr"])
    autocast: Any = contextlib.nullcontext()
    if device.type == "cuda":
        autocast = torch.autocast("cuda", torch.bfloat16)
    while True:
        begin()
        loss = train_epoch(model, loader, optimizer, device, autocast)
        end(images=len(dataset), steps=len(loader), loss=loss)


def train_epoch(
    model: torch.nn.Module,
    loader: DataLoader,
    optimizer: torch.optim.Optimizer,
    device: torch.device,
    autocast: Any,
) -> float:
    """Train one epoch, and return the mean loss of its batches."""
    model.train()
    total, hits = 0.0, [0, 0, 0]
    for inputs, labels in loader:
        inputs, labels = inputs.to(device), labels.to(device)
        optimizer.zero_grad()
        with autocast:
            logits = model(inputs)
            loss = cross_entropy(logits, labels)
        loss.backward()
        optimizer.step()
        total += loss.item()
        for label, highest in zip(labels.tolist(), logits.topk(3).indices.tolist(), strict=True):
            for k in range(3):
                hits[k] += label in highest[: k + 1]
    return total / len(loader)
