"""Tables, comparisons, figures and answers of synthetic runs."""

import base64
import csv
import json
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from scipy import stats

from conftest import ROOT
from optstate.analysis import (
    answers,
    boundaries,
    collect,
    compare,
    report,
    sessions,
    validity,
)
from optstate.analysis import tables as tables_of_analysis
from optstate.analysis.figures import (
    CURVES,
    boundary,
    curves,
    differences,
    epochs_to_target,
    learning_rate,
    resets,
    style,
)
from optstate.checksums import read_checksums, verify, write_checksums
from optstate.experiment.configuration import load, make_plan
from optstate.experiment.runs import Runs, Session, split_method
from optstate.job import InputError
from optstate.training.batches import count_batches
from optstate.training.spec import OPTIONS

STEP = (
    "dataset,schedule,boundary,method,seed,session,epoch,step,loss,top1,lr,momentum,"
    "grad_norm,update_norm"
)
EPOCH = (
    "dataset,schedule,boundary,method,seed,session,epoch,split,loss,top1,top2,top3,images,seconds,"
    "balanced_top1,reestimated_top1,reestimated_loss"
)
STEPS_PER_EPOCH = 50
BATCH_SIZE = 2
CARD = {
    "image_size": 32, "num_images": {"train": 100, "valid": 50_000},
    "classes": [{"label": 0, "name": "ant", "train": 60, "valid": 25_000},
                {"label": 1, "name": "bee", "train": 40, "valid": 25_000}],
    "greyscale": {"train": [], "valid": []},
    "rotated": {"train": [], "valid": []},
    "duplicates": {"train": [], "valid": [], "across_splits": []},
    "left_out": {"train": [], "valid": []},
}  # fmt: skip
AVX2 = {"name": "Fast CPU", "capability": "AVX2", "variables": {}}
AVX512 = AVX2 | {"capability": "AVX512"}
MADE_BY = {
    "compute": [AVX2], "precision": "float32", "deterministic": True, "compiled": False,
    "versions": {"torch": "2.15.0"},
}  # fmt: skip
SEEDS = (0, 1, 2)
KIND = {"kind": "constant"}
TOP1 = "final_valid_top1"
CONSTANT = ("constant-new", "constant-preserve")
METHODS = (*CONSTANT, "onecycle-new", "onecycle-preserve")
FORKED = {  # of three sessions; the run that loses its state before session 3 shares the first two
    "constant-late": ["constant", "constant-preserve", "constant-late"],
    "constant-new": ["constant", "constant-new", "constant-new"],
    "constant-preserve": ["constant", "constant-preserve", "constant-preserve"],
}
PRIMARY = ["preserve", "new", "final_valid_top1"]
LOSSES = {"new": [2, 3], "late": [3], "preserve": []}


def name_runs(methods=METHODS, seeds=SEEDS, num_sessions=2, dataset="noise") -> Runs:
    """Return runs that share their first session alone."""
    names = {
        method: [split_method(method)[0], *[method] * (num_sessions - 1)] for method in methods
    }
    return Runs([dataset], seeds, names)


def write_runs(
    root: Path, diverged: tuple[str, int] | None = None, runs: Runs | None = None
) -> Path:
    """Write runs in which preserve is better than new by 0.1, 0.2, 0.3 for the three seeds."""
    for session, (run, *_) in (runs or name_runs()).runs_of.items():
        gain = 0.1 * (session.seed + 1) if session.boundary == "preserve" else 0.0
        has_diverged = session.number == 2 and diverged == (run.method, session.seed)
        loss = "nan" if has_diverged else 1 - gain
        names = [session.dataset, session.schedule, session.boundary, session.name, session.seed]
        start = ",".join(map(str, [*names, session.number, session.number]))
        first = (session.number - 1) * STEPS_PER_EPOCH
        # The loss of later steps differs, to test that only the first 40 steps of a session count.
        losses = [1 if has_diverged else loss] * 20 + [loss] * 20 + [7] * 10
        steps = [
            f"{start},{first + i + 1},{step_loss},0.5,0.001,0.9,,"
            for i, step_loss in enumerate(losses)
        ]
        epochs = [
            f"{start},train,{loss},0.5,0.6,0.7,100,1.5,,,",
            f"{start},valid,{loss},{0.5 + gain / 10},0.6,0.7,50,0.25,{0.4 + gain / 10},0.6,0.9",
        ]
        folder = root / session.folder
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "steps.csv").write_text("\n".join([STEP, *steps]) + "\n")
        (folder / "epochs.csv").write_text("\n".join([EPOCH, *epochs]) + "\n")
        (folder / "made_by.json").write_text(json.dumps(MADE_BY))
        list_checksums(folder)
    write_card(root)
    return root


def write_card(root: Path, **other: object) -> None:
    """Write the description of the data set, with ``other`` values, next to the runs."""
    (root / "dataset.json").write_text(json.dumps(CARD | other))
    list_checksums(root)


def list_checksums(folder: Path) -> None:
    """Replace all checksum files of a folder by one that lists its files as they are now."""
    for path in folder.glob("*.sha256"):
        path.unlink()
    files = [path for path in folder.iterdir() if path.is_file()]
    write_checksums(folder / "session.sha256", files)


def run_command(module, *arguments: object) -> None:
    module.main(module.PARSER.parse_args(list(map(str, arguments))))


def collect_tables(root: Path, output: Path, runs: Runs, *options: object) -> None:
    """Run the command that collects the sessions below ``root``."""
    num_sessions = max(session.number for session in runs.sessions)
    run_command(
        collect, "--runs-folder", root, "--output", output, "--epochs", *[1] * num_sessions,
        "--cards", root / "dataset.json", "--batch-size", BATCH_SIZE,
        "--progress", root.parent / "in_progress", "--runs", runs.to_json(),
        "--targets", json.dumps(dict.fromkeys(runs.datasets, 0.515)),
        "--validate-every", 1, *options,
    )  # fmt: skip


def make_tables(
    root: Path, output: Path, methods=METHODS, seeds=SEEDS, num_sessions=2, **names: str
) -> Path:
    """Run the commands that make the tables from the sessions below ``root``."""
    dataset, new, preserve = (names.get(name, name) for name in ("noise", "new", "preserve"))
    collect_tables(root, output, name_runs(methods, seeds, num_sessions, dataset))
    card = root / "dataset.json"
    compare_tables(output, card, {new: [new], preserve: [new]}, preserve, dataset)
    return output


def compare_tables(
    output: Path,
    card: Path,
    baselines: dict,
    preserve: str = "preserve",
    dataset: str = "noise",
    measure: str = TOP1,
) -> None:
    """Run the commands that measure and compare the boundaries."""
    run_command(boundaries, "--tables", output, "--preserved", preserve)
    outcome = [preserve, baselines[preserve][0], measure]
    run_command(
        compare, "--tables", output, "--baselines", json.dumps(baselines), "--margin", 0.01,
        "--primary", json.dumps([outcome]), "--datasets", dataset, "--cards", card,
    )  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def quick_statistics() -> Iterator[None]:
    """Draw few resamples."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("optstate.analysis.statistics.RESAMPLES", 99)
        yield


@pytest.fixture(scope="module", autouse=True)
def quick_layout() -> Iterator[None]:
    """Skip the layout of figures, which takes most of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ConstrainedLayoutEngine, "execute", lambda self, figure: None)
        yield


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    return write_runs(tmp_path_factory.mktemp("noise") / "runs")


@pytest.fixture(scope="module")
def tables(runs) -> Path:
    """The tables of all runs, which no test changes."""
    return make_tables(runs, runs.parent / "tables")


@pytest.fixture(scope="module")
def diverged(tmp_path_factory) -> Path:
    """A folder of runs, one of them diverged, with the tables of one schedule."""
    folder = tmp_path_factory.mktemp("diverged")
    make_tables(write_runs(folder / "runs", diverged=("constant-new", 1)), folder, CONSTANT)
    return folder


@pytest.fixture(scope="module")
def drawn(diverged) -> Path:
    """The figures of the runs in ``diverged``."""
    draw(diverged, diverged / "figures")
    return diverged / "figures"


@pytest.fixture
def results(diverged, drawn, tmp_path) -> Path:
    """An experiment that a test may alter."""
    shutil.copytree(diverged, tmp_path / "results")
    (tmp_path / "results/tables").mkdir()
    for path in [*diverged.glob("*.csv"), *diverged.glob("*.sha256")]:
        shutil.copy(path, tmp_path / "results/tables")
    return tmp_path / "results"


def read_rows(path: Path) -> list[dict]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


class TestCollect:
    def test_every_run_has_all_of_its_steps_under_its_own_name(self, tables):
        steps = read_rows(tables / "steps.csv")
        assert len(steps) == len(METHODS) * len(SEEDS) * 2 * STEPS_PER_EPOCH
        for row in steps:
            assert row["method"] == f"{row['schedule']}-{row['boundary']}"
        assert list(steps[0]) == STEP.split(",")
        assert list(read_rows(tables / "epochs.csv")[0]) == EPOCH.split(",")

    def test_the_summary_has_a_row_for_each_run(self, tables):
        rows = {(row["method"], row["seed"]): row for row in read_rows(tables / "summary.csv")}
        assert len(rows) == len(METHODS) * len(SEEDS)
        assert rows["constant-preserve", "1"] == {
            "dataset": "noise", "schedule": "constant", "boundary": "preserve",
            "method": "constant-preserve", "seed": "1", "final_valid_top1": "0.52",
            "final_valid_loss": "0.8", "best_valid_top1": "0.52", "best_epoch": "2",
            "final_train_loss": "0.8", "train_seconds": "3.000", "valid_seconds": "0.500",
            "diverged": "false", "best_valid_loss": "0.8", "epochs_to_target": "2",
            "final_valid_balanced_top1": "0.42000000000000004",
        }  # fmt: skip
        assert rows["constant-preserve", "0"]["epochs_to_target"] == "inf"
        assert rows["constant-new", "1"]["best_epoch"] == "1"

    def test_only_validated_epochs_are_best_or_reach_the_target(self):
        (run, *_) = name_runs(CONSTANT)
        train = [
            {"epoch": str(e), "split": "train", "loss": "1", "seconds": "1"} for e in (1, 2, 3)
        ]
        valid = [
            {
                "epoch": epoch,
                "split": "valid",
                "loss": "1",
                "top1": top1,
                "balanced_top1": top1,
                "seconds": "1",
            }
            for epoch, top1 in (("2", "0.5"), ("3", "0.6"))
        ]
        # The target equals the top-1 of epoch 2.
        row = collect.summarize_run(run, [], train + valid, {2, 3}, 0.5)
        assert (row["best_epoch"], row["epochs_to_target"]) == ("3", "2")
        assert row["best_valid_loss"] == "1"
        unreached = collect.summarize_run(run, [], train + valid, {2, 3}, 0.61)
        assert unreached["epochs_to_target"] == "inf"
        late = collect.summarize_run(run, [], train + valid, {3}, 0.5)
        assert (late["epochs_to_target"], late["final_valid_top1"]) == ("3", "0.6")
        diverged = [row | {"loss": loss} for row, loss in zip(valid, ["0.5", "nan"], strict=True)]
        without_target = collect.summarize_run(run, [], train + diverged, {2, 3}, None)
        assert without_target["best_valid_loss"] == "0.5"
        assert (row["train_seconds"], row["valid_seconds"]) == ("3.000", "2.000")
        given = valid[0] | {"epoch": "0", "loss": "0.1", "top1": "0.9"}
        assert collect.summarize_run(run, [], [given, *train, *valid], {2, 3}, 0.5) == row | {
            "valid_seconds": "3.000"
        }

    def test_states_in_progress_of_collected_sessions_are_removed(self, tmp_path):
        runs = write_runs(tmp_path / "runs")
        used = ["constant/seed0/session1/a", "onecycle-new/seed2/session2/a"]
        others = ["constant-third/seed0/session2/a", "constant/seed9/session1/a"]
        for name in used + others:
            (tmp_path / "in_progress/noise" / name).mkdir(parents=True)
        make_tables(runs, tmp_path / "tables")
        assert [(tmp_path / "in_progress/noise" / name).exists() for name in used] == [False] * 2
        assert [(tmp_path / "in_progress/noise" / name).exists() for name in others] == [True] * 2

    def test_the_order_in_the_configuration_does_not_matter(self, runs, tables, tmp_path):
        other = make_tables(runs, tmp_path / "other", METHODS[::-1], SEEDS[::-1])
        for path in tables.glob("*.csv"):
            assert path.read_bytes() == (other / path.name).read_bytes()


