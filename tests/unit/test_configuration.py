"""The configuration: types, sense, and the one line that says what is wrong."""

import copy
from datetime import date
from pathlib import Path

import pytest
import yaml

from conftest import ROOT
from optstate.experiment.configuration import (
    baselines,
    checked,
    session_spec,
    settled,
)
from optstate.job import InputError
from optstate.training.spec import SessionSpec

SCHEMA = yaml.safe_load((ROOT / "workflow/schemas/config.schema.yaml").read_text())
ARTICLE = yaml.safe_load((ROOT / "config/config.yaml").read_text())


def changed(**changes) -> dict:
    """The article's configuration with some keys changed; a dotted key goes deeper."""
    config = copy.deepcopy(ARTICLE)
    for key, value in changes.items():
        *path, last = key.split("__")
        place = config
        for part in path:
            place = place[part]
        place[last] = value
    return config


def complaint(config: dict) -> str:
    """What is said of a configuration; empty if nothing."""
    try:
        checked(config, ROOT / "workflow/schemas/config.schema.yaml")
    except InputError as error:
        return str(error)
    return ""


def test_the_articles_configuration_is_good():
    assert complaint(ARTICLE) == ""


def test_every_key_is_in_the_schema_and_explained():
    assert list(ARTICLE) == list(SCHEMA["properties"]) == SCHEMA["required"]
    reference = (ROOT / "config/README.md").read_text()
    for key in ARTICLE:
        assert f"`{key}`" in reference


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (
            {"batchsize": 3},
            "`batchsize` is no key of the configuration: did you mean `batch_size`?",
        ),
        ({"datasets__imagewoof__sha": "x"}, "`datasets.imagewoof.sha` is no key .* `sha256`"),
        ({"batch_size": "many"}, '`batch_size` is "many": it should be a whole number'),
        ({"image_size": 16**5000}, "`image_size` is a number of 20001 bits: it is too large"),
        ({"sessions": [10**9, 1, 1]}, "`sessions.0.` is 1000000000: it should be at most 1000000"),
        ({"seeds": ["1" * 5000]}, '`seeds.0.` is "1+": it should be a whole number'),
        ({"schedules__constant__lr": [10**29, 1, 1]}, "lr.0.` is 1000+: it should be at most"),
        ({"experiment": "x" * 101}, "`experiment` is .* a name of up to 100 letters"),
        ({"batch_size": 1}, "`batch_size` is 1: it should be at least 2"),
        ({"augment": "flop"}, '`augment` is "flop": it should be one of none, flip, crop_flip'),
        ({"sessions": []}, r"`sessions` is \[\]: it should be not empty"),
        ({"sessions": [3, 0]}, r"`sessions\[1\]` is 0: it should be at least 1"),
        ({"seeds": [1, 1]}, "`seeds` is .* without repetitions"),
        ({"experiment": "a/b"}, '`experiment` is "a/b": it should be a name of up to 100'),
        ({"experiment": "datasets"}, "`experiment` is .* other than `datasets`"),
        ({"experiment": "bench"}, "`experiment` is .* and `bench`"),
        ({"model": None}, "`model` is null: it should be text"),
        ({"boundaries__new__keep": "some"}, "`boundaries.new.keep` .* `all`, or a list"),
        ({"optimizer": {"name": "Adam", "lr": 0.1}}, "`optimizer.lr` is 0.1: .* left out"),
        ({"schedules__constant__kind": "step"}, "`schedules.constant.kind` .*constant, onecycle"),
        (
            {"schedules__constant__kind": "cosine"},
            "`schedules.constant.final_lr` is missing: cosine",
        ),
        ({"boundaries__new__warmup_steps": 0}, "`boundaries.new.warmup_steps` is 0: .* at least 1"),
        (
            {"boundaries__uninterrupted": {"keep": []}},
            "`boundaries.uninterrupted`: .* another name",
        ),
        ({"methods": ["constant-uninterupted"]}, "did you mean `uninterrupted`"),
        ({"primary__measure": "top1"}, "`primary.measure` .* one of final_valid_top1"),
        ({"primary__boundary": "keep"}, "`primary.boundary` is 'keep': `boundaries` has no such"),
        ({"datasets__imagewoof__target_top1": 70}, "`datasets.imagewoof.target_top1` .* at most 1"),
        ({"schedules__constant__lr": [1e-3, -1]}, r"`schedules.constant.lr\[1\]` .* above 0"),
        ({"schedules__constant__lr": [1e-3]}, "`schedules.constant.lr` has 1 values: .* have 3"),
        ({"schedules__constant__max_lr": [1, 1, 1]}, "`schedules.constant.max_lr` .* not belong"),
        ({"schedules__onecycle__max_lr": None}, "`schedules.onecycle.max_lr` is missing"),
        ({"methods": ["constant-old"]}, "`methods`: 'constant-old' .* `boundaries` has no 'old'"),
        ({"methods": ["onecicle-new"]}, "`methods`: .* 'onecicle': did you mean `onecycle`"),
        ({"methods": ["constant"]}, "`methods`: 'constant' should be SCHEDULE-BOUNDARY"),
        ({"datasets__a": {}}, "`datasets.a` has no source: .* exactly one"),
        (
            {"datasets__a": {"packaged": "digits", "folder": "."}},
            "`datasets.a` has folder and pack",
        ),
        ({"datasets__a": {"archive": "x.tgz"}}, "`datasets.a.sha256` is missing"),
        ({"datasets__a": {"packaged": "digits", "sha256": "0" * 64}}, "sha256` goes with archive"),
        ({"datasets__a": {"archive": "x", "sha256": "abc"}}, "sha256` .* 64 hexadecimal digits"),
        ({"datasets__a": {"folder": "/nowhere"}}, "`datasets.a.folder` is '/nowhere': .* no such"),
        ({"datasets__a": {"packaged": "mnist"}}, "packaged` is .* one of digits, mnist5k"),
        ({"datasets": {"imagenette": None}}, "`datasets` is {}: it should be not empty"),
        ({"datasets": {1: {"folder": "."}}}, "`datasets` has the name 1, .* quote it"),
        ({"optimizer": {"name": "Adam", "at": date(2020, 1, 1)}}, "`optimizer.at` is 2020-01-01"),
        ({"datasets__x/y": {"folder": "."}}, '`datasets` has the name "x/y": it should be'),
        ({"schedules__constant__lr": [1e-3, float("nan"), 1e-3]}, r"`.*lr\[1\]` is nan: .* finite"),
        (
            {"schedules__constant__lr": [1e-3, 1e-3, float("inf")]},
            r"`.*lr\[2\]` is Infinity: .* at most",
        ),
        ({"seeds": [2**32]}, r"`seeds\[0\]` is 4294967296: it should be at most 4294967295"),
        ({"experiment": "x\n"}, "`experiment` is "),
        ({"experiment": "README.md"}, "`experiment` is "),
        ({"weights": "/nowhere.pt"}, "`weights` is '/nowhere.pt': there is no such file"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(changes, line):
    import re

    said = complaint(changed(**changes))
    assert re.search(line, said), said
    assert "\n" not in said


def test_a_missing_key_is_named():
    config = changed()
    del config["seeds"]
    assert complaint(config) == "`seeds` is missing: add it"


def test_text_becomes_what_the_schema_asks_for():
    """As it comes from the command line, or from YAML that takes 3e-4 for text."""
    config = changed(
        batch_size="50",
        seeds=["0", "1"],
        train_per_class="null",
        weights="null",
        deterministic="true",
        schedules__constant__lr=["3e-4", "1", ".5"],
        optimizer={"name": "SGD", "momentum": "0.9", "nesterov": "true"},
        sessions=[3.0, "2", 1],
        experiment="2024",
    )
    result = settled(config, SCHEMA)
    assert result["batch_size"] == 50
    assert result["seeds"] == [0, 1]
    assert result["train_per_class"] is None
    assert result["weights"] is None
    assert result["deterministic"] is True
    assert result["schedules"]["constant"]["lr"] == [3e-4, 1, 0.5]
    assert result["optimizer"] == {"name": "SGD", "momentum": 0.9, "nesterov": True}
    assert result["sessions"] == [3, 2, 1]
    assert all(type(n) is int for n in result["sessions"])
    assert result["experiment"] == "2024"


def test_null_removes_an_entry():
    config = changed(datasets__imagenette=None, schedules__onecycle=None)
    result = settled(config, SCHEMA)
    assert list(result["datasets"]) == ["imagewoof"]
    assert list(result["schedules"]) == ["constant"]
    assert result["mirror"] is None


def spec(config=ARTICLE, dataset="imagewoof", method="constant-preserve", seed=0, session=2):
    return session_spec(config, dataset, method, seed, session, weights_sha256=None)


class TestSessionSpec:
    def test_the_arms_differ_by_name_and_by_what_is_kept(self):
        new, preserve = spec(method="onecycle-new"), spec(method="onecycle-preserve")
        differ = {key for key in new if new[key] != preserve[key]}
        assert differ == {"boundary", "method", "keep"}
        assert (new["keep"], preserve["keep"]) == ([], "all")

    def test_it_has_the_sessions_own_learning_rates_only(self):
        assert spec(session=3)["learning_rate"] == {"kind": "constant", "lr": 8e-5}
        onecycle = spec(method="onecycle", session=1)
        assert onecycle["learning_rate"] == {
            "kind": "onecycle", "initial_lr": 4e-5, "max_lr": 1e-3,
        }  # fmt: skip
        assert spec() == spec(changed(schedules__constant__lr=[1, 3e-4, 1]))

    def test_nothing_else_is_in_it(self):
        """What another job's bits depend on makes this one's no staler."""
        other = changed(
            datasets={"imagewoof": {"folder": "."}}, mirror="x", seeds=[0, 1], sessions=[1, 10, 1],
            methods=["constant-preserve"], keep_checkpoints="none", boundaries__new__keep=["step"],
            experiment="other",
        )  # fmt: skip
        assert spec(other) == spec()

    def test_an_uninterrupted_run_has_all_epochs_and_the_first_sessions_values(self):
        whole = spec(method="constant-uninterrupted", session=1)
        assert (whole["num_epochs"], whole["learning_rate"]["lr"]) == (25, 3e-4)
        assert (whole["boundary"], whole["keep"]) == ("uninterrupted", [])

    def test_what_happens_at_a_boundary_concerns_the_later_sessions(self):
        config = changed(boundaries__preserve={"keep": "all", "warmup_steps": 7, "reshuffle": True})
        shared, later = spec(config, method="constant", session=1), spec(config, session=3)
        assert (shared["warmup_steps"], shared["stream"]) == (0, 0)
        assert (later["warmup_steps"], later["stream"]) == (7, 1)

    def test_a_schedules_optimizer_is_its_own(self):
        config = changed(schedules__constant__optimizer={"name": "SGD"})
        assert spec(config)["optimizer"] == {"name": "SGD"}
        assert spec(config, method="onecycle-new")["optimizer"] == {"name": "Adam"}

    def test_it_is_what_the_job_reads(self):
        import json

        assert SessionSpec.from_json(json.dumps(spec())).method == "constant-preserve"


@pytest.mark.parametrize(
    ("boundaries", "expected"),
    [
        ({"preserve": {"keep": "all"}, "new": {"keep": []}}, "new"),
        ({"preserve": {"keep": "all"}, "reset": {"keep": []}, "none": {"keep": []}}, "none"),
        ({"preserve": {"keep": "all"}}, "new"),
        ({"slow": {"keep": [], "warmup_steps": 9}, "zero": {"keep": []}}, "zero"),
    ],
)
def test_the_baseline_keeps_nothing(boundaries, expected):
    assert set(baselines({"boundaries": boundaries}).values()) == {expected}


def test_what_is_reshuffled_is_compared_with_its_twin():
    boundaries = {
        "new": {"keep": []},
        "preserve": {"keep": "all"},
        "again": {"keep": "all", "reshuffle": True},
        "slow-again": {"keep": [], "warmup_steps": 5, "reshuffle": True},
    }
    assert baselines({"boundaries": boundaries}) == {
        "new": "new", "preserve": "new", "again": "preserve", "slow-again": "new",
        "uninterrupted": "new",
    }  # fmt: skip


def test_demo_is_an_overlay_with_known_keys():
    demo = yaml.safe_load(Path(ROOT / "config/demo.yaml").read_text())
    assert demo.keys() <= ARTICLE.keys()
