"""Verify finished files: each job lists the SHA-256 of its outputs in a small file next to them.

The file ``NAME.sha256`` has a line for each output, as ``sha256sum`` prints it, so
``sha256sum --check NAME.sha256`` verifies them, too. Every job verifies the finished files that it
reads before it writes anything. This module needs nothing but the standard library.
"""

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from multiprocessing.pool import ThreadPool
from pathlib import Path

from optstate.job import InputError, write_atomically

SUFFIX = ".sha256"
LINE = re.compile("[0-9a-f]{64}  .+")  # of a listing
CACHE = ".verified.json"  # in the folder of large files that several jobs read


def file_sha256(file: Path, cache: Path | None = None) -> str:
    """Return the SHA-256 of a file. With ``cache``, read the file only if it has changed."""
    return hash_files([file], cache)[0]


def hash_files(files: Sequence[str | Path], cache: Path | None = None) -> list[str]:
    """Return the SHA-256 of each file, as 64 hexadecimal digits.

    Args:
        files: the paths.
        cache: a file that stores hashes, so that only new and changed files are read. A file has
            changed if its inode, size, modification time or change time has. The kernel sets the
            change time, so an old modification time does not hide a change.
    """
    if cache is None:
        return list(_read_and_hash(files))
    known = _read_cache(cache)
    keys = [_make_cache_key(file) for file in files]
    changed = {key: file for key, file in zip(keys, files, strict=True) if key not in known}
    if changed:
        try:
            for key, sha256 in zip(changed, _read_and_hash([*changed.values()]), strict=True):
                known[key] = sha256
        finally:  # after an interruption, the next call continues
            _write_cache(cache, known)
    return [known[key] for key in keys]


def write_checksums(path: Path, outputs: Iterable[Path], inputs: Iterable[Path] = ()) -> None:
    """List the SHA-256 of a job's ``outputs`` in the file ``path`` in their folder.

    ``inputs``, from which it made them, are listed by a relative path that contains a slash.
    """
    names = {file: file.name for file in sorted(outputs)}
    for file in sorted(inputs):
        relative = os.path.relpath(file.resolve(), path.parent.resolve())
        names[file] = relative if "/" in relative else f"./{relative}"
    listed = dict(zip(names.values(), hash_files([*names]), strict=True))
    with write_atomically(path) as temporary:
        temporary.write_text(format_listing(listed), encoding="utf-8")


def format_listing(hashes: Mapping[str, str]) -> str:
    """Return the lines of a listing of SHA-256 by file name, as ``sha256sum`` prints them."""
    return "".join(f"{sha256}  {name}\n" for name, sha256 in hashes.items())


def verify(*files: Path, cache: bool = False) -> None:
    """Check that finished files are as their jobs wrote them.

    Args:
        files: the files. Each is listed in a file ``*.sha256`` of its folder.
        cache: whether to read a file only if it has changed since it was verified. Then
            ``CACHE``, in the folder of the first file, stores the hashes.

    Raises:
        InputError: a file is missing or not listed, or has changed since it was made.
    """
    listed = {folder: read_checksums(folder) for folder in {file.parent for file in files}}
    for file in files:
        if not file.is_file():
            raise InputError(f"{file}: missing. Run again to make it.")
        if file.name not in listed[file.parent]:
            raise InputError(
                f"{file}: no {SUFFIX} file in its folder lists it. Delete it, then run again."
            )
    hashes = hash_files(files, files[0].parent / CACHE if cache else None)
    for file, sha256 in zip(files, hashes, strict=True):
        if sha256 != listed[file.parent][file.name]:
            raise InputError(
                f"{file}: changed since it was made (its SHA-256 is {sha256[:16]}…, not "
                f"{listed[file.parent][file.name][:16]}…). Delete it, then run again."
            )


def read_checksums(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every output that is listed in ``folder``, by its name.

    Raises:
        InputError: a listing is damaged, or two disagree, so one of them was exchanged.
    """
    found: dict[str, str] = {}
    for listing in sorted(folder.glob(f"*{SUFFIX}")):
        for name, sha256 in read_listing(listing).items():
            if "/" not in name and found.setdefault(name, sha256) != sha256:
                raise InputError(
                    f"{listing}: disagrees with another {SUFFIX} file on {name}. Delete it, then "
                    "run again."
                )
    return found


def read_listing(listing: Path) -> dict[str, str]:
    """Return the SHA-256 of the files in one listing, by name. Those of inputs contain a slash.

    Raises:
        InputError: the listing is damaged.
    """
    try:
        lines = listing.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:  # its job has just started again
        return {}
    if not lines or not all(map(LINE.fullmatch, lines)):
        raise InputError(f"{listing}: damaged. Delete it, then run again.")
    return {name: sha256 for sha256, _, name in (line.partition("  ") for line in lines)}


def _read_cache(cache: Path) -> dict[str, str]:
    """Return the stored hashes; none if the file cannot be read."""
    try:
        content = json.loads(cache.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _write_cache(cache: Path, known: dict[str, str]) -> None:
    """Store hashes. Several jobs may do so at the same time; the last one wins.

    A failure is ignored: without the cache, the files are only read again.
    """
    temporary = cache.with_name(f".{cache.name}.{os.getpid()}.tmp")
    with contextlib.suppress(OSError):
        cache.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(known, indent=0))
        temporary.replace(cache)


def _make_cache_key(file: str | Path) -> str:
    """Return a key that changes whenever the file is written or replaced."""
    stat = Path(file).stat()
    return f"{stat.st_dev}:{stat.st_ino}:{stat.st_size}:{stat.st_mtime_ns}:{stat.st_ctime_ns}"


def _read_and_hash(files: Sequence[str | Path]) -> Iterator[str]:
    threads = max(min(len(files), os.cpu_count() or 1), 1)
    with ThreadPool(threads) as pool:  # hashlib releases the GIL
        yield from pool.imap(_hash_file, files, chunksize=16 if len(files) > 100 else 1)


def _hash_file(file: str | Path) -> str:
    with Path(file).open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
