"""Measure seconds per training epoch of this project and of others, each in its own environment.

The contestants train the same model on the same images, in batches of the same size and at the same
precision. They live side by side and take turns, an epoch each: a machine's speed may change by a
tenth within minutes, so every epoch of a peer is compared with one of this project right beside it,
which comes first in every other round and second in the rest, so that a steady drift cancels. Who
waits sleeps. The first round warms up and is not counted.

A peer's epoch is its training alone; this project's includes saving the state after it.
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
from typing import Any

from optstate import job
from benchmarks import measure
from benchmarks.measure import Measure

ROOT = Path(__file__).parents[4]
TURNS = Path(__file__).parent / "peer/turns.py"
MODULES = {  # beside `TURNS`
    "ours": "ours",
    "timm": "timm_parts",
    "lightning": "lightning_",
    "fastai": "fastai_",
    "article": "article",
}
LEARNING_RATE = 3e-4  # of Adam
CLOSING_SECONDS = 30  # how long a contestant may take to end


class NotMeasured(job.InputError):
    """A contestant cannot be installed, or has not trained as the others did."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name}: not measured: {reason}")
        self.name = name


@dataclass(frozen=True)
class Epoch:
    """What a contestant says of an epoch."""

    seconds: float
    images: int
    steps: int
    loss: float


@dataclass(frozen=True)
class Pair:
    """An epoch of a peer, and this project's right before or after it."""

    peer: Epoch
    ours: Epoch


