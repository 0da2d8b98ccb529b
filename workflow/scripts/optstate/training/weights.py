"""Read weights and optimizer state from files that people saved with their own code.

A file may hold a bare state dict, or a checkpoint with weights and optimizer state under usual
names. Wrappers (DataParallel, LightningModule, torch.compile) put a prefix before the names of the
weights.
"""

import logging
import re
import warnings
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import nn

from optstate.job import InputError
from optstate.training.model import make_model
from optstate.training.schedule import make_optimizer

MODEL_KEYS = ("model", "state_dict", "model_state_dict")
OPTIMIZER_KEYS = ("optimizer", "optimizer_state_dict", "optimizer_states")
PREFIXES = ("module.", "model.", "_orig_mod.")
# Entries of DenseNets in torchvision's own files, such as `denselayer1.norm.1.weight`.
# Source: torchvision/models/densenet.py.
OF_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.([12]\.)")


def load_weights(
    model: nn.Module, name: str, image_size: int, num_classes: int, path: Path
) -> list[str]:
    """Load a state dict into ``model``, except for a head of a different size.

    Entries of auxiliary heads that the model lacks are ignored. Files that older versions of torch
    and torchvision wrote are read as they read them.

    Args:
        model: a model made by ``make_model`` from the next three arguments.
        name: the model's name.
        image_size: the images' height and width in pixels.
        num_classes: the number of classes.
        path: a file with a state dict, possibly under one of ``MODEL_KEYS``.

    Returns:
        The names of the head's parameters that keep their initial values.

    Raises:
        InputError: the file cannot be loaded safely, or belongs to another model.
    """
    own = model.state_dict()
    other = make_model(name, image_size, num_classes + 1).state_dict()
    head = {key for key, value in own.items() if value.shape != other[key].shape}
    upgraded = _upgrade(_read_weights(path, own), model, path)
    given = {
        key: value
        for key, value in upgraded.items()
        if key in own or not key.lower().startswith("aux")
    }
    left_out = {k for k in head if k not in given or given[k].shape != own[k].shape}
    wrong = sorted(
        key
        for key in (own.keys() | given.keys()) - left_out
        if key not in own or key not in given or given[key].shape != own[key].shape
    )
    if wrong:
        differences = _describe_differences(wrong, given, own)
        raise InputError(f"{path}: these are not weights of {name}: {differences}")
    return sorted(left_out)


def _describe_differences(
    wrong: list[str], given: dict[str, torch.Tensor], own: dict[str, torch.Tensor]
) -> str:
    """Return how many entries of two state dicts differ, with an example and the fix."""
    key, *others = wrong
    number = f"{len(wrong)} entries differ, for example" if others else "one entry differs,"
    of_model = [f"{name!r} of the model" for name in wrong if name not in given]
    of_file = [f"{name!r} of the file" for name in wrong if name not in own]
    if examples := [*of_model[:1], *of_file[:1]]:
        found = " and ".join(examples)
        return f"{number} {found}. Correct `weights` or `model`, or rename the file's entries."
    shapes = " instead of ".join(str(tuple(values[key].shape)) for values in (given, own))
    return f"{number} {key!r} of shape {shapes}. Correct `weights`, `model` or `image_size`."


def _upgrade(
    given: dict[str, torch.Tensor], model: nn.Module, path: Path
) -> dict[str, torch.Tensor]:
    """Load a state dict into ``model``, and return it with the entries that this made of it.

    The modules of torch and torchvision rename and add entries of older versions. Entries that do
    not fit the model stay as they are.
    """
    own = model.state_dict()
    fitting, others = OrderedDict(given), {}
    for key, value in given.items():
        if key in own and own[key].shape != value.shape:
            others[key] = fitting.pop(key)
    fitting._metadata = getattr(given, "_metadata", {})  # type: ignore[attr-defined]
    try:
        missing, unexpected = model.load_state_dict(fitting, strict=False)
    except (RuntimeError, ValueError) as error:  # each module raises its own errors
        reason = str(error).split("\n")[0]
        raise InputError(
            f"{path}: its weights cannot be loaded ({reason}). Save them with "
            "`torch.save(model.state_dict(), PATH)`."
        ) from error
    others |= {key: given[key] for key in unexpected}
    return {k: v for k, v in model.state_dict().items() if k not in missing} | others


