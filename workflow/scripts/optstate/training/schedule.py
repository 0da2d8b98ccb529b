"""Make torch.optim's optimizers and learning-rate schedulers from the configuration."""

import logging
import warnings
from collections.abc import Iterable
from typing import Any

import torch
from torch.optim.lr_scheduler import (
    ConstantLR,
    CosineAnnealingLR,
    LinearLR,
    LRScheduler,
    OneCycleLR,
)

# These optimizers have a fused kernel for the whole step, on CPUs and GPUs. It halves Adam's time.
FUSED = ("Adam", "AdamW", "SGD")
KERNELS = {"fused", "foreach", "differentiable"}  # keyword arguments that choose kernels
MIN_ONECYCLE_STEPS = 4  # with fewer, the rising phase (30 %) is shorter than one step


def make_optimizer(
    parameters: Iterable[torch.nn.Parameter],
    optimizer: dict[str, Any],
    learning_rate: dict[str, Any],
) -> torch.optim.Optimizer:
    """Make the ``torch.optim`` optimizer called ``name``, with the configured keyword arguments."""
    given = list(parameters)
    arguments = {key: value for key, value in optimizer.items() if key != "name"}
    if optimizer["name"] in FUSED and not KERNELS & arguments.keys():
        arguments["fused"] = all(map(_fits_fused_kernel, given))
    lr = learning_rate["initial_lr" if learning_rate["kind"] == "onecycle" else "lr"]
    return getattr(torch.optim, optimizer["name"])(given, lr=lr, **arguments)


def _fits_fused_kernel(parameter: torch.Tensor) -> bool:
    """Whether fused kernels can update ``parameter``. On CPUs they ignore its strides."""
    is_dense = torch.ops.aten.is_non_overlapping_and_dense.default(parameter)
    return parameter.is_floating_point() and is_dense


def make_scheduler(
    optimizer: torch.optim.Optimizer,
    learning_rate: dict[str, Any],
    num_steps: int,
    past_steps: int = 0,
    factor: float = 1.0,
    warmup_steps: int = 0,
) -> "LRScheduler | ScaledLR":
    """Make a session's scheduler, to be stepped after every optimizer step.

    Args:
        optimizer: a new optimizer, with the schedule's first LR.
        learning_rate: ``kind``, and its values.
        num_steps: the number of steps of the whole schedule.
        past_steps: the number of steps of the schedule that earlier sessions have taken.
        factor: a factor of every LR of the session.
        warmup_steps: the number of steps in which the LR rises to the schedule's; 0: no warm-up.
    """
    scheduler = _make_plain(optimizer, learning_rate, num_steps)
    with warnings.catch_warnings(action="ignore"):  # that the optimizer has taken no steps yet
        for _ in range(past_steps):
            scheduler.step()
    is_scaled = factor != 1 or warmup_steps
    return ScaledLR(scheduler, factor, warmup_steps) if is_scaled else scheduler


def _make_plain(
    optimizer: torch.optim.Optimizer, learning_rate: dict[str, Any], num_steps: int
) -> LRScheduler:
    if learning_rate["kind"] == "constant":
        return ConstantLR(optimizer, factor=1.0, total_iters=0)
    if learning_rate["kind"] == "cosine":
        return CosineAnnealingLR(optimizer, T_max=num_steps, eta_min=learning_rate["final_lr"])
    if learning_rate["kind"] == "warmup":
        num_rising = learning_rate["warmup_steps"]
        return LinearLR(optimizer, start_factor=1 / num_rising, total_iters=num_rising - 1)
    if learning_rate["kind"] != "onecycle":
        raise ValueError(f"unknown kind of schedule: {learning_rate['kind']}")
    if num_steps < MIN_ONECYCLE_STEPS:
        logging.warning(
            "OneCycleLR over %d steps never uses its initial LR: choose a smaller batch_size",
            num_steps,
        )
    return OneCycleLR(
        optimizer,
        max_lr=learning_rate["max_lr"],
        total_steps=num_steps,
        # OneCycleLR overwrites the optimizer's `lr` and `initial_lr` with max_lr / div_factor.
        div_factor=learning_rate["max_lr"] / learning_rate["initial_lr"],
        # OneCycleLR would also give momentum to an optimizer that is configured without it.
        cycle_momentum=bool(get_momentum(optimizer)),
    )


class ScaledLR:
    """A scheduler whose LRs are scaled by a factor, and by 1/N, 2/N, ... 1 in the first N steps."""

    def __init__(self, scheduler: LRScheduler, factor: float, warmup_steps: int) -> None:
        self.scheduler = scheduler
        self.factor = factor
        self.warmup_steps = warmup_steps
        self.past_steps = scheduler.last_epoch  # the scheduler calls its steps epochs
        self._scale()

    def step(self) -> None:
        """Set the LR of the next step."""
        # Some schedulers compute the next LR from the current one.
        groups = self.scheduler.optimizer.param_groups
        for group, lr in zip(groups, self.scheduler.get_last_lr(), strict=True):
            group["lr"] = lr
        self.scheduler.step()
        self._scale()

    def _scale(self) -> None:
        step = self.scheduler.last_epoch - self.past_steps + 1
        rise = min(step / self.warmup_steps, 1) if self.warmup_steps else 1
        for group in self.scheduler.optimizer.param_groups:
            group["lr"] *= self.factor * rise

    def state_dict(self) -> dict[str, Any]:
        """Return the scheduler's state, which determines the scale."""
        return self.scheduler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from ``state``."""
        self.scheduler.load_state_dict(state)


def get_momentum(optimizer: torch.optim.Optimizer) -> float | None:
    """Return the momentum, or Adam's beta1, of the next step; None if there is none."""
    settings = optimizer.param_groups[0]
    if "betas" in settings:
        return float(settings["betas"][0])
    return settings.get("momentum") or None