class TestSharedSessions:
    """A run that loses its state before session 3 alone shares the first two with preserve."""

    @pytest.fixture(scope="class")
    @classmethod
    def tables(cls, tmp_path_factory) -> Path:
        folder = tmp_path_factory.mktemp("forked")
        runs = Runs(["noise"], SEEDS, FORKED)
        collect_tables(write_runs(folder / "runs", runs=runs), folder / "tables", runs)
        baselines = {"late": ["preserve", "new"], "new": ["new"], "preserve": ["new"]}
        compare_tables(folder / "tables", folder / "runs/dataset.json", baselines)
        return folder / "tables"

    def test_every_run_has_the_sessions_that_it_shares(self, tables):
        steps = pd.read_csv(tables / "steps.csv").set_index(["method", "session"])
        assert steps.index.value_counts().to_dict() == {
            (method, session): len(SEEDS) * STEPS_PER_EPOCH
            for method in FORKED for session in (1, 2, 3)
        }  # fmt: skip
        assert (steps["boundary"] == steps.index.get_level_values(0).str.slice(9)).all()
        late, preserve = (steps.loc[f"constant-{b}"]["loss"] for b in ("late", "preserve"))
        assert late[[1, 2]].tolist() == preserve[[1, 2]].tolist()
        assert late[3].tolist() != preserve[3].tolist()

    def test_runs_that_share_a_session_do_not_differ_there(self, tables):
        rows = read_rows(tables / "comparisons.csv")
        late = [row for row in rows if row["boundary"] == "late" and row["mean_difference"]]
        means = {(row["baseline"], row["measure"]): float(row["mean_difference"]) for row in late}
        for name in ("train_loss_first_40_steps", "excess_loss_area", "recovery_steps"):
            assert means["preserve", f"{name}_session2"] == 0
        for baseline, measure in (
            ("new", "excess_loss_area_session2"),
            ("preserve", "excess_loss_area_session3"),
            ("preserve", "final_valid_top1"),
        ):
            assert means[baseline, measure] != 0

    def test_the_excess_begins_with_the_loss_of_the_state(self, tables):
        rows = {
            (row["boundary"], row["session"]): float(row["excess_loss_area"])
            for row in read_rows(tables / "boundaries.csv")
            if row["seed"] == "0"
        }
        assert rows["late", "2"] == rows["preserve", "3"] == 0
        assert rows["late", "3"] == rows["new", "2"] == pytest.approx(0.1 * 40)

    def test_run_times_count_a_shared_session_once(self, tables):
        epochs = tables_of_analysis.read(tables / "epochs.csv")
        rows = report.sum_run_times(epochs, Runs(["noise"], SEEDS, FORKED))
        assert [list(row.values()) for row in rows] == [
            ["noise", "constant", "4.5", "0.8", "3"],
            ["noise", "constant-late", "4.5", "0.8", "3"],
            ["noise", "constant-new", "9.0", "1.5", "6"],
            ["noise", "constant-preserve", "9.0", "1.5", "6"],
        ]
        assert list(rows[0]) == [
            "dataset", "trained_as", "train_seconds", "valid_seconds", "sessions"
        ]  # fmt: skip


def flip_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut_file(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def empty_file(path: Path) -> None:
    path.write_bytes(b"")


def delete_checksums(path: Path) -> None:
    for listing in path.parent.glob("*.sha256"):
        listing.unlink()


ALTERATIONS = (flip_byte, cut_file, empty_file, Path.unlink, delete_checksums)
FIRST = "noise/constant/seed0/session1"  # sessions that the tests alter
SECOND = "noise/constant-preserve/seed1/session2"


@pytest.fixture
def own_runs(runs, tmp_path) -> Path:
    """Runs that a test may alter."""
    return shutil.copytree(runs, tmp_path / "runs")


def refuse_to_collect(runs: Path, *words: str, options: Sequence[str] = ()) -> None:
    """Check that the sessions are refused in one line that has all words, and nothing changes."""
    output = runs.parent / "tables"
    states = runs.parent / "in_progress/noise/constant/seed0/session1"
    states.mkdir(parents=True, exist_ok=True)
    with pytest.raises(InputError) as error:
        collect_tables(runs, output, name_runs(), *options)
    for word in words:
        assert word in str(error.value)
    assert "\n" not in str(error.value)
    assert str(error.value).endswith("un again.") or "un again to make it" in str(error.value)
    assert not output.exists()
    assert states.exists()


class TestAlteredSessions:
    """Sessions that have changed, or are not those of the configuration, are refused."""

    @pytest.mark.parametrize("alter", ALTERATIONS)
    @pytest.mark.parametrize("name", ["steps.csv", "epochs.csv"])
    def test_an_altered_table_is_refused(self, own_runs, name, alter):
        alter(own_runs / SECOND / name)
        # Without checksums, the first file of the folder is named.
        refuse_to_collect(own_runs, f"{SECOND}/{'' if alter is delete_checksums else name}")

    def test_a_table_of_another_session_is_refused(self, own_runs):
        other = own_runs / "noise/constant-preserve/seed2/session2/steps.csv"
        (own_runs / SECOND / "steps.csv").write_bytes(other.read_bytes())
        refuse_to_collect(own_runs, f"{SECOND}/steps.csv")

    @pytest.mark.parametrize(
        ("other", "message"),
        [
            ("noise/constant-preserve/seed2/session2", "row 1: seed is '2', not '1'"),
            ("noise/onecycle-preserve/seed1/session2", "row 1: schedule is 'onecycle'"),
            ("noise/constant-new/seed1/session2", "row 1: boundary is 'new', not 'preserve'"),
            ("noise/constant/seed1/session1", "row 1: boundary is '', not 'preserve'"),
        ],
    )
    def test_another_session_is_refused(self, own_runs, other, message):
        for path in (own_runs / other).iterdir():
            (own_runs / SECOND / path.name).write_bytes(path.read_bytes())
        refuse_to_collect(own_runs, f"{SECOND}/steps.csv: {message}")

    @pytest.mark.parametrize(
        ("name", "old", "new", "message"),
        [
            ("steps", r"(?s).*", "", "steps.csv: row 1 (epoch 2, step 51) is missing."),
            ("steps", r"\n.*2,100,.*\n", "\n", "steps.csv: row 50 (epoch 2, step 100) is missing."),
            ("steps", r"\n.*2,70,.*\n", "\n", "steps.csv: row 20: step is '71', not '70'."),
            (
                "steps", r"(\n.*,2,)100(,.*\n)", r"\g<0>\g<1>101\2",
                "steps.csv: has more rows than the 50 configured",
            ),
            ("steps", r",2,51,[^,]*,", ",2,51,high,", "row 1: loss is 'high', not a number."),
            ("steps", r",0.001,0.9,,\n$", ",0.0\n", "row 50 is not as long as the first line."),
            ("steps", r"update_norm", "norm", "steps.csv: has other columns than"),
            ("epochs", r"(?s)(.*?\n).*", r"\1", "row 1 (epoch 2, split train) is missing."),
            ("epochs", r"(?s)(.*\n).*?\n$", r"\1", "row 2 (epoch 2, split valid) is missing."),
            ("epochs", r",valid,", ",test,", "row 2: split is 'test', not 'valid'."),
            ("epochs", r"split,", "part,", "row 1: split is missing, not 'train'."),
            ("epochs", r"seconds", "s", "epochs.csv: row 1: seconds is None, not a number."),
            ("epochs", r"0.7,", "\udcff,", "epochs.csv: unreadable ("),
        ],
    )  # fmt: skip
    def test_a_listed_table_with_other_rows_is_refused(self, own_runs, name, old, new, message):
        path = own_runs / SECOND / f"{name}.csv"
        text = re.sub(old, new, path.read_text(), count=1)
        path.write_bytes(text.encode("utf-8", "surrogateescape"))
        list_checksums(path.parent)
        refuse_to_collect(own_runs, SECOND, message)

    @pytest.mark.parametrize(
        ("has_row", "options", "message"),
        [(False, ["--has-weights"], "epoch is '1', not '0'"), (True, [], "epoch is '0', not '1'")],
    )
    def test_the_given_weights_have_a_row(self, own_runs, has_row, options, message):
        path = own_runs / FIRST / "epochs.csv"
        if has_row:
            header, train, valid = path.read_text().splitlines()
            given = valid.replace(",1,valid,", ",0,valid,")
            path.write_text("\n".join((header, given, train, valid, "")))
            list_checksums(path.parent)
        refuse_to_collect(own_runs, f"{FIRST}/epochs.csv: row 1", message, options=options)

    def test_sessions_of_another_batch_size_are_refused(self, own_runs):
        classes = [entry | {"train": entry["train"] + 1} for entry in CARD["classes"]]
        write_card(own_runs, classes=classes)
        refuse_to_collect(own_runs, "constant/seed0/session1/steps.csv: row 51 (epoch 1, step 51)")

    @pytest.mark.parametrize("alter", ALTERATIONS)
    def test_an_altered_data_set_card_is_refused(self, own_runs, alter):
        alter(own_runs / "dataset.json")
        refuse_to_collect(own_runs, "dataset.json")

    @pytest.mark.parametrize(
        ("text", "message"),
        [("", "unreadable (Expecting value"), ("{}", "has no 'classes'"), ("[]", "has no 'cl")],
    )
    def test_an_unreadable_data_set_card_is_refused(self, own_runs, text, message):
        (own_runs / "dataset.json").write_text(text)
        list_checksums(own_runs)
        refuse_to_collect(own_runs, f"dataset.json: {message}")

    @pytest.mark.parametrize(
        ("batch_size", "per_class", "num_steps"),
        [(10, None, 10), (11, None, 9), (33, None, 3), (34, None, 3), (10, 5, 1), (7, 45, 12),
         (49, None, 3), (100, None, 1), (1000, None, 1)],
    )  # fmt: skip
    def test_the_number_of_steps_is_that_of_training(self, batch_size, per_class, num_steps):
        used = sum(min(entry["train"], per_class or 100) for entry in CARD["classes"])
        assert count_batches(used, batch_size) == num_steps
        assert sessions.count_steps(CARD, batch_size, per_class) == num_steps

    def test_epochs_are_counted_through_all_sessions(self):
        plan = sessions.Layout([3, 1, 2], {"noise": 50}, validate_every=1, has_weights=False)
        third = Session("noise", "constant-new", 0, 3)
        assert list(plan.list_epochs(third)) == [5, 6]
        rows = list(plan.list_rows(third, "steps"))
        assert len(rows) == 2 * 50
        assert (rows[0]["epoch"], rows[0]["step"]) == ("5", "201")
        whole = Session("noise", "constant-uninterrupted", 0, 1)
        assert list(plan.list_epochs(whole)) == [1, 2, 3, 4, 5, 6]
        assert [row["split"] for row in plan.list_rows(whole, "epochs")] == ["train", "valid"] * 6

    def test_given_weights_are_validated_before_the_first_epoch(self):
        plan = sessions.Layout([3, 1, 2], {"noise": 50}, validate_every=1, has_weights=True)
        for name, number, first in [
            ("constant", 1, ("0", "valid")), ("constant-uninterrupted", 1, ("0", "valid")),
            ("constant-new", 2, ("4", "train")),
        ]:  # fmt: skip
            session = Session("noise", name, 0, number)
            rows = [(row["epoch"], row["split"]) for row in plan.list_rows(session, "epochs")]
            assert rows[0] == first
            assert len(set(rows)) == len(rows)
            assert next(plan.list_rows(session, "steps"))["epoch"] == str(max(int(first[0]), 1))

    @pytest.mark.parametrize(
        ("name", "number", "every", "validated"),
        [("constant", 1, 2, [2, 3]), ("constant-new", 2, 2, [4]), ("constant-new", 3, 3, [6, 7]),
         ("constant-new", 3, 99, [7]), ("constant-uninterrupted", 1, 2, [2, 4, 6, 7]),
         ("constant-uninterrupted", 1, 99, [7])],
    )  # fmt: skip
    def test_epochs_divisible_by_validate_every_and_last_ones_are_validated(
        self, name, number, every, validated
    ):
        plan = sessions.Layout([3, 1, 3], {"noise": 50}, every, has_weights=False)
        rows = list(plan.list_rows(Session("noise", name, 0, number), "epochs"))
        found = {
            split: [int(row["epoch"]) for row in rows if row["split"] == split]
            for split in ("train", "valid")
        }
        assert found["valid"] == validated
        assert found["train"] == list(plan.list_epochs(Session("noise", name, 0, number)))

    def test_epochs_count_if_all_runs_were_validated_after_them(self):
        new, whole = "constant-new", "constant-uninterrupted"
        names = {new: ["constant", new, new], whole: [whole]}
        runs = Runs(["noise"], [0], names)
        for every, has_weights, counted in ((1, True, {1, 2, 3, 4, 5, 6}), (4, False, {4, 6})):
            layout = sessions.Layout([3, 1, 2], {"noise": 50}, every, has_weights)
            assert collect.list_validated(layout, runs) == counted
        assert collect.list_validated(layout, name_runs([new], [0], 3)) == {3, 4, 6}

    @pytest.mark.parametrize("has_weights", [False, True])
    def test_the_job_checks_for_the_configured_validations(
        self, runs, tmp_path, monkeypatch, has_weights
    ):
        plans = []
        monkeypatch.setattr(
            collect, "check_sessions", lambda *arguments: plans.append(arguments[2])
        )
        given = ["--has-weights"] * has_weights
        collect_tables(runs, tmp_path / "tables", name_runs(), "--validate-every", 2, *given)
        assert plans == [sessions.Layout([1, 1], {"noise": STEPS_PER_EPOCH}, 2, has_weights)]


READERS = {  # command: the tables that it reads
    "boundaries": ["steps"],
    "compare": ["summary", "boundaries"],
    "curves": ["steps", "epochs"],
    "boundary": ["steps"],
    "differences": ["comparisons", "pairs"],
    "learning_rate": ["steps"],
    "epochs_to_target": ["summary"],
    "resets": ["summary", "boundaries"],
    "report": ["comparisons", "summary", "boundaries", "epochs"],
}


class TestAlteredTables:
    """A table that has changed since its job wrote it is refused by every job that reads it."""

    def run(self, folder: Path, reader: str) -> None:
        """Run a command on the tables in ``folder / "tables"``."""
        tables, output = folder / "tables", folder / "output"
        of_figures = ["--tables", tables, "--output", output]
        of_dataset = [*of_figures, "--dataset", "noise"]
        primary = [
            "--margin", 0.01, "--primary", json.dumps([PRIMARY]), "--datasets", "noise",
            "--cards", folder / "runs/dataset.json",
        ]  # fmt: skip
        baselines = json.dumps({"new": ["new"], "preserve": ["new"]})
        of_measure = ["--measure", "final_valid_top1"]
        commands = {
            "boundaries": (boundaries, ["--tables", tables, "--preserved", "preserve"]),
            "compare": (compare, ["--tables", tables, "--baselines", baselines, *primary]),
            "curves": (curves, of_dataset),
            "boundary": (boundary, of_dataset),
            "differences": (differences, [*of_dataset, "--measures", "final_valid_top1"]),
            "resets": (resets, [*of_dataset, *of_measure, "--losses", json.dumps(LOSSES)]),
            "learning_rate": (learning_rate, of_figures),
            "epochs_to_target": (epochs_to_target, [*of_figures, "--targets", '{"noise": 0.515}']),
        }  # fmt: skip
        if reader == "report":
            write_report(folder, output / "report.html")
        else:
            run_command(commands[reader][0], *commands[reader][1])

    def copy(self, diverged: Path, folder: Path) -> dict[str, bytes]:
        """Copy an experiment. Returns the bytes of its tables."""
        shutil.copytree(diverged, folder)
        (folder / "tables").mkdir()
        for path in [*folder.glob("*.csv"), *folder.glob("*.sha256")]:
            path.rename(folder / "tables" / path.name)
        return self.read(folder)

    def read(self, folder: Path) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in (folder / "tables").iterdir()}

    @pytest.mark.parametrize(
        ("reader", "table"),
        [(reader, table) for reader, tables in READERS.items() for table in tables],
    )
    def test_an_altered_table_is_refused(self, diverged, drawn, tmp_path, reader, table):
        folder = tmp_path / "results"
        self.copy(diverged, folder)
        path = folder / "tables" / f"{table}.csv"
        empty_file(path)
        before = self.read(folder)
        with pytest.raises(InputError, match=f"{table}.csv: changed since it was made"):
            self.run(folder, reader)
        assert self.read(folder) == before
        assert not (folder / "output").exists()

    @pytest.mark.parametrize("alter", ALTERATIONS)
    def test_every_alteration_is_found(self, diverged, tmp_path, alter):
        folder = tmp_path / "results"
        self.copy(diverged, folder)
        alter(folder / "tables" / "summary.csv")
        with pytest.raises(InputError, match=r"summary\.csv: "):
            tables_of_analysis.read_verified(folder / "tables" / "summary.csv")

    @pytest.mark.parametrize(
        ("reader", "table"),
        [("boundaries", "steps"), ("curves", "epochs"), ("compare", "summary"),
         ("differences", "pairs"), ("report", "boundaries")],
    )  # fmt: skip
    @pytest.mark.parametrize("content", ["", 'a,b\n"'])
    def test_a_listed_table_that_is_unreadable_is_refused(
        self, diverged, drawn, tmp_path, reader, table, content
    ):
        folder = tmp_path / "results"
        self.copy(diverged, folder)
        (folder / "tables" / f"{table}.csv").write_text(content)
        list_checksums(folder / "tables")
        with pytest.raises(InputError, match=rf"{table}\.csv: unreadable \("):
            self.run(folder, reader)
        assert not (folder / "output").exists()

    @pytest.mark.parametrize(
        ("reader", "table"),
        [("boundaries", "steps"), ("curves", "epochs"), ("compare", "summary")],
    )
    def test_a_listed_table_without_rows_is_refused(self, diverged, tmp_path, reader, table):
        folder = tmp_path / "results"
        self.copy(diverged, folder)
        path = folder / "tables" / f"{table}.csv"
        path.write_text(path.read_text().partition("\n")[0] + "\n")
        list_checksums(folder / "tables")
        with pytest.raises(InputError, match=f"{table}.csv: has no rows. Delete it, then run"):
            self.run(folder, reader)

    def test_every_job_lists_the_tables_that_it_writes(self, tables):
        listed = {
            name: (tables / f"{name}.sha256").read_text().split()[1::2]
            for name in ("collect", "boundaries", "compare")
        }
        inputs = [name for name in listed["collect"] if name.startswith("../runs/noise/")]
        assert len(inputs) == len(name_runs(METHODS).sessions)
        listed["collect"] = [name for name in listed["collect"] if name not in inputs]
        assert listed == {
            "collect": ["epochs.csv", "steps.csv", "summary.csv"],
            "boundaries": ["boundaries.csv", "./epochs.csv", "./steps.csv"],
            "compare": ["comparisons.csv", "pairs.csv", "./boundaries.csv", "./summary.csv"],
        }


