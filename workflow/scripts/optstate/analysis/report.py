"""Write the report: a self-contained HTML page with the answer, figures, tables and provenance."""

import argparse
import base64
import json
import shlex
from collections import Counter, defaultdict
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd
import yaml
from docutils.core import publish_parts

from optstate.analysis import answers, tables
from optstate.analysis.figures import CURVES, name_differences
from optstate.analysis.files import read_json
from optstate.analysis.validity import describe_validity
from optstate.checksums import verify, write_checksums
from optstate.experiment.plan import compare_settings
from optstate.experiment.runs import Runs, Session
from optstate.job import run, write_atomically

TABLES = ("steps", "epochs", "summary", "boundaries", "comparisons")
MADE_BY_KEYS = ("compute", "precision", "deterministic", "compiled", "versions")
CARD_KEYS = (
    "image_size", "num_images", "classes", "greyscale", "rotated", "duplicates", "left_out",
)  # fmt: skip


def main(arguments: argparse.Namespace) -> None:
    """Write the page to ``--output``. Next to it, write the answer as text and the configuration.

    All files that the page shows are verified first.
    """
    config = json.loads(arguments.config)
    runs = Runs.from_json(arguments.runs)
    cards = read_cards(sorted(config["datasets"]), arguments.cards)
    made_by = read_made_by(arguments.runs_folder, runs)
    plan = json.loads(arguments.plan)
    verify(arguments.planned)
    planned = read_json(arguments.planned, "plan", "date", "commit", "finished_sessions")
    inputs = {name: arguments.tables / f"{name}.csv" for name in TABLES}
    read = {name: tables.read_verified(path) for name, path in inputs.items()}
    comparisons, summary = read["comparisons"], read["summary"]
    chances = {
        dataset: tables.compute_chance(card, config["valid_per_class"])
        for dataset, card in cards.items()
    }
    primary = tables.select_primary(comparisons)
    warnings = answers.list_warnings(
        summary, read["epochs"], comparisons, chances, plan["primary"], runs.have_boundaries
    )
    found = answers.list_answers(comparisons, config, plan["primary"])
    measures = [outcome["measure"] for outcome in plan["primary"]]
    levels = list(answers.list_levels(summary, read["epochs"], chances, measures))
    boundaries = answers.describe_boundaries(config)
    config_yaml = yaml.safe_dump(config, sort_keys=False, allow_unicode=True)
    page = load_template(arguments.template).render(
        config=config,
        config_yaml=config_yaml,
        warnings=warnings,
        answers=found,
        levels=levels,
        boundaries=boundaries,
        differences=list(name_differences(measures)),
        outcomes=[o | {"label": tables.label_measure(o["measure"])} for o in plan["primary"]],
        family=len(primary),
        margins=describe_margins(primary, chances),
        validity=list(
            describe_validity(
                config,
                read["steps"],
                read["epochs"],
                chances,
                arguments.preserved,
                plan["primary"][0],
            )
        ),
        planned=planned,
        changes=find_changes(planned["plan"], plan),
        is_plan_complete=planned["plan"].keys() >= plan.keys(),
        run_times=sum_run_times(read["epochs"], runs),
        machines=count_machines(list(made_by.values())),
        mixtures=find_mixtures(made_by),
        describe_kind=describe_kind,
        packages=[f"{name} {metadata.version(name)}" for name in arguments.packages],
        commit=arguments.commit,
        cards=cards,
        curves=CURVES,
        has_boundaries=runs.have_boundaries,
        has_resets=arguments.has_resets,
        has_targets=any("target_top1" in source for source in config["datasets"].values()),
        is_target_reached=bool(np.isfinite(summary["epochs_to_target"].astype(float)).any()),
        embed_figure=lambda name: encode_png(arguments.figures / f"{name}.png"),
        command=arguments.command,
        quote_figure=lambda name: shlex.quote(f"{arguments.figures}/{name}.png"),
        lr_range_tests=json.loads(arguments.lr_range_tests),
        render_text=lambda name: render_text(arguments.template.with_name(f"{name}.rst"), config),
        comparisons=list_comparisons(comparisons),
        runs=list_runs(summary),
        measures_of_boundaries=tables.OF_BOUNDARIES,
    )
    texts = {
        arguments.output: page,
        arguments.output.with_name("answer.txt"): answers.format_answers(
            warnings, found, levels, boundaries
        ),
        arguments.output.with_name("configuration.yaml"): config_yaml,
    }
    for output, text in texts.items():
        with write_atomically(output) as path:
            path.write_text(text, encoding="utf-8")
    write_checksums(arguments.output.with_suffix(".sha256"), texts, inputs.values())


