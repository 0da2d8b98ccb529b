"""Decoding of a data set against one plain Pillow process: images per second, memory, pixels."""

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
import psutil

from optstate import job
from benchmarks.measure import Measure, median, on_cores, ratio_of_sums, write_measures
from optstate.data import prepare
from optstate.data.manifest import folder_sha256

SCRIPTS = str(Path(__file__).parents[2])
ROUNDS = 9  # of a stretch each
COMMANDS = 3  # runs of the whole command, and as many to see its memory
QUARTER = 4
SAMPLE_SECONDS = 0.01

# A process with nothing but Pillow and numpy. It decodes its share of the images, one in so many,
# for each line that it reads, answers with a line, and leaves the array.
PILLOW = """
import sys
from pathlib import Path
import numpy as np
from PIL import Image

folder, size, first, step, output = Path(sys.argv[1]), *map(int, sys.argv[2:5]), sys.argv[5]
paths = [path for split in ("train", "val") for path in sorted((folder / split).glob("*/*"))]
pixels = np.zeros((len(paths[first::step]), size, size, 3), np.uint8)
for _ in sys.stdin:
    for row, path in zip(pixels, paths[first::step]):
        with Image.open(path) as image:
            picture = image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR)
            row[:] = np.asarray(picture)
    print("done", flush=True)
np.save(output, pixels)
"""


def main(arguments: argparse.Namespace) -> None:
    """Write the measures to ``--output``."""
    images, size, cores = arguments.images, arguments.image_size, arguments.cores
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=arguments.output.parent) as temporary:
        folder = Path(temporary)
        seconds = measure_rates(images, size, cores, folder)
        difference = pixel_difference(folder)
        command = [command_seconds(images, size, cores, folder) for _ in range(COMMANDS)]
        quarter = every_fourth(images, folder / "quarter")
        peaks = [
            [peak_megabytes(of, size, cores, folder) for of in (images, quarter)]
            for _ in range(COMMANDS)
        ]
    _, splits = prepare.list_images(images)
    num_images = sum(len(split.images) for split in splits)
    measures = [
        *rates(seconds, num_images, cores),
        row("prepare_start_seconds", median([c - np.median(seconds["all"]) for c in command])),
        *memory(peaks),
        row("prepare_pixel_difference", (difference,) * 3, "<= 0"),
    ]
    write_measures(arguments.output, measures)


def row(measure: str, value: tuple[float, float, float], goal: str = "") -> Measure:
    """A row of what is measured on the CPU."""
    return Measure(measure, "cpu", *value, goal)


def rates(seconds: dict[str, list[float]], num_images: int, cores: int) -> list[Measure]:
    """The rows of stretches, from the seconds that each took in each round.

    ``pillow_processes_gain`` tells what the cores are worth: a Pillow process on each, with its
    share of the images, against one alone.
    """
    pillow, pillows, all_cores, one_core = seconds.values()
    return [
        row("prepare_vs_pillow", ratio_of_sums(pillow, all_cores), f">= {0.9 * cores:g}"),
        row("prepare_vs_pillow_1core", ratio_of_sums(pillow, one_core), ">= 0.9"),
        row("pillow_processes_gain", ratio_of_sums(pillow, pillows)),
        row("prepare_images_per_second", median([num_images / s for s in all_cores])),
        row("pillow_images_per_second", median([num_images / s for s in pillow])),
    ]


def memory(peaks: Sequence[Sequence[float]]) -> list[Measure]:
    """The rows of memory, from the peaks of runs: in MB, with all of the images and a quarter."""
    whole, quarter = zip(*peaks, strict=True)
    return [
        row("prepare_peak_memory_mb", median(whole)),
        row("prepare_memory_growth", ratio_of_sums(whole, quarter), "<= 1.1"),
    ]


