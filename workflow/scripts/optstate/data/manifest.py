"""Identify files and data sets by their content, with SHA-256 as `sha256sum` prints it.

The submitting host imports this module, so it needs nothing but the standard library.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from multiprocessing.pool import ThreadPool
from pathlib import Path

from optstate.job import InputError, write_atomically

FOLDERS = {"train": "train", "valid": "val"}  # split: its folder in a data set


def folder_sha256(folder: Path, cache: Path | None = None) -> str:
    """Return the SHA-256 of a data set's manifest, as 64 hexadecimal digits.

    The manifest has a line ``sha256  path`` for each file, ordered by split, class and file name.

    Args:
        folder: contains {train,val}/CLASS/FILE. Links are followed and hidden files are ignored.
            Paths in the manifest are relative to this folder.
        cache: a file that stores hashes, so that only new and changed files are read.

    Raises:
        InputError: the folder does not exist.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder. Correct the path of `folder`.")
    names = list(_walk(folder))
    hashes = _hash_files([f"{folder}/{name}" for name in names], cache)
    manifest = hashlib.sha256()
    for sha256, name in zip(hashes, names, strict=True):
        manifest.update(_format_line(sha256, name).encode("utf-8", "surrogateescape"))
    return manifest.hexdigest()


def file_sha256(file: Path, cache: Path | None = None) -> str:
    """Return the SHA-256 of a file. With ``cache``, read the file only if it has changed."""
    return _hash_files([str(file)], cache)[0]


def list_folders(folder: Path) -> list[str]:
    """Return the sorted names of the folders in ``folder``, without hidden ones. Follows links."""
    with os.scandir(folder) as entries:
        return sorted(e.name for e in entries if e.name[0] != "." and e.is_dir())


def list_files(folder: Path) -> list[str]:
    """Return the sorted names of the files in ``folder``, without hidden ones. Follows links."""
    with os.scandir(folder) as entries:
        return sorted(e.name for e in entries if e.name[0] != "." and e.is_file())


def _walk(folder: Path) -> Iterator[str]:
    """Yield the path of each file of a data set, relative to its folder."""
    for split in FOLDERS.values():
        if (folder / split).is_dir():
            for class_ in list_folders(folder / split):
                for name in list_files(folder / split / class_):
                    yield f"{split}/{class_}/{name}"


def _format_line(sha256: str, name: str) -> str:
    """Return a file's line as `sha256sum` prints it: with a backslash before an escaped name."""
    escaped = name.replace("\\", r"\\").replace("\n", r"\n").replace("\r", r"\r")
    mark = "\\" if escaped != name else ""
    return f"{mark}{sha256}  {escaped}\n"


def _hash_files(files: Sequence[str], cache: Path | None) -> Sequence[str]:
    """Return the SHA-256 of each file. With ``cache``, read only files that have changed."""
    if cache is None:
        return _read_and_hash(files)
    known: dict[str, str] = json.loads(cache.read_text()) if cache.exists() else {}
    keys = [_make_cache_key(file) for file in files]
    changed = {key: file for key, file in zip(keys, files, strict=True) if key not in known}
    if changed:
        hashes = _read_and_hash(list(changed.values()))
        known.update(zip(changed, hashes, strict=True))
        with write_atomically(cache) as temporary:
            temporary.write_text(json.dumps(known, indent=0))
    return [known[key] for key in keys]


def _make_cache_key(file: str) -> str:
    """Return a key that changes whenever the file is written or replaced."""
    stat = Path(file).stat()
    return f"{stat.st_dev}:{stat.st_ino}:{stat.st_size}:{stat.st_mtime_ns}:{stat.st_ctime_ns}"


def _read_and_hash(files: Sequence[str]) -> Sequence[str]:
    with ThreadPool(os.cpu_count()) as pool:  # hashlib releases the GIL
        return pool.map(_hash_file, files, chunksize=16)


def _hash_file(file: str) -> str:
    with Path(file).open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
