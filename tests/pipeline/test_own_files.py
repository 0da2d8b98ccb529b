"""An experiment with a model, weights and an optimizer state of one's own."""

import os
import re

import pytest
import torch
from test_boundary_keys import read

from conftest import TINY, Project, count_jobs, write_images
from optstate.analysis.answers import GIVEN
from optstate.training.model import make_model

pytestmark = pytest.mark.xdist_group("own")  # the tests share an experiment
MODEL = """
from torch import nn

print("this model has one convolution")


def make(num_classes, image_size):
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, 2), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(4, num_classes),
    )
"""
CONFIG = """
experiment: tiny
datasets: {{imagenette: null, imagewoof: null, noise: {{folder: {images}}}}}
image_size: 32
train_per_class: 4
subset: seed
model: net.py:make
weights: mine.pt
optimizer_state: mine.pt
normalize: {{mean: [0.5, 0.5, 0.5], std: [0.2, 0.2, 0.2]}}
batch_size: 4
sessions: [1, 1]
schedules: {{constant: {{lr: [1.0e-2, 1.0e-3]}}, onecycle: null}}
boundaries: {{once: {{keep: [], at: [1]}}}}
methods: [constant-new, constant-once, constant-preserve, constant-uninterrupted]
device: cpu
"""
FOUR_RUNS = {"first_session": 2, "uninterrupted_run": 1, "last_session": 3}


def save_checkpoint(project: Project) -> None:
    """Save a model and its optimizer, as a training loop of one's own would."""
    model = make_model(f"{project.folder}/net.py:make", 32, 3)
    optimizer = torch.optim.Adam(model.parameters())
    for _ in range(3):
        model(torch.randn(4, 3, 32, 32)).square().sum().backward()
        optimizer.step()
    state = {f"module.{key}": value for key, value in model.state_dict().items()}
    content = {"model_state_dict": state, "optimizer_state_dict": optimizer.state_dict()}
    torch.save(content, project.folder / "mine.pt")


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Project:
    root = tmp_path_factory.mktemp("own")
    made = Project(root / "project")
    (made.folder / "net.py").write_text(MODEL)
    save_checkpoint(made)
    made.configure(CONFIG.format(images=write_images(root / "images")))
    made.run()
    return made


def test_every_run_begins_with_a_boundary(project):
    runs = project.folder / "results/tiny/runs/noise"
    assert sorted(str(p.parent.relative_to(runs)) for p in runs.glob("*/seed0/*/steps.csv")) == [
        "constant-new/seed0/session1",
        "constant-new/seed0/session2",
        "constant-once/seed0/session2",
        "constant-preserve/seed0/session1",
        "constant-preserve/seed0/session2",
        "constant-uninterrupted/seed0/session1",
    ]
    tables = project.folder / "results/tiny/tables"
    steps = {(row["method"], int(row["step"])): row for row in read(tables / "steps.csv")}
    for step in range(1, 7):
        new, kept, once, uninterrupted = (
            steps[f"constant-{name}", step]["loss"]
            for name in ("new", "preserve", "once", "uninterrupted")
        )
        assert (new == kept) is (step == 1)
        assert (new == once) is (step <= 4)
        assert (kept == uninterrupted) is (step <= 4)  # afterwards its LR does not change
    rows = read(tables / "boundaries.csv")
    assert [(row["boundary"], row["session"]) for row in rows] == [
        (boundary, session) for boundary in ("new", "once", "preserve") for session in "12"
    ]
    assert (project.folder / "results/tiny/figures/noise/boundary_loss.png").exists()


def test_the_given_weights_are_shown_next_to_the_methods(project):
    results = project.folder / "results/tiny"
    given = [row for row in read(results / "tables/epochs.csv") if row["epoch"] == "0"]
    assert [row["method"] for row in given] == [
        f"constant-{name}" for name in ("new", "once", "preserve", "uninterrupted")
    ]
    assert len({row["loss"] for row in given}) == 1
    value = f"valid top-1 {100 * float(given[0]['top1']):.1f} %"
    assert f"\nnoise, {GIVEN}: {value}; chance" in (results / "answer.txt").read_text()
    assert f"<tr><td>{GIVEN}</td>" in (results / "report.html").read_text()


def test_the_lr_range_test_starts_from_the_weights(project):
    project.run("--", "lr_range_test")
    project.run()  # the report shows the curves
    folder = project.folder / "results/tiny/lr_range_test/noise"
    assert sorted(path.name for path in folder.glob("*.csv")) == [
        "constant-session1.csv",
        "constant-session2.csv",
    ]


