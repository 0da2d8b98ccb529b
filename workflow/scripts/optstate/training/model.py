"""Any torchvision classification model, by name, with a head for the data set's classes."""

import inspect
import logging
import warnings
from pathlib import Path

import torch
import torchvision
from torch import nn

from optstate.job import InputError


def make_model(name: str, image_size: int, num_classes: int) -> nn.Module:
    """An untrained model, initialised from torch's global random state.

    Auxiliary heads (GoogLeNet, Inception v3) are left out: every model has one output. Models of
    a fixed input size (ViT, MaxViT) are built for ``image_size``.
    """
    arguments = {
        "aux_logits": False,
        "init_weights": True,
        "image_size": image_size,
        "input_size": (image_size, image_size),
    }
    constructor = inspect.signature(torchvision.models.get_model_builder(name)).return_annotation
    known = inspect.signature(constructor).parameters
    return torchvision.models.get_model(
        name,
        weights=None,
        num_classes=num_classes,
        **{key: value for key, value in arguments.items() if key in known},
    )


def model_names() -> list[str]:
    """The models that ``model`` may name."""
    return torchvision.models.list_models(module=torchvision.models)


def require_runs(name: str, image_size: int, num_classes: int) -> None:
    """Try the model on images of the configured size, on torch's meta device: shapes alone.

    Raises:
        InputError: it cannot take such images, or its output is not (images, classes).
    """
    try:
        model = make_model(name, image_size, num_classes).to("meta")
        output = model(torch.zeros(2, 3, image_size, image_size, device="meta"))
    except Exception as error:  # torchvision and torch raise what they like here
        reason = str(error).split("\n")[0]
        raise InputError(
            f"`model` {name!r} cannot be trained at `image_size` {image_size} ({reason}): "
            "choose another size or model"
        ) from error
    if not isinstance(output, torch.Tensor) or output.shape != (2, num_classes):
        raise InputError(f"`model` {name!r} has more than one output: choose another model")


def load_weights(
    model: nn.Module, name: str, image_size: int, num_classes: int, path: Path
) -> list[str]:
    """Load a state dict into ``model``, except the head where its size differs.

    Args:
        path: a file of a state dict, bare or under the key ``model`` or ``state_dict``.

    Returns:
        The names of the head's parameters that stay as initialised.

    Raises:
        InputError: the file cannot be read safely, or belongs to another model.
    """
    own = model.state_dict()
    head = _head_parameters(name, image_size, num_classes)
    given = {
        key: value
        for key, value in _read_state_dict(path).items()
        if key in own or not key.lower().startswith("aux")
    }
    left_out = {k for k in head if k not in given or given[k].shape != own[k].shape}
    wrong = sorted(
        key
        for key in (own.keys() | given.keys()) - left_out
        if key not in own or key not in given or given[key].shape != own[key].shape
    )
    if wrong:
        raise InputError(
            f"{path}: not the weights of {name}: {len(wrong)} entries differ, as {wrong[0]!r}: "
            "mend `weights` or `model`"
        )
    model.load_state_dict({key: own[key] if key in left_out else given[key] for key in own})
    return sorted(left_out)


def _head_parameters(name: str, image_size: int, num_classes: int) -> set[str]:
    """The parameters whose shape depends on the number of classes."""
    shapes, others = (
        {key: value.shape for key, value in make_model(name, image_size, n).state_dict().items()}
        for n in (num_classes, num_classes + 1)
    )
    return {key for key in shapes if shapes[key] != others[key]}


def _read_state_dict(path: Path) -> dict[str, torch.Tensor]:
    try:
        with warnings.catch_warnings(action="ignore"):
            content = torch.load(path, map_location="cpu", weights_only=True)
        for key in ("model", "state_dict"):
            if isinstance(content, dict) and isinstance(content.get(key), dict):
                content = content[key]
        if all(isinstance(k, str) and v.layout == torch.strided for k, v in content.items()):
            return content
    except OSError:
        raise
    except Exception as error:  # pickle and torch raise what they like on foreign files
        logging.info("%s: %s", path, error)
    raise InputError(
        f"{path}: no state dict that loads safely: make the file by "
        "`torch.save(model.state_dict(), PATH)`"
    )
