"""Make torchvision classification models by name, with a head for the data set's classes."""

import inspect
import logging
import warnings
from pathlib import Path

import torch
import torchvision
from torch import nn

from optstate.job import InputError


def make_model(name: str, image_size: int, num_classes: int) -> nn.Module:
    """Make an untrained model, initialized from torch's global random state.

    Auxiliary heads (GoogLeNet, Inception v3) are left out, so every model has one output. Models
    with a fixed input size (ViT, MaxViT) are built for ``image_size`` pixels.
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


def list_models() -> list[str]:
    """Return the names that are allowed for the configuration's ``model``."""
    return torchvision.models.list_models(module=torchvision.models)


def require_runs(name: str, image_size: int, num_classes: int) -> None:
    """Check that a model accepts images of ``image_size`` pixels.

    The model runs on torch's meta device, which computes only shapes.

    Raises:
        InputError: the model does not, or its output is not (images, classes).
    """
    try:
        model = make_model(name, image_size, num_classes).to("meta")
        output = model(torch.zeros(2, 3, image_size, image_size, device="meta"))
    except Exception as error:  # each model raises its own errors
        reason = str(error).split("\n")[0]
        raise InputError(
            f"model: {name} does not work with an image_size of {image_size} ({reason}). Choose "
            "another size or model."
        ) from error
    if not isinstance(output, torch.Tensor) or output.shape != (2, num_classes):
        raise InputError(f"model: {name} has more than one output. Choose another model.")


def load_weights(
    model: nn.Module, name: str, image_size: int, num_classes: int, path: Path
) -> list[str]:
    """Load a state dict into ``model``, except for a head of a different size.

    Entries of auxiliary heads that the model lacks are ignored.

    Args:
        model: a model made by :func:`make_model` from the next three arguments.
        name: the model's name.
        image_size: the images' height and width in pixels.
        num_classes: the number of classes.
        path: a file with a state dict, possibly under the key ``model`` or ``state_dict``.

    Returns:
        The names of the head's parameters that keep their initial values.

    Raises:
        InputError: the file cannot be loaded safely, or belongs to another model.
    """
    own = model.state_dict()
    head = _find_head(name, image_size, num_classes)
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
            f"{path}: these are not weights of {name}: {len(wrong)} entries differ, for example "
            f"{wrong[0]!r}. Correct `weights` or `model`."
        )
    model.load_state_dict({key: own[key] if key in left_out else given[key] for key in own})
    return sorted(left_out)


def _find_head(name: str, image_size: int, num_classes: int) -> set[str]:
    """Return the names of the parameters whose shape depends on the number of classes."""
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
    except Exception as error:  # pickle and torch raise many types for other files
        logging.info("%s: %s", path, error)
    raise InputError(
        f"{path}: not a state dict that loads safely. Save it with "
        "`torch.save(model.state_dict(), PATH)`."
    )