def test_the_content_of_a_file_counts_and_not_its_time(project):
    for name in ("net.py", "mine.pt"):
        os.utime(project.folder / name)
    assert count_jobs(project) == {}
    (project.folder / "net.py").write_text(MODEL.replace("nn.ReLU()", "nn.GELU()"))
    jobs = count_jobs(project)
    assert {rule: jobs.get(rule) for rule in FOUR_RUNS} == FOUR_RUNS
    (project.folder / "net.py").write_text(MODEL)
    (project.folder / "models").mkdir()
    (project.folder / "models/moved.py").write_text(MODEL)
    moved = ("--config", "model=models/moved.py:make")
    assert not count_jobs(project, *moved).keys() & FOUR_RUNS.keys()
    before = (project.folder / "mine.pt").read_bytes()
    save_checkpoint(project)
    jobs = count_jobs(project)
    assert {rule: jobs.get(rule) for rule in FOUR_RUNS} == FOUR_RUNS
    (project.folder / "mine.pt").write_bytes(before)


def test_remedies_are_compared_where_a_state_was_lost(tmp_path, images):
    project = Project(tmp_path / "project")
    (project.folder / "net.py").write_text(MODEL)
    save_checkpoint(project)
    keys = {line.partition(":")[0]: line for line in CONFIG.format(images=images).splitlines()}
    keys |= {
        "optimizer_state": "optimizer_state: lost",
        "sessions": "sessions: [1]",
        "schedules": "schedules: {constant: {lr: [1.0e-2]}}",
        "boundaries": "boundaries: {slow: {keep: [], lr_factor: 0.5}}",
        "methods": "methods: [constant-new, constant-slow]",
        "primary": "primary: {measure: end_valid_loss_session1, boundary: slow}",
    }
    project.configure("\n".join(keys.values()) + "\n")
    paths = [
        f"results/tiny/runs/noise/constant-{name}/seed0/session1/steps.csv"
        for name in ("new", "slow")
    ]
    project.run("--", *paths)
    new, slow = (read(project.folder / path) for path in paths)
    assert [row["lr"] for row in new] == ["0.01"] * 3
    assert [row["lr"] for row in slow] == ["0.005"] * 3
    assert new[0]["loss"] == slow[0]["loss"]
    assert new[1]["loss"] != slow[1]["loss"]


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"model": "net.py:build"}, "model: net.py has no function 'build'"),
        *[
            pytest.param(*case, marks=pytest.mark.exhaustive)
            for case in (
                ({"model": "broken.py:make"}, "model: broken.py:2: SyntaxError:"),
                ({"model": "missing.py:make"}, "model: missing.py:1: needs the package nowhere"),
                ({"model": "split.py:make"}, "split.py:1: imports net from its own folder"),
                ({"model": "resnet18"}, "weights.pt: these are not weights of resnet18"),
                ({"optimizer": "{name: SGD, momentum: 0.9}"}, "under SGD: it has exp_avg"),
            )
        ],
        ({"optimizer_state": "Makefile"}, "optimizer_state: Makefile is not a file"),
        ({"optimizer_state": "weights.pt"}, "weights.pt: has no optimizer state"),
    ],
)
def test_a_mistake_is_one_line_before_any_job(tmp_path, images, changes, error):
    project = Project(tmp_path / "project")
    (project.folder / "net.py").write_text(MODEL)
    (project.folder / "broken.py").write_text("\ndef make(:\n")
    (project.folder / "missing.py").write_text("import nowhere\n")
    (project.folder / "split.py").write_text("from net import make\n")
    save_checkpoint(project)
    content = torch.load(project.folder / "mine.pt", weights_only=True)
    torch.save(content["model_state_dict"], project.folder / "weights.pt")
    lines = CONFIG.format(images=images).replace("weights: mine.pt", "weights: weights.pt")
    keys = {line.partition(":")[0]: line for line in lines.strip().splitlines()}
    keys |= {key: f"{key}: {value}" for key, value in changes.items()}
    project.configure("\n".join(keys.values()) + "\n")
    assert error in project.fail_dry_run()


def test_published_weights_are_fetched_by_a_rule_and_verified(tmp_path, images):
    """The mirror has other bytes under the name of the weights."""
    project = Project(tmp_path / "project")
    mirror = tmp_path / "mirror"
    mirror.mkdir()
    config = TINY.format(source=f"folder: {images}")
    project.configure(f"{config}weights: IMAGENET1K_V1\nmirror: {mirror}\n")
    assert count_jobs(project)["fetch_weights"] == 1
    published = "shufflenetv2_x0.5-f707e7126e.pth"
    assert f"{published}: no such file" in project.snakemake().stderr
    (mirror / published).write_bytes(b"not these")
    result = project.snakemake()
    assert result.returncode != 0
    assert re.search(f"^error: .*{published}: its SHA-256 is", result.stderr, re.MULTILINE)
    assert not list(project.folder.glob("results/*/runs"))
    project.configure(f"{config}weights: IMAGENET1K_V2\n")
    unknown = "weights: shufflenet_v2_x0_5 has no weights 'IMAGENET1K_V2'"
    assert unknown in project.snakemake("--dry-run").stderr
