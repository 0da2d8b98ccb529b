"""Tables, comparisons and figures of planted runs."""

import csv
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from optstate.analysis import collect, compare, figures, report, show
from optstate.analysis import tables as tables_of_analysis

STEP = (
    "dataset,schedule,boundary,method,seed,session,epoch,step,loss,top1,lr,momentum,"
    "grad_norm,update_norm"
)
EPOCH = (
    "dataset,schedule,boundary,method,seed,session,epoch,split,loss,top1,top2,top3,images,seconds"
)
STEPS_PER_EPOCH = 50
SEEDS = (0, 1, 2)
METHODS = ("constant-new", "constant-preserve", "onecycle-new", "onecycle-preserve")


def write_runs(root: Path, diverged: tuple[str, int] | None = None) -> Path:
    """Runs whose preserved arm is better by a known difference: 0.1, 0.2, 0.3 for the seeds."""
    for method in METHODS:
        schedule, _, boundary = method.partition("-")
        for seed in SEEDS:
            for session in (1, 2):
                shared = session == 1
                name = schedule if shared else method
                gain = 0.1 * (seed + 1) if boundary == "preserve" and not shared else 0.0
                loss = "nan" if diverged == (method, seed) and not shared else 1 - gain
                start = f"noise,{schedule},{'' if shared else boundary},{name},{seed},{session}"
                folder = root / "noise" / name / f"seed{seed}" / f"session{session}"
                folder.mkdir(parents=True, exist_ok=True)
                first = (session - 1) * STEPS_PER_EPOCH
                # Beyond the first 40 steps of a session the loss is another, to be left out.
                losses = [1 if loss == "nan" else loss] * 20 + [loss] * 20 + [7] * 10
                steps = [
                    f"{start},{session},{first + i + 1},{step_loss},0.5,0.001,0.9,,"
                    for i, step_loss in enumerate(losses)
                ]
                top1 = 0.5 + gain / 10
                epochs = [
                    f"{start},{session},train,{loss},0.5,0.6,0.7,100,1.5",
                    f"{start},{session},valid,{loss},{top1},0.6,0.7,50,0.25",
                ]
                (folder / "steps.csv").write_text("\n".join([STEP, *steps]) + "\n")
                (folder / "epochs.csv").write_text("\n".join([EPOCH, *epochs]) + "\n")
    return root


def collected(root: Path, output: Path, methods=METHODS, seeds=SEEDS) -> Path:
    arguments = [
        "--runs", root, "--datasets", "noise", "--methods", *methods, "--seeds", *seeds,
        "--sessions", 2, "--progress", root.parent / "in_progress", "--output", output,
    ]  # fmt: skip
    collect.main(collect.PARSER.parse_args(list(map(str, arguments))))
    compare.main(compare.PARSER.parse_args(["--tables", str(output), "--baseline", "new"]))
    return output


@pytest.fixture
def tables(tmp_path) -> Path:
    return collected(write_runs(tmp_path / "runs"), tmp_path / "tables")


def read(path: Path) -> list[dict]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


class TestCollect:
    def test_every_run_has_all_its_sessions_under_its_own_name(self, tables):
        steps = read(tables / "steps.csv")
        assert len(steps) == len(METHODS) * len(SEEDS) * 2 * STEPS_PER_EPOCH
        for row in steps:
            assert row["method"] == f"{row['schedule']}-{row['boundary']}"
        assert list(steps[0]) == STEP.split(",")
        assert list(read(tables / "epochs.csv")[0]) == EPOCH.split(",")

    def test_summary(self, tables):
        rows = {(row["method"], row["seed"]): row for row in read(tables / "summary.csv")}
        assert len(rows) == len(METHODS) * len(SEEDS)
        assert rows["constant-preserve", "1"] == {
            "dataset": "noise", "schedule": "constant", "boundary": "preserve",
            "method": "constant-preserve", "seed": "1", "final_valid_top1": "0.52",
            "final_valid_loss": "0.8", "best_valid_top1": "0.52", "best_epoch": "2",
            "final_train_loss": "0.8", "train_seconds": "3.000", "valid_seconds": "0.500",
            "diverged": "false",
        }  # fmt: skip
        assert rows["constant-new", "1"]["best_epoch"] == "1"

    def test_what_its_sessions_would_have_continued_from_is_removed(self, tmp_path):
        runs = write_runs(tmp_path / "runs")
        used = ["constant/seed0/session1/a", "onecycle-new/seed2/session2/a"]
        others = ["constant-third/seed0/session2/a", "constant/seed9/session1/a"]
        for name in used + others:
            (tmp_path / "in_progress/noise" / name).mkdir(parents=True)
        collected(runs, tmp_path / "tables")
        assert [(tmp_path / "in_progress/noise" / name).exists() for name in used] == [False] * 2
        assert [(tmp_path / "in_progress/noise" / name).exists() for name in others] == [True] * 2

    def test_the_order_in_the_configuration_changes_no_byte(self, tables, tmp_path):
        other = collected(tmp_path / "runs", tmp_path / "other", METHODS[::-1], SEEDS[::-1])
        for path in tables.iterdir():
            assert path.read_bytes() == (other / path.name).read_bytes()


