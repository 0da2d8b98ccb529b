"""What the pipeline takes beyond the work of its jobs: a job's start, the demo, a dry run.

Snakemake runs here in copies of the project, as it does for a user.
"""

import argparse
import csv
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from optstate import job
from benchmarks.measure import Measure, median, on_cores, write_measures

ROOT = Path(__file__).parents[4]
PROJECT = ("Snakefile", "README.md", "config", "workflow", "profiles", "envs")
OUTER = ("SNAKEMAKE", "OPTSTATE_", "PYTHONPATH")  # beginnings of what an outer Snakemake has set

DEMO = "config/demo.yaml"
SNAKEMAKE = ("-m", "snakemake")
# It would wait for a tenth of a second after each job, so that times tell the order.
HASTY_SNAKEMAKE = (
    "-c",
    "from snakemake import cli; from snakemake.executors import touch; "
    "touch.Executor.SLEEPING_TIME = 0; cli.main()",
)
NOTHING = "Nothing to be done"

ROUNDS = 5
MORE_JOBS = 4  # of the longer of a round's two runs; the shorter has one
ONE_SESSION = """\
experiment: jobs
datasets: {{mnist5k: null}}
sessions: [1]
schedules: {{onecycle: null, constant: {{lr: [1.0e-3]}}}}
methods: [constant-new]
seeds: {seeds}
"""

JOBS_OF_A_SEED = 20  # in the article's experiment: 8 models of 3 sessions, the first of them shared
SEEDS = (10, 50, 500)
DRY_RUNS = 3


def main(arguments: argparse.Namespace) -> None:
    """Write the measures to ``--output``."""
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=arguments.output.parent) as temporary:
        projects = {
            name: copy_project(Path(temporary).resolve() / name) for name in ("jobs", "demo", "dry")
        }
        measures = [
            *job_overhead(projects["jobs"]),
            *demo(projects["demo"]),
            *dry_runs(projects["dry"], arguments.max_jobs),
        ]
    write_measures(arguments.output, measures)


def copy_project(folder: Path) -> Path:
    """The files of this project that a run needs, in a folder of their own."""
    folder.mkdir()
    for name in PROJECT:
        source, ignore = ROOT / name, shutil.ignore_patterns("__pycache__")
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=ignore)
        else:
            shutil.copy(source, folder / name)
    return folder


