"""Run the parts of the benchmark that need neither Snakemake nor a network.

A second call with the same folders continues with the parts that are missing.
"""

import argparse
import json
import os
import shutil
import time
from pathlib import Path

from benchmarks.commands import OutOfTimeError, run_module
from benchmarks.measure import Settings, load_settings, settings_of
from optstate import job

PARTS = ["loop", "step", "data_path", "sharing", "peers", "prepare"]
SUMMARY_SECONDS = 60  # granted beyond the time limit
PEERS = ["article"]  # the others need packages of their own


def main(arguments: argparse.Namespace) -> None:
    """Write ``summary.csv`` and ``machine.json`` to ``--output``."""
    deadline = time.monotonic() + arguments.seconds
    settings = load_settings(*arguments.configfile) | {"peers": PEERS}
    sizes = settings[arguments.device]["image_sizes"]
    results = {
        arguments.work / f"{size}px/{part}.csv": (part, size)
        for size in sizes
        for part in arguments.parts
    }
    try:
        for output, (part, size) in results.items():
            if not output.exists():
                print(f"{part} at {size} px", flush=True)
                options = part_options(part, size, settings, arguments, deadline)
                log = arguments.work / f"logs/{part}-{size}px.log"
                run_module(
                    f"benchmarks.{part}", options | {"--output": output, "--log": log}, deadline
                )
    except OutOfTimeError:
        print("The time limit is over.")
    measures = [output for output in results if output.exists()]
    options = {"--measures": measures, "--main-size": sizes[0], "--output": arguments.output}
    options |= {"--log": arguments.work / "logs/summary.log"}
    run_module("benchmarks.summary", options, time.monotonic() + SUMMARY_SECONDS)


def part_options(
    part: str, size: int, settings: Settings, arguments: argparse.Namespace, deadline: float
) -> dict[str, object]:
    """Return the options of a part, after creating the images and the arrays that it needs."""
    if part == "prepare":
        images = get_images(settings, "prepare", arguments.work, deadline)
        cores = len(os.sched_getaffinity(0))
        return {"--images": images, "--image-size": size, "--cores": cores}
    options: dict[str, object] = {
        "--settings": json.dumps(settings_of(settings, arguments.device, size))
    }
    if part in ("data_path", "peers"):
        images = get_images(settings, "peers", arguments.work, deadline)
        options |= {"--images": images}
        options |= {"--arrays": prepare_arrays(images, size, arguments.work, deadline)}
    if part == "peers":
        options |= {"--environments": arguments.work / "environments"}
    return options


def get_images(settings: Settings, purpose: str, work: Path, deadline: float) -> Path:
    """Create the images of ``num_images.PURPOSE``, and return their folder."""
    number = settings["num_images"][purpose]
    images = work / f"images-{number}"
    if not images.exists():
        partial = work / f"partial-{images.name}"
        shutil.rmtree(partial, ignore_errors=True)
        log = work / f"logs/{images.name}.log"
        options = {"--archive": settings["archive"] or "", "--number": number}
        run_module("benchmarks.images", options | {"--output": partial, "--log": log}, deadline)
        partial.rename(images)
    return images


def prepare_arrays(images: Path, size: int, work: Path, deadline: float) -> Path:
    """Decode the images, and return the folder of the arrays."""
    arrays = work / f"{size}px/arrays"
    if not (arrays / "dataset.json").exists():
        options = {
            "--folder": images, "--image-size": size, "--workers": len(os.sched_getaffinity(0)),
            "--output": arrays, "--log": work / f"logs/arrays-{size}px.log",
        }  # fmt: skip
        run_module("optstate.data.prepare", options, deadline)
    return arrays


PARSER = argparse.ArgumentParser(description=__doc__.split("\n")[0])
PARSER.add_argument("--parts", nargs="*", choices=PARTS, default=PARTS)
PARSER.add_argument("--configfile", type=Path, nargs="*", default=[], help="over config.yaml")
PARSER.add_argument("--device", choices=["cpu", "cuda"], required=True)
PARSER.add_argument("--seconds", type=float, required=True, help="time limit")
PARSER.add_argument("--work", type=Path, required=True, help="folder of images and arrays")
PARSER.add_argument("--output", type=Path, required=True, help="folder of the results")

if __name__ == "__main__":
    job.run(PARSER, main)
