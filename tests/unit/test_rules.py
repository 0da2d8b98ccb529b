"""The inputs, outputs and options that an experiment gives to the rules."""

import json
import os
import shlex
from pathlib import Path
from types import SimpleNamespace

import pytest

from conftest import ROOT, file_sha256
from optstate.checksums import write_checksums
from optstate.experiment import configuration, lock, rules
from optstate.experiment.rules import Experiment, command_line, errors_in_logs, locked, sources
from optstate.experiment.runs import Session

CONFIG = configuration.load({"methods": ["constant-new", "constant-uninterrupted"]})
TABLES = ("steps.csv", "epochs.csv", "made_by.json", "session.sha256")
EXPERIMENT = Experiment(CONFIG, {"imagenette": "a" * 64, "imagewoof": "b" * 64})


def make_wildcards(**values: str) -> SimpleNamespace:
    return SimpleNamespace(dataset="imagewoof", seed="0", **values)


def test_a_first_session_starts_from_nothing_or_weights():
    first = make_wildcards(name="constant", number="1")
    assert EXPERIMENT.previous(first) == []
    assert EXPERIMENT.start_options(first) == ""
    config = CONFIG | {"weights": "my weights.pt"}
    options = Experiment(config, {}, {"weights": "1"}).start_options(first)
    assert options == "--weights='my weights.pt'"
    own = Experiment(CONFIG | {"model": "my net.py:make"}, {}, {"model": "1"})
    assert own.start_options(first) == "--model='my net.py'"
    second = make_wildcards(name="constant-new", number="2")
    assert own.start_options(second).startswith("--model='my net.py' --previous ")


def test_a_first_session_at_a_boundary_starts_from_an_optimizer_state():
    config = CONFIG | {"weights": "mine.pt", "optimizer_state": "mine.pt"}
    experiment = Experiment(config, {}, {"weights": "1", "optimizer_state": "2"})
    kept = make_wildcards(name="constant-uninterrupted", number="1")
    assert experiment.start_options(kept) == "--optimizer-state=mine.pt --weights=mine.pt"
    lost = make_wildcards(name="constant-new", number="1")
    assert experiment.start_options(lost) == "--weights=mine.pt"
    second = make_wildcards(name="constant-new", number="2")
    assert "mine.pt" not in experiment.start_options(second).replace(experiment.spec(second), "")
    tested = make_wildcards(schedule="constant", number="1")
    assert experiment.tested_session(tested).name == "constant-new"


def test_weights_of_torchvision_are_an_input():
    url = "https://host/models/resnet50-11ad3fa6.pth"
    config = CONFIG | {"weights": "IMAGENET1K_V2", "mirror": "/mirror"}
    experiment = Experiment(config, {}, {"weights": "11ad3fa6"}, url)
    first = make_wildcards(name="constant", number="1")
    assert experiment.previous(first) == ["results/weights/resnet50-11ad3fa6.pth"]
    assert experiment.start_options(first) == "--weights=results/weights/resnet50-11ad3fa6.pth"
    assert experiment.weights_options(first) == f"--archive={url} --mirror=/mirror"
    assert json.loads(experiment.spec(first))["file_hashes"] == {"weights": "11ad3fa6"}


def test_a_later_session_starts_from_the_previous_one():
    second = make_wildcards(name="constant-new", number="2")
    folder = "results/article/runs/imagewoof/constant/seed0/session1"
    assert EXPERIMENT.previous(second) == [
        f"{folder}/{name}"
        for name in ("checkpoint.pt", "epochs.csv", "session.sha256", "steps.csv")
    ]
    options = shlex.split(EXPERIMENT.start_options(second))
    first = configuration.session_spec(CONFIG, Session("imagewoof", "constant", 0, 1))
    assert options == [
        "--previous", folder, "--previous-spec", first.to_json(), "--earlier", folder,
        "--previous-progress", folder.replace("runs", "in_progress"),
    ]  # fmt: skip


