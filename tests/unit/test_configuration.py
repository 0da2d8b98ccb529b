"""Validation of the configuration, one-line errors, and the settings of sessions."""

import copy
import itertools
import json
import math
import re
from datetime import date

import pytest
import yaml

from conftest import ROOT
from optstate.experiment import configuration
from optstate.experiment.configuration import (
    baselines,
    followed_session,
    list_resets,
    list_unanswered,
    load,
    make_plan,
    session_spec,
    validate,
)
from optstate.experiment.consistency import KEYS_OF_KIND, list_files
from optstate.experiment.runs import Session
from optstate.experiment.schema import convert_types
from optstate.job import InputError
from optstate.training.spec import OPTIONS, SessionSpec

SCHEMA = yaml.safe_load((ROOT / "workflow/schemas/config.schema.yaml").read_text())
ARTICLE = yaml.safe_load((ROOT / "config/config.yaml").read_text())


def change_article(**changes) -> dict:
    """Return the article's configuration with some keys changed. ``a__b`` is key ``b`` of ``a``."""
    config = copy.deepcopy(ARTICLE)
    for key, value in changes.items():
        *path, last = key.split("__")
        place = config
        for part in path:
            place = place[part]
        place[last] = value
    return config


def find_error(config: dict) -> str:
    """Return the error for a configuration; empty if it is valid."""
    try:
        validate(config)
    except InputError as error:
        return str(error)
    return ""


def test_the_articles_configuration_is_valid():
    assert find_error(ARTICLE) == ""


def test_every_key_is_in_the_schema_and_in_the_reference():
    assert list(ARTICLE) == list(SCHEMA["properties"]) == SCHEMA["required"]
    reference = (ROOT / "config/README.md").read_text()
    for key in ARTICLE:
        assert f"`{key}`" in reference


