"""The committed studies: their tables follow from their steps, and the pages from their tables."""

import itertools
import re
import sys
from collections.abc import Iterable
from pathlib import Path

import pandas as pd
import pytest
import yaml
from scipy import stats

from conftest import ROOT

sys.path.insert(0, str(ROOT / "docs"))
import export_study
import recompute

from optstate.experiment import configuration

FIRST = ROOT / "docs/study"
STUDIES = {FIRST: ROOT / "config/study.yaml"} | {
    path: ROOT / "config/studies" / f"{path.name}.yaml"
    for path in sorted((ROOT / "docs/studies").glob("*/"))
}
each_study = pytest.mark.parametrize("study", STUDIES, ids=lambda study: study.name)


def read_page(study: Path) -> str:
    return (study / "README.md").read_text()


def has_changes(config: object, changes: object) -> bool:
    """Whether ``config`` has all ``changes``. An entry that was set to null was removed."""
    if not isinstance(changes, dict):
        return config == changes
    return isinstance(config, dict) and all(
        has_changes(config.get(name), entry) for name, entry in changes.items()
    )


@each_study
def test_the_configuration_equals_the_committed_plan(study):
    config = yaml.safe_load((study / "configuration.yaml").read_text())
    assert has_changes(config, yaml.safe_load(STUDIES[study].read_text()))
    assert not has_changes(config, {"seeds": [0]})


@each_study
def test_the_tables_have_all_runs(study):
    config = recompute.read_config(study)
    summary = recompute.read_committed(study, "summary")
    runs = zip(*(summary[name] for name in ("dataset", "method", "seed")), strict=True)
    assert sorted(runs) == sorted(
        (dataset, method, seed)
        for dataset in config["datasets"]
        for method in config["methods"]
        for seed in config["seeds"]
    )


@each_study
def test_the_tables_follow_from_the_steps(study, tmp_path, capsys):
    recompute.main(study, tmp_path, with_figures=False)
    printed = capsys.readouterr().out.splitlines()
    page = read_page(study).splitlines()
    shown = [line for line in page if line.startswith(("| image", "| data set"))]
    assert shown
    assert set(shown) <= set(printed)
    primary = [line for line in printed if "| exploratory |" not in line and line[2] in "di"]
    assert set(primary) <= set(shown)


def test_an_altered_table_does_not_follow(tmp_path):
    for path in [FIRST / "configuration.yaml", *FIRST.glob("datasets/*"), *FIRST.glob("tables/*")]:
        copy = tmp_path / "study" / path.relative_to(FIRST)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    # Without this column and this measure, the study could be of an older version.
    boundaries, comparisons = (
        tmp_path / f"study/tables/{n}.csv" for n in ("boundaries", "comparisons")
    )
    pd.read_csv(boundaries).drop(columns="end_valid_loss").to_csv(boundaries, index=False)
    found = pd.read_csv(comparisons)
    found = found[found["measure"] != "best_valid_loss"].reset_index(drop=True)
    found.loc[7, "mean_difference"] += 1
    found.to_csv(comparisons, index=False)
    with pytest.raises(AssertionError, match="mean_difference"):
        recompute.main(tmp_path / "study", tmp_path / "output", with_figures=False)


def test_an_exported_study_can_be_recomputed(finished, tmp_path, monkeypatch):
    monkeypatch.setattr(export_study, "MAX_BYTES", 5000)
    export_study.main(finished.folder / "tiny.yaml", tmp_path / "study", finished.folder)
    assert {path.suffix for path in (tmp_path / "study/tables").iterdir()} == {".csv", ".xz"}
    assert (tmp_path / "study/plan.json").stat().st_size > 0
    recompute.main(tmp_path / "study", tmp_path / "output", with_figures=False)


@pytest.mark.parametrize(
    ("study", "after", "num_rows"),
    [
        (FIRST, [4, 5, 6, 7, 8], 6),
        (ROOT / "docs/studies/article", [11, 12, 15, 20, 21, 25], 4),
    ],
)
def test_a_page_has_the_gap_after_some_epochs(study, after, num_rows):
    epochs = recompute.read_committed(study, "epochs")
    valid = epochs[(epochs["split"] == "valid") & epochs["epoch"].isin(after)]
    top1 = valid.pivot(index=["dataset", "schedule", "seed", "epoch"], columns="boundary")["top1"]
    gap = (100 * (top1["preserve"] - top1["new"])).groupby(["dataset", "schedule", "epoch"]).mean()
    expected = {
        f"| {dataset.capitalize()}, {schedule} | {' | '.join(f'{g:+.2f}' for g in of_cell)} |"
        for (dataset, schedule), of_cell in gap.groupby(["dataset", "schedule"])
    }
    assert len(expected) == num_rows
    page = read_page(study).replace("\N{MINUS SIGN}", "-")
    assert expected <= {line.strip() for line in page.splitlines()}


