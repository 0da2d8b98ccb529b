"""The boundary between two sessions: what the optimizer keeps.

The weights are always kept. An optimizer has settings (``param_groups``) and a ``state`` with some
entries for each parameter (for Adam ``step``, ``exp_avg``, ``exp_avg_sq``). The settings after a
boundary (learning rate, betas, ...) are always those of the new session. Rprop is an exception: its
step sizes are state, and the learning rate only sets the first ones. The state depends on the
boundary:

- ``new`` keeps nothing (``keep: []``);
- ``preserve`` keeps everything (``keep: all``);
- others keep some entries (``keep: [exp_avg_sq]``). The other entries start as in a new optimizer.

With ``rebuild_steps``, the state is then filled with gradients at the weights as they are.
"""

from collections.abc import Iterable
from typing import Any

import torch


def carry_over(
    optimizer: torch.optim.Optimizer, previous: dict[str, Any], keep: str | list[str]
) -> None:
    """Copy the entries ``keep`` of a previous optimizer's state to a new optimizer.

    Args:
        optimizer: a new optimizer of the same parameters, with its session's settings.
        previous: ``state_dict()`` of the optimizer before the boundary.
        keep: names of entries of the per-parameter state, or ``"all"``.
    """
    state = previous["state"]
    if keep != "all":
        state = {
            index: {name: value for name, value in entries.items() if name in keep}
            for index, entries in state.items()
        }
    if not any(state.values()):
        return
    if keep != "all":
        initial = make_initial_state(optimizer)
        state = {index: initial[index] | entries for index, entries in state.items()}
    settings = optimizer.state_dict()["param_groups"]
    # load_state_dict also loads settings, so keep the old learning rate and betas out of it.
    load_state(optimizer, {"state": state, "param_groups": settings})


def load_state(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
    """Load a state dict, and keep the types of its entries.

    ``load_state_dict`` casts them to the type of the parameters, but NAdam and ASGD have float32
    entries for parameters of any type.
    """
    optimizer.load_state_dict(saved)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for index, entries in saved["state"].items():
        loaded = optimizer.state[parameters[index]]
        for name, value in entries.items():
            if torch.is_tensor(value) and loaded[name].dtype != value.dtype:
                loaded[name] = value.to(loaded[name].device)


def fill_state(optimizer: torch.optim.Optimizer, losses: Iterable[torch.Tensor]) -> None:
    """Pass the gradients of ``losses`` through the optimizer at a learning rate of 0.

    This updates its state, but no weights. ``experiment.check`` refuses optimizers that change
    weights nevertheless. The next step has the current learning rate.
    """
    rates = [group["lr"] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    apply_learning_rate(optimizer)
    for loss in losses:
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    optimizer.zero_grad()
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    apply_learning_rate(optimizer)


def apply_learning_rate(optimizer: torch.optim.Optimizer) -> None:
    """Make the optimizer's next step use the current learning rate.

    This only changes ASGD. The size of its next step, ``eta``, is an entry of its state, computed
    from the learning rate of the previous step.
    """
    for group in optimizer.param_groups:
        lr = group["lr"]
        for parameter in group["params"]:
            entries = optimizer.state.get(parameter, {})
            if "eta" in entries:
                step = entries["step"].item()
                eta = lr / ((1 + group["lambd"] * lr * step) ** group["alpha"])
                entries["eta"].copy_(torch.as_tensor(eta))


def make_initial_state(optimizer: torch.optim.Optimizer) -> dict[int, dict[str, Any]]:
    """Return the state that a new ``optimizer`` has before its first step.

    An optimizer creates its state at the first step, but only if no entry exists yet. Therefore the
    initial state is created here, with gradients of zero.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    for group in optimizer.param_groups:
        # Only classes that `experiment.check` refuses lack this method.
        init = optimizer._init_group  # type: ignore[attr-defined]
        num_lists = init.__code__.co_argcount - 2  # besides self and group, it takes lists to fill
        init(group, *([] for _ in range(num_lists)))
    for parameter in parameters:
        parameter.grad = None
    return optimizer.state_dict()["state"]
