"""Write down what an experiment will be judged by, before its first session begins.

Snakemake writes ``plan.json`` when it starts, once and never again. The report compares it with the
configuration that was run, so it can say what was fixed in advance.
"""

import json
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from optstate.checksums import SUFFIX, write_checksums
from optstate.job import write_atomically

NAME = "plan.json"


def write_plan(results: Path, plan: dict[str, Any], commit: str) -> None:
    """Write the plan with the date, unless there is one.

    A plan without checksum, from a Snakemake that was killed here, is replaced.

    Args:
        results: the folder of the experiment's results.
        plan: what the experiment is judged by.
        commit: the commit of the project's sources.
    """
    path = results / NAME
    if path.exists() and (path.with_suffix(SUFFIX).exists() or has_begun(results)):
        return
    content = {
        "plan": plan,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit,
        "has_begun": has_begun(results),
        "finished_sessions": len(list(results.glob("runs/*/*/*/*/session.sha256"))),
    }
    with write_atomically(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    write_checksums(path.with_suffix(".sha256"), [path])


def withdraw_plan(results: Path) -> None:
    """Remove the plan if no session of the experiment has begun."""
    if not has_begun(results):
        for suffix in (".json", SUFFIX):
            (results / NAME).with_suffix(suffix).unlink(missing_ok=True)


def has_begun(results: Path) -> bool:
    """Whether any session of the experiment has begun to train.

    Its curves show this even if Snakemake has removed its outputs after an error.
    """
    patterns = (
        f"runs/*/*/*/*/*{SUFFIX}", "in_progress/**/*.pt", "tensorboard/**/events.*",
        f"tables/*{SUFFIX}", f"report{SUFFIX}",
    )  # fmt: skip
    return any(path for pattern in patterns for path in results.glob(pattern))


def compare_settings(
    before: Mapping[str, Any], now: Mapping[str, Any]
) -> Iterator[tuple[str, str]]:
    """Yield the dotted path of each value that differs, with the old and the new value in words."""
    old, new = dict(_flatten(before)), dict(_flatten(now))
    for path in sorted(old.keys() | new.keys()):
        if old.get(path) != new.get(path):
            was, now_is = (
                json.dumps(values[path]) if path in values else "not set" for values in (old, new)
            )
            yield path, f"was {was}, is {now_is}"


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