OUTCOME = {"measure": "final_valid_top1", "boundary": "preserve"}


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"batchsize": 3}, "unknown key `batchsize`. Did you mean `batch_size`?"),
        ({"datasets__imagewoof__sha": "x"}, "unknown key `datasets.imagewoof.sha`. .* `sha256`"),
        ({"batch_size": "many"}, 'batch_size: "many" must be a whole number.'),
        ({"image_size": 16**5000}, "image_size: the number is too large. Use at most 30 digits."),
        ({"sessions": [10**9, 1, 1]}, "sessions.0.: 1000000000 must be at most 1000000."),
        ({"seeds": ["1" * 5000]}, 'seeds.0.: "1+" must be a whole number.'),
        ({"schedules__constant__lr": [10**29, 1, 1]}, "lr.0.: 1000+ must be at most"),
        ({"experiment": "x" * 101}, 'experiment: "x+" must be a name of up to 100 letters'),
        ({"batch_size": 1}, "batch_size: 1 must be at least 2."),
        (
            {"trian_per_class": None},
            "unknown key `trian_per_class`. Did you mean `train_per_class`",
        ),
        ({"schedules__constant__lrr": None}, "unknown key `schedules.constant.lrr`. Did you mean"),
        ({"equivalence_margin": math.nan}, "equivalence_margin: nan is not a finite number"),
        ({"augment": "flop"}, 'augment: "flop" must be one of none, flip, crop_flip.'),
        ({"sessions": []}, r"sessions: \[\] must not be empty."),
        ({"sessions": [3, 0]}, r"sessions\[1\]: 0 must be at least 1."),
        ({"seeds": [1, 1]}, r"seeds: \[1, 1\] must not repeat an entry."),
        ({"experiment": 2024}, "experiment: 2024 is read as a number, but must be text. Quote it."),
        ({"experiment": "a/b"}, 'experiment: "a/b" must be a name of up to 100'),
        ({"experiment": "datasets"}, "experiment: .* other than `datasets`"),
        ({"experiment": "bench"}, "experiment: .* `bench` and `README.md`"),
        ({"model": None}, "model: null must be text."),
        ({"boundaries__new__keep": "some"}, "boundaries.new.keep: .* `all`, or a list"),
        ({"optimizer": {"name": "Adam", "lr": 0.1}}, "optimizer.lr: 0.1 must be left out"),
        ({"schedules__constant__kind": "step"}, 'schedules.constant.kind: "step" .* constant, one'),
        ({"schedules__constant__kind": "cosine"}, "schedules.constant.final_lr: missing. cosine"),
        ({"boundaries__new__warmup_steps": 0}, "boundaries.new.warmup_steps: 0 must be at least 1"),
        (
            {"boundaries__uninterrupted": {"keep": []}},
            "boundaries.uninterrupted: this name is reserved .* Choose another.",
        ),
        ({"boundaries__new__at": []}, r"boundaries.new.at: \[\] must not be empty"),
        ({"boundaries__new__at": [0]}, r"boundaries.new.at\[0\]: 0 must be at least 1"),
        ({"boundaries__new__at": [1]}, "boundaries.new.at: session 1 begins with a boundary only"),
        ({"boundaries__new__at": [3, 4]}, "boundaries.new.at: there is no session 4, because"),
        ({"boundaries__new__lr_factor": 0}, "boundaries.new.lr_factor: 0 must be above 0"),
        ({"boundaries__new__rebuild_steps": 0}, "boundaries.new.rebuild_steps: 0 must be at least"),
        ({"boundaries__new__baseline": "presrve"}, "boundaries.new.baseline: .* `preserve`"),
        (
            {"boundaries__new__baseline": "new"},
            "boundaries.new.baseline: `boundaries` has no other",
        ),
        ({"boundaries__new__baseline": []}, r"boundaries.new.baseline: \[\] must not be empty"),
        (
            {"boundaries__new__baseline": "preserve", "methods": ["constant-new"]},
            "boundaries.new.baseline: constant-new needs constant-preserve. Add it to `methods`",
        ),
        ({"boundaries__new__step_size": "presrve"}, "boundaries.new.step_size: .* `preserve`"),
        ({"boundaries__new__step_size": "new"}, "step_size: .* form a circle: new -> new"),
        (
            {"boundaries__new__step_size": "preserve", "boundaries__preserve__step_size": "new"},
            "boundaries.preserve.step_size: .* a circle: new -> preserve -> new. Remove one",
        ),
        (
            {"boundaries__new__step_size": "preserve", "boundaries__new__reshuffle": True},
            "boundaries.new.step_size: preserve trains on other batches",
        ),
        (
            {
                "boundaries__new": {"keep": [], "step_size": "preserve", "reshuffle": True},
                "boundaries__preserve": {"keep": "all", "reshuffle": True, "at": [3]},
            },
            "boundaries.new.step_size: preserve trains on other batches",
        ),
        (
            {"boundaries__new__step_size": "preserve", "methods": ["constant-new"]},
            "boundaries.new.step_size: constant-new needs constant-preserve. Add it to `methods`",
        ),
        (
            {"schedules__constant__over": "runs"},
            'constant.over: "runs" must be one of session, run',
        ),
        ({"schedules__constant__over": "run"}, "schedules.constant.lr: .* must be a single number"),
        ({"schedules__constant__lr": 1e-3}, "schedules.constant.lr: .* add `over: run`"),
        (
            {"schedules__constant": {"kind": "constant", "over": "run", "lr": math.inf}},
            "schedules.constant.lr: inf is not a finite number",
        ),
        ({"validate_every": 0}, "validate_every: 0 must be at least 1"),
        ({"methods": ["constant-uninterupted"]}, "Did you mean `uninterrupted`"),
        ({"primary__measure": "top1"}, 'primary.measure: "top1" must be one of final_valid_top1'),
        ({"primary__boundary": "keep"}, "primary.boundary: `boundaries` has no 'keep'."),
        ({"datasets__imagewoof__target_top1": 70}, "datasets.imagewoof.target_top1: 70 .* most 1"),
        (
            {"schedules__constant__lr": [1e-3, -1]},
            r"constant.lr\[1\]: -1 must be above 0",
        ),
        ({"schedules__constant__lr": [1e-3]}, "schedules.constant.lr: 1 values, .* 3 `sessions`"),
        ({"schedules__constant__max_lr": [1, 1, 1]}, "schedules.constant.max_lr: not a key of"),
        ({"schedules__onecycle__max_lr": None}, "schedules.onecycle.max_lr: missing"),
        ({"methods": ["constant-old"]}, "methods: 'constant-old' .* `boundaries` has no 'old'"),
        ({"methods": ["onecicle-new"]}, "methods: .* 'onecicle'. Did you mean `onecycle`"),
        ({"methods": ["constant"]}, "methods: 'constant' must be SCHEDULE-BOUNDARY"),
        ({"datasets__a": {}}, "datasets.a: has no source. Give exactly one"),
        (
            {"datasets__a": {"packaged": "digits", "folder": "."}},
            "datasets.a: has folder and packaged.",
        ),
        ({"datasets__a": {"archive": "x.tgz"}}, "datasets.a.sha256: missing"),
        (
            {"datasets__a": {"packaged": "digits", "sha256": "0" * 64}},
            "sha256: belongs to an",
        ),
        ({"datasets__a": {"archive": "x", "sha256": "abc"}}, "sha256: .* 64 hexadecimal digits"),
        ({"datasets__a": {"folder": "/nowhere"}}, "datasets.a.folder: /nowhere does not exist."),
        ({"datasets__a": {"folder": "config/../tets"}}, "does not exist. Did you mean `tests`?"),
        ({"datasets__a": {"packaged": "mnist"}}, "packaged: .* one of digits, mnist5k"),
        ({"datasets__a": {"folder": ".", "valid_seed": 1}}, "datasets.a.valid_seed: has no effect"),
        (
            {"datasets__a": {"packaged": "digits", "valid_fraction": 0.2}},
            "datasets.a.valid_fraction: digits has validation images. Set it to null",
        ),
        ({"datasets__a": {"folder": ".", "valid_fraction": 0}}, "valid_fraction: 0 must be above"),
        (
            {"datasets__a": {"folder": ".", "valid_fraction": 1}},
            "valid_fraction: 1 must be below 1",
        ),
        (
            {"datasets__a": {"folder": ".", "valid_fraction": math.nan}},
            "a.valid_fraction: nan is not a finite number",
        ),
        (
            {"datasets__a": {"folder": ".", "valid_fraction": 0.2, "valid_seed": -1}},
            "datasets.a.valid_seed: -1 must be at least 0",
        ),
        ({"datasets": {"imagenette": None}}, "datasets: {} must not be empty."),
        ({"datasets": {1: {"folder": "."}}}, "datasets: YAML does not read the name 1 as text"),
        ({"optimizer": {"name": "Adam", "at": date(2020, 1, 1)}}, "optimizer.at: .* 2020-01-01"),
        ({"datasets__x/y": {"folder": "."}}, 'datasets: the name "x/y" must be a name'),
        (
            {"schedules__constant__lr": [1e-3, float("nan"), 1e-3]},
            r"lr\[1\]: nan is not a finite number",
        ),
        (
            {"schedules__constant__lr": [1e-3, 1e-3, float("inf")]},
            r"lr\[2\]: inf is not a finite number",
        ),
        ({"seeds": [2**32]}, r"seeds\[0\]: 4294967296 must be at most 4294967295"),
        ({"experiment": "x\n"}, "experiment: "),
        ({"experiment": "README.md"}, "experiment: "),
        ({"weights": "/nowhere.pt"}, "weights: /nowhere.pt is not a file."),
        ({"model": "/nowhere.py:make"}, "model: /nowhere.py is not a file."),
        ({"model": "net.py"}, "model: net.py names no function. Write FILE.py:FUNCTION."),
        (
            {"weights": str(ROOT / "Makefile"), "optimizer_state": "/nowhere.pt"},
            "optimizer_state: /nowhere.pt is not a file.",
        ),
        ({"optimizer_state": "mine.pt"}, "optimizer_state: needs the weights that it belongs to"),
        (
            {"optimizer_state": "mine.pt", "weights": "IMAGENET1K_V2"},
            "optimizer_state: needs the weights that it belongs to, in a file.",
        ),
        (
            {"model": "net.py:make", "weights": "IMAGENET1K_V2"},
            "weights: IMAGENET1K_V2 belongs to a model of torchvision.",
        ),
        ({"optimizer_state": "lost"}, "optimizer_state: needs weights. Set `weights`."),
        (
            {"optimizer_state": "lost", "weights": "IMAGENET1K_V2"},
            "boundaries.preserve.keep: with `optimizer_state: lost`, there is nothing to keep",
        ),
        ({"primary": []}, r"primary: \[\] must be"),
        ({"primary": [{"boundary": "new"}]}, r"primary\[0\].measure: missing"),
        (
            {"primary": [{"boundary": "odd", "measure": "final_valid_top1"}]},
            r"primary\[0\].boundary: `boundaries` has no 'odd'",
        ),
        ({"primary__boundary": "new"}, "primary: new is compared with itself."),
        ({"primary__baseline": "uninterrupted"}, "primary: preserve is not compared with uninter"),
        (
            {"primary__boundary": "uninterrupted", "primary__baseline": "preserve"},
            "primary: uninterrupted is not compared with preserve, but with new. Exchange them, "
            "and add uninterrupted to boundaries.preserve.baseline.",
        ),
        (
            {
                "primary__boundary": "uninterrupted",
                "primary__measure": "end_valid_top1_session2",
            },
            "primary.measure: end_valid_top1_session2: an uninterrupted run has no such session",
        ),
        (
            {
                "boundaries__preserve__baseline": "uninterrupted",
                "methods": ["constant-preserve", "constant-uninterrupted"],
                "primary__measure": "end_valid_top1_session2",
            },
            "primary.measure: end_valid_top1_session2: an uninterrupted run has no such session",
        ),
        (
            {"primary": [OUTCOME, OUTCOME | {"baseline": "new"}]},
            r"primary\[1\]: the same outcome as an earlier one",
        ),
        (
            {"primary__measure": "end_valid_top1_session4"},
            "primary.measure: end_valid_top1_session4: no session 4 begins with a boundary",
        ),
        (
            {"primary__measure": "end_valid_loss_session1"},
            "primary.measure: end_valid_loss_session1: no session 1 begins with a boundary",
        ),
        ({"equivalence_margin": {"above_chance": 2}}, "equivalence_margin.above_chance: 2 must be"),
        ({"equivalence_margin": {"points": 2}}, "equivalence_margin"),
        ({"subset": "last"}, 'subset: "last" must be one of first, seed'),
        ({"normalize": "cifar"}, 'normalize: "cifar" must be `none`, `imagenet`, or a mapping'),
        ({"normalize": {"mean": [0, 0, 0]}}, "normalize.std: missing"),
        (
            {"normalize": {"mean": [0, 0], "std": [1, 1, 1]}},
            r"normalize.mean: \[0, 0\] must be a list of three numbers",
        ),
        (
            {"normalize": {"mean": [0, 0, 0], "std": [1, 0, 1]}},
            r"normalize.std\[1\]: 0 must be above 0",
        ),
    ],
)
def test_an_error_is_one_line(changes, line, monkeypatch):
    monkeypatch.chdir(ROOT)
    found = find_error(change_article(**changes))
    assert re.search(line, found), found
    assert "\n" not in found


