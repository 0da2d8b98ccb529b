"""Checkpoints: what a session ends with, and what an interrupted one continues from."""

import dataclasses
import io
import random
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from optstate.job import InputError, write_atomically
from optstate.training.schedule import WarmUp


@dataclass(frozen=True)
class Position:
    """How far a run has come. Epochs and steps are counted through all sessions."""

    session: int = 0
    epoch: int = 0
    step: int = 0

    def __str__(self) -> str:
        return f"step {self.step}, {self.epoch} epochs finished"


@dataclass
class Trained:
    """All that training changes."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: LRScheduler | WarmUp
    position: Position

    def state_dict(self) -> dict[str, Any]:
        """The checkpoint of the present state, random states included."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "random": random_states(),
            "position": dataclasses.asdict(self.position),
        }

    def load_state_dict(self, checkpoint: dict[str, Any]) -> None:
        """Continue where ``checkpoint`` was taken."""
        self.model.load_state_dict(checkpoint["model"])
        self.optimizer.load_state_dict(checkpoint["optimizer"])
        self.scheduler.load_state_dict(checkpoint["scheduler"])
        self.position = Position(**checkpoint["position"])
        set_random_states(checkpoint["random"])


def random_states() -> dict[str, Any]:
    """The state of every global random number generator that a model or library may draw from."""
    numpy_state = np.random.get_state(legacy=False)
    numpy_state["state"]["key"] = torch.from_numpy(numpy_state["state"]["key"].astype(np.int64))
    return {
        "python": random.getstate(),
        "numpy": numpy_state,
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_random_states(states: dict[str, Any]) -> None:
    """Put back what :func:`random_states` gave."""
    random.setstate(states["python"])
    inner = states["numpy"]["state"]
    np.random.set_state(
        states["numpy"] | {"state": inner | {"key": inner["key"].numpy().astype(np.uint32)}}
    )
    torch.set_rng_state(states["torch"])
    if states["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(states["cuda"])


def on_host(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """A copy of ``checkpoint`` in the host's memory, which training does not change any more."""
    copied = _rebuilt(checkpoint, _copied)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return copied


def _copied(tensor: torch.Tensor) -> torch.Tensor:
    # A copy that is not waited for goes into pinned memory, which is several times as fast.
    return tensor.clone() if tensor.is_cpu else tensor.to("cpu", non_blocking=True)


def serialized(checkpoint: dict[str, Any]) -> memoryview:
    """The bytes of ``checkpoint``: the same for the same content, whatever made it.

    Pickle writes an object that it has met before as a reference, and a state that was loaded
    shares other strings and containers than one that was trained up to the same point. So it is
    built anew, that its parts share what is equal and nothing else.
    """
    buffer = io.BytesIO()  # torch.save into a file hides a full disk behind a RuntimeError
    torch.save(_rebuilt(checkpoint, torch.Tensor.cpu), buffer)
    return buffer.getbuffer()


def _rebuilt(value: Any, tensor: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    if isinstance(value, torch.Tensor):
        return tensor(value)
    if isinstance(value, str):
        return sys.intern(value)
    if isinstance(value, dict):
        rebuilt = type(value)((_rebuilt(k, tensor), _rebuilt(v, tensor)) for k, v in value.items())
        if hasattr(value, "_metadata"):  # versions of the modules, in a model's state dict
            rebuilt._metadata = _rebuilt(value._metadata, tensor)  # type: ignore[attr-defined]
        return rebuilt
    if isinstance(value, (list, tuple)):
        return type(value)(_rebuilt(entry, tensor) for entry in value)
    return value


def save(checkpoint: dict[str, Any], path: Path) -> None:
    """Write ``checkpoint`` so that ``path`` is either whole or not there."""
    with write_atomically(path) as temporary:
        temporary.write_bytes(serialized(checkpoint))


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint to the CPU.

    Raises:
        InputError: the file is damaged or no checkpoint.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # pickle and torch raise what they like on damaged files
        raise InputError(
            f"{path}: not a checkpoint that loads: delete it, then run again"
        ) from error
