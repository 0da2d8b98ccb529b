"""The bare training step, and what each way of computing it gains.

The bare step is forward, backward and optimizer on one batch that is already there: what no
training loop can do without.
"""

import argparse
import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy

from optstate import job
from benchmarks.measure import Measure, median, now, ratio_of_sums, session_spec, write_measures
from optstate.training import session
from optstate.training.model import make_model
from optstate.training.schedule import make_optimizer
from optstate.training.spec import SessionSpec

NUM_CLASSES = 10
WARM_UP = 3  # steps, in which kernels are chosen, and memory is taken
ROUNDS = 6
STEPS = 3  # of a round, for each way

Step = Callable[[], None]


def main(arguments: argparse.Namespace) -> None:
    """Write the measures to ``--output``."""
    settings = arguments.settings
    spec = session_spec(settings)
    device = session.set_up(spec)
    usual = make_bare_step(spec, device)
    unfused = dataclasses.replace(spec, optimizer=spec.optimizer | {"fused": False})
    ways = {
        "channels_last": (make_bare_step(spec, device, torch.contiguous_format), usual),
        "fused_optimizer": (make_bare_step(unfused, device), usual),
        "bfloat16": tuple(
            make_bare_step(dataclasses.replace(spec, precision=precision), device)
            for precision in ("float32", "bfloat16")
        ),
    }
    measures = []
    for name, (without, with_) in ways.items():
        gain = ratio_of_sums(*in_turns(without, with_, device))
        measures.append(Measure(f"{name}_gain", device.type, *gain))
    if device.type == "cpu":
        all_cores = in_threads(len(os.sched_getaffinity(0)), usual, spec.cpu_threads)
        gain = ratio_of_sums(*in_turns(usual, all_cores, device))
        measures.append(Measure("threads_gain", device.type, *gain))
    measures += compile_measures(spec, device, usual)
    write_measures(arguments.output, measures)


def make_bare_step(
    spec: SessionSpec,
    device: torch.device,
    memory_format: torch.memory_format = torch.channels_last,
) -> Step:
    """A training step, without all that a session adds to it, on one batch on the device."""
    model = make_model(spec.model, spec.image_size, NUM_CLASSES)
    model = model.to(device, memory_format=memory_format)  # type: ignore[call-overload]
    forward = session.compiled(model, device) if session.compiles(spec) else model
    optimizer = make_optimizer(model.parameters(), spec.optimizer, spec.learning_rate)
    images = torch.rand(spec.batch_size, 3, spec.image_size, spec.image_size, device=device)
    images = images.contiguous(memory_format=memory_format)
    labels = torch.arange(spec.batch_size, device=device) % NUM_CLASSES
    autocast = session.autocast(spec, device)

    def step() -> None:
        with autocast():
            logits = forward(images)
        optimizer.zero_grad()
        cross_entropy(logits.float(), labels).backward()
        optimizer.step()

    return step


def in_turns(first: Step, second: Step, device: torch.device) -> tuple[list[float], list[float]]:
    """Seconds of some steps each way, measured in turns."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(WARM_UP):
        first()
        second()
    for _ in range(ROUNDS):
        for step, taken in zip((first, second), seconds, strict=True):
            start = now(device)
            for _ in range(STEPS):
                step()
            taken.append(now(device) - start)
    return seconds


def in_threads(number: int, step: Step, usual: int) -> Step:
    """``step`` with another number of threads."""

    def in_those() -> None:
        torch.set_num_threads(number)
        step()
        torch.set_num_threads(usual)

    return in_those


def compile_measures(spec: SessionSpec, device: torch.device, usual: Step) -> list[Measure]:
    """What ``compile: true`` gains in a step, costs once, and after how many steps it has paid."""
    compiled = make_bare_step(dataclasses.replace(spec, compile=True), device)
    start = now(device)
    compiled()
    cost = now(device) - start
    eager_seconds, compiled_seconds = in_turns(usual, compiled, device)
    saved = [(e - c) / STEPS for e, c in zip(eager_seconds, compiled_seconds, strict=True)]
    steps = [cost / s if s > 0 else float("inf") for s in reversed(median(saved))]
    rows = {
        "compile_gain": ratio_of_sums(eager_seconds, compiled_seconds),
        "compile_seconds": (cost, cost, cost),
        "compile_break_even_steps": (steps[2], steps[0], steps[1]),
    }
    return [Measure(name, device.type, *values) for name, values in rows.items()]


PARSER = argparse.ArgumentParser(description=__doc__.split("\n")[0])
PARSER.add_argument("--settings", type=json.loads, required=True, help="JSON")
PARSER.add_argument("--output", type=Path, required=True, help="CSV file of the measures")

if __name__ == "__main__":
    job.run(PARSER, main)
