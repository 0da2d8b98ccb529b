"""The whole pipeline on tiny images: its outputs, what is up to date afterwards, and bad input."""

import csv
import json
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn

from conftest import (
    TINY,
    Project,
    count_jobs,
    file_sha256,
    write_archived_images,
    write_tar,
)
from optstate.analysis import tables
from optstate.checksums import verify

METHODS = ["constant-new", "constant-preserve", "onecycle-new", "onecycle-preserve"]


def read(path: Path) -> list[dict]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def results(finished) -> Path:
    return finished.folder / "results" / "tiny"


class TestResults:
    def test_all_files_are_written(self, finished, results):
        for path in (
            *[
                f"tables/{name}.csv"
                for name in "steps epochs summary boundaries pairs comparisons".split()
            ],
            *[
                f"figures/noise/{name}.{suffix}"
                for name in (
                    *("train_loss", "train_accuracy", "valid_loss", "valid_accuracy", "overview"),
                    *("boundary_loss", "boundary_update_norm", "differences"),
                )
                for suffix in ("png", "svg")
            ],
            *[f"figures/learning_rate.{suffix}" for suffix in ("png", "svg")],
            "report.html",
            *[
                f"runs/noise/{run}/{name}"
                for run in (
                    *[f"{s}/seed0/session1" for s in ("constant", "onecycle")],
                    *[f"{method}/seed0/session{n}" for method in METHODS for n in (2, 3)],
                )
                for name in ("checkpoint.pt", "steps.csv", "epochs.csv", "made_by.json")
            ],
        ):
            assert (results / path).stat().st_size > 0, path
        assert not [p for p in (results / "in_progress").rglob("*") if p.is_file()]
        logs = finished.folder / "logs" / "tiny"
        assert "epoch 4/4" in (logs / "train/noise/onecycle-new/seed0-session3.log").read_text()

    def test_the_first_step_after_the_fork_is_equal_to_the_bit(self, results):
        for schedule in ("constant", "onecycle"):
            first = [
                read(results / f"runs/noise/{schedule}-{boundary}/seed0/session2/steps.csv")[0]
                for boundary in ("new", "preserve")
            ]
            for column in ("step", "loss", "top1", "lr", "momentum", "grad_norm"):
                assert first[0][column] == first[1][column] != ""
            assert first[0]["update_norm"] != first[1]["update_norm"]

    def test_learning_rates_equal_those_of_pytorch(self, results):
        expected = []
        for num_steps, initial_lr, max_lr in ((10, 4e-5, 1e-3), (5, 2e-5, 5e-4), (5, 5e-6, 1e-4)):
            optimizer = torch.optim.Adam([nn.Parameter(torch.ones(1))])
            scheduler = torch.optim.lr_scheduler.OneCycleLR(
                optimizer, max_lr, total_steps=num_steps, div_factor=max_lr / initial_lr
            )
            for _ in range(num_steps):
                expected.append((optimizer.param_groups[0]["lr"],
                                 optimizer.param_groups[0]["betas"][0]))  # fmt: skip
                optimizer.step()
                scheduler.step()
        assert [expected[i][0] for i in (0, 10, 15)] == pytest.approx([4e-5, 2e-5, 5e-6])
        constant = [(lr, 0.9) for lr, n in ((1e-3, 10), (5e-4, 5), (3e-4, 5)) for _ in range(n)]
        for row_set in self.read_steps(results).values():
            used = [(float(row["lr"]), float(row["momentum"])) for row in row_set]
            schedule = row_set[0]["schedule"]
            assert used == (expected if schedule == "onecycle" else constant)

    def read_steps(self, results) -> dict[str, list[dict]]:
        rows = read(results / "tables/steps.csv")
        return {method: [r for r in rows if r["method"] == method] for method in METHODS}

    def test_tables_have_all_steps_methods_and_measures(self, results):
        for rows in self.read_steps(results).values():
            assert [int(row["step"]) for row in rows] == list(range(1, 21))
            assert [int(row["session"]) for row in rows] == [1] * 10 + [2] * 5 + [3] * 5
        assert [row["method"] for row in read(results / "tables/summary.csv")] == METHODS
        comparisons = read(results / "tables/comparisons.csv")
        of_runs = {
            f"{which}_valid_{what}" for which in ("final", "best") for what in ("top1", "loss")
        } | {"final_valid_balanced_top1"}
        of_boundaries = {
            f"{name}_session{session}"
            for name in tables.OF_BOUNDARIES.keys() - {"recovery_steps"}
            for session in (2, 3)
        }  # fmt: skip - sessions are too short for the other one
        assert {row["measure"] for row in comparisons} == of_runs | of_boundaries
        assert len(comparisons) == 2 * (len(of_runs) + len(of_boundaries))

    def test_every_run_has_tensorboard_files(self, results):
        for method in METHODS:
            files = list((results / f"tensorboard/noise/{method}/seed0").iterdir())
            assert len(files) == 1

    def test_the_splits_are_disjoint_and_have_the_same_classes(self, finished):
        (card,) = finished.folder.glob("results/datasets/noise/*/32px/dataset.json")
        content = json.loads(card.read_text())
        assert content["duplicates"] == {"train": [], "valid": [], "across_splits": []}
        assert [c["name"] for c in content["classes"]] == ["ant", "bee", "cat"]
        assert all(c["train"] == c["valid"] == 6 for c in content["classes"])

    def test_the_report_is_one_file(self, results):
        page = (results / "report.html").read_text()
        assert page.count('src="data:image/png;base64,') == 7 + 2
        assert 'src="http' not in page
        assert 'href="http' not in page
        assert "constant-preserve" in page

    def test_params_do_not_contain_the_path_of_the_project(self, finished):
        metadata = finished.folder.glob(".snakemake/metadata/**/*")
        params = str([json.loads(p.read_text())["params"] for p in metadata if p.is_file()])
        assert "batch_size" in params
        assert str(finished.folder) not in params


