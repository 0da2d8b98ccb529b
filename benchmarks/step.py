"""Measure the gain of each way to compute the bare training step.

The bare step is the forward pass, the backward pass and the optimizer step on one batch that is
already on the device. Every training loop needs at least this.
"""

import argparse
import dataclasses
import json
import logging
import math
import os
from collections.abc import Callable
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy

from benchmarks.measure import Measure, median, now, ratio_of_sums, session_spec, write_measures
from optstate import job
from optstate.training.compute import Compute, set_up
from optstate.training.model import make_model
from optstate.training.schedule import make_optimizer
from optstate.training.spec import SessionSpec

NUM_CLASSES = 10
NUM_WARM_UP = 3  # steps, in which kernels are chosen and memory is allocated
NUM_ROUNDS = 6
NUM_STEPS = 3  # of each way, in a round
OF_COMPILATION = ("compile_gain", "compile_seconds", "compile_break_even_steps")

Step = Callable[[], None]


def main(arguments: argparse.Namespace) -> None:
    """Write the measures to ``--output``."""
    spec = session_spec(arguments.settings)
    compute = set_up(spec)
    usual = make_bare_step(spec, compute)
    unfused = dataclasses.replace(spec, optimizer=spec.optimizer | {"fused": False})
    ways = {
        "channels_last": (make_bare_step(spec, compute, torch.contiguous_format), usual),
        "fused_optimizer": (make_bare_step(unfused, compute), usual),
        "bfloat16": tuple(
            make_bare_step(spec, dataclasses.replace(compute, precision=precision))
            for precision in ("float32", "bfloat16")
        ),
    }
    if not compute.is_on_gpu:
        num_cores = len(os.sched_getaffinity(0))
        ways["threads"] = (usual, with_threads(num_cores, usual, spec.cpu_threads))
    measures = []
    for name, (without, with_) in ways.items():
        gain = ratio_of_sums(*time_in_turns(without, with_, compute.device))
        measures.append(Measure(f"{name}_gain", compute.device.type, *gain))
    measures += measure_compilation(spec, compute, usual)
    write_measures(arguments.output, measures)


def make_bare_step(
    spec: SessionSpec,
    compute: Compute,
    memory_format: torch.memory_format = torch.channels_last,
) -> Step:
    """Make a training step on one batch on the device, without anything that a session adds."""
    device = compute.device
    model = make_model(spec.model, spec.image_size, NUM_CLASSES)
    model = model.to(device, memory_format=memory_format)  # type: ignore[call-overload]
    forward = compute.compile_model(model)
    optimizer = make_optimizer(model.parameters(), spec.optimizer, spec.learning_rate)
    images = torch.rand(spec.batch_size, 3, spec.image_size, spec.image_size, device=device)
    images = images.contiguous(memory_format=memory_format)
    labels = torch.arange(spec.batch_size, device=device) % NUM_CLASSES

    def step() -> None:
        optimizer.zero_grad()
        with compute.autocast():
            logits = forward(images)
        cross_entropy(logits.float(), labels).backward()
        optimizer.step()

    return step


def time_in_turns(
    first: Step, second: Step, device: torch.device
) -> tuple[list[float], list[float]]:
    """Return the seconds of two steps in each round, in which they take turns."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(NUM_WARM_UP):
        first()
        second()
    for _ in range(NUM_ROUNDS):
        for step, taken in zip((first, second), seconds, strict=True):
            start = now(device)
            for _ in range(NUM_STEPS):
                step()
            taken.append(now(device) - start)
    return seconds


def with_threads(number: int, step: Step, usual: int) -> Step:
    """Return ``step`` with ``number`` of torch's threads instead of the ``usual`` number."""

    def step_with_threads() -> None:
        torch.set_num_threads(number)
        step()
        torch.set_num_threads(usual)

    return step_with_threads


def measure_compilation(spec: SessionSpec, compute: Compute, usual: Step) -> list[Measure]:
    """Measure the gain of ``compile: true``, its cost, and the steps until it has paid off.

    The measures are NaN if the model cannot be compiled, for example without a C++ compiler.
    """
    compiled = make_bare_step(spec, dataclasses.replace(compute, is_compiled=True))
    start = now(compute.device)
    try:
        compiled()
    except RuntimeError as error:
        logging.warning("not compiled: %s", str(error).partition("\n")[0])
        nothing = (math.nan, math.nan, math.nan)
        return [Measure(name, compute.device.type, *nothing) for name in OF_COMPILATION]
    cost = now(compute.device) - start
    eager_seconds, compiled_seconds = time_in_turns(usual, compiled, compute.device)
    saved = [(e - c) / NUM_STEPS for e, c in zip(eager_seconds, compiled_seconds, strict=True)]
    steps = [cost / s if s > 0 else float("inf") for s in reversed(median(saved))]
    values = [
        ratio_of_sums(eager_seconds, compiled_seconds),
        (cost, cost, cost),
        (steps[2], steps[0], steps[1]),
    ]
    return [
        Measure(name, compute.device.type, *of_measure)
        for name, of_measure in zip(OF_COMPILATION, values, strict=True)
    ]


PARSER = argparse.ArgumentParser(description=__doc__.split("\n")[0])
PARSER.add_argument("--settings", type=json.loads, required=True, help="JSON")
PARSER.add_argument("--output", type=Path, required=True, help="CSV file of the measures")

if __name__ == "__main__":
    job.run(PARSER, main)