def measure_rates(images: Path, size: int, cores: int, folder: Path) -> dict[str, list[float]]:
    """Seconds of the stretches in each round, in turns.

    Pillow decodes into an array in memory. This project does all of its work but to start and to
    check the folder's manifest: it lists the images, decodes, looks for equal ones, hashes the
    arrays, and brings them to the disk.
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
            stretch = {
                "pillow": pillow_seconds([one]),
                "pillows": pillow_seconds(several),
                "all": prepare_seconds(images, size, cores, folder),
                "one": prepare_seconds(images, size, 1, folder),
            }
            for key, value in stretch.items():
                seconds[key] += [value] if number else []  # the first is to warm up
    return seconds


def pillow_seconds(processes: Sequence[subprocess.Popen[str]]) -> float:
    """Seconds until all of these have decoded their shares."""
    start = time.perf_counter()
    for process in processes:
        print(file=process.stdin, flush=True)
    for process in processes:
        if not (process.stdout and process.stdout.readline()):
            raise job.InputError("a Pillow process ended before its time")
    return time.perf_counter() - start


def prepare_seconds(images: Path, size: int, cores: int, folder: Path) -> float:
    """Seconds of :func:`optstate.data.prepare.prepare` on so many cores, a worker on each."""
    output = folder / "arrays"
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir()
    with on_cores(cores):
        start = time.perf_counter()
        prepare.prepare(images, size, cores, output)
        return time.perf_counter() - start


def command_seconds(images: Path, size: int, cores: int, folder: Path) -> float:
    """Seconds of the whole command, as the pipeline runs it."""
    start = time.perf_counter()
    with prepare_command(images, size, cores, folder) as process:
        process.wait()
    return time.perf_counter() - start


def peak_megabytes(images: Path, size: int, cores: int, folder: Path) -> float:
    """The most memory that the command and its workers held at once, in MB.

    Memory that is nobody's file (Pss_Anon: pages that processes share count once): the arrays,
    which the kernel writes back and drops as it likes, are none of it.
    """
    peak = 0.0
    with prepare_command(images, size, cores, folder) as process:
        while process.poll() is None:
            held = 0
            with contextlib.suppress(psutil.Error):
                parent = psutil.Process(process.pid)
                held = sum(map(anonymous_kilobytes, [parent, *parent.children(recursive=True)]))
            peak = max(peak, held / 1000)
            time.sleep(SAMPLE_SECONDS)
    return peak


def anonymous_kilobytes(process: psutil.Process) -> int:
    """What a process holds of anonymous memory; 0 once it has ended."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss_Anon:"):
                return int(line.split()[1])
    return 0


@contextlib.contextmanager
def prepare_command(
    images: Path, size: int, cores: int, folder: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """The command that the pipeline runs, which has to succeed."""
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


def every_fourth(images: Path, folder: Path) -> Path:
    """A folder of links to every fourth image of each class."""
    for class_folder in images.glob("*/*"):
        of_class = folder / class_folder.relative_to(images)
        of_class.mkdir(parents=True)
        for path in sorted(class_folder.iterdir())[::QUARTER]:
            (of_class / path.name).symlink_to(path.resolve())
    return folder


def pixel_difference(folder: Path) -> float:
    """The greatest difference of a value to Pillow's."""
    ours = [np.load(folder / f"arrays/{split}_images.npy") for split in prepare.FOLDERS]
    pillows = np.load(folder / "pillow0of1.npy")
    return float(np.abs(np.concatenate(ours).astype(np.int16) - pillows).max())


PARSER = argparse.ArgumentParser(description=__doc__.split("\n")[0])
PARSER.add_argument("--images", type=Path, required=True, help="folder of {train,val}/CLASS/IMAGE")
PARSER.add_argument("--image-size", type=int, required=True, help="pixels")
PARSER.add_argument("--cores", type=int, required=True, help="on which to decode")
PARSER.add_argument("--output", type=Path, required=True, help="CSV file of the measures")

if __name__ == "__main__":
    job.run(PARSER, main)
