"""Helpers for all measurements: settings, rows of results, intervals, the machine."""

import contextlib
import csv
import dataclasses
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from optstate.experiment import configuration, schema
from optstate.experiment.runs import Session
from optstate.job import write_atomically
from optstate.training.spec import SessionSpec

SETTINGS = Path(__file__).with_name("config.yaml")
SCHEMA = Path(__file__).with_name("config.schema.yaml")
CONFIDENCE = 0.95
NUM_RESAMPLES = 2000  # of the bootstrap

Settings = dict[str, Any]


def load_settings(*overlays: Path) -> Settings:
    """Read ``config.yaml`` with ``overlays`` merged into it.

    Raises:
        InputError: they are not valid.
    """
    settings: Settings = {}
    for path in (SETTINGS, *overlays):
        configuration.merge(settings, yaml.safe_load(path.read_text()))
    return validate_settings(settings)


def validate_settings(given: Settings) -> Settings:
    """Return the settings in their final types.

    Raises:
        InputError: one line that names the key, its value, and how to fix it.
    """
    return schema.conform(given, SCHEMA)


def settings_of(settings: Settings, device: str, image_size: int) -> Settings:
    """Return the settings that a measurement needs, for one device and image size."""
    keys = ("model", "batch_size", "peers", "epochs")
    return {key: settings[key] for key in keys} | {
        "device": device, "threads": settings[device]["threads"], "image_size": image_size,
    }  # fmt: skip


def guess_device() -> str:
    """Return cuda if there seems to be a GPU, else cpu, without importing torch."""
    return "cuda" if shutil.which("nvidia-smi") else "cpu"


@dataclass(frozen=True)
class Measure:
    """A row of the summary: a ``value`` with its 95 % interval from ``low`` to ``high``.

    ``goal`` is a relation and a number, as in ``>= 0.98``. It is empty for rows that only explain
    others.
    """

    measure: str
    device: str  # cpu or cuda
    value: float
    low: float
    high: float
    goal: str = ""

    @property
    def is_met(self) -> bool | None:
        """Whether the value meets the goal; None without a goal."""
        if not self.goal:
            return None
        relation, number = self.goal.split()
        return self.value >= float(number) if relation == ">=" else self.value <= float(number)


COLUMNS = [field.name for field in dataclasses.fields(Measure)]


def write_measures(path: Path, measures: Sequence[Measure]) -> None:
    """Write measures as CSV, with four significant digits."""
    with write_atomically(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        for measure in measures:
            row = dataclasses.asdict(measure)
            writer.writerow({k: f"{v:.4g}" if isinstance(v, float) else v for k, v in row.items()})


def read_measures(path: Path) -> list[Measure]:
    """Read the measures that :func:`write_measures` wrote."""
    with path.open(newline="") as file:
        return [
            Measure(name, device, float(value), float(low), float(high), goal)
            for name, device, value, low, high, goal in list(csv.reader(file))[1:]
        ]


def interval(
    samples: Sequence[Sequence[float]], statistic: Callable[..., Any]
) -> tuple[float, float, float]:
    """Return a statistic of paired samples and its 95 % percentile bootstrap interval.

    Args:
        samples: one or more sequences of the same length. Resamples keep the pairs together.
        statistic: takes an array for each of the ``samples`` and the keyword ``axis``.

    Returns:
        The value, and the low and the high end of the interval.
    """
    arrays = [np.asarray(sample, dtype=float) for sample in samples]
    length = len(arrays[0])
    indices = np.random.default_rng(0).integers(0, length, (NUM_RESAMPLES, length))
    resampled = statistic(*(array[indices] for array in arrays), axis=-1)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(resampled, [tail, 1 - tail])
    return float(statistic(*arrays, axis=-1)), float(low), float(high)


def ratio_of_sums(
    numerators: Sequence[float], denominators: Sequence[float]
) -> tuple[float, float, float]:
    """Return the ratio of two sums of paired measurements, and its interval."""
    return interval([numerators, denominators], lambda a, b, axis: a.sum(axis) / b.sum(axis))


def median(samples: Sequence[float]) -> tuple[float, float, float]:
    """Return the median of repeated measurements and its interval."""
    return interval([samples], np.median)


@contextlib.contextmanager
def limit_cores(number: int) -> Iterator[None]:
    """Limit this process, and those that it starts, to ``number`` of its cores in the block."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(before)[:number])
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def now(device: Any) -> float:
    """Return the time in seconds after a torch device has finished all its work."""
    import torch  # imported here, since measurements without torch start much faster

    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def describe_machine() -> dict[str, Any]:
    """Return the hardware and the versions that determine how fast a measurement runs."""
    import torch

    from optstate.training.compute import read_cpu_name

    on_gpu = torch.cuda.is_available()
    return {
        "processor": read_cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "gpu": torch.cuda.get_device_name() if on_gpu else None,
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
    }


def session_spec(settings: Settings, **changes: Any) -> SessionSpec:
    """Return the first session of the article's constant schedule, for one epoch.

    Args:
        settings: ``model``, ``image_size``, ``batch_size``, ``device`` and ``threads``.
        changes: other fields of the specification.
    """
    keys = ("model", "image_size", "batch_size", "device")
    overlay = {key: settings[key] for key in keys} | {"cpu_threads": settings["threads"]}
    config = configuration.load(overlay)
    spec = configuration.session_spec(config, Session("imagenette", "constant", seed=0, number=1))
    fields: dict[str, Any] = {"dataset": "images", "num_epochs": 1} | changes
    return dataclasses.replace(spec, **fields)