TOP1, LOSS, LOST = (
    ("final_valid_top1", 100, 2), ("final_valid_loss", 1, 2), ("steps_lost_session24", 1, 0),
)  # fmt: skip


def subtract(
    study: Path,
    schedule: str,
    boundary: str,
    baseline: str,
    measure: tuple[str, int, int],
    dataset: str = "imagenette",
) -> str:
    """Return boundary - baseline as a page has it, with its interval unless it is a loss."""
    name, scale, digits = measure
    found = recompute.read_committed(study, "comparisons")
    found = found[(found["schedule"] == schedule) & (found["measure"] == name)]
    found = found[found["dataset"] == dataset]
    arms = found[["boundary", "baseline"]].apply(set, axis=1)
    row = next(found[arms == {boundary, baseline}].itertuples())
    sign = scale if row.boundary == boundary else -scale
    mean, *ends = (sign * value for value in (row.mean_difference, row.t_low, row.t_high))
    interval = f" [{min(ends):+.{digits}f}, {max(ends):+.{digits}f}]"
    return f"{mean:+.{digits}f}" + interval * (measure != LOSS)


def list_rows(study: Path, boundaries: Iterable[str]) -> list[str]:
    """Return the rows of a page's tables that begin with one of the boundaries."""
    lines = map(str.strip, read_page(study).replace("\N{MINUS SIGN}", "-").splitlines())
    starts = tuple(f"| {boundary} |" for boundary in boundaries)
    return [line for line in lines if line.startswith(starts)]


def test_the_resets_page_has_the_cost_of_each_boundary():
    study = ROOT / "docs/studies/resets"
    losses = configuration.list_resets(recompute.read_config(study))
    lost = sorted(losses.keys() - {"preserve"}, key=lambda one: (len(losses[one]), losses[one]))
    expected = []
    for boundary in lost:
        cells = [
            subtract(study, schedule, boundary, "preserve", measure)
            for measure in (TOP1, LOSS, LOST)
            for schedule in ("constant", "cosine")
        ]
        expected.append(f"| {boundary} | {len(losses[boundary])} | {' | '.join(cells)} |")
    assert len(expected) == 7
    assert list_rows(study, lost) == expected


def test_the_article_page_has_the_steps_lost():
    study = ROOT / "docs/studies/article"
    expected = []
    for boundary in ("new", "new-at-preserved-norm"):
        cells = [
            subtract(study, "constant", boundary, "preserve", (measure, 1, 0), dataset)
            for dataset in ("imagenette", "imagewoof")
            for measure in ("steps_lost_session2", "steps_lost_session3")
        ]
        expected.append(f"| {boundary} | {' | '.join(cells)} |")
    assert list_rows(study, ("new", "new-at-preserved-norm")) == expected


def test_the_remedies_page_has_the_effect_of_each_boundary():
    study = ROOT / "docs/studies/remedies"
    compared = [
        "preserve", "preserve-at-new-norm", "reset-first-moment", "new-at-preserved-norm",
        "rebuild-20", "warmup-20", "third-of-lr",
    ]  # fmt: skip
    expected = []
    for boundary in compared:
        cells = [subtract(study, "constant", boundary, "new", TOP1)]
        cells.append(
            subtract(study, "constant", boundary, "preserve", TOP1)
            if boundary != "preserve"
            else "0"
        )
        cells += [subtract(study, "constant", boundary, "new", m) for m in (LOSS, LOST)]
        expected.append(f"| {boundary} | {' | '.join(cells)} |")
    assert list_rows(study, compared) == expected
    words = " ".join(read_page(study).replace("\N{MINUS SIGN}", "-").split())
    for boundary in ("third-of-lr", "new-at-preserved-norm", "preserve-at-new-norm"):
        assert subtract(study, "constant", boundary, "new", ("best_valid_top1", 100, 2)) in words
    steps = recompute.read_committed(study, "steps")
    steps["in_session"] = (steps["step"] - 1) % 95 + 1
    norms = steps.pivot_table("update_norm", ["session", "in_session"], "boundary")
    ratios = norms.div(norms["preserve"], axis="index")
    rows = {
        f"| {boundary}, step {step} | "
        + " | ".join(f"{ratios.loc[(session, step), boundary]:.2f}" for session in (2, 8, 16, 24))
        + " |"
        for boundary in ("new", "warmup-20", "rebuild-20")
        for step in (1, 90)
    }
    assert rows <= {line.strip() for line in read_page(study).splitlines()}