class TestCompare:
    def test_planted_differences_are_found(self, tables):
        rows = {(row["schedule"], row["measure"]): row for row in read(tables / "comparisons.csv")}
        assert len(rows) == 6
        row = rows["constant", "train_loss_first_40_steps_session2"]
        assert float(row["mean_difference"]) == pytest.approx(-0.2)
        interval = stats.t.interval(0.95, 2, -0.2, stats.sem([-0.1, -0.2, -0.3]))
        assert (float(row["low"]), float(row["high"])) == pytest.approx(interval)
        assert row["n"] == "3"
        assert row["verdict"] == "undecided"
        top1 = rows["onecycle", "final_valid_top1"]
        assert float(top1["mean_difference"]) == pytest.approx(0.02)
        assert (top1["boundary"], top1["baseline"]) == ("preserve", "new")

    def test_one_seed_is_just_the_difference(self, tables, tmp_path):
        one = collected(tmp_path / "runs", tmp_path / "one", seeds=[1])
        for row in read(one / "comparisons.csv"):
            assert (row["n"], row["low"], row["high"]) == ("1", "", "")
            assert row["verdict"] == "one seed: no interval"
            assert abs(float(row["mean_difference"])) in (pytest.approx(0.2), pytest.approx(0.02))

    @pytest.mark.parametrize(
        ("pairs", "verdict"),
        [
            ([1.0, 1.1, 1.2], "higher"),
            ([-1.0, -1.1, -1.2], "lower"),
            ([-1.0, 1.1, 0.2], "undecided"),
            ([1.0, 1.1, np.nan], "higher; 1 of 3 pairs diverged"),
            ([np.inf, np.nan], "no pair; 2 of 2 pairs diverged"),
        ],
    )
    def test_verdicts(self, pairs, verdict):
        assert compare.difference(pd.Series(pairs))[-1] == verdict

    def test_without_the_baseline_nothing_is_compared(self, tables, tmp_path):
        alone = collected(tmp_path / "runs", tmp_path / "alone", methods=["constant-preserve"])
        assert read(alone / "comparisons.csv") == []
        assert "verdict" in (alone / "comparisons.csv").read_text()


def test_names_that_look_like_numbers_or_missing_values(tables, tmp_path):
    """They stay text all the way to the tables and figures."""
    root = tmp_path / "odd"
    names = {"noise": "2024", "new": "1", "preserve": "null", "constant": "nan", "onecycle": "0"}
    for path in (tmp_path / "runs").rglob("*.csv"):
        renamed = path.relative_to(tmp_path / "runs").as_posix()
        content = path.read_text()
        for old, new in names.items():
            renamed = renamed.replace(old, new)
            content = content.replace(old, new)
        (root / renamed).parent.mkdir(parents=True, exist_ok=True)
        (root / renamed).write_text(content)
    options = ["--runs", root, "--datasets", "2024", "--methods", "nan-1", "nan-null", "0-1",
               "0-null", "--seeds", 0, 1, 2, "--sessions", 2,
               "--progress", tmp_path / "in_progress", "--output", root]  # fmt: skip
    collect.main(collect.PARSER.parse_args(list(map(str, options))))
    compare.main(compare.PARSER.parse_args(["--tables", str(root), "--baseline", "1"]))
    usual, odd = read(tables / "comparisons.csv"), read(root / "comparisons.csv")
    assert {row["schedule"] for row in odd} == {"nan", "0"}
    assert sorted(r["mean_difference"] for r in odd) == sorted(r["mean_difference"] for r in usual)
    draw(root, tmp_path / "figures", "--dataset", "2024")
    assert (tmp_path / "figures" / "overview_1.png").exists()


