"""The committed study: its tables follow from its steps, and the text from its tables."""

import pandas as pd
import pytest
import yaml

from conftest import ROOT
from optstate.analysis import boundaries, compare, tables
from optstate.experiment import configuration

STUDY = ROOT / "docs" / "study"
CONFIG = yaml.safe_load((STUDY / "configuration.yaml").read_text())


@pytest.fixture(scope="module")
def study() -> dict[str, pd.DataFrame]:
    return {path.stem: tables.read(path) for path in (STUDY / "tables").glob("*.csv")}


def test_the_configuration_equals_that_of_config_study_yaml():
    for key, value in yaml.safe_load((ROOT / "config" / "study.yaml").read_text()).items():
        assert CONFIG[key] == (CONFIG[key] | value if isinstance(value, dict) else value), key


def test_the_tables_have_all_runs(study):
    runs = set(
        zip(*(study["summary"][name] for name in ("dataset", "method", "seed")), strict=True)
    )
    assert runs == {
        (dataset, method, seed)
        for dataset in CONFIG["datasets"]
        for method in CONFIG["methods"]
        for seed in CONFIG["seeds"]
    }


def test_boundaries_follow_from_steps(study):
    rows = boundaries.measure_boundaries(study["steps"], study["epochs"], "preserve", 2)
    measured = pd.DataFrame(rows, columns=boundaries.COLUMNS)
    pd.testing.assert_frame_equal(measured, study["boundaries"], check_dtype=False)


def test_comparisons_follow_from_runs_and_boundaries(study):
    values = compare.stack_measures(study["summary"], study["boundaries"])
    pairs = compare.pair_runs(values, configuration.baselines(CONFIG))
    pd.testing.assert_frame_equal(pairs, study["pairs"], check_dtype=False)
    outcomes = [list(outcome.values()) for outcome in configuration.list_outcomes(CONFIG)]
    chances = dict.fromkeys(CONFIG["datasets"], tables.Chance(0.1, 0.11))  # ten classes
    compared = compare.compare_pairs(pairs, CONFIG["equivalence_margin"], outcomes, chances)
    compared["primary"] = compared["primary"] == "true"
    pd.testing.assert_frame_equal(compared, study["comparisons"], check_dtype=False)


def test_the_page_has_the_differences_of_the_table(study):
    found = study["comparisons"]
    expected = {
        " | ".join([
            row.dataset, row.schedule, f"{row.boundary} - {row.baseline}",
            f"{100 * row.mean_difference:+.2f} [{100 * row.low:+.2f}, {100 * row.high:+.2f}]",
            f"{row.p_adjusted:.3f}", row.verdict,
        ])
        for row in found[found["measure"] == CONFIG["primary"]["measure"]].itertuples()
    }  # fmt: skip
    page = (STUDY / "README.md").read_text().replace("\N{MINUS SIGN}", "-")
    rows = [line.strip("| ") for line in page.splitlines() if line.startswith("| image")]
    assert len(rows) == len(expected)
    assert set(rows) == expected


def test_the_page_has_the_gap_of_each_epoch(study):
    valid = study["epochs"].query("split == 'valid' and epoch > 3")
    top1 = valid.pivot(index=["dataset", "schedule", "seed", "epoch"], columns="boundary")["top1"]
    gap = (100 * (top1["preserve"] - top1["new"])).groupby(["dataset", "schedule", "epoch"]).mean()
    expected = {
        f"  | {dataset.capitalize()}, {schedule} | {' | '.join(f'{g:+.2f}' for g in of_cell)} |"
        for (dataset, schedule), of_cell in gap.groupby(["dataset", "schedule"])
    }
    assert len(expected) == 6
    page = (STUDY / "README.md").read_text().replace("\N{MINUS SIGN}", "-")
    assert expected <= set(page.splitlines())
