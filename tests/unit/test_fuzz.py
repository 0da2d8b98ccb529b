"""Random configurations are valid or produce a one-line error, never a traceback."""

import copy
import functools
import json
import math
from datetime import date
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from snakemake.common.configfile import load_configfile
from snakemake.exceptions import WorkflowError
from snakemake.utils import update_config

from conftest import ROOT
from optstate.experiment import check, configuration, rules
from optstate.job import InputError, explain_os_error

TEXT = (ROOT / "config/config.yaml").read_text()
ARTICLE = yaml.safe_load(TEXT) | {"model": "shufflenet_v2_x0_5", "image_size": 32}
KEYS = sorted(
    {*ARTICLE, "archive", "sha256", "folder", "packaged", "kind", "lr", "keep", "name", "betas",
     "optimizer", "initial_lr", "max_lr", "epochs", "steps", "minutes", "constant", "new", "digits",
     "at", "over", "lr_factor", "rebuild_steps", "warmup_steps", "step_size", "baseline",
     "reshuffle", "final_lr", "preserve"}
)  # fmt: skip
WORDS = [
    *KEYS, "Adam", "SGD", "LBFGS", "SparseAdam", "Rprop", "run", "all", "auto", "true", "null",
    "", "3e-4", "1e999", "nan", "-1", "constant-new", "constant-", "-", "../x", "a\nb", "é", "\0",
    "/", "resnet18", "x" * 300, "1" * 5000,
]  # fmt: skip
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.integers(-2, 3), st.floats(), st.text(max_size=8),
    st.sampled_from(WORDS), st.sampled_from([date(2001, 1, 1), b"x", 10**400, math.inf]),
)  # fmt: skip
NAMES = st.sampled_from(KEYS) | st.text(max_size=4)
VALUES = st.recursive(
    SCALARS, lambda v: st.lists(v, max_size=3) | st.dictionaries(NAMES, v, max_size=3), max_leaves=6
)


@st.composite
def changed_configurations(draw: st.DrawFn) -> dict:
    """The article's configuration with one to three of its entries changed, removed or added."""
    config = copy.deepcopy(ARTICLE)
    for _ in range(draw(st.integers(1, 3))):
        place: Any = config
        while True:
            is_list = isinstance(place, list)
            known = list(range(len(place))) if is_list else list(place)
            key = draw(st.sampled_from(known) if known else NAMES if not is_list else st.just(0))
            inner = place[key] if key in known else None
            if not isinstance(inner, (dict, list)) or draw(st.booleans()):
                break
            place = inner
        how = draw(st.sampled_from(["change", "change", "remove", "add"]))
        if how == "remove" and known:
            del place[key]
        elif isinstance(place, list):
            place.insert(key, draw(VALUES)) if how == "add" or not known else place.__setitem__(
                key, draw(VALUES)
            )
        else:
            place[draw(NAMES) if how == "add" else key] = draw(VALUES)
    return config


@st.composite
def changed_texts(draw: st.DrawFn) -> str:
    """The text of the article's configuration with a piece of it replaced."""
    start = draw(st.integers(0, len(TEXT)))
    end = start + draw(st.integers(0, 30))
    piece = draw(st.text(max_size=12) | st.sampled_from(["\t", "- ", ": ", "{", "]", "&a *a", "#"]))
    return TEXT[:start] + piece + TEXT[end:]


@functools.cache
def check_once(what: str) -> None:
    """Check a configuration with torch, unless the same one has passed before."""
    check.check(json.loads(what))


def find_error(given: dict) -> str:
    """Return the one-line error for a configuration; empty if all its sessions have a spec."""
    try:
        config = configuration.validate(given)
        check_once(json.dumps({key: config[key] for key in rules.CHECKED_KEYS}, sort_keys=True))
    except (InputError, OSError) as caught:
        error = InputError(explain_os_error(caught)) if isinstance(caught, OSError) else caught
        (line,) = str(error).splitlines()
        assert line.isprintable()
        return line
    for session in configuration.all_runs(config).sessions:
        configuration.session_spec(config, session).to_json()
    return ""


@pytest.fixture
def effort(request) -> int:
    return 40 if request.config.getoption("--exhaustive") else 1


def fuzz(test: Any, effort: int, examples: int) -> None:
    settings(
        max_examples=examples * effort, deadline=None, database=None,
        suppress_health_check=list(HealthCheck),
    )(test)()  # fmt: skip


def test_changed_entries_give_an_error_of_one_line_or_none(effort):
    errors = []

    @given(changed_configurations())
    def test(config: dict) -> None:
        errors.append(find_error(config))

    fuzz(test, effort, 300)
    assert len(set(errors)) > 20
    assert find_error(ARTICLE) == ""


def test_changed_text_gives_an_error_of_one_line_or_none(effort, tmp_path):
    errors = []

    @given(changed_texts())
    def test(text: str) -> None:
        (tmp_path / "changed.yaml").write_text(text, encoding="utf-8", errors="ignore")
        try:
            overlay = load_configfile(tmp_path / "changed.yaml")
        except WorkflowError as error:  # Snakemake's own one-line error
            assert "Config file" in str(error)
            return
        config = copy.deepcopy(ARTICLE)
        update_config(config, overlay)
        config["model"] = ARTICLE["model"]
        errors.append(find_error(config))

    fuzz(test, effort, 100)
    assert len(set(errors)) > 1
    assert "" in errors
