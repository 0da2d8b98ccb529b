"""The identity of files by their content, as `sha256sum` gives it."""

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.pool import ThreadPool
from pathlib import Path

from optstate.job import InputError, write_atomically


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
    manifest = hashlib.sha256()
    with _hashing(cache) as hash_files:
        for split in filter(os.path.isdir, (folder / "train", folder / "val")):
            for class_ in folders_in(split):
                names = files_in(split / class_)
                hashes = hash_files([f"{split}/{class_}/{name}" for name in names])
                for sha256, name in zip(hashes, names, strict=True):
                    line = _line(sha256, f"{split.name}/{class_}/{name}")
                    manifest.update(line.encode("utf-8", "surrogateescape"))
    return manifest.hexdigest()


def folders_in(folder: Path) -> list[str]:
    """The names of the folders, and links to folders, in a folder, but for hidden ones."""
    with os.scandir(folder) as entries:
        return sorted(e.name for e in entries if e.name[0] != "." and e.is_dir())


def files_in(folder: Path) -> list[str]:
    """The names of the files, and links to files, in a folder, but for hidden ones."""
    with os.scandir(folder) as entries:
        return sorted(e.name for e in entries if e.name[0] != "." and e.is_file())


def _line(sha256: str, name: str) -> str:
    """A line of `sha256sum`, which begins with a backslash if it needed any in the name."""
    escaped = name.replace("\\", r"\\").replace("\n", r"\n").replace("\r", r"\r")
    mark = "\\" if escaped != name else ""
    return f"{mark}{sha256}  {escaped}\n"


def file_sha256(file: Path, cache: Path | None = None) -> str:
    """SHA-256 of a file; with ``cache``, read only if it changed since that was written."""
    with _hashing(cache) as hash_files:
        return hash_files([str(file)])[0]


@contextlib.contextmanager
def _hashing(cache: Path | None) -> Iterator[Callable[[Sequence[str]], Sequence[str]]]:
    """What hashes files, on all cores, and remembers it in ``cache`` in the end."""
    with ThreadPool(os.cpu_count()) as pool:

        def hash_all(files: Sequence[str]) -> Sequence[str]:
            return pool.map(_sha256, files, chunksize=16)

        def hash_changed(files: Sequence[str]) -> Sequence[str]:
            keys = [_stat_key(file) for file in files]
            changed = {key: file for key, file in zip(keys, files, strict=True) if key not in known}
            known.update(zip(changed, hash_all(list(changed.values())), strict=True))
            return [known[key] for key in keys]

        if cache is None:
            yield hash_all
            return
        known: dict[str, str] = json.loads(cache.read_text()) if cache.exists() else {}
        num_known = len(known)
        yield hash_changed
        if len(known) > num_known:
            with write_atomically(cache) as temporary:
                temporary.write_text(json.dumps(known, indent=0))


def _stat_key(file: str) -> str:
    """What cannot stay the same when a file is written: the inode and its times."""
    stat = Path(file).stat()
    return f"{stat.st_dev}:{stat.st_ino}:{stat.st_size}:{stat.st_mtime_ns}:{stat.st_ctime_ns}"


def _sha256(file: str) -> str:
    with Path(file).open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
