"""Compare the time of a training epoch of this project with that of its peers.

All contestants train the same model on the same images, with the same batch size and precision.
Each is a process, and libraries have environments of their own. They take turns of one epoch and
sleep while they wait. The speed of a machine may change by a tenth within minutes, so each epoch of
a peer is paired with the epoch of this project right before or after it. This project comes first
in every other round, so that a steady drift cancels. The first round warms up and is not counted.

A peer's epoch is its training alone. This project's epoch includes saving the state after it.
"""

import argparse
import contextlib
import json
import logging
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import measure
from benchmarks.measure import Measure, Settings
from optstate import job

HERE = Path(__file__).parent
ROOT = HERE.parent
TURNS = HERE / "peer/turns.py"
MODULES = {  # in the folder of `TURNS`
    "ours": "ours",
    "timm": "timm_parts",
    "lightning": "lightning_",
    "fastai": "fastai_",
    "article": "article",
}
LEARNING_RATE = 3e-4  # of Adam
CLOSING_SECONDS = 30  # a contestant that takes longer to end is killed


class NotMeasured(job.InputError):
    """A contestant could not be installed, or did not train the same epoch as this project."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name}: not measured: {reason}")
        self.name = name


@dataclass(frozen=True)
class Epoch:
    """A contestant's report of an epoch."""

    seconds: float
    images: int
    steps: int
    loss: float


@dataclass(frozen=True)
class Pair:
    """An epoch of a peer, and the epoch of this project right before or after it."""

    peer: Epoch
    ours: Epoch


class Contestant:
    """A process that trains an epoch for each line that it reads.

    Args:
        name: the contestant in messages.
        command: the command and its arguments.
        folder: created as its working directory; its stderr goes to a file there.
        environment: all environment variables of the process.
    """

    def __init__(
        self, name: str, command: Sequence[object], folder: Path, environment: Mapping[str, str]
    ) -> None:
        self.name = name
        folder.mkdir()
        self.stderr = folder / "stderr"
        with self.stderr.open("w") as stderr:
            self.process = subprocess.Popen(
                [str(part) for part in command], cwd=folder, env=environment, text=True,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr,
            )  # fmt: skip
        assert self.process.stdin and self.process.stdout  # noqa: S101 - for mypy
        self.orders, self.replies = self.process.stdin, self.process.stdout

    def train_epoch(self) -> Epoch:
        """Let the process train an epoch, and return its report.

        Raises:
            NotMeasured: the process ended instead, or its loss is not finite.
        """
        line = ""
        with contextlib.suppress(BrokenPipeError):
            print("train", file=self.orders, flush=True)
            line = self.replies.readline()
        try:
            epoch = Epoch(**json.loads(line))
        except (ValueError, TypeError) as error:
            raise NotMeasured(self.name, f"it ended: {self.last_error()}") from error
        if not math.isfinite(epoch.loss):
            raise NotMeasured(self.name, f"its loss is {epoch.loss}")
        return epoch

    def last_error(self) -> str:
        """Return the last line of the process's stderr, and log all lines."""
        text = self.stderr.read_text(errors="replace").strip()
        logging.info("%s:\n%s", self.name, text)
        return text.splitlines()[-1].strip() if text else "without an error message"

    def close(self) -> None:
        """Close the process's stdin, which ends it, and wait for its end."""
        with contextlib.suppress(BrokenPipeError):
            self.orders.close()
        self.replies.close()
        try:
            self.process.wait(CLOSING_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def main(arguments: argparse.Namespace) -> None:
    """Write the measures to ``--output``."""
    settings = arguments.settings
    require_full_batches(arguments.images, settings["batch_size"])
    names = ["ours", *settings["peers"]]
    interpreters = dict(find_interpreters(names, arguments.environments.absolute()))
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(dir=arguments.output.parent) as scratch,
        contextlib.ExitStack() as stack,
    ):
        ours, *peers = (
            stack.enter_context(contextlib.closing(contestant))
            for contestant in start_all(arguments, interpreters, Path(scratch))
        )
        pairs = race(ours, peers, settings["epochs"]["peers"])
    measure.write_measures(
        arguments.output, list(pair_measures(settings["peers"], pairs, settings["device"]))
    )


def require_full_batches(images: Path, batch_size: int) -> None:
    """Check that the images fill the last batch of an epoch: timm drops a partial one.

    Raises:
        InputError: the last batch would be partial.
    """
    num_images = sum(1 for _ in (images / "train").glob("*/*"))
    if num_images == 0 or num_images % batch_size:
        raise job.InputError(
            f"{images / 'train'}: {num_images} images are not a multiple of the batch size "
            f"{batch_size}. Change `num_images.peers` or `batch_size`."
        )


def find_interpreters(names: Sequence[str], environments: Path) -> Iterator[tuple[str, Path]]:
    """Yield the name and the interpreter of every contestant that can be installed.

    The article's loop needs no other packages than this project, so both use one interpreter.
    """
    for name in names:
        try:
            is_here = name in ("ours", "article")
            yield name, Path(sys.executable) if is_here else install(name, environments / name)
        except NotMeasured as reason:
            logging.warning("%s", reason)


