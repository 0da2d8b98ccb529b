"""The settings of a training session: all that its results depend on except its input files."""

import json
import re
from dataclasses import MISSING, asdict, dataclass, field, fields
from typing import Any


@dataclass(frozen=True)
class SessionSpec:
    """Everything that determines the results of a session, except for its input files.

    This is the only list of what a session depends on. A field that has the name of a key of the
    configuration or of its ``boundaries`` takes that key's value. ``optimizer`` is the schedule's,
    if it has its own. The other fields identify the session, or are derived from several keys.

    In a first session that all boundaries of a schedule share, ``boundary`` is empty and ``method``
    is the schedule's name. A later session that several methods share has the names of
    one of them. An uninterrupted run has one session of its own.
    """

    dataset: str
    schedule: str
    boundary: str
    method: str
    seed: int
    session: int  # from 1
    num_epochs: int  # of this session
    validate_every: int  # epochs
    image_size: int  # pixels
    train_per_class: int | None  # images; None: all
    valid_per_class: int | None
    model: str  # of torchvision, or :FUNCTION of the user's file
    file_hashes: dict[str, str]  # SHA-256 of each file that a key names; shortened if published
    subset: str
    batch_size: int  # images
    augment: str
    normalize: str | dict[str, list[float]]
    optimizer: dict[str, Any]  # `name`, and the keyword arguments of that torch.optim class
    learning_rate: dict[str, Any]  # `kind`, and the values of the session, or `over` the run
    device: str
    precision: str
    compile: bool | str
    cpu_threads: int
    deterministic: bool | str
    all_norms: bool  # whether norms are recorded at every step
    # Options of the boundary that the session begins with; the defaults are those of session 1.
    keep: str | list[str] = field(default_factory=list)  # entries of the optimizer's state, or all
    rebuild_steps: int = 0  # batches that fill the optimizer's state before the first step
    warmup_steps: int = 0  # steps after the boundary in which the LR rises to the schedule's
    lr_factor: float = 1.0  # of every LR of the session
    step_size: str | None = None  # the boundary whose run has the norms that updates get
    reshuffle: bool = False  # whether order and augmentation come from another random stream

    @classmethod
    def from_json(cls, text: str) -> "SessionSpec":
        """Read what :meth:`to_json` wrote."""
        return cls(**json.loads(text))

    @property
    def title(self) -> str:
        """The session's name for people."""
        return f"{self.dataset} {self.method} seed {self.seed} session {self.session}"

    @property
    def subset_seed(self) -> int | None:
        """The seed that chooses the training images; None: the first of each class are used."""
        return self.seed if self.subset == "seed" else None

    def to_json(self) -> str:
        """Return the job's settings as JSON, the same text for equal settings."""
        return json.dumps(asdict(self), sort_keys=True)


# Options of a boundary, with the values that are the same as leaving the key out.
OPTIONS: dict[str, Any] = {
    option.name: option.default for option in fields(SessionSpec) if option.default is not MISSING
}


def split_model(model: str) -> tuple[str, str] | None:
    """Return file and function of a model ``FILE.py:FUNCTION``. None for torchvision's models."""
    own = re.fullmatch(r"(.+\.py):([A-Za-z_]\w*)", model)
    return (own[1], own[2]) if own else None
