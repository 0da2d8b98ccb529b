"""The table of all measures, with the machine that they were measured on."""

import argparse
import dataclasses
import json
import math
from pathlib import Path

from optstate import job
from benchmarks.measure import Measure, machine, read_measures, write_measures


def main(arguments: argparse.Namespace) -> None:
    """Write ``summary.csv`` and ``machine.json`` to ``--output``, and print them as a table."""
    measures = []
    for path in arguments.measures:
        size = path.parent.name if path.parent.name.endswith("px") else ""
        suffix = f"_{size}" if size not in ("", f"{arguments.main_size}px") else ""
        rows = read_measures(path)
        measures += [dataclasses.replace(row, measure=row.measure + suffix) for row in rows]
    here = machine()
    with job.write_atomically(arguments.output / "machine.json") as temporary:
        temporary.write_text(json.dumps(here, indent=1) + "\n")
    write_measures(arguments.output / "summary.csv", measures)
    print("\n".join([*(f"{key}: {value}" for key, value in here.items()), "", *table(measures)]))


def table(measures: list[Measure]) -> list[str]:
    """A line for each measure, aligned."""
    width = max(len(measure.measure) for measure in measures)
    said = {True: "met", False: "MISSED", None: ""}

    def verdict(measure: Measure) -> str:
        return "not measured" if math.isnan(measure.value) else said[measure.is_met]

    head = f"{'measure':{width}}  device  {'value':>9}  {'95 % interval':^21}  {'goal':8}"
    return [head] + [
        f"{m.measure:{width}}  {m.device:6}  {number(m.value)}  {number(m.low)} … {number(m.high)}"
        f"  {m.goal:8}  {verdict(m)}".rstrip()
        for m in measures
    ]


def number(value: float) -> str:
    """With four significant digits, in nine characters."""
    return f"{value:9,.0f}" if abs(value) >= 1000 else f"{value:9.4g}"


PARSER = argparse.ArgumentParser(description=__doc__)
PARSER.add_argument("--measures", type=Path, nargs="+", required=True, help="CSV files")
PARSER.add_argument("--main-size", type=int, required=True, help="pixels; others are named")
PARSER.add_argument("--output", type=Path, required=True, help="folder")

if __name__ == "__main__":
    job.run(PARSER, main)
