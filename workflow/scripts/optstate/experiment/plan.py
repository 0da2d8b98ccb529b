"""Write down what an experiment will be judged by, before its first session begins.

Snakemake makes ``plan.json`` once and never again. The report compares it with the configuration
that was run, so it can say whether outcome, margin, methods and seeds were fixed in advance.
"""

import argparse
import json
from datetime import UTC, datetime
from pathlib import Path

from optstate.checksums import write_checksums
from optstate.job import run, write_atomically


def main(arguments: argparse.Namespace) -> None:
    """Write the plan with the date, the commit, and the number of sessions that are finished."""
    content = {
        "plan": json.loads(arguments.plan),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": arguments.commit,
        "finished_sessions": len(list(arguments.runs_folder.glob("*/*/*/*/session.sha256"))),
    }
    with write_atomically(arguments.output) as path:
        path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    write_checksums(arguments.output.with_suffix(".sha256"), [arguments.output])


PARSER = argparse.ArgumentParser(description=__doc__.split("\n")[0])
PARSER.add_argument("--plan", required=True, help="JSON of the plan")
PARSER.add_argument("--commit", default="", help="commit of the sources")
PARSER.add_argument("--runs-folder", type=Path, required=True, help="folder of all runs")
PARSER.add_argument("--output", type=Path, required=True, help="plan.json")

if __name__ == "__main__":
    run(PARSER, main)
