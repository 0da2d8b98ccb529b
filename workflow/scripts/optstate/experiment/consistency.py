"""Check the conditions that a configuration must fulfil and that a JSON schema cannot express."""

import json
import re
from pathlib import Path

from optstate import UNINTERRUPTED
from optstate.experiment.runs import (
    LOST,
    Boundary,
    cross_boundaries,
    cross_boundary,
    find_first_boundary,
    find_optimizer,
    list_baselines,
    list_boundaries,
    list_schedules,
    split_method,
)
from optstate.experiment.schema import Config, suggest
from optstate.job import InputError
from optstate.training.spec import split_model

KEYS_OF_KIND = {
    "constant": {"lr"},
    "onecycle": {"initial_lr", "max_lr"},
    "cosine": {"lr", "final_lr"},
    "warmup": {"lr", "warmup_steps"},
}
SOURCES = ("archive", "folder", "packaged")


def require_consistent(config: Config) -> None:
    """Check that the entries of a configuration fit each other, and that its files exist.

    Raises:
        InputError: one line that names the key, its value, and the fix.
    """
    for name, source in config["datasets"].items():
        _require_one_source(f"datasets.{name}", source)
        _require_split(f"datasets.{name}", source)
    for name, schedule in config["schedules"].items():
        if name in list_schedules(config["methods"]):
            _require_values(f"schedules.{name}", schedule, len(config["sessions"]))
    _require_files(config)
    _require_boundaries(config)
    _require_methods(config)
    _require_differences(config)
    _require_outcomes(config)


def is_published(weights: str | None) -> bool:
    """Return whether weights are named as torchvision names its own, such as IMAGENET1K_V2."""
    return bool(weights and re.fullmatch("[A-Z][A-Z0-9_]*", weights))


def list_files(config: Config) -> dict[str, str]:
    """Return the paths of the user's files whose content the results depend on, by their keys."""
    own = split_model(config["model"])
    files = {"model": own and own[0]}
    if config["optimizer_state"] != LOST:
        files["optimizer_state"] = config["optimizer_state"]
    if not is_published(config["weights"]):
        files["weights"] = config["weights"]
    return {key: file for key, file in files.items() if file}


def _require_files(config: Config) -> None:
    """Check the user's files with a model, its weights and its optimizer's state."""
    model, weights, state = (config[key] for key in ("model", "weights", "optimizer_state"))
    own = split_model(model)
    if ".py" in model and not own:
        raise InputError(f"model: {model} names no function. Write FILE.py:FUNCTION.")
    if own and is_published(weights):
        raise InputError(f"weights: {weights} belongs to a model of torchvision. Give a file.")
    if state and (not weights or (is_published(weights) and state != LOST)):
        needed = "weights" if state == LOST else "the weights that it belongs to, in a file"
        raise InputError(f"optimizer_state: needs {needed}. Set `weights`.")
    for key, file in list_files(config).items():
        if not Path(file).is_file():
            raise InputError(f"{key}: {file} is not a file. Correct the path.")


def list_notes(config: Config) -> list[str]:
    """Return a line for each valid setting that does something unexpected."""
    found: set[str] = set()
    for method in config["methods"]:
        schedule, name = split_method(method)
        values = config["schedules"][schedule]
        key, optimizer = find_optimizer(config, schedule)
        kept = [crossed["keep"] for crossed in _cross_boundaries(name, config)]
        if optimizer["name"] == "Rprop" and any(k == "all" or "step_size" in k for k in kept):
            found.add(
                f"{key}: Rprop's step sizes are state. A boundary that keeps them ignores the new "
                "session's learning rate."
            )
        if optimizer["name"] == "SGD" and kept and not optimizer.get("momentum"):
            found.add(f"{key}: SGD without `momentum` has no state that could be kept or lost.")
        if values["kind"] == "onecycle":
            lows, highs = (
                value if isinstance(value, list) else [value]
                for value in (values["initial_lr"], values["max_lr"])
            )
            if any(low > high for low, high in zip(lows, highs, strict=True)):
                found.add(f"schedules.{schedule}: an initial_lr is above its max_lr.")
    return sorted(found)