class TestBoundaries:
    def steps(self, loss, update_norm=1.0) -> pd.DataFrame:
        return pd.DataFrame({"loss": loss, "update_norm": update_norm})

    def test_the_excess_is_relative_to_the_run_that_keeps_all_state(self, tables):
        rows = {(r["method"], r["seed"]): r for r in read_rows(tables / "boundaries.csv")}
        assert len(rows) == len(METHODS) * len(SEEDS)
        row = rows["constant-new", "1"]
        assert row["session"] == "2"
        assert float(row["excess_loss_area"]) == pytest.approx(0.2 * 40)
        assert float(row["excess_loss_peak"]) == pytest.approx(0.2)
        assert float(rows["constant-preserve", "1"]["excess_loss_area"]) == 0

    def test_the_excess_covers_the_first_200_steps(self):
        after = self.steps([2.0] * 100 + [3.0] * 200, [6.0] + [1.0] * 299)
        kept = self.steps([1.0] * 300, [1.5] + [1.0] * 299)
        early, area, peak, _, ratio = boundaries.measure_boundary(after, kept)
        assert (early, area, peak, ratio) == (2.0, 300.0, 2.0, 4.0)

    def test_without_a_run_that_keeps_all_state_only_the_early_loss_is_known(self):
        early, *others = boundaries.measure_boundary(self.steps([1.0] * 60), None)
        assert early == 1.0
        assert len(others) == 4
        assert np.isnan(others).all()

    def test_the_end_of_each_session_is_measured(self, tables):
        rows = {(r["method"], r["seed"]): r for r in read_rows(tables / "boundaries.csv")}
        row = rows["constant-preserve", "1"]
        assert (row["end_valid_top1"], row["end_valid_loss"]) == ("0.52", "0.8")

    def test_an_uninterrupted_run_has_no_boundary(self):
        parts = [
            self.steps([1.0] * 20).assign(
                dataset="d", schedule="s", boundary=name, method=f"s-{name}", session=1, seed=0,
                step=range(1, 21),
            )
            for name in ("uninterrupted", "preserve")
        ]  # fmt: skip
        epochs = pd.DataFrame(
            {"dataset": "d", "schedule": "s", "boundary": name, "method": f"s-{name}", "seed": 0,
             "session": 1, "split": "valid", "top1": 0.5, "loss": 1.0}
            for name in ("uninterrupted", "preserve")
        )  # fmt: skip
        found = boundaries.measure_boundaries(pd.concat(parts), epochs, "preserve", 1)
        assert [row["boundary"] for row in found] == ["preserve"]

    @pytest.mark.parametrize(
        ("excess", "expected"),
        [
            ([0.0] * 40, 10),
            ([1.0] * 20 + [0.0] * 20, 30),
            ([-1.0] * 40, 10),
            ([1.0] * 40, np.inf),
            ([0.0] * 9, np.nan),
            ([np.nan] * 40, np.inf),
        ],
    )
    def test_steps_until_the_loss_is_within_the_noise(self, excess, expected):
        kept = np.ones(len(excess))  # without noise, only an equal loss is within it
        found = boundaries.count_recovery_steps(kept + excess, kept)
        assert found == pytest.approx(expected, nan_ok=True)

    def test_nothing_recovers_to_a_run_that_diverged(self):
        kept = np.append(np.ones(39), np.nan)
        assert np.isnan(boundaries.count_recovery_steps(np.ones(40), kept))

    def test_a_session_that_diverged_ends_without_a_loss(self):
        names = {"dataset": "d", "schedule": "s", "boundary": "new", "method": "s-new", "seed": 0}
        epochs = [
            names | {"session": 2, "split": "valid", "top1": 0.5, "loss": loss}
            for loss in (1.8, np.nan)
        ]
        step = {"session": 2, "step": 1, "loss": 1.0, "update_norm": 1.0}
        steps = pd.DataFrame([names | step])
        (row,) = boundaries.measure_boundaries(steps, pd.DataFrame(epochs), "preserve", 2)
        assert (row["end_valid_top1"], str(row["end_valid_loss"])) == (0.5, "nan")

    def test_the_noise_is_that_of_a_mean_of_ten_steps(self):
        """Neighbouring losses differ by ±1, so a mean of ten has a standard error of 0.22."""
        kept = 10 - 0.1 * np.arange(60) + np.tile([0.5, -0.5], 30)
        noise = np.std(np.diff(kept)) / np.sqrt(2) / np.sqrt(10)
        assert noise == pytest.approx(1 / np.sqrt(20), rel=0.02)
        for excess, expected in ((1.99 * noise, 10), (2.01 * noise, np.inf)):
            assert boundaries.count_recovery_steps(kept + excess, kept) == expected

    def test_a_run_that_is_behind_by_some_steps_has_lost_them(self):
        kept = 100.0 - np.arange(80)
        for lost in (0, 7, 30):
            assert boundaries.count_steps_lost(kept + lost, kept) == pytest.approx(lost, abs=1)
            assert boundaries.count_steps_lost(kept - lost, kept) == pytest.approx(-lost, abs=1)
        assert np.isnan(boundaries.count_steps_lost(kept[:9], kept[:9]))
        assert np.isnan(boundaries.count_steps_lost(np.append(kept[1:], np.nan), kept))

    @pytest.mark.parametrize("has_reference", [True, False])
    def test_lost_steps_may_lie_before_the_boundary(self, has_reference):
        """In the second session, of 10 steps, the run is 25 steps behind the other one."""
        falling = 100.0 - np.arange(40)
        losses = {"new": np.append(falling[:30], falling[5:15])}
        losses |= {"preserve": falling} if has_reference else {}
        steps = pd.concat(
            pd.DataFrame(
                {"dataset": "d", "schedule": "s", "boundary": boundary, "method": f"s-{boundary}",
                 "seed": 0, "session": np.repeat([1, 2], [30, 10]), "step": range(1, 41),
                 "loss": loss, "update_norm": 1.0}
            )
            for boundary, loss in losses.items()
        )  # fmt: skip
        epochs = steps[steps["step"].isin([30, 40])].assign(split="valid", top1=0.5)
        found = list(boundaries.measure_boundaries(steps, epochs, "preserve", 2))
        lost = {row["boundary"]: row["steps_lost"] for row in found}
        expected = {"new": 25, "preserve": 0} if has_reference else {"new": np.nan}
        assert lost == pytest.approx(expected, abs=1, nan_ok=True)


CHANCES = dict.fromkeys(
    ["d", "e", "d0", "d1", "d2", "d3"], tables_of_analysis.Chance(0.1, 0.11, 0.1, 0.11)
)


def make_pairs(differences, **names: str) -> pd.DataFrame:
    """Return the rows of ``pairs.csv`` of one comparison, by default the primary one."""
    usual = {
        "dataset": "d", "schedule": "s", "boundary": "preserve", "baseline": "new",
        "measure": "final_valid_top1",
    }  # fmt: skip
    table = pd.DataFrame({"seed": range(len(differences)), "difference": differences})
    return table.assign(**usual | names, baseline_value=0.5, value=table["difference"] + 0.5)


