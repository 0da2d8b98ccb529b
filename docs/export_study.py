"""Copy a finished study from its results, as docs/studies/ has them.

    .venv/bin/python docs/export_study.py config/studies/resets.yaml docs/studies/resets

This writes the complete configuration, the plan, the descriptions of the data sets, and all tables.
Long tables are compressed, and steps have nine significant digits. The page and its figures are
not made by this command.
"""

import argparse
import lzma
import re
import shutil
import sys
from pathlib import Path

import yaml
from recompute import ROOT, configuration

from optstate.checksums import verify
from optstate.experiment.rules import Experiment
from optstate.job import InputError

MAX_BYTES = 300_000  # of a table that is not compressed
FLOAT = re.compile(rb"\d+\.\d+(e-?\d+)?")


def main(overlay: Path, study: Path, root: Path = ROOT) -> None:
    """Write the folder ``study`` from the results of the configuration ``overlay``.

    Raises:
        InputError: a table or a description of a data set has changed since it was made.
    """
    config = configuration.load(overlay)
    hashes = {name: source["sha256"] for name, source in config["datasets"].items()}
    experiment = Experiment(config, hashes)
    results = root / experiment.results
    study.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump(config, sort_keys=False, allow_unicode=True, width=100)
    (study / "configuration.yaml").write_text(text)
    shutil.copy(results / "plan.json", study)
    (study / "datasets").mkdir(exist_ok=True)
    for name in config["datasets"]:
        card = root / experiment.prepared(name) / "dataset.json"
        verify(card)
        shutil.copy(card, study / f"datasets/{name}.json")
    (study / "tables").mkdir(exist_ok=True)
    for table in sorted((results / "tables").glob("*.csv")):
        verify(table)
        content = table.read_bytes()
        if table.stem == "steps":
            content = FLOAT.sub(shorten, content)
        if len(content) <= MAX_BYTES:
            shutil.copy(table, study / "tables")
        else:
            path = study / "tables" / f"{table.name}.xz"
            path.write_bytes(lzma.compress(content, preset=9 | lzma.PRESET_EXTREME))


def shorten(number: re.Match[bytes]) -> bytes:
    """Return a number with nine significant digits, which determine a float32."""
    return f"{float(number[0]):.9g}".encode()


PARSER = argparse.ArgumentParser(description=__doc__.split("\n")[0])
PARSER.add_argument("configuration", type=Path, help="configuration file of the finished study")
PARSER.add_argument("study", type=Path, help="folder to write")

if __name__ == "__main__":
    arguments = PARSER.parse_args()
    try:
        main(arguments.configuration, arguments.study)
    except InputError as error:
        sys.exit(f"error: {error}")