def test_figures_of_runs_without_a_finite_loss(tables, tmp_path):
    for name in ("steps", "epochs"):
        table = pd.read_csv(tables / f"{name}.csv").assign(loss=np.nan)
        table.to_csv(tables / f"{name}.csv", index=False)
    draw(tables, tmp_path / "figures", "--dataset", "noise")
    assert (tmp_path / "figures" / "valid_loss.svg").exists()


class TestDiverged:
    """A run whose loss is not finite is kept, flagged, and breaks nothing else."""

    @pytest.fixture
    def tables(self, tmp_path) -> Path:
        root = write_runs(tmp_path / "runs", diverged=("constant-new", 1))
        return collected(root, tmp_path / "tables")

    def test_it_is_flagged(self, tables):
        flagged = [r for r in read(tables / "summary.csv") if r["diverged"] == "true"]
        assert [(r["method"], r["seed"]) for r in flagged] == [("constant-new", "1")]
        assert flagged[0]["final_valid_loss"] == "nan"

    def test_the_other_pairs_are_compared(self, tables):
        for row in read(tables / "comparisons.csv"):
            lost = row["schedule"] == "constant" and "loss" in row["measure"]
            assert row["n"] == ("2" if lost else "3")
            assert ("1 of 3 pairs diverged" in row["verdict"]) == lost

    def test_figures_are_drawn(self, tables, tmp_path):
        draw(tables, tmp_path / "figures", "--dataset", "noise")
        assert (tmp_path / "figures" / "train_loss.png").stat().st_size > 10_000


def draw(tables: Path, output: Path, *arguments: str) -> None:
    options = ["--tables", str(tables), "--output", str(output), *arguments]
    figures.main(figures.PARSER.parse_args(options))


class TestFigures:
    def test_the_same_tables_the_same_bytes(self, tables, tmp_path):
        for folder in ("a", "b"):
            draw(tables, tmp_path / folder, "--dataset", "noise")
            draw(tables, tmp_path / folder)
        names = sorted(path.name for path in (tmp_path / "a").iterdir())
        stems = {
            "learning_rate",
            "overview",
            "overview_new",
            "overview_preserve",
            *tables_of_analysis.CURVES,
        }
        assert set(names) == {f"{stem}.{suffix}" for stem in stems for suffix in ("png", "svg")}
        for name in names:
            assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()

    def test_points_of_the_train_curves_are_means_of_steps(self, tables):
        steps, epochs = (pd.read_csv(tables / f"{name}.csv") for name in ("steps", "epochs"))
        curves = figures.curves_of(steps, epochs)
        run = "schedule == 'constant' and boundary == 'preserve' and seed == 0"
        loss = curves.query(f"{run} and measure == 'train_loss'").sort_values("x")
        assert loss["x"].tolist() == pytest.approx(np.arange(1, 21) / 10)
        assert loss["value"].tolist() == pytest.approx([1] * 8 + [7] * 2 + [0.9] * 8 + [7] * 2)
        accuracy = curves.query(f"{run} and measure == 'valid_accuracy'")
        assert accuracy[["x", "value"]].to_numpy() == pytest.approx(np.array([[1, 0.5], [2, 0.51]]))

    def test_styles_are_stable(self):
        assert figures.style_of("new", ["new"]) == figures.style_of("new", ["a", "new", "preserve"])
        styles = [
            str(figures.style_of(b, "a b new preserve".split())) for b in "a b new preserve".split()
        ]
        assert len(set(styles)) == 4


def test_show_prints_the_answer(tables, tmp_path, capsys):
    show.main(tmp_path)
    printed = capsys.readouterr().out
    assert "constant-preserve" in printed
    assert "preserve - new" in printed
    assert "train_loss_40_s2" in printed
    assert "One seed" not in printed
    assert str(tmp_path / "report.html") in printed


@pytest.mark.parametrize(
    ("cell", "shown"),
    [("0.123456", "0.1235"), ("-2e-07", "-2e-07"), ("12", "12"), (7, "7"), ("1.5e-9", "1.5e-09"),
     ("new", "new"), ("a.b", "a.b"), ("", "")],
)  # fmt: skip
def test_rounded(cell, shown):
    assert report.rounded(cell) == shown