def compare_all(pairs: pd.DataFrame, measure: str = "final_valid_top1") -> pd.DataFrame:
    """Compare pairs, with preserve minus new as the primary outcome."""
    return compare.compare_pairs(pairs, 0.01, [["preserve", "new", measure]], CHANCES)


class TestCompare:
    def test_planted_differences_are_found(self, tables):
        rows = {
            (row["schedule"], row["measure"]): row for row in read_rows(tables / "comparisons.csv")
        }
        assert len(rows) == 2 * 13
        row = rows["constant", "train_loss_first_40_steps_session2"]
        assert float(row["mean_difference"]) == pytest.approx(-0.2)
        interval = stats.t.interval(0.95, 2, -0.2, stats.sem([-0.1, -0.2, -0.3]))
        for ends in (("low", "high"), ("t_low", "t_high")):
            assert [float(row[end]) for end in ends] == pytest.approx(list(interval))
        assert (row["n"], row["verdict"], row["family"]) == ("3", "exploratory", "1")
        target = rows["onecycle", "epochs_to_target"]
        assert target["verdict"] == "exploratory; 3 of 3 pairs missed the target"
        top1 = rows["onecycle", "final_valid_top1"]
        assert float(top1["mean_difference"]) == pytest.approx(0.02)
        assert (top1["boundary"], top1["baseline"], top1["family"]) == ("preserve", "new", "2")
        simultaneous = stats.t.interval(0.975, 2, 0.02, stats.sem([0.01, 0.02, 0.03]))
        assert [float(top1[end]) for end in ("low", "high")] == pytest.approx(list(simultaneous))
        assert top1["verdict"].startswith("undecided: about ")

    def test_one_seed_gives_a_difference_without_an_interval(self, runs, tmp_path):
        one = make_tables(runs, tmp_path / "one", seeds=[1])
        rows = {
            (row["schedule"], row["measure"]): row for row in read_rows(one / "comparisons.csv")
        }
        for name, expected, verdict in (
            ("final_valid_top1", 0.02, "one pair: no interval"),
            ("final_valid_loss", -0.2, "exploratory"),
        ):
            row = rows["constant", name]
            assert (row["n"], row["low"], row["high"]) == ("1", "", "")
            assert row["verdict"] == verdict
            assert float(row["mean_difference"]) == pytest.approx(expected)

    @pytest.mark.parametrize(
        ("measure", "pairs", "verdict"),
        [
            ("final_valid_top1", [0.01, 0.01],
             "undecided: all 2 differences are equal (+1.00 points), so their noise is unknown"),
            ("final_valid_top1", [0.01] * 20,
             "undecided: all 20 differences are equal (+1.00 points), so their noise is unknown"),
            ("final_valid_loss", [0.0] * 3, "no difference in any pair"),
            ("final_valid_loss", [1.1, 1.2, 1.3, 1.4, 1.5, 1.6], "new better by 1.35 [1.15, 1.55]"),
            ("final_valid_top1", [0.031, 0.032, 0.033, 0.034],
             "preserve better by 3.25 points [3.04, 3.46]"),
            ("final_valid_top1", [0.001, 0.002, 0.003, 0.004, 0.003],
             "preserve better by 0.26 points [0.12, 0.40], yet equivalent within ±1 point"),
            ("final_valid_top1", [0.001, -0.001, 0.002] * 2, "equivalent within ±1 point"),
            ("final_valid_loss", [1.0, 1.0, np.nan],
             "undecided: all 2 differences are equal (+1), so their noise is unknown; "
             "1 of 3 pairs diverged"),
            ("final_valid_loss", [np.inf, np.nan], "no pair; 2 of 2 pairs diverged"),
            ("final_valid_loss", [np.inf, 1], "one pair: no interval; 1 of 2 pairs diverged"),
            ("final_valid_loss", [-1.0, 1.0, -2.0, 2.0],
             "undecided: thousands of seeds would not decide"),
        ],
    )  # fmt: skip
    def test_verdicts(self, measure, pairs, verdict):
        found = compare_all(make_pairs(pairs, measure=measure), measure=measure)
        assert found["verdict"].tolist() == [verdict]

    def test_a_comparison_that_is_not_primary_has_no_verdict(self):
        clear = [0.031, 0.032, 0.033, 0.034]
        table = pd.concat([make_pairs(clear), make_pairs(clear, boundary="other")])
        found = compare_all(table).set_index("boundary")
        assert found.loc["other", ["verdict", "family", "primary"]].tolist() == [
            "exploratory", 1, "false"
        ]  # fmt: skip
        assert found.loc["preserve", "family"] == 1
        assert np.isnan(found.loc["other", "seeds_to_decide"])

    def test_all_primary_outcomes_are_one_family(self):
        outcomes = [PRIMARY, ["preserve", "new", "end_valid_top1_session2"]]
        table = pd.concat(
            make_pairs([0.01, 0.02, 0.03, 0.05], dataset=dataset, measure=measure)
            for dataset in ("d", "e")
            for *_, measure in outcomes
        )
        found = compare.compare_pairs(table, 0.01, outcomes, CHANCES)
        assert found["family"].tolist() == [4] * 4
        p = stats.ttest_1samp([0.01, 0.02, 0.03, 0.05], 0).pvalue
        assert found["p_adjusted"].tolist() == pytest.approx([4 * p] * 4)

    @pytest.mark.parametrize(("num_cells", "is_equivalent"), [(1, True), (4, False)])
    def test_equivalence_is_adjusted_for_the_number_of_tests(self, num_cells, is_equivalent):
        pairs = 0.0105 * stats.zscore([-3, -2, -1, -0.5, 0.5, 1, 2, 3], ddof=1)
        table = pd.concat(make_pairs(pairs, dataset=f"d{cell}") for cell in range(num_cells))
        for verdict in compare_all(table)["verdict"]:
            assert (verdict == "equivalent within ±1 point") is is_equivalent

    @pytest.mark.parametrize("end", ["low", "high"])
    def test_an_interval_that_ends_at_zero_or_at_the_margin_decides_nothing(self, end):
        zero = SimpleNamespace(**{"low": -1.0, "high": 1.0, "margin": 0.01} | {end: 0.0})
        assert not compare.is_different(zero)
        ends = {"low": -0.005, "high": 0.005} | {end: -0.01 if end == "low" else 0.01}
        assert not compare.is_equivalent(SimpleNamespace(**ends, margin=0.01))

    def test_a_margin_may_be_a_fraction_of_what_is_learnt_above_chance(self):
        table = make_pairs([0.001, -0.001, 0.002] * 2).assign(baseline_value=0.3)
        for above_chance, margin in ((0.05, 0.01), (0.01, 0.002)):
            found = compare.compare_pairs(table, {"above_chance": above_chance}, [PRIMARY], CHANCES)
            assert found["margin"].tolist() == pytest.approx([margin])
        balanced = compare.compare_pairs(
            table.assign(measure="final_valid_balanced_top1"),
            {"above_chance": 0.05},
            [PRIMARY],
            {"d": tables_of_analysis.Chance(0.9, 0.92, 0.1, 0.12)},
        )
        assert balanced["margin"].tolist() == pytest.approx([0.01])
        nothing = compare.compare_pairs(
            table.assign(baseline_value=0.09), {"above_chance": 0.05}, [PRIMARY], CHANCES
        )
        assert np.isnan(nothing["margin"][0])
        assert nothing["verdict"][0].startswith("undecided")

    def test_nothing_is_compared_where_no_run_beats_chance(self, runs, tmp_path):
        """Of two classes of 25 images, 52 % right are no evidence of learning."""
        shutil.copytree(runs, tmp_path / "runs")
        classes = [c | {"valid": 25} for c in CARD["classes"]]
        write_card(tmp_path / "runs", classes=classes)
        for row in read_rows(make_tables(tmp_path / "runs", tmp_path) / "comparisons.csv"):
            is_primary = row["primary"] == "true"
            assert (row["verdict"] == "no run beats chance") is is_primary

    @pytest.mark.parametrize(("value", "is_listed"), [(np.nan, False), (5.0, True), (0.0, True)])
    def test_a_measure_without_any_value_is_left_out(self, value, is_listed):
        run = {"dataset": "d", "schedule": "s", "boundary": "new"}
        summary = pd.DataFrame(
            [run | {"seed": seed, "final_valid_loss": np.nan, "epochs_to_target": number}
             for seed, number in enumerate([value, np.nan])]
        )  # fmt: skip
        nothing = pd.DataFrame(columns=boundaries.COLUMNS)
        measures = compare.stack_measures(summary, nothing)["measure"].tolist()
        assert measures == ["final_valid_loss"] * 2 + ["epochs_to_target"] * 2 * is_listed

    @pytest.mark.parametrize(("per_class", "top1"), [(None, 0.75), (20, 2 / 3), (5, 0.5)])
    def test_chance_is_the_most_frequent_class_within_two_standard_errors(self, per_class, top1):
        classes = [{"valid": 30}, {"valid": 10}]
        number = {None: 40, 20: 30, 5: 10}[per_class]
        limit = top1 + 2 * np.std([1] * round(top1 * number) + [0] * round((1 - top1) * number)) / (
            np.sqrt(number)
        )
        numbers = [min(c["valid"], per_class or 30) for c in classes]
        balanced = 0.5 + 2 * np.sqrt(sum(0.25 / n for n in numbers)) / 2
        found = tables_of_analysis.compute_chance({"classes": classes}, per_class)
        assert found == pytest.approx((top1, limit, 0.5, balanced))

    @pytest.mark.parametrize(("balanced", "expected"), [(None, ["b"]), (0.12, ["b"]), (0.13, [])])
    def test_a_schedule_beats_chance_by_its_best_method(self, balanced, expected):
        """It is enough to beat it in the average over the classes."""
        rows = [("a", "x", 0.1), ("a", "x", 0.2), ("a", "y", 0.1), ("b", "z", 0.12)]
        summary = pd.DataFrame(rows, columns=["schedule", "method", "final_valid_top1"])
        if balanced:
            summary["final_valid_balanced_top1"] = balanced
        chances = {"d": tables_of_analysis.Chance(0.1, 0.12, 0.1, 0.12)}
        found = tables_of_analysis.list_at_chance(summary.assign(dataset="d"), chances)
        assert found == [("d", schedule) for schedule in expected]

    def test_lost_pairs_are_named_where_no_run_beats_chance(self, tmp_path):
        write_runs(tmp_path / "runs", diverged=("constant-new", 1))
        write_card(tmp_path / "runs", classes=[c | {"valid": 25} for c in CARD["classes"]])
        make_tables(tmp_path / "runs", tmp_path, CONSTANT)
        card = tmp_path / "runs/dataset.json"
        compare_tables(tmp_path, card, {"preserve": ["new"]}, measure="final_valid_loss")
        rows = tables_of_analysis.read(tmp_path / "comparisons.csv")
        (row,) = rows[rows["primary"]].itertuples()
        assert row.verdict == "no run beats chance; 1 of 3 pairs diverged"
        answer = answers.describe_answer(row, load())
        assert answer.endswith("no run beats chance (1 of 3 pairs diverged).")

    def test_every_boundary_has_its_own_baselines(self):
        rows = pd.DataFrame(
            {"dataset": "d", "schedule": "s", "boundary": boundary, "seed": seed, "measure": "m",
             "value": value + seed}
            for boundary, value in (("new", 1.0), ("preserve", 3.0), ("again", 7.0))
            for seed in (0, 1)
        )  # fmt: skip
        baselines = {"new": ["new"], "preserve": ["new", "absent"], "again": ["preserve", "new"]}
        pairs = compare.pair_runs(rows, baselines)
        found = pairs[["boundary", "baseline", "seed", "difference"]].to_numpy().tolist()
        assert found == [
            *(["again", "new", s, 6.0] for s in (0, 1)),
            *(["again", "preserve", s, 4.0] for s in (0, 1)),
            *(["preserve", "new", s, 2.0] for s in (0, 1)),
        ]

    def test_the_primary_outcome_is_marked(self, tables):
        primary = [row for row in read_rows(tables / "comparisons.csv") if row["primary"] == "true"]
        assert {(row["schedule"], row["measure"], row["boundary"]) for row in primary} == {
            (schedule, "final_valid_top1", "preserve") for schedule in ("constant", "onecycle")
        }

    def test_one_session_has_no_boundary_to_measure(self, runs, tmp_path):
        one = make_tables(runs, tmp_path / "one", num_sessions=1)
        assert read_rows(one / "boundaries.csv") == []
        measures = {row["measure"] for row in read_rows(one / "comparisons.csv")}
        assert measures == set(tables_of_analysis.OF_RUNS)
        assert {row["mean_difference"] for row in read_rows(one / "comparisons.csv")} == {"0.0", ""}

    def test_nothing_is_compared_without_the_baseline(self, runs, tmp_path):
        alone = make_tables(runs, tmp_path / "alone", methods=["constant-preserve"])
        assert read_rows(alone / "comparisons.csv") == []
        assert "verdict" in (alone / "comparisons.csv").read_text()