def test_a_shared_session_writes_the_curves_of_all_its_runs():
    config = CONFIG | {"methods": ["constant-new", "constant-preserve", "onecycle-new"]}
    shared = Experiment(config, {}).curves(make_wildcards(name="constant", number="1"))
    root = "results/article/tensorboard/imagewoof"
    assert shared == [f"{root}/constant-new/seed0", f"{root}/constant-preserve/seed0"]
    own = EXPERIMENT.curves(make_wildcards(name="constant-uninterrupted", number="1"))
    assert own == [f"{root}/constant-uninterrupted/seed0"]


def test_a_session_that_is_trained_again_leaves_the_curves_of_finished_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = CONFIG | {"methods": ["constant-new", "constant-preserve"]}
    finished = tmp_path / "results/article/runs/imagewoof/constant-new/seed0/session3"
    finished.mkdir(parents=True)
    experiment = Experiment(config, {})
    settings = experiment.specs["imagewoof/constant-new/seed0/session3"].to_json()
    (finished / "made_by.json").write_text(f'{{"configuration": {settings}}}')
    shared = experiment.curves(make_wildcards(name="constant", number="1"))
    assert shared == ["results/article/tensorboard/imagewoof/constant-preserve/seed0"]
    last = experiment.curves(make_wildcards(name="constant-new", number="3"))
    assert last == ["results/article/tensorboard/imagewoof/constant-new/seed0"]
    changed = Experiment(config | {"batch_size": 9}, {})
    assert len(changed.curves(make_wildcards(name="constant", number="1"))) == 2


def test_an_expected_error_exits_in_one_line(tmp_path):
    with (
        pytest.raises(SystemExit, match=f"^error: {tmp_path}: Is a directory$"),
        rules.exit_in_one_line("error"),
    ):
        tmp_path.write_text("")


@pytest.mark.parametrize(
    ("keep", "is_last", "is_kept"),
    [("all", False, True), ("last", False, False), ("last", True, True), ("none", True, False)],
)
def test_checkpoints_that_are_not_kept_are_temporary(keep, is_last, is_kept):
    experiment = Experiment(CONFIG | {"keep_checkpoints": keep}, {})
    checkpoint, *tables = experiment.session_files("folder", is_last)
    assert getattr(checkpoint, "flags", {}).get("temp", False) is not is_kept
    assert tables == [f"folder/{name}" for name in TABLES]


def test_the_lr_range_test_follows_the_boundary_that_keeps_nothing():
    config = CONFIG | {"methods": ["constant-preserve", "constant-new", "constant-uninterrupted"]}
    experiment = Experiment(config, {})
    assert experiment.tested_schedules == ["constant"]
    third = make_wildcards(schedule="constant", number="3")
    assert experiment.tested_session(third).name == "constant-new"
    first = make_wildcards(schedule="constant", number="1")
    assert experiment.tested_session(first).name == "constant"
    assert experiment.before_test(first) == []


def test_the_key_of_an_lr_range_test_identifies_all_settings_up_to_its_session():
    def find_keys(sha256: str = "b" * 64, **changes: object) -> list[str]:
        experiment = Experiment(CONFIG | changes, {"imagenette": sha256, "imagewoof": sha256})
        tested = (make_wildcards(schedule="constant", number=str(n)) for n in (1, 2))
        return [experiment.test_key(wildcards) for wildcards in tested]

    keys = find_keys()
    assert keys == find_keys(equivalence_margin=0.5)
    assert len(set(keys)) == 2
    for changed in (find_keys(batch_size=7), find_keys("c" * 64), find_keys(sessions=[9, 10, 5])):
        assert not set(changed) & set(keys)
    first, second = find_keys(sessions=[10, 9, 5])
    assert (first == keys[0], second == keys[1]) == (True, False)


def make_test(experiment: Experiment, number: int, key: str | None = None) -> Path:
    """Write the files of an LR range test in the working directory. Returns the figure's path."""
    wildcards = make_wildcards(schedule="constant", number=str(number))
    figure = Path(f"results/article/lr_range_test/imagewoof/constant-session{number}.png")
    figure.parent.mkdir(parents=True, exist_ok=True)
    figure.write_bytes(b"curve")
    content = json.dumps({"key": key or experiment.test_key(wildcards)})
    figure.with_suffix(".json").write_text(content)
    write_checksums(figure.with_suffix(".sha256"), [figure])
    return figure


