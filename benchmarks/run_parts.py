"""Run the parts of the benchmark that need neither Snakemake nor a network.

A second call with the same folders continues with the parts that have no result.
"""

import argparse
import shutil
import time
from pathlib import Path

from benchmarks.commands import OutOfTimeError, run_module
from benchmarks.measure import load_settings
from benchmarks.parts import PARTS, Part, num_cores
from optstate import job

PEERS = ["article"]  # the other peers need packages from the network
SUMMARY_SECONDS = 60  # allowed after the time limit


def main(arguments: argparse.Namespace) -> None:
    """Write ``summary.csv`` and ``machine.json`` to ``--output``."""
    deadline = time.monotonic() + arguments.seconds
    settings = load_settings(*arguments.configfile) | {"peers": PEERS}
    sizes = settings[arguments.device]["image_sizes"]
    parts = [
        Part(name, size, settings, arguments.device, arguments.work)
        for size in sizes
        for name in arguments.parts
    ]
    errors = run_all(parts, deadline)
    options = {
        "--measures": [part.result for part in parts if part.result.exists()],
        "--main-size": sizes[0], "--output": arguments.output,
        "--log": arguments.work / "logs/summary.log",
    }  # fmt: skip
    run_module("benchmarks.summary", options, time.monotonic() + SUMMARY_SECONDS)
    if errors:
        raise job.InputError(" ".join(errors))


def run_all(parts: list[Part], deadline: float) -> list[str]:
    """Run the parts that have no result, until the deadline, and return their errors."""
    errors = []
    for part in parts:
        if part.result.exists():
            continue
        print(f"{part.name} at {part.size} px", flush=True)
        try:
            run_part(part, deadline)
        except job.InputError as error:  # the other parts still run
            errors.append(str(error))
        except OutOfTimeError:
            print("The time limit has passed. Run again to continue.")
            break
    return errors


def run_part(part: Part, deadline: float) -> None:
    """Run a part, after creating the images and the arrays that it needs."""

    def run(module: str, options: dict[str, object], name: str) -> None:
        run_module(module, options | {"--log": part.work / f"logs/{name}.log"}, deadline)

    if part.images and not part.images.exists():
        partial = part.work / f"partial-{part.images.name}"
        shutil.rmtree(partial, ignore_errors=True)
        options = {"--archive": part.settings["archive"] or "", "--number": part.num_images}
        run("benchmarks.images", options | {"--output": partial}, part.images.name)
        partial.rename(part.images)
    if part.arrays and not (part.arrays / "dataset.sha256").exists():
        options = {"--folder": part.images, "--image-size": part.size, "--workers": num_cores()}
        run("optstate.data.prepare", options | {"--output": part.arrays}, f"arrays-{part.size}px")
    part.result.parent.mkdir(parents=True, exist_ok=True)
    run(f"benchmarks.{part.name}", part.options, f"{part.name}-{part.size}px")


PARSER = argparse.ArgumentParser(description=__doc__.split("\n")[0])
PARSER.add_argument("--parts", nargs="*", choices=PARTS, default=PARTS, help="parts to run")
PARSER.add_argument(
    "--configfile", type=Path, nargs="*", default=[], help="overlays on config.yaml"
)
PARSER.add_argument("--device", choices=["cpu", "cuda"], required=True, help="device to measure")
PARSER.add_argument("--seconds", type=float, required=True, help="time limit")
PARSER.add_argument("--work", type=Path, required=True, help="folder of images and arrays")
PARSER.add_argument("--output", type=Path, required=True, help="folder of the results")

if __name__ == "__main__":
    job.run(PARSER, main)
