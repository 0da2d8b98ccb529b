"""The inputs and options of the parts of the benchmark that measure at an image size."""

import json
import os
from dataclasses import dataclass
from pathlib import Path

from benchmarks.measure import Settings, settings_of

PARTS = ["loop", "step", "data_path", "sharing", "peers", "prepare"]
# The key of `num_images` for each part that needs images.
PURPOSES = {"data_path": "peers", "peers": "peers", "prepare": "prepare"}
PARTS_WITH_ARRAYS = ("data_path", "peers")


@dataclass(frozen=True)
class Part:
    """A part of the benchmark at an image size, which a module of the same name measures.

    Attributes:
        settings: of the whole benchmark.
        device: cpu or cuda.
        work: the folder of images, arrays and results.
    """

    name: str
    size: int
    settings: Settings
    device: str
    work: Path

    @property
    def num_images(self) -> int | None:
        """The number of training images that the part needs; None if it needs no images."""
        purpose = PURPOSES.get(self.name)
        return self.settings["num_images"][purpose] if purpose else None

    @property
    def images(self) -> Path | None:
        """The folder of the images that the part needs; None if it needs no images."""
        return self.work / f"images-{self.num_images}" if self.num_images else None

    @property
    def arrays(self) -> Path | None:
        """The folder of the arrays that the part needs; None if it needs no arrays."""
        return self.work / f"{self.size}px/arrays" if self.name in PARTS_WITH_ARRAYS else None

    @property
    def result(self) -> Path:
        """The file of the measures."""
        return self.work / f"{self.size}px/{self.name}.csv"

    @property
    def options(self) -> dict[str, object]:
        """The options of the module's command, except for the log."""
        options: dict[str, object] = {"--output": self.result}
        if self.name == "prepare":
            options |= {"--image-size": self.size, "--cores": num_cores()}
        else:
            settings = settings_of(self.settings, self.device, self.size)
            options |= {"--settings": json.dumps(settings, sort_keys=True)}
        if self.images:
            options |= {"--images": self.images}
        if self.arrays:
            options |= {"--arrays": self.arrays}
        if self.name == "peers":
            options |= {"--environments": self.work / "environments"}
        return options


def num_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0))
