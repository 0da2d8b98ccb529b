"""The keys of the configuration that make finished results stale are named."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import yaml

from optstate.experiment import changes, configuration

TWO_MODELS = {"model": "1" * 64}


def load(**keys: object) -> configuration.Config:
    return configuration.load({"methods": ["constant-new", "constant-preserve"]} | keys)


def list_specs(config: configuration.Config, hashes: dict[str, str] | None = None) -> dict:
    return {
        session.folder: configuration.session_spec(config, session, hashes)
        for session in configuration.all_runs(config).sessions
    }


def make_results(
    folder: Path, config: configuration.Config, hashes: dict[str, str] | None = None
) -> Path:
    """Write the results of an experiment, as far as changes are found in them."""
    for session, spec in list_specs(config, hashes).items():
        path = folder / "runs" / session / "made_by.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps({"configuration": asdict(spec)}))
    (folder / "configuration.yaml").write_text(yaml.safe_dump(config))
    return folder


@pytest.fixture
def results(tmp_path):
    return make_results(tmp_path, load(), TWO_MODELS)


def find(results: Path, hashes: dict[str, str] = TWO_MODELS, **keys: object) -> list[str]:
    config = load(**keys)
    runs = configuration.all_runs(config)
    return changes.list_changes(results, config, runs, list_specs(config, hashes))


AGAIN = "will be trained again."
ARTICLE = configuration.load()["datasets"]["imagewoof"]
LR = "schedules.constant.lr"


@pytest.mark.parametrize(
    ("keys", "lines"),
    [
        ({}, []),
        ({"batch_size": 50}, [f"batch_size: was 100, is 50. 10 finished sessions {AGAIN}"]),
        (
            {"optimizer": {"name": "SGD", "momentum": 0.9}},
            [
                f"optimizer.momentum: was not set, is 0.9. 10 finished sessions {AGAIN}",
                f'optimizer.name: was "Adam", is "SGD". 10 finished sessions {AGAIN}',
            ],
        ),
        (
            {"schedules": {"constant": {"kind": "constant", "lr": [3e-4, 3e-4, 1e-4]}}},
            [f"{LR}: was 8e-05, is 0.0001. 4 finished sessions {AGAIN}"],
        ),
        (
            {"schedules": {"constant": {"kind": "constant", "lr": [1e-4, 3e-4, 8e-5]}}},
            [f"{LR}: was 0.0003, is 0.0001. 10 finished sessions {AGAIN}"],
        ),
        (
            {"datasets": {"imagewoof": {"archive": "b.tgz", "sha256": "1" * 64}}},
            [
                f'datasets.imagewoof.archive: was "{ARTICLE["archive"]}", is "b.tgz". The report '
                "will be made again.",
                f'datasets.imagewoof.sha256: was "{ARTICLE["sha256"]}", is "{"1" * 64}". 5 '
                f"finished sessions {AGAIN}",
            ],
        ),
        (
            {
                "boundaries": {"small": {"keep": [], "step_size": "preserve"}},
                "methods": ["constant-new", "constant-preserve", "constant-small"],
            },
            [
                f"boundaries.preserve: `step_size` needs the norm of each update. 4 finished "
                f"sessions {AGAIN}",
                "boundaries.small.keep: was not set, is []. The report will be made again.",
                'boundaries.small.step_size: was not set, is "preserve". The report will be made '
                "again.",
                'methods: was ["constant-new", "constant-preserve"], is ["constant-new", '
                '"constant-preserve", "constant-small"]. The report will be made again.',
            ],
        ),
        ({"sessions": [10, 10, 6]}, [f"sessions: was 5, is 6. 4 finished sessions {AGAIN}"]),
        (
            {"boundaries": {"new": {"keep": [], "lr_factor": 0.5}}},
            [f"boundaries.new.lr_factor: was 1.0, is 0.5. 4 finished sessions {AGAIN}"],
        ),
        (
            {"equivalence_margin": 0.02},
            ["equivalence_margin: was 0.01, is 0.02. The report will be made again."],
        ),
        ({"seeds": [0, 1]}, ["seeds: was [0], is [0, 1]. The report will be made again."]),
    ],
)
def test_a_changed_key_is_named_with_both_values(results, keys, lines):
    assert sorted(find(results, **keys)) == lines


def test_the_name_of_a_data_set_may_have_a_point():
    finished = [changes.Session("a.v2", "constant", 0, 1)]
    found = changes.describe_consequence("datasets.a.v2.sha256", finished)
    assert found.startswith("1 finished session will be trained again")


def test_a_changed_file_is_named_by_its_key(results):
    expected = f"model: the file has changed. 10 finished sessions {AGAIN}"
    assert find(results, {"model": "2" * 64}) == [expected]


def test_a_file_that_is_set_for_the_first_time_has_not_changed(results):
    lines = find(results, hashes=TWO_MODELS | {"weights": "2" * 64}, weights=__file__)
    assert lines == [f'weights: was null, is "{__file__}". The report will be made again.']


def test_an_optimizer_and_an_epoch_are_named_where_they_were_changed(tmp_path):
    of_run = {"kind": "onecycle", "over": "run", "initial_lr": 4e-5, "max_lr": 1e-3}
    of_schedule = {"constant": {"optimizer": {"name": "AdamW"}}, "onecycle": of_run}
    keys = {"schedules": of_schedule, "methods": ["constant-new", "onecycle-new"]}
    make_results(tmp_path, load(**keys))
    of_schedule["constant"]["optimizer"]["weight_decay"] = 0.1
    key = "schedules.constant.optimizer.weight_decay"
    expected = [f"{key}: was not set, is 0.1. 6 finished sessions {AGAIN}"]
    assert find(tmp_path, {}, **keys) == expected
    del of_schedule["constant"]["optimizer"]["weight_decay"]
    lines = find(tmp_path, {}, **keys, sessions=[10, 10, 6])
    assert {line.split(":")[0] for line in lines} == {"sessions"}


def test_a_boundary_that_is_moved_is_named_by_its_sessions(tmp_path):
    keys = {"boundaries": {"late": {"keep": [], "at": [3]}}, "methods": ["constant-late"]}
    make_results(tmp_path, load(**keys))
    keys["boundaries"]["late"]["at"] = [2]
    assert find(tmp_path, {}, **keys) == [
        f"boundaries.late.at: was [3], is [2]. 2 finished sessions {AGAIN}"
    ]


def test_a_folder_that_was_moved_may_have_the_same_files():
    finished = [changes.Session("mine", "constant", 0, 1)]
    found = changes.describe_consequence("datasets.mine.folder", finished)
    assert found == "1 finished session will be trained again if its files differ."


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", None])
def test_damaged_files_name_no_key(results, content):
    for path in [results / "configuration.yaml", *results.rglob("made_by.json")]:
        if content is None:
            path.unlink()
        else:
            path.write_text(content)
    assert find(results, batch_size=50) == []


def test_an_option_that_an_older_version_lacked_has_not_changed(results):
    for path in results.rglob("made_by.json"):
        made_by = json.loads(path.read_text())
        del made_by["configuration"]["lr_factor"]
        path.write_text(json.dumps(made_by))
    assert find(results) == []