def test_finished_lr_range_tests_are_those_of_this_configuration(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert json.loads(EXPERIMENT.finished_tests()) == []
    figure = make_test(EXPERIMENT, 2)
    make_test(EXPERIMENT, 3, key="of other settings")
    (found,) = json.loads(EXPERIMENT.finished_tests())
    assert found == {
        "dataset": "imagewoof", "schedule": "constant", "number": 2, "figure": str(figure),
        "sha256": file_sha256(figure),
    }  # fmt: skip
    other = Experiment(CONFIG | {"batch_size": 7}, EXPERIMENT.dataset_sha256)
    assert json.loads(other.finished_tests()) == []


@pytest.mark.parametrize("missing", ["png", "json", "sha256"])
@pytest.mark.parametrize("content", [None, "{", "[]"])
def test_an_incomplete_lr_range_test_is_not_finished(tmp_path, monkeypatch, missing, content):
    monkeypatch.chdir(tmp_path)
    path = make_test(EXPERIMENT, 2).with_suffix(f".{missing}")
    path.unlink()
    if content and missing == "json":  # a damaged list of checksums is an error at the start
        path.write_text(content)
    assert json.loads(EXPERIMENT.finished_tests()) == []


TEST_LINE = "LR range test: results/article/lr_range_test"
ANSWER = "The state matters."
REPORT_LINES = [
    "", ANSWER, "",
    "Report: results/article/report.html",
    "Figures: results/article/figures",
    "Tables: results/article/tables",
]  # fmt: skip


class Dag:
    """A graph of jobs, each of a rule, as Snakemake's."""

    def __init__(self, finished: str = "", up_to_date: str = "", failed: str = "", tests="[]"):
        self.jobs = [
            SimpleNamespace(
                rule=SimpleNamespace(name=name), params=SimpleNamespace(lr_range_tests=tests)
            )
            for name in f"{finished} {up_to_date} {failed}".split()
        ]
        self.names = {"finished": finished.split(), "up_to_date": up_to_date.split()}

    def finished(self, job) -> bool:
        return job.rule.name in self.names["finished"]

    def needrun(self, job) -> bool:
        return job.rule.name not in self.names["up_to_date"]


@pytest.mark.parametrize(
    ("dag", "printed"),
    [
        (Dag("lr_range lr_range_test"), [TEST_LINE]),
        (Dag("lr_range lr_range_test report"), [TEST_LINE, *REPORT_LINES]),
        (Dag("lr_range_test", up_to_date="report"), [TEST_LINE, *REPORT_LINES]),
        (Dag("lr_range lr_range_test", up_to_date="report", tests="[{}]"), [TEST_LINE]),
        (Dag("report"), REPORT_LINES),
        (Dag("collect", up_to_date="report"), REPORT_LINES),
        (Dag("collect", failed="report lr_range_test"), []),
        (Dag("collect"), []),
    ],
)
def test_the_run_ends_by_naming_its_own_results(tmp_path, monkeypatch, capsys, dag, printed):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "results/article").mkdir(parents=True)
    (tmp_path / "results/article/answer.txt").write_text(f"{ANSWER}\n")
    EXPERIMENT.print_results(dag)
    assert capsys.readouterr().out.splitlines() == printed


