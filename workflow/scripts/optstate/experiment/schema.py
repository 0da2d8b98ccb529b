"""Convert and validate a configuration by its JSON schema, with one-line errors.

This module depends on no particular key.
"""

import difflib
import json
import math
import re
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from optstate.job import InputError

Config = dict[str, Any]

NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
MAX_DIGITS = 30  # of a number in the configuration
LARGEST = 10**MAX_DIGITS
WORDS = {"true": True, "false": False, "null": None, "": None}
NAMES_OF_TYPES = {
    "object": "a mapping", "array": "a list", "integer": "a whole number", "number": "a number",
    "string": "text",
}  # fmt: skip


def conform(given: Config, schema_path: Path) -> Config:
    """Convert ``given`` to the types of a JSON schema and validate it.

    Raises:
        InputError: one line that names the key, its value, and what the value must be.
    """
    schema = yaml.safe_load(schema_path.read_text())
    try:
        config = convert_types(given, schema)
    except RecursionError as error:
        raise InputError("a YAML alias refers to its own parent. Write out its value.") from error
    if find_spec("jsonschema"):  # a machine of benchmarks/gpu.sh may lack it
        from jsonschema import Draft202012Validator

        for violation in Draft202012Validator(schema).iter_errors(config):
            raise InputError(explain(violation))
    return config


def convert_types(config: Config, schema: dict[str, Any]) -> Config:
    """Return ``config`` with the types and the order of keys of ``schema``.

    Values from the command line arrive as text, and YAML reads 3e-4, without a point, as text.
    An entry of a mapping that is set to null is removed, unless the schema requires the entry.

    Raises:
        InputError: a name or value has a type that JSON lacks, or a number is too large or not
            finite.
    """
    _require_json_types(config, "")
    typed = _convert(config, schema)
    order = [*schema["properties"], *typed]
    return {key: typed[key] for key in sorted(typed, key=order.index)}


def _require_json_types(value: Any, key: str) -> None:
    """Refuse types that YAML has and JSON lacks, such as dates, and names that are numbers."""
    if isinstance(value, dict):
        for name, entry in value.items():
            if not isinstance(name, str):
                where = key or "configuration"
                raise InputError(f"{where}: YAML does not read the name {name} as text. Quote it.")
            _require_json_types(entry, f"{key}.{name}".lstrip("."))
    elif isinstance(value, list):
        for index, entry in enumerate(value):
            _require_json_types(entry, f"{key}[{index}]")
    elif isinstance(value, int) and abs(value) > LARGEST:
        raise InputError(f"{key}: the number is too large. Use at most {MAX_DIGITS} digits.")
    elif isinstance(value, float) and not math.isfinite(value):
        raise InputError(f"{key}: {value} is not a finite number. Choose a finite one.")
    elif value is not None and not isinstance(value, (str, int, float)):
        raise InputError(f"{key}: YAML reads {value} as a {type(value).__name__}. Quote it.")


def _convert(value: Any, schema: dict[str, Any]) -> Any:
    """Convert text to the types that ``schema`` requires, and drop entries set to null."""
    if isinstance(value, dict):
        properties = schema.get("properties", {})
        others = schema.get("additionalProperties")
        of_others = others if isinstance(others, dict) else {}
        kept = {*schema.get("required", ())}
        converted = {
            # On the command line, null arrives as text, too.
            name: None
            if entry == "null" and name not in kept
            else _convert(entry, properties.get(name, of_others))
            for name, entry in value.items()
        }
        if others is False:
            kept |= value.keys() - properties.keys()  # unknown keys, which validation refuses
        return {n: entry for n, entry in converted.items() if entry is not None or n in kept}
    if isinstance(value, list):
        return [_convert(entry, schema.get("items", {})) for entry in value]
    types = schema.get("type", ())
    if isinstance(value, str) and ("string" not in types or ("null" in types and value == "null")):
        value = _parse_number_or_word(value)
    if isinstance(value, float) and "integer" in types and value.is_integer():
        return int(value)
    return value


def _parse_number_or_word(text: str) -> Any:
    if NUMBER.fullmatch(text) and len(text) <= MAX_DIGITS:
        return int(text) if re.fullmatch(r"[+-]?\d+", text) else float(text)
    return WORDS.get(text.lower(), text)


def explain(error: Any) -> str:
    """Describe a ``jsonschema.ValidationError`` in one line: key, value, and required value."""
    key = _join(error.absolute_path)
    inside = f"{key}." if error.absolute_path else ""
    if error.validator == "additionalProperties":
        known = list(error.schema["properties"])
        unknown = next(name for name in error.instance if name not in known)
        return f"unknown key `{inside}{unknown}`. {suggest(str(unknown), known)}"
    if error.validator == "required":
        missing = next(name for name in error.validator_value if name not in error.instance)
        return f"{inside}{missing}: missing. Add it."
    right = error.schema.get("description")
    rule = f"must be {right}" if right else _describe_rule(error)
    if error.validator == "type" and "examples" in error.schema:
        rule += f", such as {json.dumps(error.schema['examples'][0])}"
    value = json.dumps(error.instance, default=str)
    is_number = isinstance(error.instance, (int, float)) and not isinstance(error.instance, bool)
    if error.validator == "type" and is_number and "string" in error.validator_value:
        return f"{key}: {value} is read as a number, but must be text. Quote it."
    if "propertyNames" in error.absolute_schema_path:
        return f"{key}: the name {value} {rule}."
    return f"{key}: {value} {rule}."


def _describe_rule(error: Any) -> str:
    """Return the violated rule in words, such as ``must be at least 1``."""
    limit = error.validator_value
    match error.validator:
        case "enum":
            return "must be one of " + ", ".join(json.dumps(value).strip('"') for value in limit)
        case "type":
            types = [limit] if isinstance(limit, str) else limit
            return "must be " + " or ".join(NAMES_OF_TYPES.get(name, name) for name in types)
        case "minimum":
            return f"must be at least {limit}"
        case "maximum":
            return f"must be at most {limit}"
        case "exclusiveMinimum":
            return f"must be above {limit}"
        case "exclusiveMaximum":
            return f"must be below {limit}"
        case "minItems" | "minProperties" | "minLength":
            return "must not be empty"
        case "uniqueItems":
            return "must not repeat an entry"
    return f"is not allowed: {error.message}"


def _join(path: Iterable[str | int]) -> str:
    """Return a key's name: ``datasets.imagenette.sha256``, ``sessions[1]``."""
    parts = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return "".join(parts).lstrip(".") or "configuration"


def suggest(value: str, known: Sequence[str]) -> str:
    """Suggest a fix for an unknown ``value``: the closest ``known`` value, or all of them."""
    same = [name for name in known if name.lower() == value.lower()]
    close = same or difflib.get_close_matches(value, known, n=1)
    return f"Did you mean `{close[0]}`?" if close else f"Choose one of {', '.join(known)}."
