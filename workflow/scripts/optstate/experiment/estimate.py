"""What an experiment takes, told before it runs: jobs, GPU hours, disk, and hours on so many GPUs.

Its training jobs are simulated: Snakemake submits them when they are ready, later sessions first;
each starts when a GPU is free, in the order of submission.
"""

import argparse
import collections
import heapq
import itertools
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from snakemake.utils import update_config

from optstate import UNINTERRUPTED, configuration
from optstate.job import InputError, explain_os_error
from optstate.training.model import make_model
from optstate.training.schedule import make_optimizer

ROOT = Path(__file__).parents[3]
SECONDS_TO_START = 20  # of a training job: Snakemake, twice, torch and the GPU
NUM_CLASSES = 10  # of the data sets; no size to speak of depends on it
KEEP = ("all", "last", "none")  # the values of `keep_checkpoints`

Config = dict[str, Any]


@dataclass(eq=False)
class Session:
    """A training job. The forks of ``before`` go on from its checkpoint."""

    number: int
    epochs: int
    before: "Session | None"
    forks: list["Session"] = field(default_factory=list)


@dataclass
class Course:
    """How an experiment goes: its wall time, and the most of something that there was at once.

    Attributes:
        seconds: until the last training job has ended.
        in_queue: jobs that wait or run.
        files: of a checkpoint's size, by `keep_checkpoints`: checkpoints, and the states in
            progress of the sessions: while one runs two and the next, then one until the next
            session begins.
    """

    seconds: float = 0.0
    in_queue: int = 0
    files: dict[str, int] = field(default_factory=lambda: dict.fromkeys(KEEP, 0))


def training_jobs(config: Config) -> list[Session]:
    """Every session of every run; the first one is shared by all methods of a schedule."""
    found: dict[tuple[str, str, int, int], Session] = {}
    for dataset, seed, method in itertools.product(
        config["datasets"], config["seeds"], config["methods"]
    ):
        before = None
        schedule, _, boundary = method.partition("-")
        uninterrupted = boundary == UNINTERRUPTED
        sessions = [sum(config["sessions"])] if uninterrupted else config["sessions"]
        for number, epochs in enumerate(sessions, 1):
            name = method if number > 1 or uninterrupted else schedule
            key = (dataset, name, seed, number)
            if key not in found:
                found[key] = Session(number, epochs, before)
                if before:
                    before.forks.append(found[key])
            before = found[key]
    return list(found.values())


def simulate(
    jobs: list[Session], num_gpus: int, seconds_per_epoch: float, most_in_queue: int
) -> Course:
    """Let the jobs run, one on each GPU; at most so many are in the queue, the running included."""
    course = Course()
    ready = [job for job in jobs if job.before is None]
    waiting: collections.deque[Session] = collections.deque()
    running: list[tuple[float, int, Session]] = []  # by their ends, then by their starts
    starts = itertools.count()
    states: dict[Session | None, int] = {}
    done: list[Session] = []
    while ready or waiting or running:
        ready.sort(key=lambda job: -job.number)
        while ready and len(waiting) + len(running) < most_in_queue:
            waiting.append(ready.pop(0))
        course.in_queue = max(course.in_queue, len(waiting) + len(running))
        while waiting and len(running) < num_gpus:
            job = waiting.popleft()
            end = course.seconds + SECONDS_TO_START + job.epochs * seconds_per_epoch
            heapq.heappush(running, (end, next(starts), job))
            states[job] = 3
            states.pop(job.before, None)
        needed = sum(any(fork not in done for fork in job.forks) for job in done)
        last = sum(not job.forks for job in done)
        for keep, number in zip(KEEP, (len(done), last + needed, needed), strict=True):
            course.files[keep] = max(course.files[keep], sum(states.values()) + number)
        course.seconds, _, job = heapq.heappop(running)
        states[job] = 1
        done.append(job)
        ready.extend(job.forks)
    return course


def checkpoint_bytes(config: Config) -> int:
    """The size of a checkpoint, seen by taking a step: with the optimizer that keeps the most."""
    model = make_model(config["model"], config["image_size"], NUM_CLASSES)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    kept = []
    for schedule in config["schedules"].values():
        own = schedule.get("optimizer", config["optimizer"])
        optimizer = make_optimizer(model.parameters(), own, {"kind": "constant", "lr": 0.0})
        optimizer.step()
        entries = [entry for state in optimizer.state.values() for entry in state.values()]
        kept.append(sum(entry.nbytes for entry in entries if torch.is_tensor(entry)))
    return max(kept) + sum(tensor.nbytes for tensor in model.state_dict().values())


def told(config: Config, all_num_gpus: list[int], seconds_per_epoch: float) -> str:
    """The plan of an experiment, in a few lines."""
    jobs = training_jobs(config)
    epochs = sum(job.epochs for job in jobs)
    gpu_seconds = epochs * seconds_per_epoch + len(jobs) * SECONDS_TO_START
    gigabytes = checkpoint_bytes(config) / 1e9
    lines = [
        f"{len(config['datasets'])} data sets x {len(config['methods'])} methods "
        f"x {len(config['seeds'])} seeds, sessions of {config['sessions']} epochs",
        f"{len(jobs)} training jobs, {epochs:,} model-epochs, "
        f"{gpu_seconds / 3600:,.1f} GPU hours at {seconds_per_epoch:g} s an epoch",
        f"a checkpoint: {gigabytes:.3f} GB; in the end: {len(jobs) * gigabytes:,.1f} GB (all), "
        f"{sum(not job.forks for job in jobs) * gigabytes:,.1f} GB (last), 0 GB (none)",
        "",
        "GPUs   jobs in queue     hours   GB at most: all      last      none",
    ]
    for num_gpus, in_queue in [(n, m) for n in all_num_gpus for m in (2 * n, len(jobs))]:
        course = simulate(jobs, num_gpus, seconds_per_epoch, in_queue)
        disk = "".join(f"{course.files[keep] * gigabytes:10,.1f}" for keep in KEEP)
        hours = course.seconds / 3600
        lines.append(f"{num_gpus:4}   {course.in_queue:13,}   {hours:7,.1f}        {disk}")
    return "\n".join(lines)


def main(arguments: argparse.Namespace) -> None:
    """Print the plan of a configuration file, an overlay on config/config.yaml."""
    if not (arguments.seconds_per_epoch > 0 and min(arguments.gpus) > 0):
        raise InputError("--seconds-per-epoch and --gpus have to be above zero")
    config: Config = {}
    for path in (ROOT / "config/config.yaml", arguments.configfile):
        update_config(config, yaml.safe_load(path.read_text()))
    config = configuration.checked(config, ROOT / "workflow/schemas/config.schema.yaml")
    print(told(config, arguments.gpus, arguments.seconds_per_epoch))


PARSER = argparse.ArgumentParser(description=__doc__.split("\n")[0])
PARSER.add_argument("configfile", type=Path, help="as for Snakemake's --configfile")
PARSER.add_argument("--seconds-per-epoch", type=float, required=True, help="as in epochs.csv")
PARSER.add_argument("--gpus", type=int, nargs="+", default=[1, 8, 100])

if __name__ == "__main__":
    try:
        main(PARSER.parse_args())
    except InputError as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        sys.exit(f"error: {InputError(explain_os_error(error))}")
