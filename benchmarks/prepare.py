"""Compare decoding a data set with one plain Pillow process: images per second, memory, pixels."""

import argparse
import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from benchmarks.measure import Measure, limit_cores, median, ratio_of_sums, write_measures
from optstate import job
from optstate.data import prepare
from optstate.data.manifest import FOLDERS, folder_sha256

SCRIPTS = str(Path(job.__file__).parents[1])
ROUNDS = 9
COMMANDS = 3  # runs of the whole command to time it, and as many to measure its memory
QUARTER = 4
SAMPLE_SECONDS = 0.01

# A process that uses only Pillow and numpy. For each line on stdin it decodes its share of the
# images (every STEPth from the FIRST) and prints a line. At the end it saves the array.
PILLOW = """
import sys
from pathlib import Path
import numpy as np
from PIL import Image, ImageOps

folder, size, first, step, output = Path(sys.argv[1]), *map(int, sys.argv[2:5]), sys.argv[5]
paths = [path for split in ("train", "val") for path in sorted((folder / split).glob("*/*"))]
pixels = np.zeros((len(paths[first::step]), size, size, 3), np.uint8)
for _ in sys.stdin:
    for row, path in zip(pixels, paths[first::step]):
        with Image.open(path) as image:
            ImageOps.exif_transpose(image, in_place=True)
            resized = image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR)
            row[:] = np.asarray(resized)
    print("done", flush=True)
np.save(output, pixels)
"""


def main(arguments: argparse.Namespace) -> None:
    """Write the measures to ``--output``."""
    images, size, cores = arguments.images, arguments.image_size, arguments.cores
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=arguments.output.parent) as temporary:
        folder = Path(temporary)
        seconds = time_rounds(images, size, cores, folder)
        difference = pixel_difference(folder)
        commands = [time_command(images, size, cores, folder) for _ in range(COMMANDS)]
        quarter = link_quarter(images, folder / "quarter")
        peaks = [
            [peak_megabytes(source, size, cores, folder) for source in (images, quarter)]
            for _ in range(COMMANDS)
        ]
    _, splits = prepare.list_images(images)
    num_images = sum(len(split.images) for split in splits)
    starts = [command - np.median(seconds["all"]) for command in commands]
    measures = [
        *rate_measures(seconds, num_images, cores),
        Measure("prepare_start_seconds", "cpu", *median(starts)),
        *memory_measures(peaks),
        Measure("prepare_pixel_difference", "cpu", *(difference,) * 3, goal="<= 0"),
    ]
    write_measures(arguments.output, measures)


def rate_measures(
    seconds: dict[str, list[float]], num_images: int, cores: int
) -> Iterator[Measure]:
    """Yield the measures of speed.

    ``pillow_processes_gain`` is the largest gain that the cores allow: that of one Pillow process
    per core, each with its share of the images, over a single process.

    Args:
        seconds: the result of :func:`time_rounds`.
    """
    pillow, pillows, all_cores, one_core = seconds.values()
    rows = {
        "prepare_vs_pillow": (ratio_of_sums(pillow, all_cores), f">= {0.9 * cores:g}"),
        "prepare_vs_pillow_1core": (ratio_of_sums(pillow, one_core), ">= 0.9"),
        "pillow_processes_gain": (ratio_of_sums(pillow, pillows), ""),
        "prepare_images_per_second": (median([num_images / s for s in all_cores]), ""),
        "pillow_images_per_second": (median([num_images / s for s in pillow]), ""),
    }
    for name, (values, goal) in rows.items():
        yield Measure(name, "cpu", *values, goal)


def memory_measures(peaks: Sequence[Sequence[float]]) -> list[Measure]:
    """Return the measures of memory.

    Args:
        peaks: for each run, the peaks in MB with all images and with a quarter of them.
    """
    whole, quarter = zip(*peaks, strict=True)
    return [
        Measure("prepare_peak_memory_mb", "cpu", *median(whole)),
        Measure("prepare_memory_growth", "cpu", *ratio_of_sums(whole, quarter), goal="<= 1.1"),
    ]


