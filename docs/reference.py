"""The experiment in plain PyTorch. The pipeline computes the same losses, to the bit.

Four methods train a model in sessions, on the images FOLDER/train/CLASS/IMAGE. The model always
keeps its weights. Before every session but the first, the optimizer loses its state (`new`) or
keeps it (`preserve`). A schedule sets the LRs of one session, or with `--over run` of all sessions.
"""

import argparse
import copy
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import ConstantLR, LRScheduler, OneCycleLR
from torchvision.models import get_model

MODEL, IMAGE_SIZE, BATCH_SIZE, SEED = "shufflenet_v2_x0_5", 32, 4, 0
SESSIONS = [[1, 2], [3], [4]]  # the epochs of each session
# LRs of each session, for OneCycle (initial, maximum). With `--over run`, only the first is used.
LRS = {"constant": [1e-3, 5e-4, 3e-4], "onecycle": [(5e-5, 1e-3), (2e-5, 6e-4), (5e-6, 1e-4)]}


def make_scheduler(optimizer: torch.optim.Adam, lr: float | tuple, num_steps: int) -> LRScheduler:
    """Return a scheduler that sets the optimizer's LR, and for OneCycle also beta1."""
    if isinstance(lr, tuple):
        return OneCycleLR(optimizer, lr[1], total_steps=num_steps, div_factor=lr[1] / lr[0])
    optimizer.param_groups[0]["lr"] = lr
    return ConstantLR(optimizer, factor=1)


def train(name: str, run: tuple, epochs: list[int]) -> None:
    """Train for some epochs, and print name, epoch and loss of every step."""
    model, optimizer, scheduler = run
    for epoch in epochs:
        order = np.random.default_rng([SEED, epoch]).permutation(len(images))
        for start in starts:
            batch = order[start : start + BATCH_SIZE]
            loss = cross_entropy(model(images[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
            print(name, epoch, loss.item())


parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("folder", type=Path)
parser.add_argument("--over", choices=["session", "run"], default="session")
arguments = parser.parse_args()

torch.set_num_threads(1)  # with another number, sums are rounded differently
paths = sorted(arguments.folder.glob("train/[!.]*/[!.]*"))  # by class, then by file name
size = IMAGE_SIZE, IMAGE_SIZE
upright = [ImageOps.exif_transpose(Image.open(p)).convert("RGB") for p in paths]
pictures = [picture.resize(size, Image.Resampling.BILINEAR) for picture in upright]
images = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2) / 255  # (N, 3, size, size)
labels = torch.from_numpy(np.unique([p.parent.name for p in paths], return_inverse=True)[1])
starts = range(0, len(images) - 1, BATCH_SIZE)  # batch norm cannot train on a single image

for schedule, lrs in LRS.items():
    torch.manual_seed(SEED)
    model = get_model(MODEL, num_classes=len(labels.unique())).to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    num_epochs = SESSIONS[-1][-1] if arguments.over == "run" else len(SESSIONS[0])
    shared = model, optimizer, make_scheduler(optimizer, lrs[0], num_epochs * len(starts))
    train(schedule, shared, SESSIONS[0])
    for boundary in ("new", "preserve"):
        model, optimizer, scheduler = copy.deepcopy(shared)  # both start from the same state
        for lr, epochs in zip(lrs[1:], SESSIONS[1:], strict=True):
            if boundary == "new":
                optimizer.state.clear()  # the next step starts from zero, as in a new Adam
            if arguments.over == "session":
                scheduler = make_scheduler(optimizer, lr, len(epochs) * len(starts))
            train(f"{schedule}-{boundary}", (model, optimizer, scheduler), epochs)
