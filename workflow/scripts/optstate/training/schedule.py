"""Optimizers and learning-rate schedules by name, from torch.optim."""

import logging
from collections.abc import Iterable
from typing import Any

import torch
from torch.optim.lr_scheduler import ConstantLR, LRScheduler, OneCycleLR

# These have a kernel for the whole step, on CPUs and GPUs: for Adam, half the time of single ones.
FUSED = ("Adam", "AdamW", "SGD")
KERNELS = {"fused", "foreach", "differentiable"}  # what an optimizer is told of its kernels by
MIN_ONECYCLE_STEPS = 4  # of fewer, the 30 % for the way up are less than one


def make_optimizer(
    parameters: Iterable[torch.nn.Parameter],
    optimizer: dict[str, Any],
    learning_rate: dict[str, Any],
) -> torch.optim.Optimizer:
    """A new ``torch.optim`` optimizer: ``name``, and keyword arguments as configured."""
    arguments = {key: value for key, value in optimizer.items() if key != "name"}
    if optimizer["name"] in FUSED and not KERNELS & arguments.keys():
        arguments["fused"] = True
    lr = learning_rate["lr" if learning_rate["kind"] == "constant" else "initial_lr"]
    return getattr(torch.optim, optimizer["name"])(parameters, lr=lr, **arguments)


def make_scheduler(
    optimizer: torch.optim.Optimizer, learning_rate: dict[str, Any], num_steps: int
) -> LRScheduler:
    """The scheduler of a session of ``num_steps`` steps, stepped after every step."""
    if learning_rate["kind"] == "constant":
        return ConstantLR(optimizer, factor=1.0, total_iters=0)
    if num_steps < MIN_ONECYCLE_STEPS:
        logging.warning("OneCycleLR over %d steps never has its initial LR", num_steps)
    return OneCycleLR(
        optimizer,
        max_lr=learning_rate["max_lr"],
        total_steps=num_steps,
        # OneCycleLR overwrites the optimizer's `lr` and `initial_lr` by max_lr / div_factor.
        div_factor=learning_rate["max_lr"] / learning_rate["initial_lr"],
        # It would also give momentum to an SGD that was configured without.
        cycle_momentum=momentum_of(optimizer) is not None,
    )


def momentum_of(optimizer: torch.optim.Optimizer) -> float | None:
    """Momentum, or Adam's beta1, that the next step uses; None for an optimizer without."""
    settings = optimizer.param_groups[0]
    if "betas" in settings:
        return float(settings["betas"][0])
    return settings.get("momentum") or None