class Contestant:
    """A process that trains an epoch for every line that it is sent.

    Args:
        name: what it is called in messages.
        command: what to run.
        folder: made for it to run in; its stderr goes to a file there.
        environment: all its variables.
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

    def epoch(self) -> Epoch:
        """Let it train an epoch.

        Raises:
            NotMeasured: it ended instead, or its loss is not finite.
        """
        line = ""
        with contextlib.suppress(BrokenPipeError):
            print("train", file=self.orders, flush=True)
            line = self.replies.readline()
        try:
            epoch = Epoch(**json.loads(line))
        except (ValueError, TypeError) as error:
            raise NotMeasured(self.name, f"it ended: {self.last_words()}") from error
        if not math.isfinite(epoch.loss):
            raise NotMeasured(self.name, f"its loss is {epoch.loss}")
        return epoch

    def last_words(self) -> str:
        """The last line of its stderr, all of which goes to the log."""
        text = self.stderr.read_text(errors="replace").strip()
        logging.info("%s:\n%s", self.name, text)
        return text.splitlines()[-1].strip() if text else "without a word"

    def close(self) -> None:
        """Tell it that there is nothing more to train, and wait for its end."""
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
    interpreters = dict(installed(names, arguments.environments.absolute()))
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(dir=arguments.output.parent) as scratch,
        contextlib.ExitStack() as stack,
    ):
        ours, *peers = (
            stack.enter_context(contextlib.closing(contestant))
            for contestant in start_all(arguments, settings, interpreters, Path(scratch))
        )
        pairs = race(ours, peers, settings["epochs"]["peers"])
    measure.write_measures(
        arguments.output, list(measures(settings["peers"], pairs, settings["device"]))
    )


def require_full_batches(images: Path, batch_size: int) -> None:
    """Refuse images of which a contestant would leave some out: timm drops a partial batch.

    Raises:
        InputError: they do not fill the last batch of an epoch.
    """
    num_images = sum(1 for _ in (images / "train").glob("*/*"))
    if num_images == 0 or num_images % batch_size:
        raise job.InputError(
            f"{images / 'train'}: {num_images} images are no whole number of batches of "
            f"{batch_size}: add or remove some"
        )


def installed(names: Sequence[str], environments: Path) -> Iterator[tuple[str, Path]]:
    """Name and interpreter of every contestant that can be installed.

    The article needs nothing that this project has not, and gets the same interpreter.
    """
    for name in names:
        try:
            is_here = name in ("ours", "article")
            yield name, Path(sys.executable) if is_here else install(name, environments / name)
        except NotMeasured as reason:
            logging.warning("%s", reason)


def install(name: str, folder: Path) -> Path:
    """Make the environment of a peer, or see that it is as required. Returns its interpreter.

    Whatever this project's lock file has is of the version that it names, torch above all.

    Raises:
        NotMeasured: it cannot be installed, as without a network.
    """
    uv, python = Path(sys.prefix) / "bin/uv", folder / "bin/python"
    packages = ("torch", "torchvision", "-r", ROOT / f"envs/peers/{name}.txt")
    versions = ("--constraint", ROOT / "envs/requirements.lock")
    make = (uv, "venv", "--quiet", "--allow-existing", "--python", sys.executable, folder)
    fill = (uv, "pip", "install", "--quiet", "--compile-bytecode", "--python", python)
    try:
        for command in (make, (*fill, *packages, *versions)):
            subprocess.run(command, check=True, capture_output=True, text=True)
    except subprocess.CalledProcessError as error:
        raise NotMeasured(name, " ".join(error.stderr.split())) from error
    except OSError as error:
        raise NotMeasured(name, job.explain_os_error(error)) from error
    return python


def start_all(
    arguments: argparse.Namespace,
    settings: dict[str, Any],
    interpreters: Mapping[str, Path],
    scratch: Path,
) -> Iterator[Contestant]:
    """Start the contestants, of which none sees the packages of another."""
    cores = len(os.sched_getaffinity(0))
    told = settings | {"lr": LEARNING_RATE, "workers": cores}
    if settings["device"] == "cpu":
        told["threads"] = cores  # as somebody does who trains one model
    variables = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith("PYTHON") and key != "VIRTUAL_ENV"
    } | {"PYTHONNOUSERSITE": "1"}
    for name, python in interpreters.items():
        is_ours = name == "ours"
        data = arguments.arrays if is_ours else arguments.images
        command = [python, TURNS, MODULES[name], json.dumps(told), data.absolute()]
        own = {"PYTHONPATH": str(ROOT / "workflow/scripts")} if is_ours else {}
        yield Contestant(name, command, scratch.absolute() / name, variables | own)


def race(ours: Contestant, peers: Sequence[Contestant], num_epochs: int) -> dict[str, list[Pair]]:
    """The epochs of each peer that lasts through all rounds, each with this project's beside it.

    Raises:
        NotMeasured: this project itself failed.
    """
    pairs: dict[str, list[Pair]] = {peer.name: [] for peer in peers}
    for number in range(1 + num_epochs):
        for peer in (peer for peer in peers if peer.name in pairs):
            try:
                pairs[peer.name].append(next_pair(ours, peer, ours_first=number % 2 == 0))
            except NotMeasured as reason:
                if reason.name == ours.name:
                    raise
                logging.warning("%s", reason)
                del pairs[peer.name]
    return {name: counted for name, (_, *counted) in pairs.items()}


def next_pair(ours: Contestant, peer: Contestant, ours_first: bool) -> Pair:
    """An epoch of each.

    Raises:
        NotMeasured: one of them failed, or they did not do the same.
    """
    in_order = (ours, peer) if ours_first else (peer, ours)
    epochs = {contestant.name: contestant.epoch() for contestant in in_order}
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


def measures(
    names: Sequence[str], pairs: Mapping[str, Sequence[Pair]], device: str
) -> Iterator[Measure]:
    """How many times as long a peer takes as this project, and how long each takes.

    Of one without pairs, which was not measured, the first is NaN.
    """
    all_ours: list[float] = []
    for name in names:
        beside = pairs.get(name)
        if not beside:
            yield Measure(f"epoch_vs_{name}", device, math.nan, math.nan, math.nan, ">= 1")
            continue
        peer = [pair.peer.seconds for pair in beside]
        ours = [pair.ours.seconds for pair in beside]
        all_ours += ours
        ratio = measure.ratio_of_sums(peer, ours)
        yield Measure(f"epoch_vs_{name}", device, *ratio, goal=">= 1")
        yield Measure(f"epoch_seconds_{name}", device, *measure.median(peer))
    if all_ours:
        yield Measure("epoch_seconds_ours", device, *measure.median(all_ours))


PARSER = argparse.ArgumentParser(description=__doc__)
PARSER.add_argument("--settings", type=json.loads, required=True, help="JSON")
PARSER.add_argument("--images", type=Path, required=True, help="folder of {train,val}/CLASS/*.jpg")
PARSER.add_argument("--arrays", type=Path, required=True, help="the same images, prepared")
PARSER.add_argument("--environments", type=Path, required=True, help="folder to install them in")
PARSER.add_argument("--output", type=Path, required=True, help="CSV file of the measures")

if __name__ == "__main__":
    job.run(PARSER, main)