def test_names_that_look_like_numbers_or_missing_values_stay_text(
    runs, tables, tmp_path, monkeypatch
):
    monkeypatch.setattr(curves, "CURVES", {"valid_loss": CURVES["valid_loss"]})
    names = {"noise": "2024", "new": "1", "preserve": "null", "constant": "nan", "onecycle": "0"}
    for path in runs.rglob("*.csv"):
        renamed = path.relative_to(runs).as_posix()
        content = path.read_text()
        for old, new in names.items():
            renamed = renamed.replace(old, new)
            content = content.replace(old, new)
        (tmp_path / renamed).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / renamed).write_text(content)
        list_checksums((tmp_path / renamed).parent)
    write_card(tmp_path)
    names = {name: names[name] for name in ("noise", "new", "preserve")}
    make_tables(tmp_path, tmp_path, ["nan-1", "nan-null", "0-1", "0-null"], **names)
    usual, odd = read_rows(tables / "comparisons.csv"), read_rows(tmp_path / "comparisons.csv")
    assert {row["schedule"] for row in odd} == {"nan", "0"}
    assert sorted(r["mean_difference"] for r in odd) == sorted(r["mean_difference"] for r in usual)
    make_tables(tmp_path, tmp_path, ["nan-1", "nan-null"], **names)
    draw(tmp_path, tmp_path / "figures", "2024", **{"1": [2], "null": []})
    assert (tmp_path / "figures" / "overview_1.png").exists()


def test_figures_are_drawn_without_a_finite_loss(diverged, tmp_path):
    for path in diverged.glob("*.csv"):
        table = pd.read_csv(path)
        if path.stem in ("steps", "epochs"):
            table = table.assign(loss=np.nan)
        table.to_csv(tmp_path / path.name, index=False)
    list_checksums(tmp_path)
    draw(tmp_path, tmp_path / "figures")
    assert (tmp_path / "figures" / "valid_loss.svg").exists()


class TestDiverged:
    """A run with a loss that is not finite is kept and flagged. The others are compared."""

    @pytest.fixture(scope="class")
    @classmethod
    def tables(cls, diverged) -> Path:
        return make_tables(diverged / "runs", diverged / "all")

    def test_a_diverged_run_is_flagged(self, tables):
        flagged = [r for r in read_rows(tables / "summary.csv") if r["diverged"] == "true"]
        assert [(r["method"], r["seed"]) for r in flagged] == [("constant-new", "1")]
        assert flagged[0]["final_valid_loss"] == "nan"

    def test_the_other_pairs_are_compared(self, tables):
        for row in read_rows(tables / "comparisons.csv"):
            if row["measure"] in ("final_valid_top1", "final_valid_loss"):
                lost = row["schedule"] == "constant" and "loss" in row["measure"]
                assert row["n"] == ("2" if lost else "3")
                assert ("1 of 3 pairs diverged" in row["verdict"]) == lost

    def test_figures_are_drawn(self, drawn):
        assert (drawn / "train_loss.png").stat().st_size > 10_000

    def test_the_end_of_a_diverged_curve_is_marked_and_explained(self, tables):
        read_tables = [tables_of_analysis.read(tables / f"{n}.csv") for n in ("steps", "epochs")]
        figure = curves.draw_curves(curves.stack_curves(*read_tables), ["train_loss"], "noise")
        legend = [text.get_text() for text in figure.legends[0].get_texts()]
        assert "diverged" in legend
        crosses = [
            line.get_xdata()
            for axes in figure.axes for line in axes.lines if line.get_marker() == "x"
        ]  # fmt: skip
        assert [list(x) for x in crosses] == [[1.4]]


def draw(tables: Path, output: Path, dataset: str = "noise", **losses: list[int]) -> None:
    """Draw all figures."""
    losses = losses or {"new": [2], "preserve": []}
    where = ["--tables", tables, "--output", output]
    for module in (curves, boundary):
        run_command(module, *where, "--dataset", dataset)
    measure = "final_valid_top1"
    run_command(differences, *where, "--dataset", dataset, "--measures", measure)
    of_resets = ("--measure", measure, "--losses", json.dumps(losses))
    run_command(resets, *where, "--dataset", dataset, *of_resets)
    run_command(learning_rate, *where)
    run_command(epochs_to_target, *where, "--targets", json.dumps({dataset: 0.515}))


def write_report(
    folder: Path,
    output: Path,
    *options: str,
    late: int = 0,
    changes: dict | None = None,
    left_out: Sequence[str] = (),
    **config: object,
) -> str:
    """Write the report of the runs of ``CONSTANT`` in ``folder``. Returns it on one line."""
    figures = folder / "all_figures"
    for part in (figures, figures / "noise"):
        part.mkdir(exist_ok=True)
        for path in (folder / "figures").iterdir():
            if not (part / path.name).exists():
                shutil.copy(path, part)
    tables = folder / "tables"
    config = load() | {"datasets": {"noise": {"target_top1": 0.515}}} | config
    plan = make_plan(config)
    (folder / "plan").mkdir(exist_ok=True)
    planned = {
        "plan": {k: v for k, v in (plan | (changes or {})).items() if k not in left_out},
        "date": "2026-01-31",
        "commit": "1a2b",
        "finished_sessions": late,
    }
    (folder / "plan/plan.json").write_text(json.dumps(planned))
    list_checksums(folder / "plan")
    run_command(
        report, "--config", json.dumps(config), "--tables", tables, "--figures", figures,
        "--runs-folder", folder / "runs", "--runs", name_runs(CONSTANT).to_json(),
        "--cards", folder / "runs/dataset.json", "--command", "snakemake", "--packages", "numpy",
        "--planned", folder / "plan/plan.json", "--plan", json.dumps(plan),
        "--preserved", "preserve",
        "--template", ROOT / "workflow/report/report.html.j2", "--output", output, *options,
    )  # fmt: skip
    return " ".join(output.read_text().split())


class TestReport:
    def change_made_by(self, results: Path, session: str, compute: list) -> None:
        folder = results / "runs/noise" / session
        (folder / "made_by.json").write_text(json.dumps(MADE_BY | {"compute": compute}))
        list_checksums(folder)

    def test_the_page_is_listed(self, results):
        page = write_report(results, results / "report.html")
        for name in ("report.html", "answer.txt", "configuration.yaml"):
            verify(results / name)
        assert "9 sessions on Fast CPU (AVX2), float32, deterministic" in page
        assert "not reproducible" not in page
        assert "left out" not in page
        assert page.count("<img") == 10
        assert "resets" not in page

    def test_the_answer_is_also_written_as_text(self, results):
        write_report(results, results / "report.html")
        answer = (results / "answer.txt").read_text()
        comparisons = pd.read_csv(results / "tables/comparisons.csv")
        primary = comparisons[comparisons["primary"]]
        assert answer.count("\n- ") == len(primary)
        summary = pd.read_csv(results / "tables/summary.csv")
        for method, runs in summary.groupby("method"):
            top1 = 100 * runs["final_valid_top1"]
            values = f"{top1.mean():.1f} %"
            if top1.min() < top1.max():
                values += f" ({top1.min():.1f} to {top1.max():.1f} %)"
            assert f"\nnoise, {method}: final valid top-1 {values}; chance" in answer
        assert "\nnew: loses the optimizer's state\n" in answer

    def test_the_configuration_is_written_next_to_the_page(self, results):
        write_report(results, results / "report.html", batch_size=7)
        written = yaml.safe_load((results / "configuration.yaml").read_text())
        config = load() | {"datasets": {"noise": {"target_top1": 0.515}}, "batch_size": 7}
        assert written == config

    def test_resets_are_shown_if_there_are_any(self, results):
        page = write_report(results, results / "report.html", "--has-resets")
        assert page.count("<img") == 11
        assert "difference in final valid top-1 to the run that keeps all state" in page
        assert "as the state is lost more often" in page

    def test_a_target_that_no_run_reached_has_no_figure(self, results):
        path = results / "tables/summary.csv"
        summary = pd.read_csv(path, dtype=str).assign(epochs_to_target="inf")
        summary.to_csv(path, index=False, lineterminator="\n")
        write_checksums(path.parent / "collect.sha256", [
            path.parent / f"{name}.csv" for name in ("steps", "epochs", "summary")
        ])  # fmt: skip
        page = write_report(results, results / "report.html")
        assert "No run reached its data set" in page
        assert "Epochs until the valid top-1" not in page
        assert page.count("<img") == 9

    def make_lr_range_test(self, results: Path) -> tuple[Path, str, str]:
        """Write a curve. Returns its path, and the options with which the report shows it."""
        figure = results / "lr_range_test/noise/constant-session2.png"
        figure.parent.mkdir(parents=True)
        shutil.copy(results / "figures/train_loss.png", figure)
        write_checksums(figure.with_suffix(".sha256"), [figure])
        test = {"dataset": "noise", "schedule": "constant", "number": 2, "figure": str(figure)}
        return figure, "--lr-range-tests", json.dumps([test])

    def test_lr_range_tests_are_shown_if_there_are_any(self, results):
        page = write_report(results, results / "report.html")
        assert "LR range test" not in page
        figure, *options = self.make_lr_range_test(results)
        page = write_report(results, results / "report.html", *options)
        assert page.count("<img") == 11
        (words,) = re.findall(
            '<h3 id="lr-range-tests">.*<img src="data:image/png;base64,([^"]*)" alt="noise, '
            'constant: loss before session 2, while the LR rises">.*<h2 id="tables">',
            page,
        )
        assert base64.b64decode(words) == figure.read_bytes()
        assert f"<pre>snakemake -- {figure}</pre>" in page

    @pytest.mark.parametrize("alter", ALTERATIONS)
    def test_an_altered_lr_range_test_is_refused(self, results, alter):
        figure, *options = self.make_lr_range_test(results)
        alter(figure)
        with pytest.raises(InputError, match=r"constant-session2\.png"):
            write_report(results, results / "report.html", *options)
        assert not list(results.glob("report.*"))

    @pytest.mark.parametrize("every", [1, 3])
    def test_the_validated_epochs_are_explained_if_some_are_not(self, results, every):
        page = write_report(results, results / "report.html", validate_every=every)
        explanation = "are those of validated epochs: every 3 epochs, and the last one"
        assert (explanation in page) is (every == 3)

    @pytest.mark.parametrize("alter", ALTERATIONS)
    @pytest.mark.parametrize(
        "name",
        ["figures/train_loss.png", "runs/dataset.json", f"runs/{SECOND}/made_by.json"],
    )
    def test_an_altered_file_is_refused(self, results, name, alter):
        alter(results / name)
        # Without checksums, the first figure of the folder is named.
        named = ".png" if alter is delete_checksums and "figures" in name else Path(name).name
        with pytest.raises(InputError, match=re.escape(named)):
            write_report(results, results / "report.html")
        assert not list(results.glob("report.*"))

    @pytest.mark.parametrize("name", ["runs/dataset.json", f"runs/{SECOND}/made_by.json"])
    @pytest.mark.parametrize("text", ["", "{", "[]", "null"])
    def test_a_listed_file_that_is_unreadable_is_refused(self, results, name, text):
        (results / name).write_text(text)
        list_checksums((results / name).parent)
        with pytest.raises(InputError, match=f"{Path(name).name}: (unreadable|has no)"):
            write_report(results, results / "report.html")
        assert not list(results.glob("report.*"))

    @pytest.mark.parametrize("key", CARD)
    def test_a_description_of_a_data_set_without_a_key_is_refused(self, results, key):
        card = {name: value for name, value in CARD.items() if name != key}
        (results / "runs/dataset.json").write_text(json.dumps(card))
        list_checksums(results / "runs")
        with pytest.raises(InputError, match=f"dataset.json: has no {key!r}"):
            write_report(results, results / "report.html")

    def test_sessions_of_different_kinds_are_named_before_the_answer(self, results):
        chosen = AVX2 | {"variables": {"ATEN_CPU_CAPABILITY": "avx2"}}
        self.change_made_by(results, "constant-new/seed1/session2", [chosen])
        page = write_report(results, results / "report.html")
        before, _, _ = page.partition('<div class="answer">')
        assert (
            "<strong>noise</strong>: these runs are <strong>not reproducible to the bit" in before
        )
        assert "<li>Fast CPU (AVX2): 8 sessions</li>" in before
        assert "<li>Fast CPU (AVX2, ATEN_CPU_CAPABILITY=avx2): 1 session</li>" in before
        assert "continued on another kind" not in page

    def test_a_session_that_continued_on_another_kind_is_counted(self, results):
        self.change_made_by(results, "constant/seed0/session1", [AVX512, AVX2])
        page = write_report(results, results / "report.html")
        assert "<li>Fast CPU (AVX2): 9 sessions</li>" in page
        assert "<li>Fast CPU (AVX512): 1 session</li>" in page
        assert "1 session continued on another kind after an interruption." in page
        assert "1 session on Fast CPU (AVX512), then Fast CPU (AVX2), float32" in page

    def test_data_sets_may_be_of_different_kinds(self):
        made_by = {
            Session(dataset, "constant", 0, 1): {"compute": [kind]}
            for dataset, kind in (("a", AVX2), ("b", AVX512))
        }
        assert report.find_mixtures(made_by) == {}

    def test_greyscale_and_rotated_images_are_counted(self, results):
        greyscale = {"train": ["train/ant/a.png"] * 3, "valid": ["val/ant/b.png"]}
        rotated = {"train": ["train/ant/c.jpg"] * 4, "valid": ["val/ant/d.jpg"] * 3}
        write_card(results / "runs", greyscale=greyscale, rotated=rotated)
        page = " ".join(write_report(results, results / "report.html").split())
        assert "4 of them are greyscale, and 7 were rotated as their EXIF orientation says." in page

    def test_files_that_were_left_out_are_counted_and_listed(self, results):
        left_out = {"train": ["train/ant/a.txt", "train/ant/b.heic"], "valid": ["val/bee/<c>"]}
        write_card(results / "runs", left_out=left_out)
        page = write_report(results, results / "report.html")
        assert "3 other files were left out: 2 of train and 1 of valid." in page
        assert "<li>train/ant/b.heic</li><li>val/bee/&lt;c&gt;</li>" in page


