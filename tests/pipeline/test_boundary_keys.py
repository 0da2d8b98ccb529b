"""An experiment with all keys of boundaries: what is trained, shared and stale."""

import csv
from pathlib import Path

import pytest

from conftest import Project, count_jobs, exchange_session, write_archived_images

pytestmark = pytest.mark.xdist_group("boundary_keys")  # the tests share an experiment
CONFIG = """
experiment: tiny
datasets: {{imagenette: null, imagewoof: null, noise: {{{source}}}}}
image_size: 32
model: shufflenet_v2_x0_5
batch_size: 4
sessions: [2, 1, 1]
validate_every: 3
schedules:
  constant: null
  onecycle: null
  run: {{kind: onecycle, over: run, initial_lr: 1.0e-4, max_lr: 1.0e-2}}
boundaries:
  late: {{keep: [], at: [3], baseline: preserve}}
  remedy:
    {{keep: [exp_avg_sq, step], at: [3], lr_factor: 0.3, rebuild_steps: 2,
    baseline: [new, preserve]}}
  rescaled: {{keep: [], step_size: preserve, baseline: [preserve, new]}}
methods: [run-new, run-preserve, run-uninterrupted, run-late, run-remedy, run-rescaled]
primary: {{measure: final_valid_loss, boundary: rescaled}}
device: cpu
"""
AFTERWARDS = {"collect", "measure_boundaries", "compare", "report"}
STALE = {  # values of `--config`: the sessions that become stale, with one that may be added
    "validate_every=4": {
        "first_session": 1, "uninterrupted_run": 1, "later_session": 3, "last_session": 5,
    },
    "boundaries={late: {baseline: new}}": {},
    "boundaries={late: {lr_factor: 0.5}, remedy: {rebuild_steps: 3}, rescaled: {warmup_steps: 2}}":
        {"later_session": 1, "last_session": 3},
    # The norms of `new` are then needed at every step, and `rescaled` follows them.
    "boundaries={rescaled: {step_size: new}}": {"later_session": 3, "last_session": 5},
}  # fmt: skip
ALONE = {  # the same, with one key that changes
    "boundaries={late: {lr_factor: 0.5}}": {"last_session": 1},
    "boundaries={remedy: {rebuild_steps: 3}}": {"last_session": 1},
    "boundaries={rescaled: {warmup_steps: 2}}": {"later_session": 1, "last_session": 1},
    "schedules={run: {max_lr: 2.0e-2}}": {
        "first_session": 1, "uninterrupted_run": 1, "later_session": 3, "last_session": 5,
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Project:
    root = tmp_path_factory.mktemp("boundaries")
    made = Project(root / "project")
    made.configure(CONFIG.format(source=write_archived_images(root / "noise")))
    made.run()
    return made


def read(path: Path) -> list[dict]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_sessions_with_the_same_history_are_trained_once(project):
    runs = project.folder / "results/tiny/runs/noise"
    assert sorted(str(p.parent.relative_to(runs)) for p in runs.rglob("steps.csv")) == [
        "run-late/seed0/session3",
        "run-new/seed0/session2",
        "run-new/seed0/session3",
        "run-preserve/seed0/session2",
        "run-preserve/seed0/session3",
        "run-remedy/seed0/session3",
        "run-rescaled/seed0/session2",
        "run-rescaled/seed0/session3",
        "run-uninterrupted/seed0/session1",
        "run/seed0/session1",
    ]


def test_every_run_has_all_its_sessions_in_the_tables(project):
    steps = read(project.folder / "results/tiny/tables/steps.csv")
    by_method: dict[str, list[dict]] = {}
    for row in steps:
        by_method.setdefault(row["method"], []).append(row)
    assert len(by_method) == 6
    for method, rows in by_method.items():
        assert [int(row["step"]) for row in rows] == list(range(1, 21)), method
        assert {row["boundary"] for row in rows} == {method.partition("-")[2]}
    kept, whole = (
        [r["loss"] for r in by_method[f"run-{b}"]] for b in ("preserve", "uninterrupted")
    )
    assert kept == whole
    assert [r["loss"] for r in by_method["run-late"]][:16] == kept[:16]


def test_only_some_epochs_are_validated(project):
    rows = read(project.folder / "results/tiny/tables/epochs.csv")
    valid = {}
    for row in rows:
        if row["split"] == "valid":
            valid.setdefault(row["boundary"], []).append(int(row["epoch"]))
    assert valid.pop("uninterrupted") == [3, 4]
    assert set(map(tuple, valid.values())) == {(2, 3, 4)}


def test_a_boundary_is_compared_with_each_of_its_baselines(project):
    rows = read(project.folder / "results/tiny/tables/comparisons.csv")
    pairs = {(row["boundary"], row["baseline"]) for row in rows}
    assert pairs == {
        ("late", "preserve"), ("remedy", "new"), ("remedy", "preserve"), ("preserve", "new"),
        ("rescaled", "preserve"), ("rescaled", "new"), ("uninterrupted", "new"),
    }  # fmt: skip
    primary = {(r["boundary"], r["baseline"], r["measure"]) for r in rows if r["primary"] == "true"}
    assert primary == {("rescaled", "preserve", "final_valid_loss")}


def test_a_boundary_at_which_everything_is_kept_has_no_effect(project):
    rows = read(project.folder / "results/tiny/tables/boundaries.csv")
    (late,) = (r for r in rows if (r["boundary"], r["session"]) == ("late", "2"))
    assert float(late["excess_loss_area"]) == 0
    assert float(late["update_norm_ratio"]) == 1


def test_the_losses_of_the_state_are_drawn(project):
    for suffix in ("png", "svg"):
        assert (project.folder / f"results/tiny/figures/noise/resets.{suffix}").stat().st_size > 0


def test_every_run_has_the_curves_of_all_its_sessions(project):
    folder = project.folder / "results/tiny/tensorboard/noise"
    for method in ("run-late", "run-preserve", "run-rescaled"):
        names = [path.suffix for path in (folder / method / "seed0").iterdir()]
        assert names == [".session3"], method


def test_nothing_is_stale_after_a_run(project):
    assert count_jobs(project) == {}


@pytest.mark.parametrize(
    ("setting", "sessions"),
    [
        *STALE.items(),
        *[pytest.param(*case, marks=pytest.mark.exhaustive) for case in ALONE.items()],
    ],
)
def test_only_what_depends_on_a_setting_is_stale(project, setting, sessions):
    found = count_jobs(project, "--config", setting)
    assert {rule: n for rule, n in found.items() if "session" in rule or "run" in rule} == sessions
    assert "compare" in found or not sessions


def test_a_session_with_other_step_sizes_is_stale(project, tmp_path):
    copied = Project(tmp_path / "copied", project)
    session = copied.folder / "results/tiny/runs/noise/run-rescaled/seed0/session3"
    exchange_session(session, "step_sizes_sha256")
    assert count_jobs(copied, "--until", "last_session") == {"last_session": 1}


def test_another_loss_of_the_state_adds_its_last_session_only(project):
    config = (
        "boundaries={never-mind: {keep: [step], at: [3]}}",
        "methods=[run-new, run-preserve, run-uninterrupted, run-late, run-remedy, run-rescaled, "
        "run-never-mind]",
    )
    found = count_jobs(project, "--config", *config)
    assert {rule: n for rule, n in found.items() if "session" in rule} == {"last_session": 1}
    assert found.keys() >= AFTERWARDS