def _require_boundaries(config: Config) -> None:
    """Check the other boundaries that boundaries name, and the sessions if a method uses them."""
    boundaries, num_sessions = config["boundaries"], len(config["sessions"])
    used = list_boundaries(config["methods"])
    if UNINTERRUPTED in boundaries:
        raise InputError(
            f"boundaries.{UNINTERRUPTED}: this name is reserved for runs without a boundary. "
            "Choose another."
        )
    for name, boundary in boundaries.items():
        key, known = f"boundaries.{name}", sorted({*boundaries, UNINTERRUPTED} - {name})
        for other in list_baselines(boundary):
            if other not in known:
                raise InputError(
                    f"{key}.baseline: `boundaries` has no other {other!r}. {suggest(other, known)}"
                )
        for number in boundary.get("at", []) if name in used else []:
            if number > num_sessions:
                raise InputError(
                    f"{key}.at: there is no session {number}, because `sessions` has "
                    f"{num_sessions}. Correct one of them."
                )
            if number < find_first_boundary(config):
                raise InputError(
                    f"{key}.at: session {number} begins with a boundary only if `optimizer_state` "
                    "is given. Remove it, or set that to `lost` if only `weights` were saved."
                )
        if name in used:
            _require_nothing_lost_kept(key, boundary, config)
            _require_no_circle(name, config)


def _require_nothing_lost_kept(key: str, boundary: Boundary, config: Config) -> None:
    """Check that no state is kept before session 1 if it is lost."""
    if config["optimizer_state"] == LOST and boundary["keep"] and 1 in boundary.get("at", [1]):
        raise InputError(
            f"{key}.keep: with `optimizer_state: lost`, there is nothing to keep before session 1. "
            "Write `keep: []`, or add `at` without 1."
        )


def _require_no_circle(name: str, config: Config) -> None:
    """Check the boundaries to which ``step_size`` leads from the boundary ``name``."""
    boundaries, passed = config["boundaries"], [name]
    while twin := boundaries[passed[-1]].get("step_size"):
        key = f"boundaries.{passed[-1]}.step_size"
        if twin not in boundaries:
            raise InputError(f"{key}: `boundaries` has no {twin!r}. {suggest(twin, [*boundaries])}")
        if twin in passed:
            circle = " -> ".join([*passed, twin])
            raise InputError(f"{key}: the references form a circle: {circle}. Remove one.")
        crossed = zip(*(_cross_boundaries(b, config) for b in (name, twin)), strict=True)
        if any(
            "step_size" in own and own.get("reshuffle", False) != other.get("reshuffle", False)
            for own, other in crossed
        ):
            raise InputError(
                f"{key}: {twin} trains on other batches. Give both the same `reshuffle` and `at`."
            )
        passed.append(twin)


def _require_methods(config: Config) -> None:
    """Check that schedules and boundaries of all methods exist, and the methods they refer to."""
    known = {
        "schedules": list(config["schedules"]),
        "boundaries": [*config["boundaries"], UNINTERRUPTED],
    }
    for method in config["methods"]:
        for part, section in zip(split_method(method), known, strict=True):
            if part not in known[section]:
                raise InputError(
                    f"methods: {method!r} must be SCHEDULE-BOUNDARY, and `{section}` has no "
                    f"{part!r}. {suggest(part, known[section])}"
                )
        _require_references(method, config)


def _require_differences(config: Config) -> None:
    """Check that no two methods of a schedule do the same at every boundary."""
    found: dict[str, str] = {}
    for method in config["methods"]:
        schedule, name = split_method(method)
        crossed = _cross_boundaries(name, config)
        if name == UNINTERRUPTED and config["optimizer_state"] and len(config["sessions"]) == 1:
            crossed = [cross_boundary({"keep": "all"}, 1, config["optimizer_state"])]
        other = found.setdefault(json.dumps([schedule, crossed], sort_keys=True), method)
        if other == method:
            continue
        if not crossed:
            raise InputError(
                f"methods: {other} and {method} cannot differ, because there is only one session. "
                "Remove one of them, add a session to `sessions`, or set `optimizer_state` (a "
                "file, or `lost` if only the weights were saved)."
            )
        raise InputError(
            f"methods: {other} and {method} cannot differ, because they do the same at every "
            "boundary. Remove one of them, or change its entry in `boundaries`."
        )


def _cross_boundaries(name: str, config: Config) -> list[Boundary]:
    """Return the options at every boundary of a run; an uninterrupted run has none."""
    return [] if name == UNINTERRUPTED else cross_boundaries(config["boundaries"][name], config)