class TestFigures:
    def test_the_same_tables_give_the_same_bytes(self, diverged, drawn, tmp_path):
        draw(diverged, tmp_path)
        names = sorted(path.name for path in drawn.iterdir())
        stems = {
            "learning_rate",
            "overview",
            "overview_new",
            "overview_preserve",
            "boundary_loss",
            "boundary_update_norm",
            "differences",
            "epochs_to_target",
            "resets",
            *CURVES,
        }
        figures = {f"{stem}.{suffix}" for stem in stems for suffix in ("png", "svg")}
        assert set(names) - figures == {
            "curves.sha256", "boundary.sha256", "differences.sha256", "learning_rate.sha256",
            "epochs_to_target.sha256", "resets.sha256",
        }  # fmt: skip
        assert set(read_checksums(drawn)) == figures
        assert figures <= set(names)
        for name in figures:
            assert (drawn / name).read_bytes() == (tmp_path / name).read_bytes()

    def test_points_of_the_train_curves_are_means_of_steps(self, tables):
        steps, epochs = (pd.read_csv(tables / f"{name}.csv") for name in ("steps", "epochs"))
        found = curves.stack_curves(steps, epochs)
        run = "schedule == 'constant' and boundary == 'preserve' and seed == 0"
        loss = found.query(f"{run} and measure == 'train_loss'").sort_values("x")
        assert loss["x"].tolist() == pytest.approx(np.arange(1, 21) / 10)
        assert loss["value"].tolist() == pytest.approx([1] * 8 + [7] * 2 + [0.9] * 8 + [7] * 2)
        accuracy = found.query(f"{run} and measure == 'valid_accuracy'")
        assert accuracy[["x", "value"]].to_numpy() == pytest.approx(np.array([[1, 0.5], [2, 0.51]]))

    def test_a_row_of_differences_has_all_of_its_pairs_and_no_others(self, tables):
        comparisons, pairs = (
            table[table["measure"] == "final_valid_top1"]
            for table in (
                tables_of_analysis.read(tables / f"{name}.csv") for name in ("comparisons", "pairs")
            )
        )
        lost = pairs.index[(pairs["schedule"] == "onecycle") & (pairs["seed"] == 1)]
        pairs.loc[lost, "difference"] = np.nan
        comparisons.loc[comparisons["schedule"] == "onecycle", "n"] = 2
        figure = differences.draw_differences(comparisons, pairs, "noise", TOP1)
        axes = figure.axes[0]
        found = [line.get_xdata().tolist() for line in axes.lines if line.get_marker() == "o"]
        assert found == [
            pytest.approx([1, np.nan, 3], nan_ok=True), pytest.approx([1, 2, 3])
        ]  # fmt: skip
        assert [label.get_text() for label in axes.get_yticklabels()] == [
            "onecycle\n1 of 3 lost", "constant"
        ]  # fmt: skip

    def test_a_row_of_differences_has_the_pairs_of_its_baseline(self, tables):
        comparisons, pairs = (
            tables_of_analysis.read(tables / f"{name}.csv").query(
                "measure == 'final_valid_top1' and schedule == 'constant'"
            )
            for name in ("comparisons", "pairs")
        )
        comparisons, pairs = (
            pd.concat([table, table.assign(baseline="other", **{column: 0.5})])
            for table, column in ((comparisons, "mean_difference"), (pairs, "difference"))
        )
        figure = differences.draw_differences(comparisons, pairs, "noise", TOP1)
        found = {
            axes.get_title("left"): line.get_xdata().tolist()
            for axes in figure.axes for line in axes.lines if line.get_marker() == "o"
        }  # fmt: skip
        assert found == {
            "← new better · preserve better →": pytest.approx([1, 2, 3]),
            "← other better · preserve better →": [50.0] * 3,
        }

    def test_all_data_sets_have_the_same_scale_of_differences(self, tables):
        comparisons, pairs = (
            tables_of_analysis.read(tables / f"{name}.csv").query("measure == 'final_valid_top1'")
            for name in ("comparisons", "pairs")
        )
        smaller = pairs.assign(dataset="smaller", difference=pairs["difference"] / 100)
        both = pd.concat([pairs, smaller])
        limits = [
            differences.draw_differences(
                pd.concat([comparisons, comparisons.assign(dataset="smaller", low=0, high=0)]),
                both, dataset, TOP1,
            ).axes[0].get_xlim()
            for dataset in ("noise", "smaller")
        ]  # fmt: skip
        assert limits[0] == limits[1]
        assert limits[0][1] > 100 * pairs["difference"].max()

    def test_a_missed_target_is_drawn_after_all_epochs(self, tables):
        summary = tables_of_analysis.read(tables / "summary.csv")
        of_constant = summary[summary["schedule"] == "constant"]
        axes = epochs_to_target.draw_epochs_to_target(of_constant, {"noise": 0.515}).axes[0]
        found = [line.get_xdata().tolist() for line in axes.lines if line.get_marker() == "o"]
        assert found == [[3, 2, 2], [3, 3, 3]]
        assert axes.get_xticklabels()[-1].get_text() == "∞"

    def test_looks_are_stable_and_differ_in_grey(self):
        assert style.get_look("new", ["new"]) == style.get_look("new", ["a", "new", "preserve"])
        names = "a b c d new preserve uninterrupted".split()
        looks = [style.get_look(name, names) for name in names]
        for what in ("color", "linestyle"):
            assert len({str(look[what]) for look in looks}) == len(names)

    @pytest.mark.parametrize("num_columns", [1, 2, 3])
    def test_the_legend_fits_into_the_figure(self, num_columns):
        figure, _ = style.make_grid(1, num_columns, 3)
        names = "early late lower_lr rebuild twice new preserve uninterrupted".split()
        style.add_legend(figure, names, *style.make_marks(3, True, True))
        assert figure.legends[0].get_window_extent().width < figure.bbox.width

    def test_figures_of_a_boundary_show_50_steps_before_and_after(self, tables):
        steps = tables_of_analysis.read(tables / "steps.csv")
        around = boundary.select_steps(steps, 2).query(
            "boundary == 'new' and schedule == 'constant'"
        )
        one = around[around["seed"] == 0]
        assert one["x"].tolist() == list(range(-49, 51))
        assert one["step"].tolist() == list(range(1, 101))

    def test_points_of_the_valid_curves_are_validated_epochs(self, tables):
        steps, epochs = (
            pd.read_csv(tables / f"{name}.csv").query("schedule == 'constant'")
            for name in ("steps", "epochs")
        )
        whole = epochs.query("boundary == 'new'").assign(boundary="uninterrupted", session=1)
        whole = whole[(whole["split"] == "train") | (whole["epoch"] == 2)]
        both = curves.stack_curves(steps, pd.concat([epochs, whole], ignore_index=True))
        axes = curves.draw_curves(both, ["valid_loss"], "noise").axes[0]
        found = {
            line.get_label(): line.get_xdata().tolist()
            for line in axes.lines if line.get_marker() == "o"
        }  # fmt: skip
        assert found == {"new": [1, 2], "preserve": [1, 2], "uninterrupted": [2]}


class TestResets:
    @pytest.fixture
    def summary(self) -> pd.DataFrame:
        """Runs whose differences to preserve are 0.01, 0.02 and 0.06 for each loss."""
        return pd.DataFrame(
            {"dataset": "d", "schedule": schedule, "boundary": boundary, "seed": seed,
             "final_valid_top1": top1, "final_valid_loss": 1 - top1}
            for schedule, used in (
                ("a", ["new", "late", "preserve", "other"]), ("b", ["preserve", "late"]),
                ("c", ["preserve"]),
            )
            for boundary in used
            for seed, cost in enumerate([0.01, 0.02, 0.06])
            for top1 in [0.5 + seed / 10 - cost * len(LOSSES.get(boundary, []))]
        )  # fmt: skip

    def find(self, axes, marker: str) -> list:
        return [line.get_ydata() for line in axes.lines if line.get_marker() == marker]

    def test_each_boundary_has_its_differences_to_the_one_that_keeps_all(self, summary):
        figure = resets.draw_resets(summary, LOSSES, "final_valid_top1")
        assert [axes.get_title("left") for axes in figure.axes] == ["a", "b"]
        axes = figure.axes[0]
        late, new = self.find(axes, "o")
        assert late == pytest.approx([-1, -2, -6])
        assert new == pytest.approx([-2, -4, -12])
        assert self.find(axes, "D") == [pytest.approx([m]) for m in (-3, -6, 0)]
        interval = stats.t.interval(0.95, 2, -3, stats.sem([1, 2, 6]))
        bars = [line.get_ydata() for line in axes.lines if line.get_linewidth() == 3]
        assert bars[0] == pytest.approx(interval)
        positions = resets.place_boundaries(LOSSES)
        xs = [line.get_xdata() for line in axes.lines if line.get_marker() == "D"]
        assert xs == [[positions[boundary]] for boundary in ("late", "new", "preserve")]
        assert figure.get_suptitle() == "d: ↓ preserve better"
        curves_look = style.get_look("late", ["a-boundary", *summary["boundary"]])
        with_more = pd.concat([summary, summary[:1].assign(boundary="a-boundary")])
        axes = resets.draw_resets(with_more, LOSSES, "final_valid_top1").axes[0]
        colours = {line.get_color() for line in axes.lines if line.get_marker() == "o"}
        assert colours == {curves_look["color"], style.get_look("new", [])["color"]}
        assert len(self.find(figure.axes[1], "o")) == 1

    def test_a_measure_of_a_session_is_drawn(self, tables, tmp_path, monkeypatch):
        drawn = []
        monkeypatch.setattr(resets, "draw_resets", lambda *given: drawn.append(given) or Figure())
        measure = "end_valid_loss_session2"
        of_noise = ["--dataset", "noise", "--measure", measure, "--losses", json.dumps(LOSSES)]
        run_command(resets, "--tables", tables, "--output", tmp_path, *of_noise)
        ((values, losses, column),) = drawn
        ends = pd.read_csv(tables / "boundaries.csv")
        assert values[column].tolist() == ends["end_valid_loss"].tolist()
        assert (losses, column) == (LOSSES, measure)

    def test_a_lower_loss_is_better(self, summary):
        figure = resets.draw_resets(summary, LOSSES, "final_valid_loss")
        assert self.find(figure.axes[0], "o")[0] == pytest.approx([0.01, 0.02, 0.06])
        assert figure.get_suptitle() == "d: ↑ preserve better"

    def test_the_line_passes_through_averages_of_equal_numbers(self, summary):
        losses = LOSSES | {"early": [2]}
        early = summary.query("boundary == 'late'").assign(boundary="early")
        early["final_valid_top1"] -= 0.04
        both = pd.concat([summary, early])
        axes = resets.draw_resets(both, losses, "final_valid_top1").axes[0]
        (trend,) = [line for line in axes.lines if line.get_linewidth() == 1.2]
        assert trend.get_ydata() == pytest.approx([0, (-3 - 7) / 2, -6])
        positions = resets.place_boundaries(losses)
        assert positions["early"] == positions["late"] - 1
        between = (positions["early"] + positions["late"]) / 2
        assert trend.get_xdata() == pytest.approx([0, between, positions["new"]])

    def test_a_diverged_pair_is_counted_and_left_out_of_the_mean(self, summary):
        of_late = (summary["boundary"] == "late") & (summary["seed"] == 2)
        summary.loc[of_late, "final_valid_loss"] = np.inf
        axes = resets.draw_resets(summary, LOSSES, "final_valid_loss").axes[0]
        assert self.find(axes, "D")[0] == pytest.approx([0.015])
        assert [text.get_text() for text in axes.texts] == ["1 of 3\ndiverged"]

    def test_the_axis_names_boundaries_and_their_losses(self, summary):
        axes = resets.draw_resets(summary, LOSSES, "final_valid_top1").axes[-1]
        labels = {label.get_text() for label in axes.get_xticklabels()}
        assert labels == {
            "preserve\nnever", "late\nbefore\nsession 3", "new\nbefore sessions\n2, 3"
        }  # fmt: skip
        numbers = [label.get_text() for label in axes.get_xticklabels(minor=True)]
        assert numbers == ["0", "1", "2"]
        assert axes.get_xlabel() == "number of losses of the state"

    def test_the_axis_is_to_scale_unless_it_is_too_long(self, summary):
        short = {"new": [2, 3, 4, 5, 6], "late": [6], "twice": [3, 5], "preserve": []}
        positions = resets.place_boundaries(short)
        assert [positions[b] / len(short[b]) for b in ("late", "twice", "new")] == pytest.approx(
            [1.4] * 3
        )
        long = LOSSES | {"new": list(range(2, 40))}
        positions = resets.place_boundaries(long)
        assert list(positions.values()) == pytest.approx([0, 1.4, 2.8])
        axes = resets.draw_resets(summary, long, "final_valid_top1").axes[-1]
        assert axes.get_xlabel() == "number of losses of the state (not to scale)"

    @pytest.mark.parametrize(
        ("sessions", "words"),
        [([], "never"), ([3], "before\nsession 3"), ([2, 3], "before sessions\n2, 3"),
         ([2, 3, 4, 5], "before sessions\n2 to 5"), ([2, 4, 6], "before sessions\n2, 4, 6"),
         ([2, 4, 6, 8, 10, 12], "before sessions\n2, 4, …, 12")],
    )  # fmt: skip
    def test_losses_in_words(self, sessions, words):
        assert resets.describe_losses(sessions) == words


