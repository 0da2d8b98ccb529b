"""The boundary between two sessions: what becomes of the optimizer.

The weights are always kept. An optimizer remembers ``state``, some entries for each parameter (for
Adam ``step``, ``exp_avg``, ``exp_avg_sq``), and has ``param_groups``, its settings. At a boundary
the settings are always those of the new session. Of the state

- ``new`` keeps nothing: ``keep: []``;
- ``preserve`` keeps everything: ``keep: all``;
- others keep some entries: ``keep: [exp_avg_sq]``, the rest begins as in a new optimizer.
"""

from typing import Any

import torch


def carry_over(
    optimizer: torch.optim.Optimizer, previous: dict[str, Any], keep: str | list[str]
) -> None:
    """Give a new optimizer the entries ``keep`` of a previous one's state.

    Args:
        optimizer: newly made over the same parameters, with the settings of its session.
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
        initial = initial_state(optimizer)
        state = {index: initial[index] | entries for index, entries in state.items()}
    settings = optimizer.state_dict()["param_groups"]
    # Loading a state dict also loads its settings, the old learning rate and betas among them.
    optimizer.load_state_dict({"state": state, "param_groups": settings})


def initial_state(optimizer: torch.optim.Optimizer) -> dict[int, dict[str, Any]]:
    """The state that ``optimizer``, newly made, has before its first step.

    Optimizers make their state when they meet the first gradient, and with part of it in place
    they would make none of the rest, so it is asked for here.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    for group in optimizer.param_groups:
        init = optimizer._init_group  # type: ignore[attr-defined]  # all of torch.optim has it
        num_lists = init.__code__.co_argcount - 2  # after self and group: lists that it fills
        init(group, *([] for _ in range(num_lists)))
    for parameter in parameters:
        parameter.grad = None
    return optimizer.state_dict()["state"]
