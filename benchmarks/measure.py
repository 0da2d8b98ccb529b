"""What every measurement shares: its settings, its rows, their spread, the machine."""

import contextlib
import csv
import dataclasses
import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from optstate.job import write_atomically
from optstate.training.spec import SessionSpec

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Measure:
    """A row of the summary: ``value`` lies between ``low`` and ``high`` (a 95 % interval).

    ``goal`` is such as ``>= 0.98``, or empty for what only explains the others.
    """

    measure: str
    device: str  # cpu or cuda
    value: float
    low: float
    high: float
    goal: str = ""

    @property
    def is_met(self) -> bool | None:
        """Whether the goal is met; None without one."""
        if not self.goal:
            return None
        relation, number = self.goal.split()
        return self.value >= float(number) if relation == ">=" else self.value <= float(number)


COLUMNS = [field.name for field in dataclasses.fields(Measure)]


def write_measures(path: Path, measures: Sequence[Measure]) -> None:
    """Write rows of the summary as CSV, with four significant digits."""
    with write_atomically(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        for measure in measures:
            row = dataclasses.asdict(measure)
            writer.writerow({k: f"{v:.4g}" if isinstance(v, float) else v for k, v in row.items()})


def read_measures(path: Path) -> list[Measure]:
    """What :func:`write_measures` wrote."""
    with path.open(newline="") as file:
        return [
            Measure(name, device, float(value), float(low), float(high), goal)
            for name, device, value, low, high, goal in list(csv.reader(file))[1:]
        ]


def interval(
    samples: Sequence[Sequence[float]], statistic: Callable[..., Any]
) -> tuple[float, float, float]:
    """A statistic of paired samples, and its 95 % percentile-bootstrap interval over the pairs.

    Args:
        samples: one or more sequences of the same length.
        statistic: of as many arrays as there are ``samples``, along ``axis``.
    """
    arrays = [np.asarray(sample, dtype=float) for sample in samples]
    value = float(statistic(*arrays, axis=-1))
    if len(arrays[0]) == 1:
        return value, value, value
    found = stats.bootstrap(
        arrays, statistic, paired=len(arrays) > 1, confidence_level=CONFIDENCE,
        n_resamples=2000, method="percentile", rng=np.random.default_rng(0),
    )  # fmt: skip
    return value, float(found.confidence_interval.low), float(found.confidence_interval.high)


def ratio_of_sums(
    numerators: Sequence[float], denominators: Sequence[float]
) -> tuple[float, float, float]:
    """Sum over sum, of stretches measured in turns, with its interval over the stretches."""
    return interval([numerators, denominators], lambda a, b, axis: a.sum(axis) / b.sum(axis))


def median(samples: Sequence[float]) -> tuple[float, float, float]:
    """The median of repeated measurements, with its interval."""
    return interval([samples], np.median)


@contextlib.contextmanager
def on_cores(number: int) -> Iterator[None]:
    """Keep this process, and those that it starts, on so many cores."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(before)[:number])
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def now(device: Any) -> float:
    """The time when a torch device has done all that it was told, in seconds."""
    import torch  # here, for measurements without torch start much faster

    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    import torch

    on_gpu = torch.cuda.is_available()
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "gpu": torch.cuda.get_device_name() if on_gpu else None,
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
    }


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if platform.system() == "Linux" else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def session_spec(settings: dict[str, Any], **others: Any) -> SessionSpec:
    """The first session of the article's constant schedule, with the settings of a measurement."""
    fields = {
        "dataset": "images", "schedule": "constant", "boundary": "", "method": "constant",
        "seed": 0, "session": 1, "num_epochs": 1, "image_size": settings["image_size"],
        "train_per_class": None, "valid_per_class": None, "model": settings["model"],
        "weights_sha256": None, "batch_size": settings["batch_size"], "augment": "none",
        "optimizer": {"name": "Adam"}, "learning_rate": {"kind": "constant", "lr": 3e-4},
        "keep": [], "warmup_steps": 0, "stream": 0, "device": settings["device"],
        "precision": "auto", "compile": "auto",
        "cpu_threads": settings["threads"], "deterministic": "auto",
    }  # fmt: skip
    return SessionSpec(**fields | others)
