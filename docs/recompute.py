"""Recompute a study from its committed tables, in seconds.

    .venv/bin/python docs/recompute.py docs/studies/resets results/recomputed

From the study's steps, epochs and runs, this computes ``boundaries.csv``, ``pairs.csv`` and
``comparisons.csv`` with the pipeline's own code, compares them with the committed tables, and
prints every comparison of the primary measures as a Markdown table.
"""

import argparse
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "workflow/scripts"))

from optstate.analysis import boundaries, compare, tables  # noqa: E402
from optstate.analysis.figures import (  # noqa: E402
    boundary,
    curves,
    differences,
    epochs_to_target,
    learning_rate,
    resets,
)
from optstate.checksums import write_checksums  # noqa: E402
from optstate.experiment import configuration  # noqa: E402
from optstate.experiment.runs import choose_plain, find_first_boundary  # noqa: E402
from optstate.experiment.schema import Config  # noqa: E402

COMPUTED = ("boundaries", "pairs", "comparisons")
FLOAT32 = ["loss", "grad_norm", "update_norm"]  # columns of steps.csv


def main(study: Path, output: Path, with_figures: bool) -> None:
    """Recompute ``study`` in the folder ``output``.

    Raises:
        AssertionError: a computed table differs from the committed one.
    """
    config = read_config(study)
    restore_tables(study, output / "tables")
    cards = restore_cards(study, output / "datasets", config)
    compute_tables(output / "tables", cards, config)
    for name in COMPUTED:
        committed, computed = (
            read_committed(study, name),
            tables.read(output / f"tables/{name}.csv"),
        )
        if "measure" in committed:  # an older study has fewer measures
            computed = computed[computed["measure"].isin(committed["measure"])]
        computed = computed[[*committed]].reset_index(drop=True)
        pd.testing.assert_frame_equal(computed, committed, check_dtype=False)
    if with_figures:
        draw_figures(output, config)
    print("\n".join(list_comparisons(study, config)))


def read_config(study: Path) -> Config:
    """Read the configuration of a study. That of the oldest one lacks a key."""
    return {"optimizer_state": None} | yaml.safe_load((study / "configuration.yaml").read_text())


def read_committed(study: Path, name: str) -> pd.DataFrame:
    """Read one of the study's tables, which may be compressed."""
    (path,) = (study / "tables").glob(f"{name}.csv*")
    return tables.read(path)


def restore_tables(study: Path, folder: Path) -> None:
    """Write the tables from which the others are computed, with their checksums.

    Losses and norms of steps are those of float32. The committed ones may have fewer digits.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.csv" for name in ("steps", "epochs", "summary")]
    for path in paths:
        (committed,) = (study / "tables").glob(f"{path.stem}.csv*")
        table = pd.read_csv(committed, dtype=str, keep_default_na=False)
        if path.stem == "steps":
            for column in FLOAT32:
                table[column] = [text and str(float(np.float32(text))) for text in table[column]]
        table.to_csv(path, index=False)
    write_checksums(folder / "collect.sha256", paths)


def restore_cards(study: Path, folder: Path, config: Config) -> list[Path]:
    """Copy the descriptions of the data sets, with their checksums. Returns their paths."""
    paths = []
    for dataset in sorted(config["datasets"]):
        path = folder / dataset / "dataset.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes((study / "datasets" / f"{dataset}.json").read_bytes())
        write_checksums(path.with_name("dataset.sha256"), [path])
        paths.append(path)
    return paths


def call(module: ModuleType, *arguments: object) -> None:
    """Run a job of the analysis in this process."""
    module.main(module.PARSER.parse_args([*map(str, arguments)]))


def list_measures(config: Config) -> list[str]:
    """Return the measures of the primary outcomes."""
    outcomes = configuration.list_outcomes(config)
    return [*dict.fromkeys(outcome["measure"] for outcome in outcomes)]


def compute_tables(folder: Path, cards: list[Path], config: Config) -> None:
    """Compute the tables in ``COMPUTED`` from the others."""
    preserved = choose_plain(config, keep="all")
    call(boundaries, "--tables", folder, "--preserved", preserved,
         "--first-boundary", find_first_boundary(config))  # fmt: skip
    outcomes = [[*outcome.values()] for outcome in configuration.list_outcomes(config)]
    call(
        compare, "--tables", folder, "--primary", json.dumps(outcomes),
        "--baselines", json.dumps(configuration.baselines(config)),
        "--margin", json.dumps(config["equivalence_margin"]),
        "--datasets", *sorted(config["datasets"]), "--cards", *cards,
        "--valid-per-class", json.dumps(config["valid_per_class"]),
    )  # fmt: skip


def draw_figures(output: Path, config: Config) -> None:
    """Draw the figures into ``output / "figures"``."""
    options = ["--tables", output / "tables", "--output"]
    losses = configuration.list_resets(config)
    for dataset in config["datasets"]:
        of_dataset = [*options, output / "figures" / dataset, "--dataset", dataset]
        call(curves, *of_dataset)
        call(boundary, *of_dataset)
        call(differences, *of_dataset, "--measures", *list_measures(config))
        if len(losses) > 2:  # not only `new` and `preserve`
            measure = list_measures(config)[0]
            call(resets, *of_dataset, "--measure", measure, "--losses", json.dumps(losses))
    call(learning_rate, *options, output / "figures")
    if targets := configuration.targets(config):
        call(epochs_to_target, *options, output / "figures", "--targets", json.dumps(targets))


def list_comparisons(study: Path, config: Config) -> list[str]:
    """Return the comparisons of the primary measures as the lines of a Markdown table.

    Comparisons of a single pair have no interval and are left out.
    """
    found = read_committed(study, "comparisons")
    found = found[found["measure"].isin(list_measures(config))].dropna(subset="low")
    lines = ["| data set | schedule | measure | difference | mean [interval] | verdict |",
             "|---|---|---|---|---|---|"]  # fmt: skip
    for row in found.sort_values("primary", ascending=False, kind="stable").itertuples():
        measure = tables.get_measure(row.measure)
        size = tables.format_interval(row.mean_difference, row.low, row.high, measure)
        size = size.replace("-", "\N{MINUS SIGN}")
        label = tables.label_measure(row.measure)
        difference = f"{row.boundary} \N{MINUS SIGN} {row.baseline}"
        lines.append(
            f"| {row.dataset} | {row.schedule} | {label} | {difference} | {size} | {row.verdict} |"
        )
    return lines


PARSER = argparse.ArgumentParser(description=__doc__.split("\n")[0])
PARSER.add_argument("study", type=Path, help="folder of the study")
PARSER.add_argument("output", type=Path, help="folder for the tables and figures")
PARSER.add_argument("--figures", action="store_true", help="draw the figures, in a minute")

if __name__ == "__main__":
    arguments = PARSER.parse_args()
    main(arguments.study, arguments.output, arguments.figures)
