"""docs/outputs.md documents every column of the tables, and every measure."""

import re

import pandas as pd
import pytest

from conftest import ROOT
from optstate.analysis import boundaries, collect, compare, tables
from optstate.experiment.runs import Run
from optstate.training.recording import EPOCH_COLUMNS, STEP_COLUMNS

SECTIONS = dict(
    re.findall(
        r"^##+ ([\w.]+)\n(.*?)(?=^##|\Z)", (ROOT / "docs/outputs.md").read_text(), re.M | re.S
    )
)


def list_summary_columns() -> list[str]:
    metrics = {"loss": "1", "top1": "1", "balanced_top1": "1", "seconds": "1", "epoch": "1"}
    epochs = [metrics | {"split": split} for split in ("train", "valid")]
    run = Run("images", "constant-new", seed=0, sessions=())
    return list(collect.summarize_run(run, [], epochs, counted={1}, target_top1=None))


def list_pair_columns() -> list[str]:
    run = {"dataset": "d", "schedule": "s", "seed": 0, "measure": "m", "value": 1.0}
    rows = pd.DataFrame([run | {"boundary": boundary} for boundary in ("new", "preserve")])
    return list(compare.pair_runs(rows, {"new": ["new"], "preserve": ["new"]}))


def list_documented(section: str) -> list[str]:
    """Return the names in the sentence on the first columns, and in the first cells of rows."""
    text = " ".join(re.findall(r"The first columns are [^.]+\.", SECTIONS[section]))
    return re.findall(r"`(\w+)`", text) + re.findall(r"^\| `(\w+)` \|", SECTIONS[section], re.M)


@pytest.mark.parametrize(
    ("table", "columns"),
    [
        ("steps.csv", STEP_COLUMNS),
        ("epochs.csv", EPOCH_COLUMNS),
        ("summary.csv", list_summary_columns()),
        ("boundaries.csv", boundaries.COLUMNS),
        ("pairs.csv", list_pair_columns()),
        ("comparisons.csv", compare.COLUMNS),
    ],
)
def test_every_column_is_documented_in_its_order(table, columns):
    assert list_documented(table) == columns


def test_every_measure_is_documented_with_its_direction():
    documented = re.findall(r"^\| `(\w+)` \| (\w+) \| (yes)? *\|", SECTIONS["Measures"], re.M)
    known = tables.OF_RUNS | {f"{name}_sessionN": m for name, m in tables.OF_BOUNDARIES.items()}
    conditional = {*compare.CONDITIONAL, *(f"{name}_sessionN" for name in compare.CONDITIONAL)}
    assert documented == [
        (name, measure.better or "neither", "yes" * (name in conditional))
        for name, measure in known.items()
    ]