LATE = {"keep": [], "at": [2, 3]}  # before the same sessions as `new`
ONE_SESSION = {"sessions": [3], "schedules__constant__lr": [1e-3]}


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (
            {"boundaries__late": LATE, "methods": ["constant-new", "constant-late"]},
            "methods: constant-new and constant-late cannot differ, because they do the same at "
            "every boundary. Remove one of them, or change its entry in `boundaries`.",
        ),
        (
            {
                "boundaries__late": LATE | {"baseline": "new"},
                "methods": ["onecycle-new", "constant-late", "constant-new"],
            },
            "methods: constant-late and constant-new cannot differ",
        ),
        (ONE_SESSION | {"methods": ["constant-new"]}, ""),
        (ONE_SESSION | {"methods": ["constant-uninterrupted"]}, ""),
        (
            ONE_SESSION | {"methods": ["constant-new", "constant-preserve"]},
            "methods: constant-new and constant-preserve cannot differ, because there is only one "
            "session. Remove one of them, add a session to `sessions`, or set `optimizer_state` "
            "(a file, or `lost` if only the weights were saved).",
        ),
        (
            ONE_SESSION | {"methods": ["constant-new", "constant-uninterrupted"]},
            "methods: constant-new and constant-uninterrupted cannot differ, because there is only "
            "one session.",
        ),
        (
            ONE_SESSION
            | {
                "weights": "IMAGENET1K_V2",
                "optimizer_state": "lost",
                "methods": ["constant-new", "constant-uninterrupted"],
            },
            "methods: constant-new and constant-uninterrupted cannot differ, because they do the",
        ),
        # These differ.
        ({"boundaries__late": LATE, "methods": ["constant-late", "onecycle-new"]}, ""),
        (
            {"boundaries__late": LATE | {"at": [3]}, "methods": ["constant-new", "constant-late"]},
            "",
        ),
        (
            {
                "boundaries__again": {"keep": "all", "reshuffle": True},
                "methods": ["constant-preserve", "constant-again", "constant-uninterrupted"],
            },
            "",
        ),
        # A null control: this optimizer has no state.
        ({"optimizer": {"name": "SGD"}, "methods": ["constant-new", "constant-preserve"]}, ""),
    ],
)
def test_methods_that_cannot_differ_are_refused(changes, line):
    found = find_error(change_article(**changes))
    assert found.startswith(line) if line else found == ""