@pytest.mark.parametrize(
    ("keys", "name", "options"),
    [
        ({}, "224px", ""),
        ({"valid_fraction": 0.2}, "224px-valid0.2", " --valid-fraction 0.2"),
        (
            {"valid_fraction": 1e-05, "valid_seed": 0},
            "224px-valid1e-05-seed0",
            " --valid-fraction 1e-05 --valid-seed 0",
        ),
    ],
)
def test_the_arrays_folder_says_how_validation_images_are_chosen(keys, name, options):
    datasets = {"imagewoof": {"folder": "my images"} | keys}
    experiment = Experiment(CONFIG | {"datasets": datasets}, {"imagewoof": "b" * 64}, None)
    assert experiment.prepared("imagewoof") == f"results/datasets/imagewoof/{'b' * 16}/{name}"
    wildcards = SimpleNamespace(dataset="imagewoof", key="b" * 16)
    sha256 = f"--sha256 {'b' * 64}"
    folder = f"--folder='my images' {sha256}"
    assert experiment.images_options(wildcards) == f"{folder}{options}"
    datasets["imagewoof"] = {"archive": "x.tgz"} | keys
    archive = f"--archive results/datasets/imagewoof/{'b' * 16}/archive {sha256}"
    assert experiment.images_options(wildcards) == f"{archive}{options}"