@pytest.mark.parametrize("name", ["attribution", "attribution-resnet18"])
def test_the_attribution_pages_have_the_parts_of_the_train_loss(name):
    study = ROOT / "docs/studies" / name
    found = recompute.read_committed(study, "comparisons").query(
        "dataset == 'imagenette' and schedule == 'constant' and "
        "measure == 'excess_loss_area_session2'"
    )
    sums = found.set_index(["boundary", "baseline"])[["mean_difference", "low", "high"]]
    expected = []
    for boundary, baseline, sign in (
        ("preserve-at-new-norm", "new", 1),
        ("new-at-preserved-norm", "preserve", -1),
        ("preserve-at-new-norm", "preserve", 1),
        ("new-at-preserved-norm", "new", -1),
        ("preserve", "new", 1),
    ):
        mean, *ends = sign * sums.loc[(boundary, baseline)] / 60
        expected.append(f"{mean:.3f} [{min(ends):.3f}, {max(ends):.3f}] |")
    lines = read_page(study).replace("\N{MINUS SIGN}", "-").splitlines()
    shown = [line for line in lines if line.startswith("| state") or "step sizes" in line]
    shown += [line for line in lines if line.startswith("| kept")]
    assert [line.split("| ")[-1] for line in shown] == expected


def test_the_page_of_attribution_with_resnet18_has_the_exploratory_differences():
    study = ROOT / "docs/studies/attribution-resnet18"
    end, loss = ("end_valid_top1_session2", 100, 2), ("final_valid_loss", 1, 3)
    expected = [
        subtract(study, "constant", *comparison, dataset)
        for comparison in (
            ("preserve-at-new-norm", "new", loss), ("preserve-at-new-norm", "new", TOP1),
            ("preserve-at-new-norm", "preserve", loss), ("preserve", "new", end),
            ("reset-first-moment", "preserve", loss), ("reset-first-moment", "preserve", TOP1),
            ("warmup-50", "new", TOP1), ("rebuild-20", "new", TOP1), ("rebuild-100", "new", TOP1),
            ("rebuild-100", "preserve", TOP1),
        )
        for dataset in ("imagenette", "imagewoof")
    ]  # fmt: skip
    epochs = recompute.read_committed(study, "epochs").query("schedule == 'constant'")
    valid = epochs[epochs["split"] == "valid"]
    valid = valid.set_index(["epoch", "dataset", "boundary", "seed"]).sort_index()
    for epoch, dataset in itertools.product((6, 8), ("imagenette", "imagewoof")):
        top1 = 100 * valid["reestimated_top1"][epoch, dataset]
        gap = top1["preserve"] - top1["new"]
        low, high = stats.t.interval(0.95, len(gap) - 1, gap.mean(), stats.sem(gap))
        expected.append(f"{gap.mean():+.2f} [{low:+.2f}, {high:+.2f}]")
    words = " ".join(read_page(study).replace("\N{MINUS SIGN}", "-").split())
    assert [cell for cell in expected if cell not in words] == []
    losses = valid["loss"].unstack("boundary")[["new", "preserve"]]
    assert (losses.groupby(["dataset", "seed"]).idxmin().map(lambda at: at[0]) == 3).all(axis=None)
    for dataset, page in (
        ("imagenette", "from 2.14 to 2.25 (kept) and 2.57 (lost)"),
        ("imagewoof", "from 2.46 to 2.77 and 3.19"),
    ):
        of_epoch = losses.groupby(["dataset", "epoch"]).mean().loc[dataset]
        shown = [of_epoch.loc[3, "new"], of_epoch.loc[8, "preserve"], of_epoch.loc[8, "new"]]
        assert page in words
        assert re.findall(r"\d\.\d+", page) == [f"{loss:.2f}" for loss in shown]
