"""Refuse to continue from finished files that have changed since they were made.

Snakemake compares the content of an input only if its time is newer than that of the outputs. So a
change under an old time, or of a file that no job reads any more, has to be found here.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from optstate.checksums import hash_files, read_checksums
from optstate.experiment.changes import read_value
from optstate.job import InputError

MAX_NAMED = 10  # changed files in an error
LARGE = ("archive", "checkpoint.pt", ".npy")  # ends of the names of large files


def require_unchanged(listings: Iterable[Path], cache: Path) -> None:
    """Check every finished file in ``listings``.

    Args:
        listings: files that :func:`optstate.checksums.write_checksums` wrote.
        cache: a file that stores hashes, so that only new and changed files are read.

    Raises:
        InputError: one line that names the first files that have changed.
    """
    listed = dict(list_finished_files(listings))
    hashes = hash_files([*listed], cache)
    changed = [
        file for (file, expected), sha256 in zip(listed.items(), hashes, strict=True)
        if sha256 != expected
    ]  # fmt: skip
    if changed:
        also = [str(file) for file in changed[1:MAX_NAMED]]
        if number := len(changed[MAX_NAMED:]):
            also.append(f"and {number} more")
        more = f" Changed, too: {', '.join(also)}." if also else ""
        run = "run again: a job that needs it will make it anew."
        if changed[0].suffix == ".npy":  # Snakemake trains again what depends on a job that runs
            run = (
                f"run once with `-- {changed[0]}` at the end of the command, which makes it anew, "
                "and then as before. Otherwise, finished sessions train again."
            )
        raise InputError(f"{changed[0]}: changed since it was made. Delete it, then {run}{more}")


def require_archive(folder: Path, sha256: str) -> None:
    """Check that the archive in ``folder``, if there is one, was verified by this SHA-256.

    Raises:
        InputError: it is another archive.
    """
    listed = read_checksums(folder).get("archive", sha256)
    if listed != sha256:
        raise InputError(f"{folder}: has another archive. Delete this folder, then run again.")


def require_prepared(folder: Path, expected: dict[str, Any]) -> None:
    """Check that the arrays in ``folder``, if there are any, are those that belong there.

    Args:
        folder: the folder of a data set's arrays.
        expected: what ``dataset.json`` must say of them. None: it is not compared.

    Raises:
        InputError: they were exchanged for other ones.
    """
    found = [(read_value(folder / "dataset.json", key), value) for key, value in expected.items()]
    if any(None not in pair and pair[0] != pair[1] for pair in found):
        raise InputError(f"{folder}: has other images. Delete this folder, then run again.")


def list_finished_files(listings: Iterable[Path]) -> Iterator[tuple[Path, str]]:
    """Yield every listed file that exists, with its listed SHA-256.

    A large file is left out if nothing has written it since. Jobs verify those that they read.
    """
    times = {listing.parent: _get_time(listing) for listing in sorted(listings)}
    for folder, time in times.items():
        for name, sha256 in read_checksums(folder).items():
            file = folder / name
            is_new = not name.endswith(LARGE) or _get_time(file) > time
            if is_new and file.is_file():
                yield file, sha256


def _get_time(file: Path) -> int:
    """Return when a file was written, renamed or replaced, in ns; 0 if it does not exist.

    The kernel sets this time, so an old modification time does not hide a change.
    """
    return file.stat().st_ctime_ns if file.exists() else 0