@pytest.mark.parametrize(
    ("better", "title"),
    [("higher", "← new better · late better →"), ("lower", "← late better · new better →")],
)
def test_the_title_of_the_differences_names_the_better_side(better, title):
    assert differences.name_sides("late", "new", better) == title


def answer(pairs: list[float], measure: str = "final_valid_top1") -> str:
    """Return the answer for these differences, preserve minus new."""
    found = compare_all(make_pairs(pairs, measure=measure), measure=measure)
    config = {"boundaries": {"new": {"keep": []}, "preserve": {"keep": "all"}}}
    found = found.assign(primary=found["primary"] == "true")
    outcome = {"measure": measure, "boundary": "preserve", "baseline": "new"}
    ((sentence,),) = answers.list_answers(found, config, [outcome]).values()
    return sentence.replace("\N{MINUS SIGN}", "-")


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [
        ([0.01, 0.02, 0.03, 0.02, 0.01, 0.03],
         "6 seeds: keeping the optimizer's state is better than a new optimizer by 2.00 points "
         "[1.06, 2.94]."),
        ([-0.1, -0.2, -0.3, -0.2, -0.1, -0.3],
         "6 seeds: a new optimizer is better than keeping the optimizer's state by 20.0 points "
         "[10.6, 29.4]."),
        ([0.001, -0.001, 0.002] * 2,
         "6 seeds: equivalent within ±1 point. preserve - new: +0.07 points [-0.08, +0.21]."),
        ([0.0204], "1 seed: one pair cannot decide. preserve - new: +2.04 points."),
        ([0.0204, np.nan],
         "1 seed: one pair cannot decide. preserve - new: +2.04 points (1 of 2 pairs diverged)."),
        ([np.nan], "0 seeds: no pair (1 of 1 pairs diverged)."),
    ],
)  # fmt: skip
def test_the_answer_has_a_direction_a_size_and_an_interval(pairs, expected):
    assert answer(pairs) == f"s, final valid top-1, {expected}"


def test_the_answer_for_a_loss_has_no_points():
    expected = "1 seed: one pair cannot decide. preserve - new: -0.123 (lower is better)."
    assert answer([-0.123], "final_valid_loss") == f"s, final valid loss, {expected}"
    label = "valid loss at the end of session 2"
    assert answer([-0.123], "end_valid_loss_session2") == f"s, {label}, {expected}"


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ((0.0175, 0.0071, 0.0279), "+1.8 points [+0.7, +2.8]"),
        ((0.0063, 0.0006, 0.012), "+0.63 points [+0.06, +1.20]"),
        ((0.0175, 0.0001, 0.035), "+1.75 points [+0.01, +3.50]"),
        ((0.3, 0.1, 0.5), "+30 points [+10, +50]"),
    ],
)
def test_differences_are_rounded_to_their_noise(values, text):
    assert tables_of_analysis.format_interval(*values, tables_of_analysis.get_measure(TOP1)) == text


def test_verdicts_in_words():
    assert answer([0.01, 0.01]).startswith(
        "s, final valid top-1, 2 seeds: undecided: all 2 differences are equal"
    )
    assert "preserve - new: -" in answer([0.02, -0.05, 0.01])
    assert "; " not in answer([0.02, -0.05, np.nan])
    assert answer([0.02, -0.05, np.nan]).endswith("] (1 of 3 pairs diverged).")


def test_margins_are_listed_with_the_level_of_chance():
    primary = pd.DataFrame({"dataset": list("ddee"), "margin": [0.01, 0.02, 0.01, np.nan]})
    chances = dict.fromkeys("de", tables_of_analysis.Chance(0.1234, 0.2, 0.1234, 0.2))
    assert report.describe_margins(primary, chances) == [
        "d: ±1 point to ±2 points; chance is 12.3 %", "e: ±1 point; chance is 12.3 %"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("pairs", "cells"),
    [
        ([np.nan], ["0", "", ""]),
        ([0.02], ["1", "+2.00 points", 0.02]),
        ([0.02, 0.02], ["2", "+2.00 points", 0.02]),
        ([0.0, 0.01, 0.02], ["3", "+1.0 points [-1.5, +3.5]", 0.01]),
    ],
)
def test_differences_in_the_table_of_the_report(pairs, cells):
    found = compare_all(make_pairs(pairs)).assign(primary=True)
    (row,) = report.list_comparisons(found)
    assert row["difference"] == "preserve \N{MINUS SIGN} new"
    names = ["pairs", "mean [interval]", "value of mean [interval]"]
    assert [row[name] for name in names] == pytest.approx(cells)


def test_the_accuracy_of_every_method_is_listed():
    summary = pd.DataFrame(
        [("d", "one", 0.5126), ("d", "two", 0.25), ("d", "two", 0.3514)],
        columns=["dataset", "method", "final_valid_top1"],
    ).assign(final_valid_loss=[1.2345, 2, 3])
    chances = {"d": tables_of_analysis.Chance(0.1234, 0.2, 0.1234, 0.2)}
    top1, loss = "final valid top-1", "final valid loss"
    measures = ["train_loss_first_40_steps_session2", "final_valid_loss"]
    epochs = pd.DataFrame({"dataset": "d", "epoch": [1, 1], "top1": 0.9, "loss": 0.1})

    def list_rows(epochs):
        return [
            list(row.values()) for row in answers.list_levels(summary, epochs, chances, measures)
        ]

    rows = list_rows(epochs)
    assert rows == [
        ["d", "one", {top1: "51.3 %", loss: "1.23"}, "12.3 %"],
        ["d", "two", {top1: "30.1 % (25.0 to 35.1 %)", loss: "2.5 (2 to 3)"}, "12.3 %"],
    ]
    given = pd.DataFrame({"dataset": "d", "epoch": [0, 0], "top1": 0.2, "loss": [2, 2.5]})
    before = ["d", answers.GIVEN, {top1: "20.0 %", loss: "2.25 (2 to 2.5)"}, "12.3 %"]
    assert list_rows(pd.concat([given, epochs])) == [before, *rows]
    given["loss"] = [2, float("nan")]
    before[2][loss] = "2 (2 to 2)"  # not all are equal
    assert list_rows(given)[0] == before
    given["loss"] = [2, 2.5]
    measures.append("epochs_to_target")
    summary["epochs_to_target"] = 3
    (before, *_) = answers.list_levels(summary, given, chances, measures)
    text = answers.format_answers([], {}, [before], {})
    assert f"{answers.GIVEN}: valid top-1 20.0 %; valid loss 2.25 (2 to 2.5); chance" in text


def test_answers_are_in_the_order_of_the_outcomes():
    compared = [
        compare_all(make_pairs([0.01, 0.02, 0.03], measure=measure), measure=measure)
        for measure in ("final_valid_loss", "final_valid_top1")
    ]
    found = pd.concat(compared).assign(primary=True)
    outcomes = [
        {"measure": measure, "boundary": "preserve", "baseline": "new"}
        for measure in ("final_valid_top1", "final_valid_loss")
    ]
    for order in (outcomes, outcomes[::-1]):
        (sentences,) = answers.list_answers(found, {"boundaries": {}}, order).values()
        labels = [tables_of_analysis.label_measure(outcome["measure"]) for outcome in order]
        assert [label in text for label, text in zip(labels, sentences, strict=True)] == [True] * 2


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"keep": "all", "baseline": "new"}, "keeps the optimizer's state"),
        ({"keep": [], "at": [2, 4]}, "loses the optimizer's state (before sessions 2, 4 only)"),
        ({"keep": ["exp_avg_sq", "step"]}, "keeps only exp_avg_sq and step"),
        (
            {"keep": [], "lr_factor": 0.3, "warmup_steps": 20},
            "loses the optimizer's state, multiplies the session's learning rate by 0.3, lets the "
            "learning rate rise over 20 steps",
        ),
        ({"keep": [], "rebuild_steps": 9}, "loses the optimizer's state, fills it from 9 batches"),
        (
            {"keep": [], "step_size": "preserve"},
            "loses the optimizer's state, from then on gives every update the norm that it has "
            "with preserve",
        ),
        (
            {"keep": "all", "reshuffle": True},
            "keeps the optimizer's state, from then on orders the images differently",
        ),
    ],
)
def test_what_a_boundary_does_is_said_in_words(options, words):
    assert answers.describe_boundary(options) == words


def test_every_option_of_a_boundary_is_said_in_words():
    plain = answers.describe_boundary({"keep": []})
    for option in OPTIONS:
        assert answers.describe_boundary({"keep": [], option: 7}) != plain, option


OUTCOMES = [
    {"boundary": "preserve", "baseline": "new", "measure": "final_valid_top1"},
    {"boundary": "late", "baseline": "preserve", "measure": "final_valid_loss"},
]


class TestWarnings:
    """What keeps an experiment from an answer is said before any answer."""

    def list_warnings(self, pairs: list[float], verdict: str | None = None, **changes) -> list[str]:
        found = compare_all(make_pairs(pairs))
        found = found.assign(primary=found["primary"] == "true")
        if verdict:
            found["verdict"] = verdict
        summary = self.make_summary(len(pairs)).assign(**changes)
        return answers.list_warnings(summary, self.EPOCHS, found, self.CHANCES, OUTCOMES[:1], True)

    CHANCES: ClassVar = {"d": tables_of_analysis.Chance(0.1, 0.12, 0.1, 0.12)}
    EPOCHS: ClassVar = pd.DataFrame({"dataset": ["d"], "split": "valid", "images": 100})

    @staticmethod
    def make_summary(num_seeds: int, schedule: str = "s", top1: float = 0.5) -> pd.DataFrame:
        return pd.DataFrame(
            {"dataset": "d", "schedule": schedule, "method": f"{schedule}-new",
             "seed": range(num_seeds), "final_valid_top1": top1, "diverged": False}
        )  # fmt: skip

    def test_nothing_is_said_of_a_usual_experiment(self):
        assert self.list_warnings([0.01, 0.02, 0.03]) == []

    def test_one_seed_no_learning_no_difference_and_divergence_are_said(self):
        assert self.list_warnings([0.01])[0].startswith("One seed cannot decide")
        assert self.list_warnings([0.01, 0.02])[0].startswith("Two seeds rarely decide")
        (warning,) = self.list_warnings([0.01, 0.02, 0.03], final_valid_top1=0.12)
        assert warning == "d: no run beats chance, so nothing is compared."
        found = compare_all(
            pd.concat(make_pairs([0.01, 0.02, 0.03], schedule=s) for s in ("r", "s"))
        ).assign(primary=True)
        summary = pd.concat([self.make_summary(3, "r", top1=0.1), self.make_summary(3, "s")])
        (warning,) = answers.list_warnings(
            summary, self.EPOCHS, found, self.CHANCES, OUTCOMES[:1], True
        )
        assert warning == "d, r: no run beats chance, so nothing is compared."
        found = "no difference in any pair; 1 of 3 pairs diverged"
        (warning,) = self.list_warnings([0.0, 0.0, 0.0], found)
        assert "do not differ in any pair" in warning
        (warning,) = self.list_warnings([0.0, 0.0, 0.0])
        assert "preserve and new do not differ in any pair of runs in final valid top-1" in warning
        (warning,) = self.list_warnings([0.01, 0.02, 0.03], diverged=[True, False, False])
        assert warning == "1 of 3 runs diverged: a loss was not finite."

    def test_an_experiment_without_a_comparison_says_so(self, tables):
        summary = tables_of_analysis.read(tables / "summary.csv")
        none = tables_of_analysis.read(tables / "comparisons.csv").iloc[:0]
        chances = {
            dataset: tables_of_analysis.Chance(0.1, 0.12, 0.1, 0.12)
            for dataset in summary["dataset"]
        }
        for has_boundaries, words in (
            (False, "No session begins"),
            (True, "has the runs of the primary outcome preserve \N{MINUS SIGN} new in final"),
        ):
            (warning,) = answers.list_warnings(
                summary, self.EPOCHS, none, chances, OUTCOMES[:1], has_boundaries
            )
            assert words in warning
        one = self.make_summary(1, top1=0.1)
        warnings = answers.list_warnings(one, self.EPOCHS, none, self.CHANCES, OUTCOMES, False)
        assert [warning[:8] for warning in warnings] == ["No sessi", "d: no ru", "One seed"]

    def test_each_outcome_without_runs_is_named(self):
        found = compare_all(make_pairs([0.01, 0.02, 0.03])).assign(primary=True)
        summary = self.make_summary(3)
        (warning,) = answers.list_warnings(
            summary, self.EPOCHS, found, self.CHANCES, OUTCOMES, True
        )
        assert "late \N{MINUS SIGN} preserve in final valid loss" in warning

    def test_few_validation_images_produce_a_warning(self):
        found = compare_all(make_pairs([0.01, 0.02, 0.03])).assign(primary=True)
        epochs = pd.DataFrame(
            [("d", "train", 40), ("d", "valid", 99), ("e", "train", 40), ("e", "valid", 100)],
            columns=["dataset", "split", "images"],
        )
        (warning,) = answers.list_warnings(
            self.make_summary(3), epochs, found, self.CHANCES, OUTCOMES[:1], True
        )
        assert warning.startswith("d: with 99 validation images, each is worth 1.0 points")

    def test_they_are_above_the_answers_in_the_report(self, results):
        page = write_report(results, results / "report.html")
        for warning in ("1 of 6 runs diverged", "noise: with 50 validation images"):
            assert page.index(warning) < page.index('<div class="answer">')