def install(name: str, folder: Path) -> Path:
    """Create or update the environment of a peer, and return its interpreter.

    Packages in this project's lock file, such as torch, are installed in the locked version.

    Raises:
        NotMeasured: the environment cannot be installed, for example without a network.
    """
    uv, python = Path(sys.prefix) / "bin/uv", folder / "bin/python"
    packages = ("torch", "torchvision", "-r", HERE / f"envs/{name}.txt")
    versions = ("--constraint", ROOT / "envs/requirements.lock")
    create = (uv, "venv", "--quiet", "--allow-existing", "--python", sys.executable, folder)
    fill = (uv, "pip", "install", "--quiet", "--compile-bytecode", "--python", python)
    try:
        for command in (create, (*fill, *packages, *versions)):
            subprocess.run(command, check=True, capture_output=True, text=True)
    except subprocess.CalledProcessError as error:
        raise NotMeasured(name, " ".join(error.stderr.split())) from error
    except OSError as error:
        raise NotMeasured(name, job.explain_os_error(error)) from error
    return python


def start_all(
    arguments: argparse.Namespace, interpreters: Mapping[str, Path], scratch: Path
) -> Iterator[Contestant]:
    """Start the contestants in separate environments, in the order of ``interpreters``."""
    cores = len(os.sched_getaffinity(0))
    settings: Settings = arguments.settings | {"lr": LEARNING_RATE, "workers": cores}
    if settings["device"] == "cpu":
        settings["threads"] = cores  # as if only one model was trained
    variables = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith("PYTHON") and key != "VIRTUAL_ENV"
    } | {"PYTHONNOUSERSITE": "1"}
    for name, python in interpreters.items():
        is_ours = name == "ours"
        data = arguments.arrays if is_ours else arguments.images
        command = [python, TURNS, MODULES[name], json.dumps(settings), data.absolute()]
        own = {"PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))} if is_ours else {}
        yield Contestant(name, command, scratch.absolute() / name, variables | own)


def race(ours: Contestant, peers: Sequence[Contestant], num_epochs: int) -> dict[str, list[Pair]]:
    """Train in turns, and return the pairs of each peer that finished all rounds.

    Raises:
        NotMeasured: this project itself failed.
    """
    pairs: dict[str, list[Pair]] = {peer.name: [] for peer in peers}
    for number in range(1 + num_epochs):
        for peer in (peer for peer in peers if peer.name in pairs):
            try:
                pairs[peer.name].append(train_pair(ours, peer, ours_first=number % 2 == 0))
            except NotMeasured as reason:
                if reason.name == ours.name:
                    raise
                logging.warning("%s", reason)
                del pairs[peer.name]
    return {name: counted for name, (_, *counted) in pairs.items()}


def train_pair(ours: Contestant, peer: Contestant, ours_first: bool) -> Pair:
    """Let this project and a peer train an epoch each.

    Raises:
        NotMeasured: one of the two failed, or they differ in images or steps.
    """
    in_order = (ours, peer) if ours_first else (peer, ours)
    epochs = {contestant.name: contestant.train_epoch() for contestant in in_order}
    pair = Pair(epochs[peer.name], epochs[ours.name])
    done, expected = ((epoch.images, epoch.steps) for epoch in (pair.peer, pair.ours))
    if done != expected:
        raise NotMeasured(
            peer.name,
            "it trained {} images in {} steps".format(*done)
            + ", and this project {} in {}".format(*expected),
        )
    logging.info("%s %.2f s, ours %.2f s", peer.name, pair.peer.seconds, pair.ours.seconds)
    return pair


def pair_measures(
    names: Sequence[str], pairs: Mapping[str, Sequence[Pair]], device: str
) -> Iterator[Measure]:
    """Yield the ratio of each peer's seconds to this project's, and the seconds of an epoch.

    The ratio of a peer without pairs is NaN: it was not measured.
    """
    all_ours: list[float] = []
    for name in names:
        counted = pairs.get(name)
        if not counted:
            yield Measure(f"epoch_vs_{name}", device, math.nan, math.nan, math.nan, ">= 1")
            continue
        peer = [pair.peer.seconds for pair in counted]
        ours = [pair.ours.seconds for pair in counted]
        all_ours += ours
        ratio = measure.ratio_of_sums(peer, ours)
        yield Measure(f"epoch_vs_{name}", device, *ratio, goal=">= 1")
        yield Measure(f"epoch_seconds_{name}", device, *measure.median(peer))
    if all_ours:
        yield Measure("epoch_seconds_ours", device, *measure.median(all_ours))


PARSER = argparse.ArgumentParser(description=__doc__)
PARSER.add_argument("--settings", type=json.loads, required=True, help="JSON")
PARSER.add_argument("--images", type=Path, required=True, help="folder of {train,val}/CLASS/*.jpg")
PARSER.add_argument("--arrays", type=Path, required=True, help="arrays of the same images")
PARSER.add_argument(
    "--environments", type=Path, required=True, help="folder of the peers' environments"
)
PARSER.add_argument("--output", type=Path, required=True, help="CSV file of the measures")

if __name__ == "__main__":
    job.run(PARSER, main)