def count_classes(name: str, image_size: int, path: Path) -> int | None:
    """Return the number of classes of the head in the file ``path``; None if it has no head."""
    two, three = (make_model(name, image_size, number).state_dict() for number in (2, 3))
    given = _read_weights(path, two)
    for key in [key for key in two if key in given]:
        sizes = zip(given[key].shape, two[key].shape, three[key].shape, strict=False)
        for size, with_two, with_three in sizes:
            if with_two != with_three:
                return 2 + (size - with_two) // (with_three - with_two)
    return None


def find_address(name: str, weights: str) -> str:
    """Return the URL of the weights that torchvision calls ``weights`` for the model ``name``.

    Raises:
        InputError: the model has no weights of this name.
    """
    known = torchvision.models.get_model_weights(name).__members__
    if weights not in known:
        raise InputError(
            f"weights: {name} has no weights {weights!r}. Choose one of {', '.join(known)}, or a "
            "file."
        )
    return known[weights].url


def read_optimizer_state(
    path: Path, optimizer: dict[str, Any], parameters: Iterable[tuple[str, torch.Tensor]]
) -> dict[str, Any]:
    """Read the state of an optimizer, whose parameters are matched by order and shape.

    Args:
        path: a file with an optimizer's ``state_dict()``, possibly under one of ``OPTIMIZER_KEYS``.
        optimizer: ``name`` of the class, and its keyword arguments.
        parameters: the names and the values of the model's parameters, in the model's order.

    Returns:
        A state dict with ``state``: the entries of each parameter, by its position.

    Raises:
        InputError: the file has no such state, or it belongs to other parameters or to another
            optimizer.
    """
    found = _find_optimizer(path, _read_file(path))
    num_groups = len(found["param_groups"])
    order = [index for group in found["param_groups"] for index in group["params"]]
    named = list(enumerate(parameters))
    expected = make_state(optimizer, [value for _, (_, value) in named])
    trained = [item for item in named if item[1][1].requires_grad]
    matched = trained if len(order) == len(trained) else named  # frozen ones may be left out
    if len(order) != len(matched):
        raise InputError(
            f"{path}: its optimizer has {len(order)} parameters, but the model has {len(named)}. "
            "Correct `optimizer_state` or `model`."
        )
    state = {}
    for index, (position, (name, value)) in zip(order, matched, strict=True):
        given = {k: v for k, v in found["state"].get(index, {}).items() if v is not None}
        is_missing = not given and bool(found["state"]) and value.requires_grad
        if is_missing and _needs_all_state(optimizer):
            raise InputError(
                f"{path}: its optimizer has no momentum for {name}, which the fused SGD needs. Add "
                "`foreach: true` to `optimizer`; then this parameter starts without momentum."
            )
        if given:
            entries = expected.get(position, {})
            if difference := _compare_entries(given, entries):
                raise InputError(
                    f"{path}: parameter {position + 1} of its optimizer does not fit {name} "
                    f"{tuple(value.shape)} under {optimizer['name']}: {difference}. Correct "
                    "`optimizer_state`, `model` or `optimizer`."
                    + f" It has {num_groups} parameter groups, whose parameters must be in the "
                    "order of the model's (see docs/tutorial.md)." * (num_groups > 1)
                )
            # Fused kernels ignore strides, so entries need those of the channels-last parameter.
            state[position] = {k: entries[k].copy_(torch.as_tensor(v)) for k, v in given.items()}
    if not state:
        raise InputError(
            f"{path}: its optimizer has no state. Save it after a step, or remove the key "
            "`optimizer_state`."
        )
    return {"state": state}


def _needs_all_state(optimizer: dict[str, Any]) -> bool:
    """Whether an optimizer fails if only some parameters have state, as torch's fused SGD does."""
    constant = {"kind": "constant", "lr": 0.0}
    group = make_optimizer([nn.Parameter(torch.empty(0))], optimizer, constant).param_groups[0]
    return bool(optimizer["name"] == "SGD" and group["momentum"] and group["fused"])


