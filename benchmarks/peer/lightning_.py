"""Lightning: a module and its ``Trainer``, with its default progress bar and logger.

The workers of the ``DataLoader`` stay from epoch to epoch (idle in between), as Lightning itself
advises. On a GPU the options are pinned memory, ``benchmark=True`` and ``precision="bf16-mixed"``.
There is no option for channels last. Validation is off, and so is the checkpoint that Lightning
would write after every epoch.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning  # type: ignore[import-not-found]
import torch
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader
from torchvision import models
from torchvision.datasets import ImageFolder
from torchvision.transforms import Compose, Resize, ToTensor


class Classifier(lightning.LightningModule):
    """The model, its loss and its optimizer."""

    def __init__(self, model: str, num_classes: int, lr: float) -> None:
        super().__init__()
        self.model = models.get_model(model, num_classes=num_classes)
        self.lr = lr

    def training_step(self, batch: list[torch.Tensor], _: int) -> torch.Tensor:
        """Return the loss of a batch, and log it."""
        inputs, labels = batch
        loss = cross_entropy(self.model(inputs), labels)
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return Adam."""
        return torch.optim.Adam(self.parameters(), lr=self.lr)


class InTurns(lightning.Callback):
    """Makes every epoch wait for its turn."""

    def __init__(self, begin: Callable[[], None], end: Callable[..., None]) -> None:
        self.begin, self.end = begin, end
        self.num_images = 0

    def on_train_epoch_start(self, *_: Any) -> None:
        """Wait for the turn, before the epoch's first batch is loaded."""
        self.begin()
        self.num_images = 0

    def on_train_batch_start(self, _trainer: Any, _module: Any, batch: Any, _index: int) -> None:
        """Count the images."""
        self.num_images += len(batch[1])

    def on_train_epoch_end(self, trainer: Any, *_: Any) -> None:
        """Report the epoch after its last step."""
        loss = trainer.callback_metrics["train_loss"].item()
        self.end(images=self.num_images, steps=trainer.num_training_batches, loss=loss)


def train(
    settings: dict[str, Any], images: Path, begin: Callable[[], None], end: Callable[..., None]
) -> None:
    """Train until the process ends."""
    on_gpu, size = settings["device"] == "cuda", settings["image_size"]
    dataset = ImageFolder(str(images / "train"), Compose([Resize((size, size)), ToTensor()]))
    loader = DataLoader(
        dataset, settings["batch_size"], shuffle=True, num_workers=settings["workers"],
        pin_memory=on_gpu, persistent_workers=True,
    )  # fmt: skip
    trainer = lightning.Trainer(
        accelerator=settings["device"], devices=1, max_epochs=-1, benchmark=on_gpu,
        precision="bf16-mixed" if on_gpu else "32-true", limit_val_batches=0,
        enable_checkpointing=False, callbacks=[InTurns(begin, end)],
    )  # fmt: skip
    trainer.fit(Classifier(settings["model"], len(dataset.classes), settings["lr"]), loader)