@pytest.mark.parametrize(
    "changes",
    [
        {"sessions": [2, 1], "schedules__constant__lr": [1e-3, 1e-3]},
        {"schedules__onecycle__final_lr": [1, 1, 1]},
        {"boundaries__late": {"keep": [], "at": [9]}},
        {"boundaries__late": {"keep": [], "step_size": "presrve"}},
        {"boundaries__late": {"keep": [], "step_size": "late"}},
    ],
)
def test_what_no_method_uses_is_not_checked(changes):
    methods = ["constant-new", "constant-preserve"]
    assert find_error(change_article(**changes, methods=methods)) == ""
    used = [*methods, "onecycle-new", *(["constant-late"] if "boundaries__late" in changes else [])]
    assert find_error(change_article(**changes, methods=used)) != ""


def test_baselines_are_checked_even_if_no_method_uses_them():
    changes = {"boundaries__late": {"keep": [], "baseline": "presrve"}}
    assert "Did you mean `preserve`?" in find_error(change_article(**changes))


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"seeds": 3}, "seeds: 3 must be a list, such as [0, 1, 2]."),
        ({"seeds": {"a": 1}}, 'seeds: {"a": 1} must be a list, such as [0, 1, 2].'),
        ({"sessions": 20}, "sessions: 20 must be a list, such as [10, 10, 5]."),
        (
            {"methods": "constant-new"},
            'methods: "constant-new" must be a list, such as '
            '["constant-new", "constant-preserve"].',
        ),
        ({"batch_size": [3]}, "batch_size: [3] must be a whole number."),
        ({"seeds": []}, "seeds: [] must not be empty."),
    ],
)
def test_the_error_for_a_wrong_type_gives_an_example(changes, line):
    assert find_error(change_article(**changes)) == line


