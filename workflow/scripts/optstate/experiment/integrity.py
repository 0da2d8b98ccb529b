"""Refuse to continue from finished files that have changed since they were made.

Snakemake compares the content of an input only if its time is newer than that of the outputs. So a
change under an old time, or of a file that no job reads any more, has to be found here. Large files
are verified by the jobs that read them.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

from optstate.checksums import SUFFIX, hash_files, read_checksums
from optstate.job import InputError

LARGE = ("archive", "checkpoint.pt", ".npy")  # ends of the names of large files


def require_unchanged(folders: Iterable[Path], cache: Path) -> None:
    """Check every small finished file in and below ``folders``.

    Args:
        folders: those that do not exist are left out.
        cache: a file that stores hashes, so that only new and changed files are read.

    Raises:
        InputError: one line that names the first file that has changed, and how many more have.
    """
    listed = dict(list_small_files(folders))
    hashes = hash_files([str(file) for file in listed], cache)
    changed = [
        file for (file, expected), sha256 in zip(listed.items(), hashes, strict=True)
        if sha256 != expected
    ]  # fmt: skip
    if changed:
        more = f" So have {len(changed) - 1} other files." if len(changed) > 1 else ""
        raise InputError(
            f"{changed[0]}: changed since it was made. Delete it, then run again to make it "
            f"anew.{more}"
        )


def list_small_files(folders: Iterable[Path]) -> Iterator[tuple[Path, str]]:
    """Yield every small file that exists and that a job has listed, with its listed SHA-256."""
    for folder in folders:
        for parent in sorted({listing.parent for listing in folder.rglob(f"*{SUFFIX}")}):
            for name, sha256 in read_checksums(parent).items():
                file = parent / name
                if not name.endswith(LARGE) and file.is_file():
                    yield file, sha256
