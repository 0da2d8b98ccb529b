"""Make classification models with a head for the data set's classes.

A model is one of torchvision's, or what a function in a Python file of the user returns.
"""

import inspect
import io
import sys
import textwrap
import traceback
import types
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torchvision
from torch import nn

from optstate.job import InputError
from optstate.training.spec import split_model


def make_model(name: str, image_size: int, num_classes: int) -> nn.Module:
    """Make an untrained model, initialized from torch's global random state.

    Args:
        name: the name of a torchvision model, or ``FILE.py:FUNCTION``.
        image_size: the images' height and width in pixels.
        num_classes: the number of classes.

    Raises:
        InputError: a user's own function fails, or does not return a module.
    """
    own = split_model(name)
    if own:
        return _make_own_model(Path(own[0]), own[1], image_size, num_classes)
    return _make_torchvision_model(name, image_size, num_classes)


def _make_torchvision_model(name: str, image_size: int, num_classes: int) -> nn.Module:
    """Make a model of torchvision.

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


def _make_own_model(file: Path, function: str, image_size: int, num_classes: int) -> nn.Module:
    """Call ``function(num_classes=..., image_size=...)`` of the Python file ``file``."""
    module = types.ModuleType(file.stem)
    module.__file__ = str(file)
    sys.modules[f"optstate own model {file}"] = module
    module.__name__ = f"optstate own model {file}"  # dataclasses look their module up by name
    try:
        # An import would leave bytecode next to the file, and might believe it later.
        exec(compile(file.read_bytes(), str(file), "exec"), vars(module))  # noqa: S102
        if not callable(getattr(module, function, None)):
            raise InputError(f"model: {file} has no function {function!r}. Define it there.")
        model = getattr(module, function)(num_classes=num_classes, image_size=image_size)
    except InputError:
        raise
    except Exception as error:  # the user's code may raise any
        raise InputError(f"model: {explain_own_error(file, error)}") from error
    if not isinstance(model, nn.Module):
        raise InputError(
            f"model: {function} in {file} returns {type(model).__name__}. Return a torch.nn.Module."
        )
    return model


def explain_own_error(file: Path, error: Exception) -> str:
    """Return one line that says where in the user's ``file`` an error was raised, and which."""
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(file)]
    if isinstance(error, SyntaxError) and error.filename == str(file):
        lines = [error.lineno]
    where = f"{file}:{lines[-1]}" if lines else str(file)
    if isinstance(error, ModuleNotFoundError) and error.name:
        package = error.name.partition(".")[0]
        if (file.parent / f"{package}.py").exists() or (file.parent / package).is_dir():
            return (
                f"{where}: imports {package} from its own folder, which is not searched, because "
                "only the content of the one file is tracked. Move that code into the file."
            )
        return (
            f"{where}: needs the package {package}, which is not installed. Install it with "
            f"`.venv/bin/uv pip install {package}`."
        )
    reason = str(getattr(error, "msg", error)).split("\n")[0]
    return f"{where}: {type(error).__name__}: {reason}. Correct the file."


def move_channels_last(model: nn.Module, device: torch.device | str) -> nn.Module:
    """Move a model to a device, and its four-dimensional tensors to channels-last memory.

    ``Module.to`` would refuse a model that also has five-dimensional tensors.
    """

    def convert(tensor: torch.Tensor) -> torch.Tensor:
        is_image = tensor.dim() == 4
        return tensor.to(
            device, memory_format=torch.channels_last if is_image else torch.preserve_format
        )

    return model._apply(convert)


def list_models() -> list[str]:
    """Return the names of torchvision's classification models."""
    return torchvision.models.list_models(module=torchvision.models)


def require_runs(name: str, image_size: int, num_classes: int) -> None:
    """Check that a model accepts images of ``image_size`` pixels.

    torchvision's models run on torch's meta device, which computes only shapes. A user's own model
    may do what that device cannot, and it is trained on two images and evaluated on two and on one.

    Raises:
        InputError: the model does not, its output is not (images, classes), or it has state that
            checkpoints would lack.
    """
    own = split_model(name)
    device = "cpu" if own else "meta"
    try:
        model = make_model(name, image_size, num_classes).to(device)
        images = torch.rand(2, 3, image_size, image_size, device=device)
        outputs = list(_train_and_evaluate(model, images)) if own else [(2, model(images))]
        if own:
            _require_restorable(model, make_model(name, image_size, num_classes))
            _require_seedable(lambda: make_model(name, image_size, num_classes))
    except InputError:
        raise
    except Exception as error:  # each model raises its own errors
        if own:
            where = explain_own_error(Path(own[0]), error)
            raise InputError(f"model: for an image_size of {image_size}: {where}") from error
        reason = str(error).split("\n")[0]
        raise InputError(
            f"model: {name} does not work with an image_size of {image_size} ({reason}). Choose "
            "another size or model."
        ) from error
    for num_images, output in outputs:
        _require_output(name, output, num_images, num_classes)


def _train_and_evaluate(model: nn.Module, images: torch.Tensor) -> Iterator[tuple[int, object]]:
    """Train and evaluate a user's model as sessions do. Yields numbers of images, and outputs."""
    model = move_channels_last(model, "cpu")
    images = images.to(memory_format=torch.channels_last)
    saved = model.state_dict().keys()
    unsaved = {name: b.clone() for name, b in model.named_buffers() if name not in saved}
    output = model(images)
    yield len(images), output
    if isinstance(output, torch.Tensor):
        output.sum().backward()
    buffers = dict(model.named_buffers())
    for name, before in unsaved.items():
        if not torch.equal(before, buffers[name]):
            raise InputError(
                f"model: its buffer {name} changes in training, but is not in `state_dict()`. "
                "Register it with `persistent=True`."
            )
    model.eval()
    with torch.no_grad():
        yield len(images), model(images)
        yield 1, model(images[:1])  # the last batch of a validation may be a single image


def _require_restorable(model: nn.Module, new: nn.Module) -> None:
    """Check that a trained ``model`` can be saved, and loaded into a ``new`` one."""
    file = io.BytesIO()
    try:
        torch.save(model.state_dict(), file)
        file.seek(0)
        new.load_state_dict(torch.load(file, weights_only=True))
    except Exception as error:  # pickle and torch raise many types
        raise InputError(
            "model: after training, its `state_dict()` cannot be saved and loaded into a new model "
            f"({textwrap.shorten(str(error), 200)}). Register the same entries in every model, and "
            "store only tensors and plain Python values."
        ) from error


def _require_seedable(make: Callable[[], nn.Module]) -> None:
    """Check that ``make`` leaves torch's random state to the seed."""
    states = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        make()
        states.append(torch.get_rng_state())
    if torch.equal(*states):
        raise InputError(
            "model: its file sets torch's seed, so all `seeds` would begin with the same weights. "
            "Remove `torch.manual_seed` from it."
        )


def _require_output(name: str, output: object, num_images: int, num_classes: int) -> None:
    """Check that the output of a model is (``num_images``, ``num_classes``)."""
    if not isinstance(output, torch.Tensor):
        raise InputError(
            f"model: {name} returns {type(output).__name__}, not one tensor. Choose another model."
        )
    if output.shape != (num_images, num_classes):
        images = f"{num_images} image{'s' if num_images != 1 else ''}"
        raise InputError(
            f"model: {name} returns {tuple(output.shape)} for {images} and {num_classes} classes. "
            "Its output must be (images, classes)."
        )