def test_a_changed_image_is_prepared_again(tmp_path, project, images):
    project.run("--until", "prepare")
    assert "prepare" not in count_jobs(project)
    shutil.copy(images / "train/ant/0.png", images / "train/ant/1.png")
    assert count_jobs(project)["prepare"] == 1


def test_other_validation_images_are_prepared_in_another_folder(project, images):
    shutil.rmtree(images / "val")
    for choice in ("valid_fraction: 0.5", "valid_fraction: 0.5, valid_seed: 1"):
        project.configure(TINY.format(source=f"folder: {images}, {choice}"))
        project.run("--until", "prepare")
    assert "prepare" not in count_jobs(project)
    cards = project.folder.glob("results/datasets/noise/*/*/dataset.json")
    split_of = {card.parent.name: json.loads(card.read_text())["split"] for card in cards}
    assert split_of == {
        "32px-valid0.5": {"valid_fraction": 0.5, "valid_seed": None},
        "32px-valid0.5-seed1": {"valid_fraction": 0.5, "valid_seed": 1},
    }


@pytest.mark.parametrize("keep", [pytest.param("last", marks=pytest.mark.exhaustive), "none"])
def test_removing_checkpoints_changes_no_table(tested, tmp_path, keep):
    """Sessions still fork from the checkpoints, and a second run has nothing to do."""
    project = Project(tmp_path / "project")
    project.configure((tested.folder / "tiny.yaml").read_text() + f"keep_checkpoints: {keep}\n")
    project.run("--until", "collect")
    last = [f"noise/constant-{boundary}/seed0/session2" for boundary in ("new", "preserve")]
    assert list_checkpoints(tested) == [*last, "noise/constant/seed0/session1"]
    assert list_checkpoints(project) == {"last": last, "none": []}[keep]
    assert count_jobs(project, "--until", "collect") == {}
    tables = [p.folder / "results/tiny/tables/steps.csv" for p in (tested, project)]
    assert tables[0].read_bytes() == tables[1].read_bytes()
    # Another method needs a checkpoint that was removed.
    added = ("--config", 'methods=["constant-new", "constant-preserve", "constant-cold"]',
             'boundaries={"cold": {"keep": [], "lr_factor": 0.5}}')  # fmt: skip
    path = "results/tiny/runs/noise/constant/seed0/session1/checkpoint.pt"
    everything = {"first_session": 1, "last_session": 3, "collect": 1}
    assert count_jobs(project, *added, "--until", "collect") == everything
    project.run("--config", "keep_checkpoints=all", "--", path)
    assert count_jobs(project, *added, "--until", "collect") == {"last_session": 1, "collect": 1}


def list_checkpoints(project: Project) -> list[str]:
    runs = project.folder / "results/tiny/runs"
    return sorted(p.parent.relative_to(runs).as_posix() for p in runs.rglob("checkpoint.pt"))