def test_a_boundary_without_a_new_order_needs_no_key_for_it():
    explicit = {"keep": [], "reshuffle": False}
    config = validate(change_article(boundaries={"none": explicit, "preserve": {"keep": "all"}},
                              methods=["constant-none"], primary__boundary="preserve"))  # fmt: skip
    assert baselines(config)["preserve"] == ["none"]


def test_the_error_for_a_missing_key_names_it():
    config = change_article()
    del config["seeds"]
    assert find_error(config) == "seeds: missing. Add it."


def test_overlays_are_merged_deeply_into_the_default():
    config = load({"datasets": {"imagewoof": None}, "batch_size": 50}, {"batch_size": 40})
    assert list(config["datasets"]) == ["imagenette"]
    assert config["batch_size"] == 40
    assert config["methods"] == ARTICLE["methods"]


@pytest.mark.parametrize(
    ("content", "error"),
    [("- a", "must be a mapping"), ("", "must be a mapping")],
)
def test_the_error_for_an_overlay_names_its_file(tmp_path, content, error):
    (tmp_path / "mine.yaml").write_text(content)
    with pytest.raises(InputError, match=f"{tmp_path}/mine.yaml: {error}"):
        load(tmp_path / "mine.yaml")


def test_text_is_converted_to_the_types_of_the_schema():
    """Values from the command line are text, and so is 3e-4 in YAML."""
    config = change_article(
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
    result = convert_types(config, SCHEMA)
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


@pytest.mark.parametrize("null", [None, "null"])  # from YAML and from the command line
def test_null_removes_an_entry(null):
    config = change_article(datasets__imagenette=null, schedules__onecycle=null)
    result = convert_types(config, SCHEMA)
    assert list(result["datasets"]) == ["imagewoof"]
    assert list(result["schedules"]) == ["constant"]
    assert result["mirror"] is None
    datasets = {"a": {"archive": null, "sha256": null, "folder": "/data"}}
    result = convert_types(config | {"datasets": datasets}, SCHEMA)
    assert result["datasets"] == {"a": {"folder": "/data"}}


def make_spec(config=ARTICLE, method="constant-preserve", session=2) -> SessionSpec:
    return session_spec(config, Session("imagewoof", method, 0, session))


class TestSessionSpec:
    def test_boundaries_differ_only_in_name_and_kept_state(self):
        new, preserve = (vars(make_spec(method=f"onecycle-{b}")) for b in ("new", "preserve"))
        differ = {key for key in new if new[key] != preserve[key]}
        assert differ == {"boundary", "method", "keep"}
        assert (new["keep"], preserve["keep"]) == ([], "all")

    def test_a_spec_has_only_the_learning_rates_of_its_session(self):
        assert make_spec(session=3).learning_rate == {"kind": "constant", "lr": 8e-5}
        onecycle = make_spec(method="onecycle", session=1)
        assert onecycle.learning_rate == {"kind": "onecycle", "initial_lr": 4e-5, "max_lr": 1e-3}
        assert make_spec() == make_spec(change_article(schedules__constant__lr=[1, 3e-4, 1]))

    def test_settings_of_other_jobs_do_not_change_a_spec(self):
        """A change of them must not make the session stale."""
        other = change_article(
            datasets={"imagewoof": {"folder": "."}}, mirror="x", seeds=[0, 1], sessions=[1, 10, 1],
            methods=["constant-preserve"], keep_checkpoints="none", boundaries__new__keep=["step"],
            experiment="other",
        )  # fmt: skip
        assert make_spec(other) == make_spec()

    def test_the_order_of_kept_entries_does_not_matter(self):
        orders = (["step", "exp_avg"], ["exp_avg", "step"])
        one, other = (make_spec(change_article(boundaries__preserve__keep=keep)) for keep in orders)
        assert one == other

    def test_an_uninterrupted_run_has_all_epochs_and_the_first_sessions_values(self):
        whole = make_spec(method="constant-uninterrupted", session=1)
        assert (whole.num_epochs, whole.learning_rate["lr"]) == (25, 3e-4)
        assert (whole.boundary, whole.keep) == ("uninterrupted", [])

    def test_options_of_a_boundary_apply_to_later_sessions(self):
        config = change_article(
            boundaries__preserve={"keep": "all", "warmup_steps": 7, "reshuffle": True}
        )
        shared, later = (
            make_spec(config, method="constant", session=1),
            make_spec(config, session=3),
        )
        assert (shared.warmup_steps, shared.reshuffle) == (0, False)
        assert (later.warmup_steps, later.reshuffle) == (7, True)

    def test_a_boundary_at_one_session_keeps_everything_elsewhere(self):
        late = {"keep": [], "at": [3], "lr_factor": 0.5}
        config = change_article(boundaries__late=late)
        second, third = (make_spec(config, "constant-late", number) for number in (2, 3))
        assert (second.keep, second.lr_factor) == ("all", 1)
        assert (third.keep, third.lr_factor) == ([], 0.5)

    @pytest.mark.parametrize("kind", KEYS_OF_KIND)
    def test_every_session_has_the_whole_schedule_over_the_run(self, kind):
        values = {"lr": 1e-3, "initial_lr": 1e-5, "max_lr": 1e-3, "final_lr": 0, "warmup_steps": 9}
        own = {key: values[key] for key in KEYS_OF_KIND[kind]}
        schedule = {"kind": kind, "over": "run", **own}
        methods = ["constant-new", "constant-uninterrupted"]
        config = change_article(schedules={"constant": schedule}, sessions=[2, 3], methods=methods)
        expected = dict(schedule)
        if kind not in ("constant", "warmup"):
            expected["num_epochs"] = 5
        for method, session in (("", 1), ("-new", 2), ("-uninterrupted", 1)):
            assert make_spec(config, f"constant{method}", session).learning_rate == expected

    def test_norms_are_recorded_at_every_step_where_another_run_needs_them(self):
        rescaled = {"keep": [], "step_size": "preserve"}
        methods = [*ARTICLE["methods"], "constant-rescaled"]
        config = change_article(boundaries__rescaled=rescaled, methods=methods)
        with_all_norms = {
            (method, number)
            for method, number in [("constant", 1), *itertools.product(methods, (2, 3))]
            if make_spec(config, method, number).all_norms
        }
        assert with_all_norms == {
            (method, number)
            for method in ("constant-preserve", "constant-rescaled")
            for number in (2, 3)
        }
        followed = followed_session(config, Session("imagewoof", "constant-rescaled", 0, 2))
        assert followed == Session("imagewoof", "constant-preserve", 0, 2)

    def test_the_default_of_an_option_is_the_same_as_leaving_it_out(self):
        config = change_article(
            boundaries__new={"keep": [], "reshuffle": False, "lr_factor": 1.0},
            schedules__constant__over="session",
        )
        assert validate(config) == ARTICLE

    def test_a_schedule_can_have_its_own_optimizer(self):
        config = change_article(schedules__constant__optimizer={"name": "SGD"})
        assert make_spec(config).optimizer == {"name": "SGD"}
        assert make_spec(config, method="onecycle-new").optimizer == {"name": "Adam"}

    def test_weights_apply_to_the_first_session_and_the_model_to_all(self):
        hashes = {"weights": "0", "model": "1"}
        first, second = (
            session_spec(ARTICLE, Session("imagewoof", name, 0, number), hashes)
            for number, name in ((1, "constant"), (2, "constant-new"))
        )
        assert (first.file_hashes, second.file_hashes) == (hashes, {"model": "1"})

    def test_the_place_of_a_model_of_ones_own_does_not_count(self):
        session = Session("imagewoof", "constant", 0, 1)
        specs = [
            session_spec(ARTICLE | {"model": f"{folder}/net.py:make"}, session, {"model": "1"})
            for folder in ("/here", "there")
        ]
        assert specs[0] == specs[1]
        assert specs[0].model == ":make"

    def test_with_a_lost_state_remedies_are_compared_in_session_1(self):
        config = change_article(
            weights="IMAGENET1K_V2",
            optimizer_state="lost",
            sessions=[10],
            schedules__constant__lr=[1e-3],
            boundaries__slow={"keep": [], "lr_factor": 0.3},
            methods=["constant-new", "constant-slow"],
            primary__boundary="slow",
        )
        runs = configuration.all_runs(validate(config))
        factors = {s.name: session_spec(config, s).lr_factor for s in runs.sessions}
        assert factors == {"constant-new": 1.0, "constant-slow": 0.3}
        assert list_files(config) == {}

    def test_with_an_optimizer_state_session_1_begins_with_a_boundary(self):
        config = ARTICLE | {"optimizer_state": "mine.pt"}
        hashes = {"weights": "0", "optimizer_state": "1"}

        def make(method):
            names = configuration.all_runs(config).session_names[f"constant-{method}"]
            session = Session("imagewoof", names[0], 0, 1)
            return names, session_spec(config, session, hashes)

        names, spec = make("preserve")
        assert names == ["constant-preserve"] * 3
        assert (spec.keep, spec.method, spec.file_hashes) == ("all", "constant-preserve", hashes)
        names, spec = make("new")
        assert (names, spec.keep) == (["constant-new"] * 3, [])
        assert spec.file_hashes == {"weights": "0"}  # another state would change nothing

    def test_an_uninterrupted_run_keeps_the_given_state(self):
        config = ARTICLE | {"optimizer_state": "mine.pt", "methods": ["constant-uninterrupted"]}
        session = Session("imagewoof", "constant-uninterrupted", 0, 1)
        assert session_spec(config, session).keep == "all"

    def test_a_job_reads_the_spec_that_was_written(self):
        assert SessionSpec.from_json(make_spec().to_json()) == make_spec()
        assert make_spec().to_json() == json.dumps(vars(make_spec()), sort_keys=True)


IN_TWO_SESSIONS = {"methods": [], "sessions": [1, 1], "optimizer_state": None}


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
    found = baselines(IN_TWO_SESSIONS | {"boundaries": boundaries})
    assert all(names == [expected] for names in found.values())


def test_boundaries_that_methods_use_come_first():
    boundaries = {
        "new": {"keep": []}, "preserve": {"keep": "all"},
        "discard": {"keep": []}, "carry": {"keep": "all"},
    }  # fmt: skip
    boundaries["carry-again"] = {"keep": "all", "reshuffle": True}
    config = IN_TWO_SESSIONS | {
        "boundaries": boundaries, "methods": ["s-discard", "s-carry", "s-carry-again"],
    }  # fmt: skip
    assert baselines(config)["carry"] == ["discard"]
    assert baselines(config)["carry-again"] == ["carry"]
    assert list_resets(config) == {"new": [2], "discard": [2], "carry": []}


def test_outcomes_without_runs_are_listed():
    outcomes = [OUTCOME, {"measure": "final_valid_loss", "boundary": "new", "baseline": "preserve"}]
    boundaries = ARTICLE["boundaries"] | {"new": {"keep": [], "baseline": "preserve"}}
    config = validate(change_article(primary=outcomes, boundaries=boundaries))
    assert list_unanswered(config) == []
    config["methods"] = ["constant-new", "onecycle-preserve"]
    first, second = list_unanswered(config)
    assert first.startswith("primary[0]: no schedule has both preserve and new among the methods")
    assert second.startswith("primary[1]: no schedule has both new and preserve among the methods")


def test_a_reshuffled_boundary_is_compared_with_its_twin():
    boundaries = {
        "new": {"keep": []},
        "preserve": {"keep": "all"},
        "again": {"keep": "all", "reshuffle": True},
        "late-again": {"keep": "all", "at": [2], "reshuffle": True},
        "slow-again": {"keep": [], "warmup_steps": 5, "reshuffle": True},
    }
    assert baselines(IN_TWO_SESSIONS | {"boundaries": boundaries}) == {
        "new": ["new"], "preserve": ["new"], "again": ["preserve"], "late-again": ["preserve"],
        "slow-again": ["new"], "uninterrupted": ["new"],
    }  # fmt: skip


def test_a_boundary_may_name_its_baselines():
    boundaries = {
        "new": {"keep": [], "baseline": "preserve"},
        "preserve": {"keep": "all"},
        "slow": {"keep": [], "lr_factor": 0.3, "baseline": ["preserve", "new"]},
        "slow-again": {"keep": [], "lr_factor": 0.3, "reshuffle": True},
    }
    assert baselines(IN_TWO_SESSIONS | {"boundaries": boundaries}) == {
        "new": ["preserve"], "preserve": ["new"], "slow": ["preserve", "new"],
        "slow-again": ["slow"], "uninterrupted": ["new"],
    }  # fmt: skip


def test_the_plan_has_all_that_must_be_fixed_before_the_runs():
    outcomes = [
        OUTCOME,
        {"measure": "end_valid_top1_session2", "boundary": "preserve", "baseline": "new"},
    ]
    plan = make_plan(validate(change_article(primary=outcomes)))
    expected = {"boundary": "preserve", "baseline": "new"}
    assert plan.pop("splits") == {"imagenette": {}, "imagewoof": {}}
    settings = plan.pop("settings")
    assert (settings["model"], settings["image_size"]) == ("resnet50", 224)
    assert settings["boundaries"] == {"new": {"keep": []}, "preserve": {"keep": "all"}}
    assert not {"mirror", "experiment", "seeds", "datasets"} & settings.keys()
    assert plan == {
        "primary": [
            expected | {"measure": "final_valid_top1"},
            expected | {"measure": "end_valid_top1_session2"},
        ],
        "equivalence_margin": 0.01,
        "targets": {"imagenette": 0.7, "imagewoof": 0.4},
        "datasets": ["imagenette", "imagewoof"],
        "sessions": [10, 10, 5],
        "methods": ARTICLE["methods"],
        "seeds": [0],
    }


def test_when_the_state_is_lost():
    boundaries = {
        "preserve": {"keep": "all"},
        "new": {"keep": []},
        "late": {"keep": [], "at": [3], "baseline": "preserve"},
        "second-moment": {"keep": ["exp_avg_sq"]},
        "slow": {"keep": [], "lr_factor": 0.3},
    }
    config = {"boundaries": boundaries, "sessions": [1] * 4, "optimizer_state": None, "methods": []}
    assert list_resets(config) == {"preserve": [], "new": [2, 3, 4], "late": [3]}
    given = list_resets(config | {"optimizer_state": "mine.pt"})
    assert given == {"preserve": [], "new": [1, 2, 3, 4], "late": [3]}
    boundaries["stay"] = {"keep": "all", "at": [2]}
    del boundaries["preserve"]
    lost = list_resets(config | {"optimizer_state": "lost"})
    assert lost == {"new": [1, 2, 3, 4], "late": [1, 3], "stay": [1]}
    del boundaries["stay"]
    boundaries["preserve"] = {"keep": "all", "warmup_steps": 5}  # so no run never loses anything
    assert list_resets(config) == {"new": [2, 3, 4], "late": [3]}


def test_the_example_of_the_readme_is_valid(tmp_path):
    (text,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    overlay = yaml.safe_load(text.replace("/data/shells", str(tmp_path)))
    assert load(overlay)["methods"] == ["constant-new", "constant-preserve"]


@pytest.mark.parametrize(
    "path", sorted((ROOT / "config").rglob("*.yaml")), ids=lambda path: path.stem
)
def test_the_projects_own_configurations_are_valid(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    load(path)


def test_every_option_of_a_boundary_reaches_its_session_and_the_reference():
    options = SCHEMA["properties"]["boundaries"]["additionalProperties"]["properties"]
    assert options.keys() - {"at", "baseline", "keep"} == OPTIONS.keys()
    reference = (ROOT / "config/README.md").read_text()
    assert all(f"\n| … `{key}` |" in reference for key in options)


def test_the_documented_measures_may_be_primary():
    outputs = (ROOT / "docs/outputs.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| \w+ \| (?:yes)? *\| (yes|no) \|", outputs, re.MULTILINE)
    outcome = SCHEMA["properties"]["primary"]["properties"]["measure"]
    reference = (ROOT / "config/README.md").read_text()
    assert len(rows) > 10
    for name, allowed in rows:
        matches = re.search(outcome["pattern"], re.sub("N$", "2", name))
        assert bool(matches) == (allowed == "yes"), name
        if matches:
            assert name in outcome["description"]
            assert f"`{name}`" in reference