def test_a_folder_is_checked_before_any_job(images, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("optstate.experiment.rules.require_works", lambda *_: None)
    source = {"folder": str(images), "valid_fraction": 0.2}
    config = CONFIG | {"datasets": {"mine": source}}
    with pytest.raises(SystemExit, match=f"^configuration: {images}/val: this validation folder"):
        Experiment.load(config, [], is_main_process=False)
    (images / "val").rename(images / "other")
    assert Experiment.load(config, [], is_main_process=False).prepared("mine").endswith("valid0.2")
    del source["valid_fraction"]
    with pytest.raises(SystemExit, match=f"^configuration: {images}: has no validation folder"):
        Experiment.load(config, [], is_main_process=False)


def test_sources_are_files_of_the_package(monkeypatch):
    monkeypatch.chdir(ROOT)
    found = sources("training", "analysis/collect.py")
    assert "workflow/scripts/optstate/training/loop.py" in found
    assert "workflow/scripts/optstate/job.py" in found
    assert all((ROOT / path).is_file() for path in found)


def test_locked_versions_come_from_the_lock_file():
    (torch,) = locked("torch")
    assert torch.startswith("torch==")
    assert locked("no-such-package") == []


def test_the_command_line_is_the_one_that_was_run(monkeypatch):
    settings = SimpleNamespace(configfiles=["config/demo.yaml"], config={"seeds": [0, 1]})
    workflow = SimpleNamespace(is_main_process=True, config_settings=settings)
    monkeypatch.setattr("sys.argv", ["/bin/snakemake", "--cores", "4", "--config", "seeds=[0, 1]"])
    assert command_line(workflow) == ".venv/bin/snakemake --cores 4 --config 'seeds=[0, 1]'"
    workflow.is_main_process = False
    assert command_line(workflow) == (
        ".venv/bin/snakemake --cores 1 --configfile config/demo.yaml --config 'seeds=[0, 1]'"
    )


def test_errors_are_those_of_jobs_that_failed_in_this_run(tmp_path):
    for name, last, age in (
        ("old", "error: old", 100), ("new", "12:00 error: new", 0), ("fine", "epoch 1/1", 0),
        ("stopped", "12:00 interrupted: SIGTERM: saved", 0),
    ):  # fmt: skip
        log = tmp_path / f"{name}.log"
        log.write_text(f"something\n{last}\n")
        os.utime(log, (1000 - age, 1000 - age))
    found = [error.removeprefix(f"{tmp_path}/") for error in errors_in_logs(tmp_path, since=950)]
    assert found == ["new.log: error: new", "stopped.log: interrupted: SIGTERM: saved"]


def test_one_snakemake_claims_an_experiment(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPTSTATE_RUN", "")
    monkeypatch.setattr(rules, "commit", lambda: "c0ffee")
    EXPERIMENT.claim()
    submitted = Experiment(*lock.load_submitted())
    assert (submitted.config, submitted.dataset_sha256) == (CONFIG, EXPERIMENT.dataset_sha256)
    with pytest.raises(SystemExit, match="error: another Snakemake is running on results/article"):
        Experiment(CONFIG, {}).claim()


def test_errors_of_a_configuration_end_in_one_line(tmp_path, monkeypatch):
    with pytest.raises(SystemExit, match="configuration: batch_size: 0 must be at least 2."):
        Experiment.load(CONFIG | {"batch_size": 0}, [], is_main_process=True)
    monkeypatch.setenv("OPTSTATE_RUN", "results/of-a-snakemake-that-has-ended")
    with pytest.raises(SystemExit, match="configuration: the Snakemake that submitted this job"):
        Experiment.load(CONFIG, [], is_main_process=False)
    (tmp_path / "run.json").write_text("[")
    monkeypatch.setenv("OPTSTATE_RUN", str(tmp_path / "run.json"))
    with pytest.raises(SystemExit, match=f"configuration: {tmp_path}/run.json: damaged"):
        Experiment.load(CONFIG, [], is_main_process=False)


RPROP = {"name": "Rprop"}
STATE = (
    "Rprop's step sizes are state. A boundary that keeps them ignores the new session's learning"
)


@pytest.mark.parametrize(
    ("changes", "keys"),
    [
        ({"optimizer": RPROP}, ["optimizer"]),
        ({"schedules": {"onecycle": {"optimizer": RPROP}}}, ["schedules.onecycle.optimizer"]),
        ({"optimizer": RPROP, "boundaries": {"preserve": {"keep": ["step_size"]}}}, ["optimizer"]),
        ({"optimizer": RPROP, "boundaries": {"preserve": {"keep": ["prev"]}}}, []),
        ({"optimizer": RPROP, "methods": ["constant-new", "constant-uninterrupted"]}, []),
        (
            {
                "optimizer": RPROP, "methods": ["constant-new"],
                "boundaries": {"new": {"keep": [], "at": [3]}},
            },
            ["optimizer"],
        ),
        ({"optimizer": {"name": "SGD", "momentum": 0.9}}, []),
        (
            {"schedules": {"onecycle": {"optimizer": RPROP}}, "methods": ["constant-preserve"]},
            [],
        ),
    ],
)  # fmt: skip
def test_a_note_says_that_rprop_ignores_the_learning_rate(
    changes, keys, tmp_path, monkeypatch, capsys
):
    """It appears at every start, whether or not the optimizer has been tried before."""
    config = configuration.load(changes)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(rules, "require_works", lambda *_: None)
    for _ in range(2):
        Experiment.load(config, [], is_main_process=True)
        lines = [f"note: {key}: {STATE} rate." for key in keys]
        assert [n for n in capsys.readouterr().err.splitlines() if "Rprop" in n] == lines


@pytest.mark.parametrize(
    ("changes", "note"),
    [
        ({"optimizer": {"name": "SGD"}}, "optimizer: SGD without `momentum` has no state that"),
        (
            {"schedules": {"onecycle": {"initial_lr": [1e-3, 1e-6, 5e-6], "max_lr": [1e-5] * 3}}},
            "schedules.onecycle: an initial_lr is above its max_lr.",
        ),
        ({"methods": ["constant-new"]}, "primary: no schedule has both preserve and new among"),
        ({}, None),
    ],
)
def test_settings_that_do_something_unexpected_have_a_note(
    changes, note, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(rules, "require_works", lambda *_: None)
    Experiment.load(configuration.load(changes), [], is_main_process=True)
    lines = capsys.readouterr().err.splitlines()
    assert [line.startswith(f"note: {note}") for line in lines] == [True] * (note is not None)


def test_a_rescaled_session_needs_the_norms_of_its_twin():
    boundaries = CONFIG["boundaries"] | {"rescaled": {"keep": [], "step_size": "preserve"}}
    methods = ["constant-preserve", "constant-rescaled"]
    config = CONFIG | {"boundaries": boundaries, "methods": methods}
    experiment = Experiment(configuration.validate(config), {})
    second = make_wildcards(name="constant-rescaled", number="2")
    twin = "results/article/runs/imagewoof/constant-preserve/seed0/session2"
    assert experiment.previous(second)[-2:] == [f"{twin}/session.sha256", f"{twin}/steps.csv"]
    assert f"--step-sizes {twin}" in experiment.start_options(second)
    assert "--step-sizes" not in experiment.start_options(
        make_wildcards(name="constant-preserve", number="2")
    )