def read_cards(datasets: Sequence[str], paths: Sequence[Path]) -> dict[str, dict[str, Any]]:
    """Verify the files ``dataset.json``, and return their content by data set."""
    verify(*paths)
    cards = (read_json(path, *CARD_KEYS) for path in paths)
    return dict(zip(datasets, cards, strict=True))


def read_made_by(runs_folder: Path, runs: Runs) -> dict[Session, dict[str, Any]]:
    """Verify the files ``made_by.json``, and return their content by session."""
    paths = {s: runs_folder / s.folder / "made_by.json" for s in runs.sessions}
    verify(*paths.values())
    return {session: read_json(path, *MADE_BY_KEYS) for session, path in paths.items()}


def load_template(path: Path) -> jinja2.Template:
    """Load the page's template."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(path.parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["embed"] = lambda path: encode_png(Path(path))
    environment.filters["quote"] = shlex.quote
    return environment.get_template(path.name)


def describe_margins(primary: pd.DataFrame, chances: dict[str, tables.Chance]) -> list[str]:
    """Return the margins of equivalence of each data set, and its level of chance.

    Args:
        primary: the primary rows of ``comparisons.csv``.
        chances: the level of chance of each data set.
    """
    found = []
    for dataset, rows in primary[primary["margin"].notna()].groupby("dataset"):
        margins = " to ".join(
            tables.format_margin(margin)
            for margin in sorted({rows["margin"].min(), rows["margin"].max()})
        )
        found.append(f"{dataset}: {margins}; chance is {100 * chances[str(dataset)].top1:.1f} %")
    return found


def find_changes(plan: dict[str, Any], current: dict[str, Any]) -> list[str]:
    """Return what differs between a plan and the configuration that was run, as phrases.

    Args:
        plan: the content of ``plan.json`` under ``plan``. An older one lacks some of the keys.
        current: what the plan would be now.
    """
    now = {key: value for key, value in current.items() if key in plan}
    changes = compare_settings({key: plan[key] for key in now}, now)
    return [f"{path.removeprefix('settings.')} {change}" for path, change in changes]


def list_comparisons(comparisons: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the comparisons as rows of text, the primary ones first.

    A column is sorted by the values under ``value of COLUMN``, if there are any.
    """
    rows = comparisons.sort_values("primary", ascending=False, kind="stable")
    return [
        {
            "dataset": row.dataset,
            "schedule": row.schedule,
            "difference": f"{row.boundary} \N{MINUS SIGN} {row.baseline}",
            "measure": tables.label_measure(row.measure),
            "pairs": str(row.n),
            "mean [interval]": format_difference(row),
            "value of mean [interval]": "" if pd.isna(row.mean_difference) else row.mean_difference,
            "verdict": row.verdict,
        }
        for row in tables.iterate_rows(rows)
    ]


def format_difference(row: Any) -> str:
    """Return the mean difference of a comparison with its interval, rounded to its noise."""
    measure = tables.get_measure(row.measure)
    if not row.n:
        return ""
    if pd.isna(row.low):
        return tables.format_value(row.mean_difference, measure)
    return tables.format_interval(row.mean_difference, row.low, row.high, measure)


