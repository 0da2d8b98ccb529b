"""What one training session is, as its job is told."""

import json
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class SessionSpec:
    """Everything that decides the bits of a session, but for its inputs.

    ``boundary`` is empty and ``method`` the schedule's name in the first session, which all
    boundaries of a schedule share. A run that is not interrupted has one session of its own.
    """

    dataset: str
    schedule: str
    boundary: str
    method: str
    seed: int
    session: int  # from 1
    num_epochs: int  # of this session
    image_size: int  # pixels
    train_per_class: int | None  # images; None: all
    valid_per_class: int | None
    model: str
    weights_sha256: str | None  # of the state dict that the first session starts from
    batch_size: int  # images
    augment: str
    optimizer: dict[str, Any]  # `name`, and the keyword arguments of that torch.optim class
    learning_rate: dict[str, Any]  # `kind`, and the session's values for it
    keep: str | list[str]  # entries of the optimizer's state carried into this session, or "all"
    warmup_steps: int  # over which the LR rises to the schedule's, after the boundary; 0: none
    stream: int  # of random numbers, for order and augmentation: 0, or 1 to shuffle in another way
    device: str
    precision: str
    compile: bool | str
    cpu_threads: int
    deterministic: bool | str

    @classmethod
    def from_json(cls, text: str) -> "SessionSpec":
        """Read what :func:`json.dumps` made of the fields."""
        return cls(**json.loads(text))
