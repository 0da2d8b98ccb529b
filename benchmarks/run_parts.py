"""Run the parts of the benchmark that need neither Snakemake nor a network.

A second call with the same folders continues with the parts that are missing.
"""

import argparse
import json
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.commands import OutOfTimeError, run_module
from benchmarks.measure import Settings, load_settings, settings_of
from optstate import job

PARTS = ["loop", "step", "data_path", "sharing", "peers", "prepare"]
PEERS = ["article"]  # the others need packages of their own
SUMMARY_SECONDS = 60  # granted beyond the time limit


@dataclass(frozen=True)
class Benchmark:
    """The benchmark in a folder.

    Attributes:
        device: cpu or cuda.
        work: the folder of images, arrays, measures and logs.
        deadline: a time of ``time.monotonic()``.
    """

    settings: Settings
    device: str
    work: Path
    deadline: float

    def result(self, part: str, size: int) -> Path:
        """The file of a part's measures at an image size."""
        return self.work / f"{size}px/{part}.csv"

    def measure(self, part: str, size: int) -> None:
        """Run a part, after creating the images and the arrays that it needs."""
        options: dict[str, object] = {"--output": self.result(part, size)}
        if part == "prepare":
            images = self.get_images("prepare")
            options |= {"--images": images, "--image-size": size, "--cores": num_cores()}
        else:
            settings = settings_of(self.settings, self.device, size)
            options |= {"--settings": json.dumps(settings)}
        if part in ("data_path", "peers"):
            images = self.get_images("peers")
            options |= {"--images": images, "--arrays": self.prepare_arrays(images, size)}
        if part == "peers":
            options |= {"--environments": self.work / "environments"}
        self.result(part, size).parent.mkdir(parents=True, exist_ok=True)
        self.run(f"benchmarks.{part}", options, f"{part}-{size}px")

    def get_images(self, purpose: str) -> Path:
        """Create the images of ``num_images.PURPOSE``, and return their folder."""
        number = self.settings["num_images"][purpose]
        images = self.work / f"images-{number}"
        if not images.exists():
            partial = self.work / f"partial-{images.name}"
            shutil.rmtree(partial, ignore_errors=True)
            options = {"--archive": self.settings["archive"] or "", "--number": number}
            self.run("benchmarks.images", options | {"--output": partial}, images.name)
            partial.rename(images)
        return images

    def prepare_arrays(self, images: Path, size: int) -> Path:
        """Decode the images, and return the folder of the arrays."""
        arrays = self.work / f"{size}px/arrays"
        if not (arrays / "dataset.json").exists():
            options = {
                "--folder": images, "--image-size": size, "--workers": num_cores(),
                "--output": arrays,
            }  # fmt: skip
            self.run("optstate.data.prepare", options, f"arrays-{size}px")
        return arrays

    def run(self, module: str, options: dict[str, object], name: str) -> None:
        """Run a module's command, with a log of this ``name``."""
        run_module(module, options | {"--log": self.work / f"logs/{name}.log"}, self.deadline)


def num_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0))


def main(arguments: argparse.Namespace) -> None:
    """Write ``summary.csv`` and ``machine.json`` to ``--output``."""
    deadline = time.monotonic() + arguments.seconds
    settings = load_settings(*arguments.configfile) | {"peers": PEERS}
    sizes = settings[arguments.device]["image_sizes"]
    benchmark = Benchmark(settings, arguments.device, arguments.work, deadline)
    parts = [(part, size) for size in sizes for part in arguments.parts]
    errors = run_all(benchmark, parts)
    results = [benchmark.result(*part) for part in parts if benchmark.result(*part).exists()]
    options = {
        "--measures": results, "--main-size": sizes[0], "--output": arguments.output,
        "--log": arguments.work / "logs/summary.log",
    }  # fmt: skip
    run_module("benchmarks.summary", options, time.monotonic() + SUMMARY_SECONDS)
    if errors:
        raise job.InputError(" ".join(errors))


def run_all(benchmark: Benchmark, parts: list[tuple[str, int]]) -> list[str]:
    """Run the parts that have no result, until the deadline, and return their errors."""
    errors = []
    for part, size in parts:
        if benchmark.result(part, size).exists():
            continue
        print(f"{part} at {size} px", flush=True)
        try:
            benchmark.measure(part, size)
        except job.InputError as error:  # the other parts still run
            errors.append(str(error))
        except OutOfTimeError:
            print("The time limit is over. Run again to continue.")
            break
    return errors


PARSER = argparse.ArgumentParser(description=__doc__.split("\n")[0])
PARSER.add_argument("--parts", nargs="*", choices=PARTS, default=PARTS)
PARSER.add_argument("--configfile", type=Path, nargs="*", default=[], help="over config.yaml")
PARSER.add_argument("--device", choices=["cpu", "cuda"], required=True)
PARSER.add_argument("--seconds", type=float, required=True, help="time limit")
PARSER.add_argument("--work", type=Path, required=True, help="folder of images and arrays")
PARSER.add_argument("--output", type=Path, required=True, help="folder of the results")

if __name__ == "__main__":
    job.run(PARSER, main)
