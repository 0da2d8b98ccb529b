"""Turn the wall times of whole commands, which Snakemake's ``benchmark:`` wrote, into measures."""

import argparse
import csv
from collections.abc import Sequence
from pathlib import Path

from benchmarks.measure import Measure, median, write_measures
from optstate import job


def main(arguments: argparse.Namespace) -> None:
    """Write the measures to ``--output``."""
    few, many = (read_seconds(path) for path in (arguments.few_jobs, arguments.many_jobs))
    jobs, starts = split_overhead(few, many, *arguments.num_jobs)
    rows = [
        ("job_overhead_seconds", jobs, "<= 5"),
        ("snakemake_start_seconds", starts, ""),
        ("demo_seconds", read_seconds(arguments.demo), "<= 300"),
        ("dry_run_seconds", read_seconds(arguments.dry_run), "<= 10"),
    ]
    write_measures(
        arguments.output,
        [Measure(name, "cpu", *median(seconds), goal) for name, seconds, goal in rows],
    )


def read_seconds(path: Path) -> list[float]:
    """Read the wall time of each repetition from a file that ``benchmark:`` wrote."""
    with path.open(newline="") as file:
        return [float(row["s"]) for row in csv.DictReader(file, delimiter="\t")]


def split_overhead(
    few: Sequence[float], many: Sequence[float], num_few: int, num_many: int
) -> tuple[list[float], list[float]]:
    """Split the seconds of runs into the seconds of each job and the constant start of a run.

    Args:
        few: seconds of runs with ``num_few`` jobs, which take hardly any time to train.
        many: seconds of as many runs with ``num_many`` jobs.
    """
    jobs = [(b - a) / (num_many - num_few) for a, b in zip(few, many, strict=True)]
    starts = [seconds - num_few * job for seconds, job in zip(few, jobs, strict=True)]
    return jobs, starts


PARSER = argparse.ArgumentParser(description=__doc__)
PARSER.add_argument("--few-jobs", type=Path, required=True, help="TSV: runs with few training jobs")
PARSER.add_argument(
    "--many-jobs", type=Path, required=True, help="TSV: runs with more training jobs"
)
PARSER.add_argument(
    "--num-jobs", type=int, nargs=2, required=True, help="numbers of training jobs in these runs"
)
PARSER.add_argument("--demo", type=Path, required=True, help="TSV: a run of the demo")
PARSER.add_argument("--dry-run", type=Path, required=True, help="TSV: dry runs")
PARSER.add_argument("--output", type=Path, required=True, help="CSV file of the measures")

if __name__ == "__main__":
    job.run(PARSER, main)