def time_rounds(images: Path, size: int, cores: int, folder: Path) -> dict[str, list[float]]:
    """Return the seconds of each contestant in each round, in which they take turns.

    Pillow decodes into an array in memory, in one process (``pillow``) and in one for each core
    (``pillows``). This project, on ``all`` cores and on ``one``, lists the images, decodes them,
    finds equal ones, hashes the arrays and syncs them to disk. Only the start of its command and
    the check of the folder's manifest are not measured.
    """
    seconds: dict[str, list[float]] = {"pillow": [], "pillows": [], "all": [], "one": []}
    with contextlib.ExitStack() as processes:

        def start(first: int, step: int) -> subprocess.Popen[str]:
            output = folder / f"pillow{first}of{step}.npy"
            arguments = map(str, (images, size, first, step, output))
            return processes.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", PILLOW, *arguments],
                    stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1,
                )
            )  # fmt: skip

        one, several = start(0, 1), [start(core, cores) for core in range(cores)]
        for number in range(ROUNDS + 1):
            times = {
                "pillow": time_pillow([one]),
                "pillows": time_pillow(several),
                "all": time_prepare(images, size, cores, folder),
                "one": time_prepare(images, size, 1, folder),
            }
            for name, value in times.items():
                seconds[name] += [value] if number else []  # the first round warms up
    return seconds


def time_pillow(processes: Sequence[subprocess.Popen[str]]) -> float:
    """Return the seconds until all of the Pillow processes have decoded their shares."""
    start = time.perf_counter()
    for process in processes:
        print(file=process.stdin, flush=True)
    for process in processes:
        if not (process.stdout and process.stdout.readline()):
            raise job.InputError("a Pillow process ended early. Its error is above.")
    return time.perf_counter() - start


def time_prepare(images: Path, size: int, cores: int, folder: Path) -> float:
    """Return the seconds of :func:`optstate.data.prepare.prepare`, with a worker on each core."""
    output = folder / "arrays"
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir()
    with limit_cores(cores):
        start = time.perf_counter()
        prepare.prepare(images, size, cores, output)
        return time.perf_counter() - start


def time_command(images: Path, size: int, cores: int, folder: Path) -> float:
    """Return the seconds of the whole command, as the pipeline runs it."""
    start = time.perf_counter()
    with start_command(images, size, cores, folder) as process:
        process.wait()
    return time.perf_counter() - start


def peak_megabytes(images: Path, size: int, cores: int, folder: Path) -> float:
    """Return the most memory that the command and its workers held at once, in MB.

    Only memory that belongs to no file is counted. The kernel writes the pages of the arrays back
    and drops them when it needs the memory.
    """
    peak = 0.0
    with start_command(images, size, cores, folder) as process:
        while process.poll() is None:
            peak = max(peak, anonymous_kilobytes(process.pid) / 1000)
            time.sleep(SAMPLE_SECONDS)
    return peak


def anonymous_kilobytes(pid: int) -> int:
    """Return the anonymous memory of a process and its children; 0 for those that have ended.

    A page that processes share is counted once (``Pss_Anon``).
    """
    held = 0
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss_Anon:"):
                held += int(line.split()[1])
        for path in Path(f"/proc/{pid}/task").glob("*/children"):
            held += sum(anonymous_kilobytes(int(child)) for child in path.read_text().split())
    return held


@contextlib.contextmanager
def start_command(
    images: Path, size: int, cores: int, folder: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """Start the command that the pipeline runs, and check at the end that it succeeded."""
    options = {
        "--folder": images, "--sha256": folder_sha256(images), "--image-size": size,
        "--workers": cores, "--output": folder / "arrays", "--log": folder / "prepare.log",
    }  # fmt: skip
    command = [sys.executable, "-m", "optstate.data.prepare"]
    command += [str(part) for option in options.items() for part in option]
    environment = os.environ | {"PYTHONPATH": SCRIPTS, "OPTSTATE_PARENT": str(os.getpid())}
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as process:
        yield process
    if process.returncode:
        raise job.InputError((folder / "prepare.log").read_text().strip().rpartition("\n")[2])


def link_quarter(images: Path, folder: Path) -> Path:
    """Fill ``folder`` with links to every fourth image of each class, and return it."""
    for class_folder in images.glob("*/*"):
        linked = folder / class_folder.relative_to(images)
        linked.mkdir(parents=True)
        for path in sorted(class_folder.iterdir())[::QUARTER]:
            (linked / path.name).symlink_to(path.resolve())
    return folder


def pixel_difference(folder: Path) -> float:
    """Return the largest difference between a pixel value of the arrays and Pillow's."""
    ours = [np.load(folder / f"arrays/{split}_images.npy") for split in FOLDERS]
    pillows = np.load(folder / "pillow0of1.npy")
    return float(np.abs(np.concatenate(ours).astype(np.int16) - pillows).max())


PARSER = argparse.ArgumentParser(description=__doc__)
PARSER.add_argument("--images", type=Path, required=True, help="folder of {train,val}/CLASS/IMAGE")
PARSER.add_argument("--image-size", type=int, required=True, help="pixels")
PARSER.add_argument("--cores", type=int, required=True, help="number of cores to decode on")
PARSER.add_argument("--output", type=Path, required=True, help="CSV file of the measures")

if __name__ == "__main__":
    job.run(PARSER, main)
