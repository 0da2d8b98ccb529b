"""Measure the images per second of several training jobs that run at the same time."""

import argparse
import json
import math
import multiprocessing
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measure import Measure, interval, now, ratio_of_sums, session_spec, write_measures
from optstate import job

NUM_JOBS = (1, 2, 3)
NUM_ROUNDS = 5
SECONDS = 5.0  # of a round


def main(arguments: argparse.Namespace) -> None:
    """Write the measures to ``--output``."""
    settings = arguments.settings | {"threads": 1}
    rates = measure_rates(settings)
    measures = []
    for number, rate in rates.items():
        all_together = interval([rate], np.mean)
        measures.append(
            Measure(f"jobs_{number}_images_per_second", settings["device"], *all_together)
        )
    for number in NUM_JOBS[1:]:
        gain = ratio_of_sums(rates[number], rates[1])
        measures.append(Measure(f"jobs_{number}_gain", settings["device"], *gain))
    write_measures(arguments.output, measures)


def measure_rates(settings: dict[str, Any]) -> dict[int, list[float]]:
    """Measure the images per second of 1, 2, ... jobs together, in each round.

    The rates of more jobs than can start, for example because the GPU's memory is full, are NaN.
    """
    context = multiprocessing.get_context("spawn")
    pipes, processes = [], []
    for _ in range(max(NUM_JOBS)):
        ours, theirs = context.Pipe()
        processes.append(context.Process(target=work, args=(theirs, settings), daemon=True))
        processes[-1].start()
        theirs.close()
        pipes.append(ours)
    ready = [pipe for pipe in pipes if is_ready(pipe)]
    rates: dict[int, list[float]] = {number: [] for number in NUM_JOBS}
    for _ in range(NUM_ROUNDS):
        for number in NUM_JOBS:
            is_possible = number <= len(ready)
            rates[number].append(measure_rate(ready[:number]) if is_possible else math.nan)
    for process in processes:
        process.terminate()
    return rates


def is_ready(pipe: Any) -> bool:
    """Wait until the job at the pipe is ready. Returns False if it has ended instead."""
    try:
        return bool(pipe.recv())
    except EOFError:
        return False


def measure_rate(pipes: Sequence[Any]) -> float:
    """Measure the total images per second of the jobs at these pipes, which train together."""
    for pipe in pipes:
        pipe.send(SECONDS)
    return sum(pipe.recv() for pipe in pipes)


def work(pipe: Any, settings: dict[str, Any]) -> None:
    """Train for as many seconds as the pipe says, and answer with images per second, repeatedly."""
    from benchmarks.step import NUM_WARM_UP, make_bare_step
    from optstate.training.compute import set_up

    spec = session_spec(settings)
    compute = set_up(spec)
    device = compute.device
    step = make_bare_step(spec, compute)
    for _ in range(NUM_WARM_UP):
        step()
    pipe.send("ready")
    while True:
        seconds = pipe.recv()
        start, num_steps = time.perf_counter(), 0
        while now(device) - start < seconds:
            step()
            num_steps += 1
        pipe.send(num_steps * spec.batch_size / (now(device) - start))


PARSER = argparse.ArgumentParser(description=__doc__.split("\n")[0])
PARSER.add_argument("--settings", type=json.loads, required=True, help="JSON")
PARSER.add_argument("--output", type=Path, required=True, help="CSV file of the measures")

if __name__ == "__main__":
    job.run(PARSER, main)