def _compare_entries(given: dict[str, Any], expected: dict[str, Any]) -> str:
    """Return the first difference between the entries of one parameter, in words."""
    if given.keys() != expected.keys():
        words = (", ".join(sorted(entries)) or "nothing" for entries in (given, expected))
        return "it has {}, not {}".format(*words)
    for name, entry in expected.items():
        shape, right = (tuple(getattr(value, "shape", ())) for value in (given[name], entry))
        if shape != right:
            return f"its {name} has the shape {shape}, not {right}"
    return ""


def make_state(
    optimizer: dict[str, Any], parameters: Iterable[torch.Tensor]
) -> dict[int, dict[str, Any]]:
    """Return the state that an optimizer of such parameters has after a step."""
    copies = [nn.Parameter(torch.zeros_like(parameter)) for parameter in parameters]
    for parameter in copies:
        parameter.grad = torch.zeros_like(parameter)
    tried = make_optimizer(copies, optimizer, {"kind": "constant", "lr": 0.0})
    tried.step()
    entries = tried.state_dict()["state"]
    return {i: {k: v for k, v in e.items() if v is not None} for i, e in entries.items()}


def _find_optimizer(path: Path, content: Any) -> dict[str, Any]:
    """Return the one optimizer state dict in the content of a file."""
    for key in OPTIMIZER_KEYS:
        # A file may also have the name of the optimizer, as text.
        if isinstance(content, dict) and isinstance(content.get(key), (dict, list)):
            content = content[key]
    if isinstance(content, list):  # Lightning's
        if len(content) != 1:
            raise InputError(
                f"{path}: has the states of {len(content)} optimizers. Save the one to start from."
            )
        content = content[0]
    if not (isinstance(content, dict) and content.keys() >= {"state", "param_groups"}):
        raise InputError(
            f"{path}: has no optimizer state, bare or under one of {', '.join(OPTIMIZER_KEYS)}. "
            "Save it with `torch.save(optimizer.state_dict(), PATH)`."
        )
    return content


def _read_weights(path: Path, own: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Read a state dict, without the prefixes that the names in ``own`` do not have.

    It keeps the versions of the modules, which torch stores in the attribute ``_metadata``.
    """
    content = _read_file(path)
    for key in MODEL_KEYS:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not (
        isinstance(content, dict)
        and content
        and all(isinstance(key, str) for key in content)
        and all(getattr(value, "layout", None) == torch.strided for value in content.values())
    ):
        raise InputError(
            f"{path}: has no state dict of a model, bare or under one of {', '.join(MODEL_KEYS)}. "
            "Save it with `torch.save(model.state_dict(), PATH)`."
        )
    versions = getattr(content, "_metadata", {})
    while not content.keys() & own.keys():
        prefixes = [p for p in PREFIXES if any(key.startswith(p) for key in content)]
        if not prefixes:
            break
        logging.info("%s: only entries that begin with %r are used", path, prefixes[0])
        content = {
            key.removeprefix(prefixes[0]): value
            for key, value in content.items()
            if key.startswith(prefixes[0])
        }
        versions = {f"{key}.".removeprefix(prefixes[0])[:-1]: v for key, v in versions.items()}
    found = OrderedDict((OF_DENSENET.sub(r"\1\2", key), value) for key, value in content.items())
    found._metadata = versions  # type: ignore[attr-defined]
    return found


def _read_file(path: Path) -> Any:
    """Load the content of a file that ``torch.save`` wrote, without running code in it."""
    if path.suffix == ".safetensors":
        raise InputError(
            f"{path}: this format is not read. Convert it with "
            "`torch.save(safetensors.torch.load_file(PATH), NEW_PATH)`."
        )
    try:
        with warnings.catch_warnings(action="ignore"):
            return torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # pickle and torch raise many types for other files
        logging.info("%s: %s", path, error)
        raise InputError(
            f"{path}: does not load safely (`torch.load` with `weights_only=True`). If you trust "
            "it, load it with `weights_only=False`, and save only its state dicts."
        ) from error
