"""Try a configuration's model, optimizers and boundaries before any job starts."""

import json
import sys
from typing import Any

import torch
from torch import nn

from optstate.experiment.configuration import hint
from optstate.job import InputError
from optstate.training.model import model_names, require_runs
from optstate.training.schedule import make_optimizer, make_scheduler

ANY_NUMBER_OF_CLASSES = 10


def check(config: dict[str, Any]) -> None:
    """Try what only torch and torchvision can tell.

    Args:
        config: the keys model, image_size, optimizer, schedules, boundaries, methods.

    Raises:
        InputError: one of them names something that does not exist or does not work.
    """
    require_known("model", config["model"], model_names())
    require_runs(config["model"], config["image_size"], ANY_NUMBER_OF_CLASSES)
    for method in config["methods"]:
        schedule_name, _, boundary = method.partition("-")
        schedule = config["schedules"][schedule_name]
        own = "optimizer" in schedule
        key = f"schedules.{schedule_name}.optimizer" if own else "optimizer"
        optimizer = schedule["optimizer"] if own else config["optimizer"]
        entries = state_entries(key, optimizer, schedule)
        keep = config["boundaries"].get(boundary, {"keep": "all"})["keep"]
        for name in keep if keep != "all" else []:
            require_known(f"boundaries.{boundary}.keep", name, entries, of=optimizer["name"])


def state_entries(key: str, optimizer: dict[str, Any], schedule: dict[str, Any]) -> list[str]:
    """The names in an optimizer's per-parameter state, seen by taking a step with it."""
    known = [
        name
        for name, value in vars(torch.optim).items()
        if isinstance(value, type) and issubclass(value, torch.optim.Optimizer)
    ]
    require_known(f"{key}.name", optimizer["name"], known)
    learning_rate = {
        name: value[0] if isinstance(value, list) else value for name, value in schedule.items()
    }
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.Flatten())
    try:
        tried = make_optimizer(model.parameters(), optimizer, learning_rate)
        scheduler = make_scheduler(tried, learning_rate, num_steps=4)
        model(torch.ones(2, 1, 1, 1)).sum().backward()
        tried.step()
        scheduler.step()
    except Exception as error:  # each optimizer has its own way to refuse
        reason = str(error).split("\n")[0]
        raise InputError(
            f"`{key}` {json.dumps(optimizer)} does not work ({reason}): mend its keyword "
            "arguments, or choose another class of torch.optim"
        ) from error
    return sorted({name for entries in tried.state.values() for name in entries})


def require_known(key: str, value: str, known: list[str], of: str = "") -> None:
    """Refuse a ``value`` that is not among the ``known``."""
    if value not in known:
        owner = f" is no entry of {of}'s state" if of else " is unknown"
        raise InputError(f"`{key}`: {value!r}{owner}: {hint(value, known)}")


if __name__ == "__main__":
    try:
        check(json.loads(sys.argv[1]))
    except InputError as error:
        sys.exit(str(error))