@pytest.mark.parametrize(
    ("boundary", "words"),
    [("preserve", "keeping the optimizer's state"), ("new", "a new optimizer"), ("slow", "slow"),
     ("uninterrupted", "the uninterrupted run")],
)  # fmt: skip
def test_arms_are_named_by_what_they_do(boundary, words):
    boundaries = {
        "new": {"keep": []}, "preserve": {"keep": "all", "baseline": "new"},
        "slow": {"keep": [], "lr_factor": 0.3},
    }  # fmt: skip
    assert answers.name_arm(boundary, {"boundaries": boundaries}) == words


class TestPlan:
    def test_the_report_says_what_was_planned(self, results):
        page = write_report(results, results / "report.html")
        assert "Planned before the first run, on 2026-01-31 at commit <code>1a2b</code>" in page
        assert "Nothing was changed since." in page

    def test_the_report_says_what_was_changed(self, results):
        changes = {"seeds": [7], "equivalence_margin": 0.02}
        page = write_report(results, results / "report.html", changes=changes)
        assert "Changed since: equivalence_margin was 0.02, is 0.01; seeds was [7], is [0]." in page

    def test_every_setting_is_part_of_the_plan(self):
        plan = make_plan(load())
        for key, value, change in (
            ("model", "resnet18", 'model was "resnet50", is "resnet18"'),
            ("boundaries", {"new": {"keep": ["step"]}, "preserve": {"keep": "all"}},
             'boundaries.new.keep was [], is ["step"]'),
        ):  # fmt: skip
            assert report.find_changes(plan, make_plan(load() | {key: value})) == [change]
        unused = load() | {"boundaries": load()["boundaries"] | {"unused": {"keep": ["step"]}}}
        moved = unused | {"mirror": "/elsewhere", "keep_checkpoints": "none"}
        assert report.find_changes(plan, make_plan(moved)) == []

    def test_an_older_plan_lacks_some_settings(self, results):
        page = write_report(results, results / "report.html", left_out=["settings"])
        assert "and seeds were not changed since. This plan is of an older version" in page
        assert "Nothing was changed" not in page

    def test_a_late_plan_is_called_late(self, results):
        page = write_report(results, results / "report.html", late=3)
        assert "The plan was written when 3 sessions had already finished" in page
        assert "before the first run" not in page


class TestValidity:
    @pytest.mark.parametrize(
        ("optimizer", "momentum", "memory"),
        [({"name": "Adam"}, 0.9, 1000), ({"name": "AdamW", "betas": [0.9, 0.95]}, 0.9, 20),
         ({"name": "SGD", "momentum": 0.9}, 0.95, 20), ({"name": "SGD"}, np.nan, None),
         ({"name": "RMSprop"}, np.nan, 100), ({"name": "Adagrad"}, np.nan, None),
         ({"name": "Adam", "amsgrad": True}, 0.9, None)],
    )  # fmt: skip
    def test_the_memory_of_an_optimizer(self, optimizer, momentum, memory):
        found = validity.compute_memory(optimizer, momentum)
        assert found == (None if memory is None else pytest.approx(memory))

    def test_a_row_for_each_schedule(self, tables):
        read = {n: tables_of_analysis.read(tables / f"{n}.csv") for n in ("steps", "epochs")}
        outcome = {"boundary": "preserve", "baseline": "new"}
        chances = {"noise": tables_of_analysis.Chance(0.5, 0.51, 0.5, 0.51)}
        config = load() | {
            "schedules": {"constant": {}, "onecycle": {"optimizer": {"name": "SGD"}}}
        }
        constant, onecycle = validity.describe_validity(
            config, read["steps"], read["epochs"], chances, "preserve", outcome
        )
        assert constant == {
            "dataset": "noise", "schedule": "constant", "memory": "1,000 steps (Adam)",
            "session_steps": "50, 50", "train_top1": "50 %",
            "above_chance": "+1.0 points", "spikes": "200.0 in 1,000 steps",
            "gap": "+2.0 points, re-estimated +0.0",
            "remarks": "no session after a boundary is as long as the optimizer's memory",
        }  # fmt: skip
        assert (onecycle["memory"], onecycle["remarks"]) == ("10 steps (SGD)", "none")

    def test_defaults_are_those_of_torch(self):
        for name, (key, default) in validity.DECAYS.items():
            optimizer = getattr(torch.optim, name)([torch.zeros(1)], lr=0.1)
            assert optimizer.defaults[key] == default

    def describe(self, state: str | None = None, **columns: list) -> dict[str, str]:
        """Return the row of two methods with two sessions, and of an uninterrupted one."""
        ends = [
            ("preserve", 1, 0.9876), ("preserve", 2, 0.8), ("new", 1, 0.9864), ("new", 2, 0.7),
            ("uninterrupted", 1, 0.123),
        ]  # fmt: skip
        epochs = pd.DataFrame(
            {"boundary": boundary, "session": session, "split": split,
             "top1": top1 if split == "train" else top1 / 2}
            for boundary, session, top1 in ends for split in ("train", "valid")
        )  # fmt: skip
        epochs = epochs.assign(**columns)
        steps = pd.DataFrame(
            {"boundary": boundary, "session": session, "loss": 1.0, "momentum": 0.9}
            for boundary, lengths in (("uninterrupted", [50]), ("preserve", [30, 20]))
            for session, length in enumerate(lengths, 1) for _ in range(length)
        )  # fmt: skip
        both = [
            table.assign(dataset="d", schedule="s", method="s-" + table["boundary"], seed=0)
            for table in (steps, epochs)
        ]
        config = load() | {"schedules": {"s": {}}, "optimizer_state": state}
        chances = {"d": tables_of_analysis.Chance(0.1, 0.11, 0.1, 0.11)}
        outcome = {"boundary": "preserve", "baseline": "new"}
        (row,) = validity.describe_validity(config, *both, chances, "preserve", outcome)
        return row

    def test_accuracies_and_steps_are_those_of_interrupted_runs(self):
        row = self.describe()
        assert row["session_steps"] == "30, 20"
        assert row["train_top1"] == "99 %"
        assert row["above_chance"] == "+27.5 points"  # the mean of 40 and 35 is 37.5
        assert row["gap"] == "no batch norm"
        assert row["spikes"] == "too few steps"
        given = self.describe("mine.pt")
        assert given["train_top1"] == "not measured (given weights), 99 %"

    @pytest.mark.parametrize("is_missing", [False, True])
    def test_the_gap_with_and_without_statistics_that_lag_behind(self, is_missing):
        reestimated = [np.nan, 0.2, np.nan, 0.516, np.nan, 0.3, np.nan, 0.5, np.nan, 0.3]
        values = [np.nan] * 10 if is_missing else reestimated
        gap = self.describe(reestimated_top1=values)["gap"]
        assert gap == ("no batch norm" if is_missing else "+5.0 points, re-estimated +1.6")

    def test_an_outcome_without_its_runs_has_no_gap(self):
        epochs = pd.DataFrame({"boundary": ["new"], "seed": 0, "split": "valid", "top1": 0.5})
        outcome = {"boundary": "preserve", "baseline": "new"}
        assert validity.describe_gap(epochs, outcome) == "not compared"
        assert validity.describe_spikes(pd.DataFrame()) == "no such run"

    def test_steps_of_an_experiment_of_uninterrupted_runs_only(self):
        steps = pd.DataFrame({"boundary": "uninterrupted", "method": "m", "seed": [0, 1, 1]})
        assert validity.count_session_steps(steps.assign(session=1)) == [1]

    def test_long_lists_are_shortened(self):
        assert validity.join_shortened([*"abcdef"]) == "a, b, c, d, e, f"
        assert validity.join_shortened([*"abcdefg"]) == "a, b, c, …, e, f, g"

    def test_remarks(self):
        assert validity.list_remarks(100, [99], [0.98]) == [
            "no session after a boundary is as long as the optimizer's memory"
        ]
        assert validity.list_remarks(100, [100], [0.5, 0.99]) == [
            "the training images were memorized before a boundary"
        ]
        assert validity.list_remarks(None, [1], []) == []
        assert validity.list_remarks(100, [], []) == []

    def test_spikes_are_far_above_the_steps_before(self):
        loss = np.tile([1.0, 1.1, 0.9, 1.05], 30)
        assert validity.count_spikes(loss) == 0
        loss[[70, 90]] = 9.0
        loss[95] = 1.2
        assert validity.count_spikes(loss) == 2
        assert validity.count_spikes(loss[:50]) == 0
        steps = pd.DataFrame({"loss": loss, "seed": 0})
        assert validity.describe_spikes(steps) == "28.6 in 1,000 steps"  # 2 of the last 70
        assert validity.describe_spikes(steps[:50]) == "too few steps"


class TestCaptions:
    """Captions are true for every configuration."""

    def render(self, name: str, **config: object) -> str:
        html = report.render_text(ROOT / f"workflow/report/{name}.rst", load() | config)
        return " ".join(html.split())

    @pytest.mark.parametrize("applies", [False, True])
    def test_captions_explain_only_what_the_experiment_has(self, applies):
        boundaries = {"new": {"keep": []}, "again": {"keep": [], "reshuffle": applies}}
        measure = "final_valid_top1" if applies else "final_valid_loss"
        primary = {"measure": measure, "boundary": "again"}
        text = self.render("differences", boundaries=boundaries, primary=primary, seeds=[0, 1])
        assert ("grey margin" in text) is applies
        assert ("a boundary with <em>reshuffle</em>" in text) is applies
        again = {"keep": [], "reshuffle": True, "baseline": "new"}
        assert "reshuffle" not in self.render("differences", boundaries={"again": again})
        methods = ["constant-new", "constant-uninterrupted" if applies else "constant-preserve"]
        assert (
            "An <em>uninterrupted</em> run" in self.render("workflow", methods=methods)
        ) is applies

    @pytest.mark.parametrize("every", [1, 4])
    def test_captions_say_which_epochs_are_validated(self, every):
        curves = self.render("curves", validate_every=every)
        assert ("one point per epoch." in curves) is (every == 1)
        assert ("one point for every 4 epochs, and one at the end of each" in curves) is (
            every == 4
        )
        target = self.render("epochs_to_target", validate_every=every)
        assert ("only every 4 epochs and at the end of each session" in target) is (every == 4)
        given = self.render("curves", validate_every=every, weights="mine.pt")
        assert ("given weights" in curves, "given weights" in given) == (False, True)

    @pytest.mark.parametrize("twin", [{}, {"step_size": "preserve"}])
    def test_norms_at_every_step_are_explained_where_they_are(self, twin):
        text = self.render("boundary_update_norm", boundaries={"new": {"keep": []} | twin})
        assert ("have it at every step" in text) is bool(twin)
