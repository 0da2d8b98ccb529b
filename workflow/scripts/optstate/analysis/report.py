"""One self-contained HTML page: the figures, the tables, the data sets and the configuration."""

import argparse
import base64
import csv
import json
from pathlib import Path
from typing import Any

import jinja2
import yaml
from docutils.core import publish_parts

from optstate.analysis import tables
from optstate.job import replacing, run


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
    page = environment.get_template(arguments.template.name).render(
        config=config,
        config_yaml=yaml.safe_dump(config, sort_keys=False, allow_unicode=True),
        cards=dict(zip(sorted(config["datasets"]), map(read_card, arguments.cards), strict=True)),
        curves=tables.CURVES,
        image=lambda name: data_uri(arguments.figures / f"{name}.png"),
        text=lambda name: text(arguments.template.with_name(f"{name}.rst"), config),
        epochs=read_table(arguments.tables / "epochs.csv"),
        summary=read_table(arguments.tables / "summary.csv"),
        comparisons=read_table(arguments.tables / "comparisons.csv"),
    )
    with replacing(arguments.output) as path:
        path.write_text(page, encoding="utf-8")


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
PARSER.add_argument("--cards", type=Path, nargs="+", help="dataset.json files, in name order")
PARSER.add_argument("--template", type=Path, required=True)
PARSER.add_argument("--output", type=Path, required=True)

if __name__ == "__main__":
    run(PARSER, main)