def snakemake(
    project: Path, *arguments: object, program: Sequence[str] = SNAKEMAKE
) -> tuple[float, str]:
    """Run Snakemake in a copy of the project. Returns its seconds and what it printed.

    Raises:
        InputError: it failed.
    """
    command = [sys.executable, *program, *map(str, arguments)]
    environment = {k: v for k, v in os.environ.items() if not k.startswith(OUTER)}
    start = time.perf_counter()
    run = subprocess.run(
        command, cwd=project, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    seconds = time.perf_counter() - start
    if run.returncode:
        last = run.stdout.strip().rpartition("\n")[2]
        raise job.InputError(f"snakemake {arguments}: failed: {last}")
    return seconds, run.stdout


# A job's start


@dataclass(frozen=True)
class Run:
    """A run of Snakemake that trains: its seconds, its jobs, and the seconds of their epochs."""

    seconds: float
    num_jobs: int
    training: float


def job_overhead(project: Path) -> list[Measure]:
    """Seconds of a job beyond its epochs, alone on a core, and those of Snakemake's start."""
    overlay = project / "jobs.yaml"
    overlay.write_text(ONE_SESSION.format(seeds=list(range(ROUNDS * (1 + MORE_JOBS)))))
    snakemake(project, "--cores", 1, "--until", "prepare", "--configfile", DEMO, overlay)
    pairs = []
    with on_cores(1):
        for first in range(0, ROUNDS * (1 + MORE_JOBS), 1 + MORE_JOBS):
            one, *more = range(first, first + 1 + MORE_JOBS)
            pairs.append((timed_run(project, overlay, [one]), timed_run(project, overlay, more)))
    jobs, starts = zip(*(job_and_start(*pair) for pair in pairs), strict=True)
    return [
        Measure("job_overhead_seconds", "cpu", *median(jobs), "<= 5"),
        Measure("snakemake_start_seconds", "cpu", *median(starts)),
    ]


def timed_run(project: Path, overlay: Path, seeds: Sequence[int]) -> Run:
    """Train a session with each of the seeds."""
    folders = [f"results/jobs/runs/digits/constant/seed{seed}/session1" for seed in seeds]
    rows = [f"{folder}/epochs.csv" for folder in folders]
    seconds, _ = snakemake(project, "--cores", 1, *rows, "--configfile", DEMO, overlay)
    training = 0.0
    for path in rows:
        with (project / path).open(newline="") as file:
            training += sum(float(row["seconds"]) for row in csv.DictReader(file))
    return Run(seconds, len(seeds), training)


def job_and_start(short: Run, long: Run) -> tuple[float, float]:
    """Seconds of a job beyond its epochs, and of what happens once in a run.

    Two runs of different numbers of jobs tell them apart.
    """
    beyond = [run.seconds - run.training for run in (short, long)]
    of_a_job = (beyond[1] - beyond[0]) / (long.num_jobs - short.num_jobs)
    return of_a_job, beyond[0] - of_a_job * short.num_jobs


# The demo


def demo(project: Path) -> list[Measure]:
    """The demo's wall time, and the seconds of its jobs by rule, of which two run side by side."""
    start = time.time()
    seconds, _ = snakemake(project, "--cores", 2, "--configfile", DEMO)
    jobs = recorded_jobs(project)
    by_rule: dict[str, float] = defaultdict(float)
    for done in jobs:
        by_rule[done.rule] += done.end - done.begin
    rows = {
        "demo_start_seconds": min(done.begin for done in jobs) - start,
        "demo_end_seconds": start + seconds - max(done.end for done in jobs),
        **{f"demo_job_seconds_{rule}": by_rule[rule] for rule in sorted(by_rule)},
    }
    return [
        Measure("demo_seconds", "cpu", seconds, seconds, seconds, "<= 300"),
        *(Measure(name, "cpu", value, value, value) for name, value in rows.items()),
    ]


@dataclass(frozen=True)
class Job:
    """A job that Snakemake has a record of. Times are seconds since 1970."""

    rule: str
    begin: float
    end: float


def recorded_jobs(project: Path) -> list[Job]:
    """All jobs of a project; a record belongs to an output, of which a job may have several."""
    records = [json.loads(p.read_text()) for p in project.glob(".snakemake/metadata/*")]
    jobs = {r["job_hash"]: Job(r["rule"], r["starttime"], r["endtime"]) for r in records}
    return list(jobs.values())


# A dry run


def dry_runs(project: Path, max_jobs: int) -> list[Measure]:
    """Seconds of dry runs with nothing to do, and the exponent at which they grow with the jobs."""
    sizes = [seeds for seeds in SEEDS if seeds * JOBS_OF_A_SEED <= max_jobs]
    seconds = {seeds * JOBS_OF_A_SEED: timed_dry_runs(project, seeds) for seeds in sizes}
    smallest = min(seconds)
    measures = [Measure("dry_run_seconds", "cpu", *median(seconds[smallest]), "<= 10")]
    measures += [
        Measure(f"dry_run_seconds_of_{jobs}_jobs", "cpu", *median(seconds[jobs]))
        for jobs in seconds
        if jobs != smallest
    ]
    if len(sizes) > 2:
        exponents = [
            growth(dict(zip(seconds, repetition, strict=True)))
            for repetition in zip(*seconds.values(), strict=True)
        ]
        measures.append(Measure("dry_run_growth", "cpu", *median(exponents), "<= 1.1"))
    return measures


def timed_dry_runs(project: Path, num_seeds: int) -> list[float]:
    """Seconds of dry runs of the article's experiment with so many seeds, all of it done.

    Raises:
        InputError: there is something to do.
    """
    seeds = f"seeds={list(range(num_seeds))}"
    pretend_done(project, "--config", seeds)
    seconds = []
    for _ in range(DRY_RUNS):
        taken, printed = snakemake(project, "--cores", 1, "--dry-run", "--config", seeds)
        if NOTHING not in printed:
            raise job.InputError(f"a dry run of {num_seeds} seeds has something to do")
        seconds.append(taken)
    return seconds


def pretend_done(project: Path, *options: object) -> None:
    """Make every output, empty, and let Snakemake record it as made by its job."""
    _, printed = snakemake(project, "--cores", 1, "--summary", *options)
    for line in printed.splitlines():
        if "\t" in line:
            path = project / line.partition("\t")[0]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    touch = ("--cores", 1000, "--touch", "--forceall", "--quiet", "all", *options)
    snakemake(project, *touch, program=HASTY_SNAKEMAKE)


def growth(seconds: dict[int, float]) -> float:
    """The power of the number of jobs at which the time beyond that of the fewest grows.

    It is 1 if the time is linear in the jobs, whatever the start takes.
    """
    (fewest, base), *others = sorted(seconds.items())
    (some, of_some), (most, of_most) = others[0], others[-1]
    ratio = math.log((of_most - base) / (of_some - base))
    return ratio / math.log((most - fewest) / (some - fewest))


PARSER = argparse.ArgumentParser(description=__doc__.split("\n")[0])
PARSER.add_argument("--max-jobs", type=int, default=10_000, help="in the largest dry run")
PARSER.add_argument("--output", type=Path, required=True, help="CSV file of the measures")

if __name__ == "__main__":
    job.run(PARSER, main)
