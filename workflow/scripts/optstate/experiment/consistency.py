"""Check the conditions that a configuration must fulfil and that a JSON schema cannot express."""

import math
from pathlib import Path

from optstate import UNINTERRUPTED
from optstate.experiment.runs import list_baselines, split_method
from optstate.experiment.schema import Config, suggest
from optstate.job import InputError

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
        _require_values(f"schedules.{name}", schedule, len(config["sessions"]))
    _require_boundaries(config["boundaries"], len(config["sessions"]))
    _require_methods(config)
    primary, known = config["primary"]["boundary"], [*config["boundaries"], UNINTERRUPTED]
    if primary not in known:
        raise InputError(
            f"primary.boundary: `boundaries` has no {primary!r}. {suggest(primary, known)}"
        )
    if config["weights"] and not Path(config["weights"]).is_file():
        raise InputError(f"weights: {config['weights']} is not a file. Correct the path.")


def _require_boundaries(boundaries: Config, num_sessions: int) -> None:
    """Check the sessions and the other boundaries that boundaries name."""
    if UNINTERRUPTED in boundaries:
        raise InputError(
            f"boundaries.{UNINTERRUPTED}: this name is reserved for runs without a boundary. "
            "Choose another."
        )
    for name, boundary in boundaries.items():
        key, known = f"boundaries.{name}", sorted({*boundaries, UNINTERRUPTED} - {name})
        for number in boundary.get("at", []):
            if number > num_sessions:
                raise InputError(
                    f"{key}.at: there is no session {number}, because `sessions` has "
                    f"{num_sessions}. Correct one of them."
                )
        for other in list_baselines(boundary):
            if other not in known:
                raise InputError(
                    f"{key}.baseline: `boundaries` has no other {other!r}. {suggest(other, known)}"
                )
        _require_no_circle(name, boundaries)


def _require_no_circle(name: str, boundaries: Config) -> None:
    """Check the boundaries to which ``step_size`` leads from the boundary ``name``."""
    passed = [name]
    while twin := boundaries[passed[-1]].get("step_size"):
        key = f"boundaries.{passed[-1]}.step_size"
        if twin not in boundaries:
            raise InputError(f"{key}: `boundaries` has no {twin!r}. {suggest(twin, [*boundaries])}")
        if twin in passed:
            circle = " -> ".join([*passed, twin])
            raise InputError(f"{key}: the references form a circle: {circle}. Remove one.")
        if boundaries[twin].get("reshuffle") != boundaries[name].get("reshuffle"):
            raise InputError(
                f"{key}: {twin} trains on other batches. Give both the same `reshuffle`."
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
    if math.isnan(source.get("valid_fraction", 0.5)):
        raise InputError(f"{key}.valid_fraction: nan must be between 0 and 1.")


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
    """Check that a schedule has the keys of its kind, and a finite value for every session."""
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
            values = [values]
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
        for index, value in enumerate(values):
            if not math.isfinite(value):
                raise InputError(f"{key}.{name}[{index}]: {value} must be finite.")


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
