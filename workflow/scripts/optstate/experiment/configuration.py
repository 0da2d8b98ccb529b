"""From what the user wrote to a configuration that makes sense, and to what each job is told."""

import difflib
import json
import math
import re
from pathlib import Path
from typing import Any

import jsonschema
import yaml
from snakemake.exceptions import WorkflowError
from snakemake.utils import validate

from optstate import UNINTERRUPTED
from optstate.data import packaged
from optstate.job import InputError

KEYS_OF_KIND = {
    "constant": {"lr"},
    "onecycle": {"initial_lr", "max_lr"},
    "cosine": {"lr", "final_lr"},
    "warmup": {"lr", "warmup_steps"},
}
SECTIONS = ("datasets", "schedules", "boundaries", "optimizer", "checkpoint_every")
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
MOST_DIGITS = 30  # of a number
LARGEST = 10**MOST_DIGITS
WORDS = {"true": True, "false": False, "null": None, "": None}

Config = dict[str, Any]


def checked(given: Config, schema: Path) -> Config:
    """The configuration in its final types.

    Args:
        given: as read from YAML and the command line.
        schema: the file of the JSON schema.

    Raises:
        InputError: one line that names the key, its value, and what would be right.
    """
    config = conforming(given, schema)
    require_sense(config)
    return config


def conforming(given: Config, schema: Path) -> Config:
    """``given`` in its final types, each entry of which is what ``schema`` asks for.

    Raises:
        InputError: one line that names the key, its value, and what would be right.
    """
    try:
        config = settled(given, yaml.safe_load(schema.read_text()))
        validate(config, str(schema))
    except WorkflowError as error:
        raise InputError(explain(error.__context__)) from error
    except RecursionError as error:
        raise InputError("a YAML alias refers to what it is part of: write it out") from error
    return config


def bench_settings(path: Path, schema: Path) -> Config:
    """What to measure with, from a YAML file.

    Raises:
        InputError: one line that says what is wrong with it.
    """
    try:
        given = yaml.safe_load(path.read_text())
        if not isinstance(given, dict):
            raise InputError("it should be a mapping")
        return conforming(given, schema)
    except (InputError, yaml.YAMLError) as error:
        raise InputError(f"{path}: {' '.join(str(error).split())}") from error


def device_here() -> str:
    """What there is to train on, as far as can be told without torch, which takes a second."""
    drivers = ("/proc/driver/nvidia/version", "/dev/nvidiactl", "/dev/dxg")
    return "cuda" if any(Path(driver).exists() for driver in drivers) else "cpu"


def settled(config: Config, schema: dict[str, Any]) -> Config:
    """``config`` with final types, without the entries set to null, in the order of the schema.

    Values on the command line arrive as text, and YAML takes 3e-4, without a point, for text.
    """
    _require_plain(config, "")
    typed = _typed(config, schema)
    for section in typed.keys() & SECTIONS:
        typed[section] = _without_nulls(typed[section])
    order = [*schema["properties"], *typed]
    return {key: typed[key] for key in sorted(typed, key=order.index)}


def _require_plain(value: Any, key: str) -> None:
    """Refuse what YAML knows and JSON does not, such as names that are numbers, and dates."""
    if isinstance(value, dict):
        for name, entry in value.items():
            if not isinstance(name, str):
                raise InputError(
                    f"`{key}` has the name {name}, which YAML takes for no text: quote it"
                )
            _require_plain(entry, f"{key}.{name}".lstrip("."))
    elif isinstance(value, list):
        for index, entry in enumerate(value):
            _require_plain(entry, f"{key}[{index}]")
    elif isinstance(value, int) and abs(value) > LARGEST:
        raise InputError(f"`{key}` is a number of {value.bit_length()} bits: it is too large")
    elif value is not None and not isinstance(value, (str, int, float)):
        raise InputError(
            f"`{key}` is {value}, which YAML takes for a {type(value).__name__}: quote it"
        )


def _typed(value: Any, schema: dict[str, Any]) -> Any:
    """``value`` with text turned into what ``schema`` asks for, where it stands for that."""
    if isinstance(value, dict):
        properties = schema.get("properties", {})
        others = schema.get("additionalProperties") or {}
        return {
            key: _typed(entry, properties.get(key, others if isinstance(others, dict) else {}))
            for key, entry in value.items()
        }
    if isinstance(value, list):
        return [_typed(entry, schema.get("items", {})) for entry in value]
    types = schema.get("type", ())
    if isinstance(value, str) and ("string" not in types or ("null" in types and value == "null")):
        value = _number_or_word(value)
    if isinstance(value, float) and types == "integer" and value.is_integer():
        return int(value)
    return value


