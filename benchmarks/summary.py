"""Collect all measures in one table, with a description of the machine."""

import argparse
import dataclasses
import json
import math
from pathlib import Path

from benchmarks.measure import Measure, describe_machine, read_measures, write_measures
from optstate import job


def main(arguments: argparse.Namespace) -> None:
    """Write ``summary.csv`` and ``machine.json`` to ``--output``, and print both."""
    measures = []
    for path in arguments.measures:
        size = path.parent.name if path.parent.name.endswith("px") else ""
        suffix = f"_{size}" if size not in ("", f"{arguments.main_size}px") else ""
        rows = read_measures(path)
        measures += [dataclasses.replace(row, measure=row.measure + suffix) for row in rows]
    machine = describe_machine()
    with job.write_atomically(arguments.output / "machine.json") as temporary:
        temporary.write_text(json.dumps(machine, indent=1) + "\n")
    write_measures(arguments.output / "summary.csv", measures)
    lines = [f"{key}: {value}" for key, value in machine.items()]
    print("\n".join([*lines, "", *format_table(measures)]))


def format_table(measures: list[Measure]) -> list[str]:
    """Return a header and an aligned line for each measure."""
    width = max(len(name) for name in ("measure", *(m.measure for m in measures)))
    verdicts = {True: "met", False: "MISSED", None: ""}

    def verdict(measure: Measure) -> str:
        return "not measured" if math.isnan(measure.value) else verdicts[measure.is_met]

    head = f"{'measure':{width}}  device  {'value':>9}  {'95 % interval':^21}  {'goal':8}"
    return [head] + [
        f"{m.measure:{width}}  {m.device:6}  {format_number(m.value)}  {format_number(m.low)} … "
        f"{format_number(m.high)}  {m.goal:8}  {verdict(m)}".rstrip()
        for m in measures
    ]


def format_number(value: float) -> str:
    """Return a number with four significant digits, in nine characters."""
    return f"{value:9,.0f}" if abs(value) >= 1000 else f"{value:9.4g}"


PARSER = argparse.ArgumentParser(description=__doc__)
PARSER.add_argument("--measures", type=Path, nargs="*", required=True, help="CSV files")
PARSER.add_argument(
    "--main-size", type=int, required=True, help="pixels: measures of other sizes get a suffix"
)
PARSER.add_argument("--output", type=Path, required=True, help="folder of the table")

if __name__ == "__main__":
    job.run(PARSER, main)
