"""Load and validate an experiment's configuration, and derive each session's settings from it."""

import copy
import dataclasses
import functools
import json
from pathlib import Path

from optstate import UNINTERRUPTED
from optstate.experiment.consistency import KEYS_OF_KIND, list_given_outcomes, require_consistent
from optstate.experiment.runs import (
    Runs,
    Session,
    choose_plain,
    cross_boundaries,
    cross_boundary,
    find_first_boundary,
    find_optimizer,
    list_baselines,
    list_boundaries,
    list_schedules,
    name_sessions,
    split_method,
)
from optstate.experiment.schema import Config, conform
from optstate.experiment.yaml_files import read_yaml
from optstate.job import InputError
from optstate.training.spec import OPTIONS, SessionSpec, split_model

ROOT = Path(__file__).parents[4]
DEFAULT = ROOT / "config/config.yaml"
SCHEMA = ROOT / "workflow/schemas/config.schema.yaml"

STEADY = ("constant", "warmup")  # kinds whose values do not depend on the number of steps in all
# These keys change no result, or the plan has them in another form.
UNPLANNED = {
    "experiment", "mirror", "checkpoint_every", "keep_checkpoints", "primary", "equivalence_margin",
    "datasets", "sessions", "methods", "seeds",
}  # fmt: skip
# Values that are the same as leaving the key out.
DEFAULTS: dict[str, Config] = {
    "boundaries": OPTIONS,
    "schedules": {"over": "session"},
}


def load(*overlays: Path | Config) -> Config:
    """Read the default configuration with ``overlays`` merged into it, as Snakemake merges them.

    Args:
        overlays: paths of YAML files, or mappings; later ones take precedence.

    Raises:
        InputError: the configuration is not valid.
    """
    config: Config = {}
    for overlay in (DEFAULT, *overlays):
        merge(config, read_yaml(overlay) if isinstance(overlay, Path) else copy.deepcopy(overlay))
    return validate(config)


def merge(config: Config, overlay: Config) -> None:
    """Merge ``overlay`` into ``config``, in place: mappings recursively, other values replaced."""
    for key, value in overlay.items():
        if isinstance(value, dict) and isinstance(config.get(key), dict):
            merge(config[key], value)
        else:
            config[key] = value


def validate(given: Config) -> Config:
    """Validate a configuration, and return it with the types of the schema.

    Args:
        given: the configuration as read from YAML and the command line.

    Raises:
        InputError: one line that names the key, its value, and the fix.
    """
    config = conform(given, SCHEMA)
    for section, defaults in DEFAULTS.items():
        for entry in config[section].values():
            for key, default in defaults.items():
                if key in entry and entry[key] == default:
                    del entry[key]
    require_consistent(config)
    _require_compared(config)
    return config


def targets(config: Config) -> dict[str, float]:
    """Return the target valid top-1, a fraction, of each data set that has one."""
    datasets = config["datasets"].items()
    return {name: source["target_top1"] for name, source in datasets if "target_top1" in source}


def all_runs(config: Config) -> Runs:
    """Return the runs of an experiment."""
    named = {key: config[key] for key in ("methods", "boundaries", "sessions", "optimizer_state")}
    return Runs(
        datasets=sorted(config["datasets"]),
        seeds=sorted(config["seeds"]),
        session_names=_name_sessions(json.dumps(named)),
    )


@functools.cache  # every session asks for the names of all
def _name_sessions(config: str) -> dict[str, list[str]]:
    return name_sessions(json.loads(config))


