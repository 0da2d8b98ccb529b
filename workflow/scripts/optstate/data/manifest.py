"""The identity of files by their content, as `sha256sum` gives it."""

import hashlib
import json
import os
from multiprocessing.pool import ThreadPool
from pathlib import Path

from optstate.job import InputError, replacing


def folder_sha256(folder: Path, cache: Path | None = None) -> str:
    """SHA-256 of a data set's manifest: a line ``sha256  path`` for each of its files.

    Args:
        folder: holds {train,val}/CLASS/FILE, through links as well. Hidden files are no part of
            it. Paths in the manifest are relative to it, in name order.
        cache: a file that remembers hashes, so that only files whose size or times have changed
            are read again.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder: mend the path of `folder`")
    files = sorted(
        path
        for split in ("train", "val")
        for path in (folder / split).glob("*/*")
        if path.is_file() and not any(p.startswith(".") for p in path.relative_to(folder).parts)
    )
    hashes = files_sha256(files, cache)
    lines = (_line(hashes[path], path.relative_to(folder).as_posix()) for path in files)
    return hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


def _line(sha256: str, name: str) -> str:
    """A line of `sha256sum`, which begins with a backslash if it needed any in the name."""
    escaped = name.replace("\\", r"\\").replace("\n", r"\n").replace("\r", r"\r")
    mark = "\\" if escaped != name else ""
    return f"{mark}{sha256}  {escaped}\n"


def files_sha256(files: list[Path], cache: Path | None = None) -> dict[Path, str]:
    """SHA-256 of each file; with ``cache``, of those alone that changed since it was written."""
    known = json.loads(cache.read_text()) if cache and cache.exists() else {}
    keys = {path: _stat_key(path) for path in files}
    changed = [path for path in files if keys[path] not in known]
    with ThreadPool(os.cpu_count()) as pool:
        new = dict(zip(changed, pool.imap(_sha256, changed, chunksize=16), strict=True))
    if cache and new:
        with replacing(cache) as temporary:
            remembered = known | {keys[path]: digest for path, digest in new.items()}
            temporary.write_text(json.dumps(remembered, indent=0))
    return {path: new.get(path) or known[keys[path]] for path in files}


def _stat_key(path: Path) -> str:
    """What cannot stay the same when a file is written: the inode and its times."""
    stat = path.stat()
    return f"{stat.st_dev}:{stat.st_ino}:{stat.st_size}:{stat.st_mtime_ns}:{stat.st_ctime_ns}"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
