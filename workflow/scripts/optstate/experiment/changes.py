"""Which keys of the configuration have changed since results were made."""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from optstate.experiment.plan import compare_settings
from optstate.experiment.runs import Runs, Session, find_optimizer
from optstate.experiment.schema import Config
from optstate.training.spec import OPTIONS, SessionSpec

OF_BOUNDARY = ("keep", *OPTIONS)


def list_changes(
    results: Path, config: Config, runs: Runs, specs: dict[str, SessionSpec]
) -> list[str]:
    """Return a line for each key of the configuration that makes finished results stale.

    Args:
        results: the folder of the experiment's results.
        config: the validated configuration.
        runs: the runs of the experiment.
        specs: the settings of each session, by its folder below ``runs``.
    """
    before = read_configuration(results)
    of_keys = dict(compare_settings(before, config)) if before else {}
    changed: dict[Session, list[tuple[str, str]]] = {}
    for session in runs.sessions:
        made_by = results / "runs" / session.folder / "made_by.json"
        if made_with := read_value(made_by, "configuration"):
            spec = specs[session.folder]
            changed[session] = list(_compare_session(made_with, spec, config, of_keys))
    counts: Counter[tuple[str, str]] = Counter()
    for session in changed:  # a session is also trained again if an earlier one is
        causes = [changed.get(one, []) for one in (*runs.earlier(session), session)]
        counts.update([*dict.fromkeys(change for found in causes for change in found)])
    lines = [
        f"{key}: {change}. {count_sessions(count)} will be trained again."
        for (key, change), count in counts.items()
    ]
    of_sessions = {key for key, _ in counts}
    return lines + [
        f"{key}: {change}. {describe_consequence(key, [*changed])}"
        for key, change in of_keys.items()
        if key not in of_sessions
    ]


def describe_consequence(key: str, finished: list[Session]) -> str:
    """Return what follows from the change of a key that is in no session's settings."""
    source = re.fullmatch(r"datasets\.(.+)\.(packaged|folder|sha256|valid_\w+)", key)
    number = sum(session.dataset == source[1] for session in finished) if source else 0
    if not number:
        return "The report will be made again."
    if source and source[2] == "folder":
        return f"{count_sessions(number)} will be trained again if its files differ."
    return f"{count_sessions(number)} will be trained again."


def count_sessions(number: int) -> str:
    """Return a number of sessions in words."""
    return f"{number} finished session{'s' * (number > 1)}"


def read_configuration(results: Path) -> Config | None:
    """Return the configuration of an experiment's report. None if it cannot be read."""
    return _read(results / "configuration.yaml", yaml.safe_load)


def read_value(path: Path, key: str) -> Any:
    """Return what a JSON file has under ``key``. None if it cannot be read."""
    return _read(path, lambda text: json.loads(text)[key])


def _read(path: Path, parse: Callable[[str], Any]) -> Any:
    """Read a file. Returns None if there is none that can be read."""
    try:
        return parse(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, LookupError, TypeError, yaml.YAMLError):
        return None


def _compare_session(
    before: Config, spec: SessionSpec, config: Config, of_keys: dict[str, str]
) -> Iterator[tuple[str, str]]:
    """Yield the keys of the configuration that changed a session, each with the change.

    Args:
        before: the settings with which the session was trained.
        spec: its present settings.
        config: the validated configuration.
        of_keys: the changes of the configuration itself, by key, as far as they are known.
    """
    # Sessions of an older version lack the options that it did not have.
    for path, change in compare_settings(OPTIONS | before, asdict(spec)):
        field, _, rest = path.partition(".")
        if "num_epochs" in (field, rest):  # of the session, or of a schedule over the run
            yield "sessions", change
        elif field == "learning_rate":
            yield f"schedules.{spec.schedule}.{rest}", change
        elif field == "optimizer":
            yield f"{find_optimizer(config, spec.schedule)[0]}.{rest}", change
        elif field in OF_BOUNDARY:
            key, at = (f"boundaries.{spec.boundary}.{name}" for name in (field, "at"))
            # `at` decides where the options of a boundary apply, and is itself in no session.
            is_moved = key not in of_keys and at in of_keys
            yield (at, of_keys[at]) if is_moved else (key, change)
        elif field == "file_hashes":
            if rest and "not set" not in change:  # else its key has changed, too
                yield rest, "the file has changed"
        elif field == "all_norms":
            need = "needs" if spec.all_norms else "no longer needs"
            yield f"boundaries.{spec.boundary}", f"`step_size` {need} the norm of each update"
        else:
            yield path, change