def baselines(config: Config) -> dict[str, list[str]]:
    """Return the boundaries that each boundary is compared with. The first one is the primary one.

    Without the key ``baseline``, this is the boundary that keeps nothing, of those that methods use
    if there is one. For a boundary with ``reshuffle``, it is the boundary that is the same in
    everything else, if there is one. Their difference is noise.
    """
    boundaries, used = config["boundaries"], list_boundaries(config["methods"])
    crossed = {
        name: cross_boundaries({k: v for k, v in boundary.items() if k != "reshuffle"}, config)
        for name, boundary in boundaries.items()
    }
    usual = choose_plain(config, keep=[]) or "new"
    found = {UNINTERRUPTED: [usual]}
    for name, boundary in boundaries.items():
        twins = [
            (twin not in used, twin)
            for twin, other in boundaries.items()
            if "reshuffle" in boundary
            and "reshuffle" not in other
            and crossed[twin] == crossed[name]
        ]
        found[name] = list_baselines(boundary) or [min(twins, default=(True, usual))[1]]
    return found


def list_outcomes(config: Config) -> list[dict[str, str]]:
    """Return ``boundary``, ``baseline`` and ``measure`` of each primary outcome."""
    known = baselines(config)
    return [
        {
            "boundary": given["boundary"],
            "baseline": given.get("baseline", known[given["boundary"]][0]),
            "measure": given["measure"],
        }
        for given in list_given_outcomes(config).values()
    ]


def _require_compared(config: Config) -> None:
    """Check that each primary outcome is a comparison that is made.

    Raises:
        InputError: an outcome has a baseline with which its boundary is not compared, or a measure
            that one of them does not have, or is listed twice.
    """
    outcomes = list_outcomes(config)
    for index, (key, outcome) in enumerate(zip(list_given_outcomes(config), outcomes, strict=True)):
        boundary, baseline, measure = outcome["boundary"], outcome["baseline"], outcome["measure"]
        known = baselines(config)[boundary]
        if baseline == boundary:
            raise InputError(f"{key}: {boundary} is compared with itself. Choose another boundary.")
        if baseline not in known:
            fix = f"Add it to boundaries.{boundary}.baseline."
            if boundary == UNINTERRUPTED:
                fix = f"Exchange them, and add {boundary} to boundaries.{baseline}.baseline."
            raise InputError(
                f"{key}: {boundary} is not compared with {baseline}, but with "
                f"{' and '.join(known)}. {fix}"
            )
        if "_session" in measure and UNINTERRUPTED in (boundary, baseline):
            raise InputError(
                f"{key}.measure: {measure}: an uninterrupted run has no such session. Choose a "
                "measure of the whole run."
            )
        if outcome in outcomes[:index]:
            raise InputError(f"{key}: the same outcome as an earlier one. Remove it.")


def list_unanswered(config: Config) -> list[str]:
    """Return a line for each primary outcome whose boundaries no schedule has."""
    methods = set(config["methods"])
    keys, outcomes = list_given_outcomes(config), list_outcomes(config)
    return [
        f"{key}: no schedule has both {outcome['boundary']} and {outcome['baseline']} among the "
        "methods, so this outcome gets no verdict."
        for key, outcome in zip(keys, outcomes, strict=True)
        if not any(
            {f"{schedule}-{outcome[arm]}" for arm in ("boundary", "baseline")} <= methods
            for schedule in list_schedules(config["methods"])
        )
    ]


def make_plan(config: Config) -> Config:
    """Return what must be fixed before the runs are seen: all keys that can change a result."""
    methods = sorted(config["methods"])
    parts = [split_method(method) for method in methods]
    used = {"schedules": {s for s, _ in parts}, "boundaries": {b for _, b in parts}}
    return {
        "primary": list_outcomes(config),
        "equivalence_margin": config["equivalence_margin"],
        "targets": targets(config),
        "datasets": sorted(config["datasets"]),
        "sessions": config["sessions"],
        "methods": methods,
        "seeds": sorted(config["seeds"]),
        "settings": {
            key: {name: entry for name, entry in value.items() if name in used.get(key, value)}
            if isinstance(value, dict)
            else value
            for key, value in config.items()
            if key not in UNPLANNED
        },
        "splits": {
            name: {key: source[key] for key in ("valid_fraction", "valid_seed") if key in source}
            for name, source in config["datasets"].items()
        },
    }