def list_given_outcomes(config: Config) -> dict[str, dict[str, str]]:
    """Return ``measure``, ``boundary`` and possibly ``baseline`` of each outcome, by its key."""
    given = config["primary"]
    if not isinstance(given, list):
        return {"primary": given}
    return {f"primary[{index}]": outcome for index, outcome in enumerate(given)}


def _require_outcomes(config: Config) -> None:
    """Check the boundaries and sessions that the primary outcomes name."""
    known, num_sessions = [*config["boundaries"], UNINTERRUPTED], len(config["sessions"])
    for key, outcome in list_given_outcomes(config).items():
        for name in ("boundary", "baseline"):
            if name in outcome and outcome[name] not in known:
                raise InputError(
                    f"{key}.{name}: `boundaries` has no {outcome[name]!r}. "
                    f"{suggest(outcome[name], known)}"
                )
        _, _, session = outcome["measure"].partition("_session")
        if session and not find_first_boundary(config) <= int(session) <= num_sessions:
            raise InputError(
                f"{key}.measure: {outcome['measure']}: no session {session} begins with a "
                f"boundary. Choose one from {find_first_boundary(config)} to {num_sessions}."
            )


def _require_one_source(key: str, source: dict[str, str]) -> None:
    kinds = [kind for kind in SOURCES if kind in source]
    if len(kinds) != 1:
        raise InputError(
            f"{key}: has {' and '.join(kinds) or 'no source'}. Give exactly one of archive (with "
            "sha256), folder and packaged, and set the others to null."
        )
    if kinds == ["archive"] and "sha256" not in source:
        raise InputError(f"{key}.sha256: missing. `sha256sum ARCHIVE` prints it.")
    if kinds != ["archive"] and "sha256" in source:
        raise InputError(f"{key}.sha256: belongs to an archive. Set it to null.")
    if "folder" in source and not Path(source["folder"]).is_dir():
        raise InputError(f"{key}.folder: {source['folder']} {_explain_missing(source['folder'])}")


def _require_split(key: str, source: Config) -> None:
    """Check the keys that choose validation images from the training images."""
    if "valid_seed" in source and "valid_fraction" not in source:
        raise InputError(
            f"{key}.valid_seed: has no effect without `valid_fraction`. Add that, or set this to "
            "null."
        )
    if "valid_fraction" in source and "packaged" in source:
        raise InputError(
            f"{key}.valid_fraction: {source['packaged']} has validation images. Set it to null."
        )


def _explain_missing(path: str) -> str:
    """Return words that say that a folder does not exist, and suggest a similar one next to it."""
    parent = Path(path).parent
    siblings = (
        [entry.name for entry in parent.iterdir() if entry.is_dir()] if parent.is_dir() else []
    )
    close = suggest(Path(path).name, siblings) if siblings else ""
    if close.startswith("Did you mean"):
        return f"does not exist. {close}"
    return "does not exist. Correct the path."


def _require_values(key: str, schedule: Config, num_sessions: int) -> None:
    """Check that a schedule has the keys of its kind, and a value for every session."""
    needed = KEYS_OF_KIND[schedule["kind"]]
    given = schedule.keys() - {"kind", "optimizer", "over"}
    for name in sorted(needed ^ given):
        fault = "missing" if name in needed else "not a key of this kind"
        raise InputError(f"{key}.{name}: {fault}. {schedule['kind']} takes {sorted(needed)}.")
    for name in sorted(needed):
        values = schedule[name]
        if schedule.get("over") == "run":
            if isinstance(values, list):
                raise InputError(
                    f"{key}.{name}: {values} must be a single number, because the schedule is over "
                    "the run."
                )
        elif not isinstance(values, list):
            raise InputError(
                f"{key}.{name}: {values} must be a list with a value for each session. For one "
                "schedule over all sessions, add `over: run`."
            )
        elif len(values) != num_sessions:
            raise InputError(
                f"{key}.{name}: {len(values)} values, but there are {num_sessions} "
                "`sessions`. Give one for each."
            )


def _require_references(method: str, config: Config) -> None:
    """Check that the runs to which the boundary of ``method`` refers are among the methods."""
    schedule, name = split_method(method)
    boundary = config["boundaries"].get(name, {})
    needed = {"baseline": list_baselines(boundary), "step_size": [boundary.get("step_size")]}
    for key, others in needed.items():
        for other in filter(None, others):
            if f"{schedule}-{other}" not in config["methods"]:
                raise InputError(
                    f"boundaries.{name}.{key}: {method} needs {schedule}-{other}. Add it to "
                    "`methods`."
                )
