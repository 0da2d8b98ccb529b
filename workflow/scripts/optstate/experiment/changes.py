"""Which keys of the configuration have changed since results were made."""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import MISSING, asdict, fields
from pathlib import Path
from typing import Any

import yaml

from optstate.experiment.schema import Config
from optstate.training.spec import SessionSpec

# Only the options of a boundary have defaults.
OF_BOUNDARY = [
    field.name
    for field in fields(SessionSpec)
    if field.default is not MISSING or field.default_factory is not MISSING
]


def list_changes(results: Path, config: Config, specs: dict[str, SessionSpec]) -> list[str]:
    """Return a line for each key of the configuration that makes finished results stale.

    Args:
        results: the folder of the experiment's results.
        config: the validated configuration.
        specs: the settings of each session, by its folder below ``runs``.
    """
    counts: Counter[tuple[str, str]] = Counter()
    for folder, spec in specs.items():
        if before := read_made_by(results / "runs" / folder, "configuration"):
            counts.update(_compare_session(before, spec))
    lines = [
        f"{key}: {change}. {count} finished session{'s' * (count > 1)} will be trained again."
        for (key, change), count in counts.items()
    ]
    if before := _read(results / "configuration.yaml", yaml.safe_load):
        found = dict(_compare(before, config))
        of_sessions = {key for key, _ in counts}
        lines += [
            f"{key}: {change}. The report will be made again."
            for key, change in found.items()
            if key not in of_sessions
        ]
    return lines


def read_made_by(session: Path, key: str) -> Any:
    """Return what a session's ``made_by.json`` has under ``key``. None if it cannot be read."""
    return _read(session / "made_by.json", lambda text: json.loads(text)[key])


def _read(path: Path, parse: Callable[[str], Any]) -> Any:
    """Read a file. Returns None if there is none that can be read."""
    try:
        return parse(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, LookupError, TypeError, yaml.YAMLError):
        return None


def _compare_session(before: Config, spec: SessionSpec) -> Iterator[tuple[str, str]]:
    """Yield the keys of the configuration that changed a session, each with the change."""
    for path, change in _compare(before, asdict(spec)):
        field, _, rest = path.partition(".")
        if field == "learning_rate":
            yield f"schedules.{spec.schedule}.{rest}", change
        elif field == "num_epochs":
            yield "sessions", change
        elif field in OF_BOUNDARY:
            yield f"boundaries.{spec.boundary}.{field}", change
        elif field == "file_hashes":
            if rest and "not set" not in change:  # else its key has changed, too
                yield rest, "the file has changed"
        elif field != "all_norms":  # a consequence of another run's `step_size`
            yield path, change


def _compare(before: Config, now: Config) -> Iterator[tuple[str, str]]:
    """Yield the dotted path of each value that differs, with the old and the new value."""
    old, new = dict(_flatten(before)), dict(_flatten(now))
    for path in sorted(old.keys() | new.keys()):
        if old.get(path) != new.get(path):
            was, now_is = (
                json.dumps(values[path]) if path in values else "not set" for values in (old, new)
            )
            yield path, f"was {was}, is {now_is}"


def _flatten(values: Config, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
