"""Try a configuration's model, weights, optimizers and boundaries. The rules run this first.

This module needs torch and torchvision, so Snakemake runs it in a process of its own.
"""

import json
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import torch
from torch import nn

from optstate.experiment.consistency import is_published, list_files
from optstate.experiment.runs import find_optimizer, split_method
from optstate.experiment.schema import Config, suggest
from optstate.job import InputError
from optstate.training.boundary import fill_state
from optstate.training.model import list_models, make_model, require_runs
from optstate.training.schedule import make_optimizer, make_scheduler
from optstate.training.spec import split_model
from optstate.training.weights import (
    count_classes,
    find_address,
    load_weights,
    read_optimizer_state,
)

NUM_CLASSES = 7  # rare, so that a model that ignores the number of classes is noticed
REFUSED = {  # classes of torch.optim that cannot train the models here, with the reason
    "LBFGS": "calls a closure that computes the loss several times per step",
    "Muon": "takes only two-dimensional parameters",
    "Optimizer": "is the base class of the others",
    "SparseAdam": "needs sparse gradients",
}


def check(config: Config) -> None:
    """Check the model, weights, optimizers and boundaries, for which torch is needed.

    Args:
        config: the keys ``rules.CHECKED_KEYS`` of a configuration.

    Raises:
        InputError: a key names something that does not exist or does not work.
    """
    if not split_model(config["model"]):
        require_known("model", config["model"], list_models())
    require_runs(config["model"], config["image_size"], NUM_CLASSES)
    for method in config["methods"]:
        schedule_name, boundary = split_method(method)
        schedule = config["schedules"][schedule_name]
        key, optimizer = find_optimizer(config, schedule_name)
        entries = list_state_entries(key, optimizer, schedule)
        options = config["boundaries"].get(boundary, {"keep": "all"})
        for name in options["keep"] if options["keep"] != "all" else []:
            where = f"boundaries.{boundary}.keep"
            require_known(where, name, entries, kind=f"an entry of {optimizer['name']}'s state")
        if "rebuild_steps" in options:
            require_frozen(f"boundaries.{boundary}.rebuild_steps", optimizer, schedule)
    require_loads(config)


def require_loads(config: Config) -> None:
    """Check that the user's weights fit the model, and the optimizer state the optimizers.

    The number of classes is taken from the weights. The job checks that of the data set.

    Raises:
        InputError: they do not.
    """
    name, image_size, weights = (config[key] for key in ("model", "image_size", "weights"))
    if not weights or is_published(weights):
        return
    num_classes = count_classes(name, image_size, Path(weights)) or NUM_CLASSES
    model = make_model(name, image_size, num_classes)
    load_weights(model, name, image_size, num_classes, Path(weights))
    for schedule in {split_method(method)[0] for method in config["methods"]}:
        _, optimizer = find_optimizer(config, schedule)
        if state := list_files(config).get("optimizer_state"):
            read_optimizer_state(Path(state), optimizer, model.named_parameters())


def find_weights(config: Config) -> str:
    """Return the address of the configured weights if they are torchvision's, else nothing.

    Raises:
        InputError: the model has no such weights.
    """
    is_address = is_published(config["weights"])
    return find_address(config["model"], config["weights"]) if is_address else ""


def list_state_entries(key: str, optimizer: dict[str, Any], schedule: dict[str, Any]) -> list[str]:
    """Return the names of the entries in an optimizer's per-parameter state after a step.

    Args:
        key: the optimizer's key in the configuration.
        optimizer: ``name`` of the class, and its keyword arguments.
        schedule: an entry of ``schedules``.

    Raises:
        InputError: torch.optim has no such class, the class cannot train the models here, or it
            refuses the keyword arguments.
    """
    require_usable(f"{key}.name", optimizer["name"])
    model = make_small_model()
    try:
        learning_rate = choose_first_values(schedule)
        tried = make_optimizer(model.parameters(), optimizer, learning_rate)
        scheduler = make_scheduler(tried, learning_rate, num_steps=4)
        compute_loss(model).backward()
        tried.step()
        scheduler.step()
    except Exception as error:  # each optimizer raises its own errors
        reason = str(error).split("\n")[0]
        raise InputError(
            f"{key}: {json.dumps(optimizer)} does not work ({reason}). Correct its keyword "
            "arguments, or choose another class of torch.optim."
        ) from error
    return sorted({name for entries in tried.state.values() for name in entries})


def list_optimizers() -> list[str]:
    """Return the names of the classes of torch.optim that are not in ``REFUSED``, sorted."""
    return sorted(
        name
        for name, value in vars(torch.optim).items()
        if isinstance(value, type)
        and issubclass(value, torch.optim.Optimizer)
        and name not in REFUSED
    )


def require_usable(key: str, name: str) -> None:
    """Check that torch.optim has a class ``name`` that is not in ``REFUSED``.

    Raises:
        InputError: it does not. The message gives the reason, and the classes to choose from.
    """
    known = list_optimizers()
    if name in REFUSED:
        raise InputError(
            f"{key}: {name} cannot be used, because it {REFUSED[name]}. "
            f"Choose one of {', '.join(known)}."
        )
    require_known(key, name, known, kind="a class of torch.optim")


def require_frozen(key: str, optimizer: dict[str, Any], schedule: dict[str, Any]) -> None:
    """Check that an optimizer changes no weights at a learning rate of 0.

    Raises:
        InputError: it does, so that its state cannot be rebuilt without training.
    """
    model = make_small_model()
    before = [parameter.clone() for parameter in model.parameters()]
    tried = make_optimizer(model.parameters(), optimizer, choose_first_values(schedule))
    fill_state(tried, (compute_loss(model) for _ in range(3)))
    if not all(map(torch.equal, before, model.parameters())):
        raise InputError(
            f"{key}: {optimizer['name']} changes weights at a learning rate of 0, so its state "
            "cannot be rebuilt without training. Remove this key, or choose another optimizer."
        )


def make_small_model() -> nn.Module:
    """Return a model with the kinds of parameters that image classifiers have."""
    return nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.Flatten())


def compute_loss(model: nn.Module) -> torch.Tensor:
    """Return a loss of the small model that has gradients."""
    return model(torch.arange(3.0).reshape(3, 1, 1, 1)).square().cumsum(0).sum()


def choose_first_values(schedule: dict[str, Any]) -> dict[str, Any]:
    """Return a schedule with its values for the first session."""
    return {key: v[0] if isinstance(v, list) else v for key, v in schedule.items()}


def require_known(
    key: str, value: str, known: list[str], kind: str = "a torchvision classification model"
) -> None:
    """Check that ``value`` is among the ``known`` values.

    Raises:
        InputError: it is not. The message suggests a similar known value.
    """
    if value not in known:
        raise InputError(f"{key}: {value!r} is not {kind}. {suggest(value, known)}")


if __name__ == "__main__":
    try:
        with redirect_stdout(sys.stderr):  # a model of the user's own may print
            check(json.loads(sys.argv[1]))
            address = find_weights(json.loads(sys.argv[1]))
        print(address)
    except InputError as error:
        print(error)  # stderr is for errors that nobody expects
        sys.exit(1)