def test_an_experiment_with_archive_mirror_weights_and_several_optimizers(tmp_path, images):
    """Test the sources and keys that the tiny experiment does not use, in one run."""
    project = Project(tmp_path / "project")
    archive = write_tar(images, tmp_path / "images.tgz")
    weights = torchvision.models.shufflenet_v2_x0_5(num_classes=7).state_dict()
    torch.save({"model": weights}, project.folder / "weights.pt")
    digest = file_sha256(archive)
    (tmp_path / "mirror").mkdir()
    shutil.move(archive, tmp_path / "mirror" / "images.tgz")
    project.configure(f"""
experiment: other
datasets:
  imagenette: null
  imagewoof: null
  noise: {{archive: "https://example.org/images.tgz", sha256: {digest}}}
mirror: {tmp_path / "mirror"}
image_size: 32
train_per_class: 5
valid_per_class: 2
model: shufflenet_v2_x0_5
weights: weights.pt
batch_size: 7
augment: crop_flip
optimizer: {{name: SGD, momentum: 0.9}}
sessions: [1, 1]
schedules:
  onecycle: null
  constant: {{lr: [1e-2, 1e-3]}}
  adam: {{kind: constant, lr: [1e-3, 1e-3], optimizer: {{name: AdamW, weight_decay: 0.01}}}}
boundaries: {{part: {{keep: [exp_avg_sq]}}}}
methods: [constant-new, constant-preserve, adam-new, adam-part]
seeds: [0, 1]
device: cpu
""")
    project.run("--until", "compare")
    results = project.folder / "results/other"
    rows = read(results / "tables/comparisons.csv")
    comparisons = [row for row in rows if row["measure"].startswith("final_")]
    assert {(r["schedule"], r["boundary"], r["n"]) for r in comparisons} == {
        ("constant", "preserve", "2"), ("adam", "part", "2"),
    }  # fmt: skip
    assert all(row["n"] == "2" for row in comparisons)
    epochs = read(results / "tables/epochs.csv")
    assert {(r["split"], r["images"]) for r in epochs} == {("train", "14"), ("valid", "6")}
    log = (project.folder / "logs/other/train/noise/adam/seed0-session1.log").read_text()
    assert "classes: fc.bias, fc.weight" in log
    assert "a single image" in log
    saved = torch.load(results / "runs/noise/adam-part/seed1/session2/checkpoint.pt",
                       weights_only=True)  # fmt: skip
    assert saved["optimizer"]["state"][0]["step"] == 2  # the optimizer is new in this session

    # A missing archive is fetched again only if a job needs it.
    next(project.folder.glob("results/datasets/noise/*/archive")).unlink()
    assert count_jobs(project, "--until", "compare") == {}
    stale = count_jobs(project, "--config", "image_size=40")
    assert {"fetch", "prepare", "first_session", "last_session", "collect"} <= stale.keys()


def assert_error_is_repeated(result: subprocess.CompletedProcess, words: str) -> None:
    """Check that the error of a failed job is repeated after Snakemake's output."""
    assert "Traceback" not in result.stderr
    assert any(words in line for line in result.stderr.strip().splitlines()[-6:])


class TestBadInput:
    """Bad input produces a one-line error and no output."""

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ("bach_size=3", "unknown key `bach_size`. Did you mean `batch_size`?"),
            ("optimizer={name: Adan}", "'Adan' is not a class of torch.optim. Did you mean `Adam`"),
            ("sessions=[1, 1]", "3 values, but there are 2 `sessions`"),
            *[
                pytest.param(*case, marks=pytest.mark.exhaustive)
                for case in (
                    ("model=resnet19", "model: 'resnet19' is not a torchvision"),
                    ("methods=[constant-keep]", "`boundaries` has no 'keep'"),
                    ("device=gpu", 'device: "gpu" must be one of auto, cpu, cuda'),
                )
            ],
        ],
    )
    def test_an_invalid_configuration(self, project, change, words):
        line = project.fail_dry_run("--config", change)
        assert line.startswith("configuration: ")
        assert words in line

    def test_an_image_that_does_not_decode(self, project, images):
        (images / "val/bee/0.png").write_text("no image")
        result = project.snakemake()
        assert result.returncode != 0
        assert_error_is_repeated(result, "val/bee/0.png: does not decode as an image")
        left = [path for path in (project.folder / "results").rglob("*") if path.is_file()]
        assert left == []

    def test_a_wrong_checksum(self, project, images, tmp_path):
        archive = write_tar(images, tmp_path / "images.tgz")
        (project.folder / "tiny.yaml").write_text(
            (project.folder / "tiny.yaml")
            .read_text()
            .replace(f"{{folder: {images}}}", f"{{archive: {archive}, sha256: '{'0' * 64}'}}")
        )
        result = project.snakemake()
        assert result.returncode != 0
        assert_error_is_repeated(result, "images.tgz: its SHA-256 is")
        assert not [path for path in (project.folder / "results").rglob("*") if path.is_file()]