def list_runs(summary: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the runs as rows of text, with values to sort by as in :func:`list_comparisons`."""
    return [
        {
            "dataset": row.dataset,
            "method": row.method,
            "seed": str(row.seed),
            "final top-1": f"{100 * row.final_valid_top1:.1f} %",
            "value of final top-1": row.final_valid_top1,
            "balanced": f"{100 * row.final_valid_balanced_top1:.1f} %",
            "value of balanced": row.final_valid_balanced_top1,
            "best top-1 (epoch)": f"{100 * row.best_valid_top1:.1f} % ({row.best_epoch})",
            "value of best top-1 (epoch)": row.best_valid_top1,
            "final valid loss": f"{row.final_valid_loss:.3g}",
            "final train loss": f"{row.final_train_loss:.3g}",
            "minutes": f"{(row.train_seconds + row.valid_seconds) / 60:.1f}",
            "diverged": "yes" if row.diverged else "",
        }
        for row in tables.iterate_rows(summary)
    ]


def sum_run_times(epochs: pd.DataFrame, runs: Runs) -> list[dict[Any, str]]:
    """Sum the seconds of training and validation. A session that several runs share counts once.

    Args:
        epochs: the table ``epochs.csv``, which has a shared session in each of its runs.
        runs: the runs of the experiment.

    Returns:
        A row for each data set and name of sessions: ``dataset``, ``trained_as``, ``sessions``,
        ``train_seconds`` and ``valid_seconds``.
    """
    trained = pd.DataFrame(
        {"dataset": session.dataset, "trained_as": session.name, "session": session.number,
         "method": sharing[0].method, "seed": session.seed}
        for session, sharing in runs.runs_of.items()
    )  # fmt: skip
    names = ["dataset", "trained_as"]
    seconds = epochs.merge(trained).pivot_table("seconds", names, "split", "sum")
    rows = seconds.add_suffix("_seconds").join(trained.value_counts(names).rename("sessions"))
    return [
        {key: f"{x:.1f}" if isinstance(x, float) else str(x) for key, x in row.items()}
        for row in rows.reset_index().to_dict("records")
    ]


def find_mixtures(made_by: dict[Session, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the data sets whose sessions were not all computed by the same kind of computation.

    Returns:
        For each of these data sets, ``kinds``: the number of sessions in which each kind took part,
        and ``num_changed``: the number of sessions that continued on another kind.
    """
    lists: dict[str, list[list[str]]] = defaultdict(list)  # of kinds, by data set
    for session, one in made_by.items():
        lists[session.dataset].append([describe_kind(kind) for kind in one["compute"]])
    return {
        dataset: {
            "kinds": Counter(kind for kinds in of_sessions for kind in dict.fromkeys(kinds)),
            "num_changed": sum(len(set(kinds)) > 1 for kinds in of_sessions),
        }
        for dataset, of_sessions in lists.items()
        if len({kind for kinds in of_sessions for kind in kinds}) > 1
    }


def describe_kind(kind: dict[str, Any]) -> str:
    """Return a kind of computation in words: processor, instructions and set variables."""
    variables = [f"{name}={value}" for name, value in sorted(kind["variables"].items())]
    return f"{kind['name']} ({', '.join([kind['capability'], *variables])})"


def count_machines(made_by: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return each combination of ``MADE_BY_KEYS``, with the number of ``sessions`` made by it."""
    counts = Counter(json.dumps({key: one[key] for key in MADE_BY_KEYS}) for one in made_by)
    return [json.loads(text) | {"sessions": number} for text, number in counts.items()]


def render_text(path: Path, config: dict[str, Any]) -> str:
    """Render a caption of Snakemake's report, a reStructuredText template, as HTML."""
    template = jinja2.Template(path.read_text(encoding="utf-8"))
    text = template.render(snakemake={"config": config})
    parts = publish_parts(text, writer="html5", settings_overrides={"embed_stylesheet": False})
    return parts["fragment"]


def encode_png(path: Path) -> str:
    """Verify a PNG file, and return it as a data URI."""
    verify(path)
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


PARSER = argparse.ArgumentParser(description=__doc__)
PARSER.add_argument("--config", required=True, help="JSON of the configuration")
PARSER.add_argument("--tables", type=Path, required=True, help="folder of the tables")
PARSER.add_argument("--figures", type=Path, required=True, help="folder of the figures")
PARSER.add_argument("--runs-folder", type=Path, required=True, help="folder of all runs")
PARSER.add_argument("--runs", required=True, help="JSON of the runs")
PARSER.add_argument("--cards", type=Path, nargs="+", help="dataset.json files, by data set name")
PARSER.add_argument("--planned", type=Path, required=True, help="plan.json")
PARSER.add_argument("--plan", required=True, help="JSON of the plan as it would be now")
PARSER.add_argument("--preserved", required=True, help="boundary that keeps the whole state")
PARSER.add_argument("--template", type=Path, required=True, help="Jinja template of the page")
PARSER.add_argument("--command", required=True, help="command that runs the experiment")
PARSER.add_argument("--commit", default="", help="commit of the sources")
PARSER.add_argument("--has-resets", action="store_true", help="show the figure of resets")
PARSER.add_argument("--lr-range-tests", default="[]", help="JSON of finished tests, see the rule")
PARSER.add_argument("--packages", nargs="+", required=True, help="packages to list with versions")
PARSER.add_argument("--output", type=Path, required=True, help="HTML file")

if __name__ == "__main__":
    run(PARSER, main)
