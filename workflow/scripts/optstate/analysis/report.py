"""Write the report: a self-contained HTML page with the answer, figures, tables and provenance."""

import argparse
import base64
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
from optstate.analysis.figures import CURVES
from optstate.analysis.statistics import count_required_pairs
from optstate.experiment.runs import Runs
from optstate.job import run, write_atomically

TABLES = ("comparisons", "summary", "boundaries", "epochs")
MADE_BY_KEYS = ("device", "precision", "deterministic", "compiled", "versions")


def main(arguments: argparse.Namespace) -> None:
    """Write the page to ``--output``."""
    config = json.loads(arguments.config)
    runs = Runs.from_json(arguments.runs)
    summary = tables.read(arguments.tables / "summary.csv")
    num_tests = len(summary[["dataset", "schedule"]].drop_duplicates())

    def find_figure(name: str) -> Path:
        return arguments.figures / f"{name}.png"

    page = load_template(arguments.template).render(
        config=config,
        config_yaml=yaml.safe_dump(config, sort_keys=False, allow_unicode=True),
        margin=tables.format_margin(config["equivalence_margin"]),
        primary=tables.get_measure(config["primary"]["measure"]).label,
        answers=list_answers(tables.read(arguments.tables / "comparisons.csv")),
        num_tests=num_tests,
        required_seeds={n: count_required_pairs(n) for n in (1, num_tests)},
        run_times=sum_run_times(summary),
        machines=count_machines(arguments.runs_folder, runs),
        packages=[f"{name} {metadata.version(name)}" for name in arguments.packages],
        commit=arguments.commit,
        cards=dict(zip(sorted(config["datasets"]), map(read_json, arguments.cards), strict=True)),
        curves=CURVES,
        has_figure=lambda name: find_figure(name).exists(),
        embed_figure=lambda name: encode_png(find_figure(name)),
        command=arguments.command,
        quote_figure=lambda name: shlex.quote(str(find_figure(name))),
        render_text=lambda name: render_text(arguments.template.with_name(f"{name}.rst"), config),
        tables={name: tables.read_text(arguments.tables / f"{name}.csv") for name in TABLES},
        measures_of_boundaries=tables.OF_BOUNDARIES,
    )
    with write_atomically(arguments.output) as path:
        path.write_text(page, encoding="utf-8")


def load_template(path: Path) -> jinja2.Template:
    """Load the page's template."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(path.parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["round_cell"] = round_cell
    return environment.get_template(path.name)


def list_answers(comparisons: pd.DataFrame) -> dict[str, list[dict[Any, Any]]]:
    """Return, for each data set, the answer for each schedule: ``schedule`` and ``answer``."""
    primary = comparisons[comparisons["primary"].eq(True)]
    rows = primary.assign(answer=[describe_answer(row) for row in primary.itertuples()])
    return {
        str(dataset): of_dataset[["schedule", "answer"]].to_dict("records")
        for dataset, of_dataset in rows.groupby("dataset")
    }


def describe_answer(row: Any) -> str:
    """Return the verdict of a comparison in one or two sentences, with the mean difference."""
    verdict, _, lost = row.verdict.partition("; ")
    if not row.n or "[" in verdict:
        return f"{row.verdict}."
    is_top1 = tables.get_measure(row.measure).is_top1
    scale, unit = (100, " points") if is_top1 else (1, "")
    difference = f"{row.boundary} \N{MINUS SIGN} {row.baseline}"
    if row.n == 1:
        digits = 1 if is_top1 else 2
        note = f" ({lost})" if lost else ""
        size = f"{scale * row.mean_difference:+.{digits}f}{unit}"
        return f"one seed cannot decide{note}. {difference}: {size}."
    interval = f"[{scale * row.low:+.2f}, {scale * row.high:+.2f}]"
    return f"{row.verdict}. {difference}: {scale * row.mean_difference:+.2f}{unit} {interval}."


def sum_run_times(summary: pd.DataFrame) -> list[dict[Any, str]]:
    """Sum the seconds of training and validation over the runs of each data set and method."""
    seconds = summary.groupby(["dataset", "method"])[["train_seconds", "valid_seconds"]]
    rows = seconds.agg("sum").assign(runs=seconds.size()).reset_index()
    return [{key: str(value) for key, value in row.items()} for row in rows.to_dict("records")]


def count_machines(runs_folder: Path, runs: Runs) -> list[dict[str, Any]]:
    """Return each combination of ``MADE_BY_KEYS``, with the number of ``sessions`` made by it."""
    paths = (runs_folder / session.folder / "made_by.json" for session in runs.sessions)
    made_by = [read_json(path) for path in paths]
    counts = Counter(json.dumps({key: one[key] for key in MADE_BY_KEYS}) for one in made_by)
    return [json.loads(text) | {"sessions": number} for text, number in counts.items()]


def render_text(path: Path, config: dict[str, Any]) -> str:
    """Render a caption of Snakemake's report, a reStructuredText template, as HTML."""
    template = jinja2.Template(path.read_text(encoding="utf-8"))
    text = template.render(snakemake={"config": config})
    parts = publish_parts(text, writer="html5", settings_overrides={"embed_stylesheet": False})
    return parts["fragment"]


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def round_cell(cell: str | int) -> str:
    """Round a decimal number to four significant digits; return other cells unchanged."""
    try:
        return f"{float(cell):.4g}" if "." in str(cell) else str(cell)
    except ValueError:
        return str(cell)


def encode_png(path: Path) -> str:
    """Return a PNG file as a data URI."""
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


PARSER = argparse.ArgumentParser(description=__doc__)
PARSER.add_argument("--config", required=True, help="JSON of the configuration")
PARSER.add_argument("--tables", type=Path, required=True, help="folder of the tables")
PARSER.add_argument("--figures", type=Path, required=True, help="folder of the figures")
PARSER.add_argument("--runs-folder", type=Path, required=True, help="folder of all runs")
PARSER.add_argument("--runs", required=True, help="JSON of the runs")
PARSER.add_argument("--cards", type=Path, nargs="+", help="dataset.json files, by data set name")
PARSER.add_argument("--template", type=Path, required=True, help="Jinja template of the page")
PARSER.add_argument("--command", required=True, help="command that runs the experiment")
PARSER.add_argument("--commit", default="", help="commit of the sources")
PARSER.add_argument("--packages", nargs="+", required=True, help="packages to list with versions")
PARSER.add_argument("--output", type=Path, required=True, help="HTML file")

if __name__ == "__main__":
    run(PARSER, main)