class TestEveryKindOfBoundary:
    """One experiment with every option of a boundary."""

    METHODS = (
        "constant-new", "constant-preserve", "constant-preserve-again", "constant-slow",
        "constant-uninterrupted", "sgd-new", "sgd-preserve",
    )  # fmt: skip

    @pytest.fixture(scope="class")
    @classmethod
    def arms(cls, tmp_path_factory) -> Path:
        root = tmp_path_factory.mktemp("arms")
        project = Project(root / "project")
        arms = f"""
sessions: [2, 1]
schedules:
  onecycle: null
  constant: {{kind: constant, lr: [1.0e-3, 5.0e-4]}}
  sgd:
    {{kind: warmup, lr: [0.1, 0.1], warmup_steps: [4, 2], optimizer: {{name: SGD, momentum: 0.9}}}}
boundaries:
  preserve-again: {{keep: all, reshuffle: true}}
  slow: {{keep: [], warmup_steps: 4}}
methods: [{", ".join(cls.METHODS)}]
device: cpu
"""
        usual = TINY.format(source=write_archived_images(root / "noise") + ", target_top1: 0.2")
        project.configure(usual.partition("sessions:")[0] + arms)
        project.run()
        assert count_jobs(project) == {}
        return project.folder / "results/tiny"

    def read_steps(self, arms, run: str) -> list[dict]:
        return read(arms / f"runs/noise/{run}/steps.csv")

    def test_each_run_has_its_sessions(self, arms):
        for method in self.METHODS:
            folders = sorted(p.name for p in (arms / f"runs/noise/{method}/seed0").iterdir())
            assert folders == ["session1" if "uninterrupted" in method else "session2"]
        rows = read(arms / "tables/epochs.csv")
        for method in self.METHODS:
            epochs = [r["epoch"] for r in rows if r["method"] == method and r["split"] == "valid"]
            assert epochs == ["1", "2", "3"]

    def test_only_a_reshuffled_run_has_other_batches(self, arms):
        names = ("new", "preserve", "slow", "preserve-again")
        first = [self.read_steps(arms, f"constant-{name}/seed0/session2")[0] for name in names]
        assert len({row["loss"] for row in first[:3]}) == 1
        assert first[3]["loss"] != first[0]["loss"]

    def test_the_lr_warms_up_after_the_boundary(self, arms):
        used = [float(r["lr"]) for r in self.read_steps(arms, "constant-slow/seed0/session2")]
        assert used == pytest.approx([5e-4 * share for share in (0.25, 0.5, 0.75, 1, 1)])
        used = [float(r["lr"]) for r in self.read_steps(arms, "sgd/seed0/session1")]
        assert used == pytest.approx([0.025, 0.05, 0.075] + [0.1] * 7)

    def test_each_boundary_is_compared_with_its_baseline(self, arms):
        rows = read(arms / "tables/comparisons.csv")
        top1 = {(r["schedule"], r["boundary"], r["baseline"]) for r in rows
                if r["measure"] == "epochs_to_target"}  # fmt: skip
        assert top1 == {
            ("constant", "preserve", "new"), ("constant", "preserve-again", "preserve"),
            ("constant", "slow", "new"), ("constant", "uninterrupted", "new"),
            ("sgd", "preserve", "new"),
        }  # fmt: skip

    def test_figures_are_drawn(self, arms):
        for name in ("noise/differences", "epochs_to_target", "noise/overview_uninterrupted"):
            assert (arms / f"figures/{name}.png").stat().st_size > 10_000


