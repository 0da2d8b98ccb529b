"""Read CSV and JSON files that earlier jobs wrote. A damaged file produces a one-line error."""

import contextlib
import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from optstate.job import InputError

Row = dict[str, str]

FIX = "Delete it, then run again."


def read_rows(path: Path) -> list[Row]:
    """Read the rows of a CSV file, with values as text.

    Raises:
        InputError: the file is not a CSV file, or its rows differ in length.
    """
    with explain_unreadable(path), path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for number, row in enumerate(rows, 1):
        if None in row or None in row.values():
            raise InputError(f"{path}: row {number} is not as long as the first line. {FIX}")
    return rows


def read_json(path: Path, *keys: str) -> dict[str, Any]:
    """Read a JSON file whose content is an object with at least ``keys``.

    Raises:
        InputError: the file is not JSON, or a key is missing.
    """
    with explain_unreadable(path):
        content = json.loads(path.read_text(encoding="utf-8"))
    missing = sorted(set(keys).difference(content if isinstance(content, dict) else ()))
    if missing:
        raise InputError(f"{path}: has no {missing[0]!r}. {FIX}")
    return content


@contextlib.contextmanager
def explain_unreadable(path: Path) -> Iterator[None]:
    """Replace errors of parsing the file ``path`` by an InputError that names it."""
    try:
        yield
    except (ValueError, csv.Error) as error:
        raise InputError(f"{path}: unreadable ({error}). {FIX}") from error
