"""One self-contained HTML page: the answer, figures, tables, data sets, and how it was made."""

import argparse
import base64
import csv
import json
import shlex
from collections import Counter
from importlib import metadata
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
import yaml
from docutils.core import publish_parts

from optstate.analysis import tables
from optstate.analysis.statistics import fewest_pairs
from optstate.job import write_atomically, run

TABLES = ("comparisons", "summary", "boundaries", "epochs")


def main(arguments: argparse.Namespace) -> None:
    """Write the page to ``--output``."""
    config = json.loads(arguments.config)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(arguments.template.parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["rounded"] = rounded
    summary = tables.read(arguments.tables / "summary.csv")
    cells = summary[["dataset", "schedule"]].drop_duplicates()
    page = environment.get_template(arguments.template.name).render(
        config=config,
        config_yaml=yaml.safe_dump(config, sort_keys=False, allow_unicode=True),
        margin=tables.points(config["equivalence_margin"]),
        primary=tables.measure_of(config["primary"]["measure"]).words,
        answers=answers(tables.read(arguments.tables / "comparisons.csv")),
        fewest={"one": fewest_pairs(1), "all": fewest_pairs(len(cells)), "tests": len(cells)},
        run_times=run_times(summary),
        machines=machines(arguments.runs, summary),
        packages=[f"{name} {metadata.version(name)}" for name in arguments.packages],
        commit=arguments.commit,
        cards=dict(zip(sorted(config["datasets"]), map(read_card, arguments.cards), strict=True)),
        curves=tables.CURVES,
        has=lambda name: (arguments.figures / f"{name}.png").exists(),
        image=lambda name: data_uri(arguments.figures / f"{name}.png"),
        command=lambda name: (
            f"{arguments.command} -- {shlex.quote(str(arguments.figures / f'{name}.png'))}"
        ),
        text=lambda name: text(arguments.template.with_name(f"{name}.rst"), config),
        tables={name: read_table(arguments.tables / f"{name}.csv") for name in TABLES},
    )
    with write_atomically(arguments.output) as path:
        path.write_text(page, encoding="utf-8")


def answers(comparisons: pd.DataFrame) -> dict[str, list[dict[Any, Any]]]:
    """For each data set what the primary outcome says of each schedule."""
    primary = comparisons[comparisons["primary"].eq(True)]
    shown = primary.assign(answer=[answer(row) for row in primary.itertuples()])
    return {
        str(dataset): of_dataset[["schedule", "answer"]].to_dict("records")
        for dataset, of_dataset in shown.groupby("dataset")
    }


def answer(row: Any) -> str:
    """The verdict of a comparison, and how large the difference is where it does not say so."""
    if not row.n or "[" in row.verdict:
        return str(row.verdict)
    is_top1 = tables.measure_of(row.measure).is_top1
    scale, unit = (100, " points") if is_top1 else (1, "")
    interval = f" [{scale * row.low:+.2f}, {scale * row.high:+.2f}]" if row.n > 1 else ""
    return f"{row.verdict} ({scale * row.mean_difference:+.2f}{unit}{interval})"


def run_times(summary: pd.DataFrame) -> list[dict[Any, str]]:
    """Hours of training and validation of each data set and method, the shared session in each."""
    seconds = summary.groupby(["dataset", "method"])[["train_seconds", "valid_seconds"]]
    rows = seconds.agg("sum").assign(runs=seconds.size()).reset_index()
    return [{key: str(value) for key, value in row.items()} for row in rows.to_dict("records")]


def machines(runs: Path, summary: pd.DataFrame) -> list[dict[str, Any]]:
    """What sessions were trained by, and how many of them."""
    names = ["dataset", "schedule", "method", "seed"]
    folders = {
        runs / dataset / name / f"seed{seed}"
        for dataset, schedule, method, seed in summary[names].itertuples(index=False)
        for name in (schedule, method)
    }
    paths = sorted(path for folder in folders for path in folder.glob("*/made_by.json"))
    made_by = [json.loads(path.read_text()) for path in paths]
    keys = ("device", "precision", "deterministic", "compiled", "versions")
    counted = Counter(json.dumps({key: one[key] for key in keys}) for one in made_by)
    return [json.loads(text) | {"sessions": number} for text, number in counted.items()]


def text(path: Path, config: dict[str, Any]) -> str:
    """A text of Snakemake's report as HTML: a template in reStructuredText, as it is there."""
    filled = jinja2.Template(path.read_text(encoding="utf-8")).render(snakemake={"config": config})
    parts = publish_parts(filled, writer="html5", settings_overrides={"embed_stylesheet": False})
    return parts["fragment"]


def read_table(path: Path) -> dict[str, list]:
    """``columns`` and ``rows`` of a CSV file, as text."""
    with path.open(newline="", encoding="utf-8") as file:
        columns, *rows = csv.reader(file)
    return {"columns": columns, "rows": [dict(zip(columns, row, strict=True)) for row in rows]}


def read_card(path: Path) -> dict[str, Any]:
    """What ``dataset.json`` says of a data set."""
    return json.loads(path.read_text(encoding="utf-8"))


def rounded(cell: str | int) -> str:
    """A fraction to four significant digits; whole numbers and other text as they are."""
    try:
        return f"{float(cell):.4g}" if "." in str(cell) else str(cell)
    except ValueError:
        return str(cell)


def data_uri(path: Path) -> str:
    """A PNG file as an address that needs no other file."""
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


PARSER = argparse.ArgumentParser(description=__doc__)
PARSER.add_argument("--config", required=True, help="JSON of the configuration")
PARSER.add_argument("--tables", type=Path, required=True, help="folder")
PARSER.add_argument("--figures", type=Path, required=True, help="folder")
PARSER.add_argument("--runs", type=Path, required=True, help="folder")
PARSER.add_argument("--cards", type=Path, nargs="+", help="dataset.json files, in name order")
PARSER.add_argument("--template", type=Path, required=True)
PARSER.add_argument("--command", required=True, help="that runs the experiment")
PARSER.add_argument("--commit", default="", help="of the sources")
PARSER.add_argument("--packages", nargs="+", required=True, help="shown with their versions")
PARSER.add_argument("--output", type=Path, required=True)

if __name__ == "__main__":
    run(PARSER, main)