@pytest.fixture(scope="module")
def tested(tmp_path_factory) -> Project:
    """A project whose LR range test was run, then its experiment. Tests must leave it so."""
    root = tmp_path_factory.mktemp("tested")
    project = Project(root / "project")
    source = write_archived_images(root / "noise")
    project.configure(
        TINY.format(source=source).replace("[2, 1, 1]", "[1, 1]")
        # Small LRs keep the loss far from zero. The noise of a small loss looks like divergence.
        .replace("[1.0e-3, 5.0e-4, 3.0e-4]", "[1.0e-6, 1.0e-6]")
        .replace(", 5.0e-6]", "]").replace(", 1.0e-4]", "]")
        + "methods: [constant-new, constant-preserve]\n"
    )  # fmt: skip
    printed = project.run("--", "lr_range_test")
    (project.folder / "printed.txt").write_text(printed)
    jobs = count_jobs(project)
    assert "first_session" not in jobs
    assert jobs["last_session"] == 2
    project.run()
    return project


class TestLRRangeTest:
    FOLDER = "results/tiny/lr_range_test"

    def test_it_writes_curves_and_says_where(self, tested):
        folder = tested.folder / self.FOLDER / "noise"
        for number in (1, 2):
            rows = read(folder / f"constant-session{number}.csv")
            rates = [float(row["lr"]) for row in rows]
            assert rates == sorted(rates)
            assert (rates[0], len(rows) >= 20) == (pytest.approx(1e-7), True)
            suggested = [float(row["lr"]) for row in rows if row["suggested"] == "true"]
            log = tested.folder / f"logs/tiny/lr_range_test/noise/constant-session{number}.log"
            words = f"{suggested[0]:.2g}" if suggested else "none: the loss does not descend"
            assert f"suggested LR {words}; configured: lr 1e-06" in log.read_text()
            assert (folder / f"constant-session{number}.png").stat().st_size > 10_000
            verify(folder / f"constant-session{number}.csv")
        printed = (tested.folder / "printed.txt").read_text().splitlines()
        assert f"LR range test: {self.FOLDER}" in printed
        assert not [line for line in printed if line.startswith("Report: ")]

    def test_the_report_shows_the_curves_and_is_up_to_date(self, tested):
        page = (tested.folder / "results/tiny/report.html").read_text()
        for number in (1, 2):
            assert f'alt="noise, constant: loss before session {number}' in page
        assert count_jobs(tested) == {}

    def test_outdated_curves_are_not_made_again_for_the_report(self, tested):
        source = tested.folder / "workflow/scripts/optstate/lr_range_test.py"
        before = source.read_text()
        source.write_text(f"{before}# more\n")
        jobs, wanted = count_jobs(tested), count_jobs(tested, "--", "lr_range_test")
        source.write_text(before)
        assert (jobs, wanted) == ({}, {"lr_range": 2, "lr_range_test": 1})

    def test_a_report_without_curves_needs_none(self, tested):
        folder = tested.folder / self.FOLDER
        folder.rename(folder.with_name("moved"))
        jobs = count_jobs(tested)
        folder.with_name("moved").rename(folder)
        assert jobs == {"report": 1}

    def test_curves_of_other_settings_are_not_made_for_the_report(self, tested):
        jobs = count_jobs(tested, "--config", "batch_size=3")
        assert (jobs["report"], "lr_range" in jobs) == (1, False)

    def test_an_altered_curve_is_refused(self, tested):
        figure = tested.folder / self.FOLDER / "noise/constant-session1.png"
        before = figure.read_bytes()
        figure.write_bytes(before[:-1])
        result = tested.snakemake("--dry-run")
        figure.write_bytes(before)
        assert result.returncode != 0
        assert "constant-session1.png: changed since it was made. Delete it" in result.stderr


class TestPlan:
    def test_it_is_written_before_the_first_session(self, finished):
        results = finished.folder / "results/tiny"
        plan = json.loads((results / "plan.json").read_text())
        assert plan["finished_sessions"] == 0
        assert plan["plan"]["methods"] == METHODS
        assert plan["plan"]["primary"] == [
            {"boundary": "preserve", "baseline": "new", "measure": "final_valid_top1"}
        ]
        first = results / "runs/noise/constant/seed0/session1/steps.csv"
        assert (results / "plan.json").stat().st_mtime_ns < first.stat().st_mtime_ns
        assert "Planned before the first run" in (results / "report.html").read_text()

    def test_a_lost_plan_is_made_anew_and_trains_nothing(self, finished, tmp_path):
        project = Project(tmp_path / "project", finished)
        plan = project.folder / "results/tiny/plan.json"
        plan.unlink()
        assert count_jobs(project) == {}
        project.run("--forcerun", "report")
        assert json.loads(plan.read_text())["finished_sessions"] == 10
        page = (project.folder / "results/tiny/report.html").read_text()
        assert "The plan was written when 10 sessions had already finished" in page