def _number_or_word(text: str) -> Any:
    if NUMBER.fullmatch(text) and len(text) <= MOST_DIGITS:
        return int(text) if re.fullmatch(r"[+-]?\d+", text) else float(text)
    return WORDS.get(text.lower(), text)


def _without_nulls(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return {key: _without_nulls(entry) for key, entry in value.items() if entry is not None}


def explain(error: jsonschema.ValidationError) -> str:
    """One line: the key, its value, and what would be right."""
    key = _key(error.absolute_path)
    if error.validator == "additionalProperties":
        known = list(error.schema["properties"])
        unknown = next(name for name in error.instance if name not in known)
        path = f"{key}.{unknown}" if error.absolute_path else unknown
        return f"`{path}` is no key of the configuration: {hint(str(unknown), known)}"
    if error.validator == "required":
        missing = next(name for name in error.validator_value if name not in error.instance)
        path = f"{key}.{missing}" if error.absolute_path else missing
        return f"`{path}` is missing: add it"
    should_be = {
        "enum": lambda: (
            "one of " + ", ".join(json.dumps(v).strip('"') for v in error.validator_value)
        ),
        "type": lambda: _words(error.validator_value),
        "minimum": lambda: f"at least {error.validator_value}",
        "maximum": lambda: f"at most {error.validator_value}",
        "exclusiveMinimum": lambda: f"above {error.validator_value}",
        "minItems": lambda: "not empty",
        "minProperties": lambda: "not empty",
        "minLength": lambda: "not empty",
        "uniqueItems": lambda: "without repetitions",
    }.get(str(error.validator), lambda: error.message)
    right = error.schema.get("description") or should_be()
    if "propertyNames" in error.absolute_schema_path:
        return f"`{key}` has the name {json.dumps(error.instance)}: it should be {right}"
    return f"`{key}` is {json.dumps(error.instance, default=str)}: it should be {right}"


def _words(types: str | list[str]) -> str:
    """JSON schema's types in the words of YAML."""
    names = {
        "object": "a mapping",
        "array": "a list",
        "integer": "a whole number",
        "string": "text",
    }
    given = [types] if isinstance(types, str) else types
    return " or ".join(names.get(name, "a number" if name == "number" else name) for name in given)


def _key(path: Any) -> str:
    """``datasets.imagenette.sha256``, ``sessions[1]``."""
    parts = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return "".join(parts).lstrip(".") or "configuration"


def hint(value: str, known: list[str]) -> str:
    """What may have been meant by an unknown ``value``: the closest of the ``known``, or all."""
    close = difflib.get_close_matches(value, known, n=1)
    return f"did you mean `{close[0]}`?" if close else f"choose one of {', '.join(known)}"


def require_sense(config: Config) -> None:
    """Check what a schema cannot say.

    Raises:
        InputError: names the key, its value, and what would be right.
    """
    for name, source in config["datasets"].items():
        _require_one_source(f"datasets.{name}", source)
    for name, schedule in config["schedules"].items():
        _require_learning_rates(f"schedules.{name}", schedule, len(config["sessions"]))
    if UNINTERRUPTED in config["boundaries"]:
        raise InputError(
            f"`boundaries.{UNINTERRUPTED}`: so a run is called that has none: choose another name"
        )
    known = {"schedules": list(config["schedules"])}
    known["boundaries"] = [*config["boundaries"], UNINTERRUPTED]
    for method in config["methods"]:
        schedule, _, boundary = method.partition("-")
        for part, section in ((schedule, "schedules"), (boundary, "boundaries")):
            if part not in known[section]:
                raise InputError(
                    f"`methods`: {method!r} should be SCHEDULE-BOUNDARY, and `{section}` has no "
                    f"{part!r}: {hint(part, known[section])}"
                )
    primary = config["primary"]["boundary"]
    if primary not in known["boundaries"]:
        raise InputError(
            f"`primary.boundary` is {primary!r}: `boundaries` has no such: "
            f"{hint(primary, known['boundaries'])}"
        )
    if config["weights"] and not Path(config["weights"]).is_file():
        raise InputError(f"`weights` is {config['weights']!r}: there is no such file")


def _require_one_source(key: str, source: dict[str, str]) -> None:
    kinds = [kind for kind in ("archive", "folder", "packaged") if kind in source]
    if len(kinds) != 1:
        raise InputError(
            f"`{key}` has {' and '.join(kinds) or 'no source'}: it should have exactly one of "
            "archive (with sha256), folder, packaged (set the others to null)"
        )
    if ("sha256" in source) != (kinds == ["archive"]):
        verb = "is missing: an archive needs it" if kinds == ["archive"] else "goes with archive"
        raise InputError(f"`{key}.sha256` {verb} (`sha256sum ARCHIVE` prints it)")
    if "folder" in source and not Path(source["folder"]).is_dir():
        raise InputError(f"`{key}.folder` is {source['folder']!r}: there is no such folder")


def _require_learning_rates(key: str, schedule: dict[str, Any], num_sessions: int) -> None:
    needed = KEYS_OF_KIND[schedule["kind"]]
    given = schedule.keys() - {"kind", "optimizer"}
    for name in sorted(needed ^ given):
        verb = "is missing" if name in needed else "does not belong"
        raise InputError(f"`{key}.{name}` {verb}: {schedule['kind']} takes {sorted(needed)}")
    for name in sorted(needed):
        if len(schedule[name]) != num_sessions:
            raise InputError(
                f"`{key}.{name}` has {len(schedule[name])} values: it should have "
                f"{num_sessions}, one for each of the `sessions`"
            )
        for index, value in enumerate(schedule[name]):
            if not math.isfinite(value):
                raise InputError(f"`{key}.{name}[{index}]` is {value}: it should be finite")


def archive_sha256(source: dict[str, str]) -> str:
    """The checksum of a data set that comes as an archive."""
    return packaged.SHA256[source["packaged"]] if "packaged" in source else source["sha256"]


def tried_by_torch(config: Config) -> Config:
    """The part of the configuration that :mod:`optstate.experiment.check` tries."""
    keys = ("model", "image_size", "optimizer", "schedules", "boundaries", "methods")
    return {key: config[key] for key in keys}


def baselines(config: Config) -> Config:
    """The boundary that each is compared with: the one that keeps nothing.

    With `reshuffle` it is the one that differs in nothing else, and what is found is noise.
    """
    boundaries = config["boundaries"]
    straight = {name: b for name, b in boundaries.items() if not b.get("reshuffle")}
    twins = {
        name: [twin for twin, b in straight.items() if b | {"reshuffle": True} == boundary]
        for name, boundary in boundaries.items()
    }
    usual = plain(config, keep=[], usual="new")
    return {UNINTERRUPTED: usual} | {name: min(twins[name], default=usual) for name in boundaries}


def plain(config: Config, keep: str | list[str], usual: str) -> str:
    """The boundary that does nothing but ``keep``; of several, ``usual``, or else the first."""
    names = sorted(name for name, b in config["boundaries"].items() if b == {"keep": keep})
    return usual if usual in names or not names else names[0]


def session_spec(
    config: Config, dataset: str, method: str, seed: int, session: int, weights_sha256: str | None
) -> Config:
    """The fields of ``SessionSpec`` for one job: nothing that its bits do not depend on.

    Args:
        method: SCHEDULE-BOUNDARY; in the first session, which they share, the schedule alone.
        session: from 1.
    """
    schedule_name, _, boundary = method.partition("-")
    schedule = config["schedules"][schedule_name]
    crossed = config["boundaries"][boundary] if session > 1 else {"keep": []}
    same = (
        "image_size", "train_per_class", "valid_per_class", "model", "batch_size", "augment",
        "device", "precision", "compile", "cpu_threads", "deterministic",
    )  # fmt: skip
    return {key: config[key] for key in same} | {
        "dataset": dataset,
        "schedule": schedule_name,
        "boundary": boundary,
        "method": method,
        "seed": seed,
        "session": session,
        "num_epochs": sum(config["sessions"])
        if boundary == UNINTERRUPTED
        else config["sessions"][session - 1],
        "weights_sha256": weights_sha256 if session == 1 else None,
        "optimizer": schedule.get("optimizer", config["optimizer"]),
        "learning_rate": {"kind": schedule["kind"]}
        | {key: schedule[key][session - 1] for key in sorted(KEYS_OF_KIND[schedule["kind"]])},
        "keep": _sorted(crossed["keep"]),
        "warmup_steps": crossed.get("warmup_steps", 0),
        "stream": int(crossed.get("reshuffle", False)),
    }


def _sorted(keep: str | list[str]) -> str | list[str]:
    return keep if keep == "all" else sorted(keep)
