"""Checkpoints: the training state at the end of a session, or within an interrupted session."""

import contextlib
import dataclasses
import io
import random
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from optstate.job import InputError, write_atomically
from optstate.training.boundary import load_state
from optstate.training.schedule import ScaledLR
from optstate.training.spec import SessionSpec

PARTS = {"model", "optimizer", "random", "position", "meta"}  # that a boundary reads


@dataclass(frozen=True)
class Position:
    """The progress of a run. Finished epochs and steps are counted through all sessions."""

    session: int = 0
    epoch: int = 0
    step: int = 0

    def __str__(self) -> str:
        return f"step {self.step}, {self.epoch} epochs finished"


@dataclass
class TrainingState:
    """Everything that training changes."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: LRScheduler | ScaledLR
    position: Position

    def state_dict(self) -> dict[str, Any]:
        """Return a checkpoint of the current state, including the random states."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "random": get_random_states(),
            "position": dataclasses.asdict(self.position),
        }

    def load_state_dict(self, checkpoint: dict[str, Any]) -> None:
        """Continue from ``checkpoint``."""
        self.model.load_state_dict(checkpoint["model"])
        load_state(self.optimizer, checkpoint["optimizer"])
        self.scheduler.load_state_dict(checkpoint["scheduler"])
        self.position = Position(**checkpoint["position"])
        set_random_states(checkpoint["random"])


def get_random_states() -> dict[str, Any]:
    """Return the states of all global random number generators that a model may draw from.

    A session uses one GPU, so it may continue on a machine with another number of them.
    """
    numpy_state = np.random.get_state(legacy=False)
    numpy_state["state"]["key"] = torch.from_numpy(numpy_state["state"]["key"].astype(np.int64))
    return {
        "python": random.getstate(),
        "numpy": numpy_state,
        "torch": torch.get_rng_state(),
        "cuda": [torch.cuda.get_rng_state()] if torch.cuda.is_initialized() else [],
    }


def set_random_states(states: dict[str, Any]) -> None:
    """Restore the states that :func:`get_random_states` returned."""
    random.setstate(states["python"])
    inner = states["numpy"]["state"]
    np.random.set_state(
        states["numpy"] | {"state": inner | {"key": inner["key"].numpy().astype(np.uint32)}}
    )
    torch.set_rng_state(states["torch"])
    if states["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"][0])


@contextlib.contextmanager
def fork_random_states() -> Iterator[None]:
    """Restore the states of all global random number generators at the end of the block."""
    states = get_random_states()
    try:
        yield
    finally:
        set_random_states(states)


def copy_to_host(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Return a copy of ``checkpoint`` in host memory, which further training does not change."""
    copy = _rebuild(checkpoint, _copy)
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return copy


def _copy(tensor: torch.Tensor) -> torch.Tensor:
    # A non-blocking copy goes to pinned memory, which is several times as fast.
    return tensor.clone() if tensor.is_cpu else tensor.to("cpu", non_blocking=True)


def serialize(checkpoint: dict[str, Any]) -> memoryview:
    """Return the bytes of ``checkpoint``, which are equal for equal content.

    Pickle writes a repeated object as a reference. A loaded state and a trained state with the same
    values repeat different objects, so their bytes would differ. Therefore the checkpoint is
    rebuilt first, with equal strings as one object and every container as an object of its own.
    """
    buffer = io.BytesIO()  # torch.save into a file reports a full disk as a RuntimeError
    torch.save(_rebuild(checkpoint, torch.Tensor.cpu), buffer)
    return buffer.getbuffer()


def _rebuild(value: Any, copy: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    if isinstance(value, torch.Tensor):
        return copy(value)
    if isinstance(value, str):
        return sys.intern(value)
    if isinstance(value, dict):
        rebuilt = type(value)((_rebuild(k, copy), _rebuild(v, copy)) for k, v in value.items())
        if hasattr(value, "_metadata"):  # versions of the modules, in a model's state dict
            rebuilt._metadata = _rebuild(value._metadata, copy)  # type: ignore[attr-defined]
        return rebuilt
    if isinstance(value, (list, tuple)):
        return type(value)(_rebuild(entry, copy) for entry in value)
    return value


def save(checkpoint: dict[str, Any], path: Path) -> None:
    """Write ``checkpoint`` atomically: ``path`` is either complete or unchanged."""
    with write_atomically(path) as temporary:
        temporary.write_bytes(serialize(checkpoint))


def load(path: Path) -> dict[str, Any]:
    """Load the checkpoint of a finished session into host memory.

    Raises:
        InputError: the file is damaged, or not such a checkpoint.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # pickle and torch raise many types for damaged files
        raise InputError(
            f"{path}: not a readable checkpoint. Delete it, then run again."
        ) from error
    if not isinstance(checkpoint, dict) or not checkpoint.keys() >= PARTS:
        raise InputError(
            f"{path}: not the checkpoint of a finished session. Delete it, then run again."
        )
    return checkpoint


def find_difference(
    meta: dict[str, Any],
    position: dict[str, int],
    spec: SessionSpec,
    dataset_sha256: str,
    end: Position,
) -> str:
    """Compare the checkpoint of a finished session with what it should be.

    Args:
        meta: the checkpoint's ``meta``.
        position: the checkpoint's ``position``.
        spec: the settings of the session that should have made it.
        dataset_sha256: of the ``dataset.json`` that describes the arrays.
        end: the position at the end of that session.

    Returns:
        The first difference in words; empty if there is none.
    """
    found = meta.get("configuration", {}) | {"dataset_sha256": meta.get("dataset_sha256")}
    expected = dataclasses.asdict(spec) | {"dataset_sha256": dataset_sha256}
    for name in dataclasses.asdict(end):
        found[f"position.{name}"] = position.get(name)
        expected[f"position.{name}"] = getattr(end, name)
    for name in expected | found:
        if found.get(name) != expected.get(name):
            return f"its {name} is {found.get(name)!r}, not {expected.get(name)!r}"
    return ""