def list_resets(config: Config) -> dict[str, list[int]]:
    """Return the sessions before which the optimizer's state is lost, by boundary.

    Boundaries that differ in more than ``at`` from the one that keeps nothing are left out, except
    for the one that keeps everything.
    """
    first, keeping = find_first_boundary(config), choose_plain(config, keep="all")
    return {
        name: [
            number
            for number, crossed in enumerate(cross_boundaries(boundary, config), first)
            if crossed["keep"] == []
        ]
        for name, boundary in config["boundaries"].items()
        if name == keeping
        or (boundary["keep"] == [] and boundary.keys() <= {"keep", "at", "baseline"})
    }


def followed_session(config: Config, session: Session) -> Session | None:
    """Return the session whose update norms ``session`` takes over: see ``step_size``."""
    if session.number < find_first_boundary(config) or session.is_whole_run:
        return None
    boundary = _cross(config, session)
    if "step_size" not in boundary:
        return None
    method = f"{session.schedule}-{boundary['step_size']}"
    names = all_runs(config).session_names[method]
    return dataclasses.replace(session, name=names[session.number - 1])


def is_followed(config: Config, session: Session) -> bool:
    """Return whether another session takes over the update norms of ``session``."""
    if not any("step_size" in boundary for boundary in config["boundaries"].values()):
        return False
    followers = (
        dataclasses.replace(session, name=names[session.number - 1])
        for method, names in all_runs(config).session_names.items()
        if split_method(method)[0] == session.schedule and len(names) >= session.number
    )
    return any(followed_session(config, follower) == session for follower in followers)


def session_spec(
    config: Config, session: Session, file_hashes: dict[str, str] | None = None
) -> SessionSpec:
    """Return a session's settings: all that its results depend on except its input files.

    Args:
        config: the validated configuration.
        session: a session of the experiment.
        file_hashes: the SHA-256, or its first digits, of each file that a key names, by this key.
    """
    index = session.number - 1
    schedule = config["schedules"][session.schedule]
    crossed = _cross(config, session) if session.number >= find_first_boundary(config) else {}
    unused = set()
    if index:  # weights and state are those of the previous session
        unused = {"weights", "optimizer_state"}
    elif crossed.get("keep") == []:
        unused = {"optimizer_state"}
    own = split_model(config["model"])
    all_epochs = sum(config["sessions"])
    given = config | crossed | {
        "dataset": session.dataset,
        "schedule": session.schedule,
        "boundary": session.boundary,
        "method": session.name,
        "seed": session.seed,
        "session": session.number,
        "num_epochs": all_epochs if session.is_whole_run else config["sessions"][index],
        "model": f":{own[1]}" if own else config["model"],
        "file_hashes": {k: v for k, v in (file_hashes or {}).items() if k not in unused},
        "optimizer": find_optimizer(config, session.schedule)[1],
        "learning_rate": _choose_learning_rate(schedule, index, all_epochs),
        "all_norms": "step_size" in crossed or is_followed(config, session),
    }  # fmt: skip
    names = [field.name for field in dataclasses.fields(SessionSpec)]
    return SessionSpec(**{name: given[name] for name in names if name in given})


def _cross(config: Config, session: Session) -> Config:
    """Return the options of the boundary with which a session begins."""
    boundary = config["boundaries"].get(session.boundary, {"keep": "all"})
    return cross_boundary(boundary, session.number, config["optimizer_state"])


def _choose_learning_rate(schedule: Config, index: int, all_epochs: int) -> Config:
    """Return ``kind`` and values of a schedule for one session.

    A schedule over the run has ``over``, and ``num_epochs`` if its values depend on their number.
    """
    kind = schedule["kind"]
    keys = sorted(KEYS_OF_KIND[kind])
    if schedule.get("over") != "run":
        return {"kind": kind} | {key: schedule[key][index] for key in keys}
    spanned = {} if kind in STEADY else {"num_epochs": all_epochs}
    return {"kind": kind, "over": "run"} | {key: schedule[key] for key in keys} | spanned
