"""Unpack tar and zip archives of untrusted content."""

import contextlib
import lzma
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from optstate.data.manifest import FOLDERS
from optstate.job import InputError, require_space

# An archive is refused if its members need more than both of these limits. Images hardly compress.
ALLOWED_BYTES = 1_000_000_000
MAX_EXPANSION = 100  # times the size of the archive
BLOCK_BYTES = 4096  # disk space of the smallest file
MAX_HEADER_BYTES = 1_000_000  # of a tar's extended header, which tarfile reads into memory

EXTENDED_HEADERS = (
    tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK,
)  # fmt: skip

# tarfile and zipfile raise all of these on damaged archives.
BAD_ARCHIVE = (
    tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, KeyError,
    OSError, RuntimeError, ValueError, OverflowError, MemoryError,
)  # fmt: skip


@contextlib.contextmanager
def unpack_temporarily(archive: Path, folder: Path) -> Iterator[Path]:
    """Unpack ``archive`` into ``folder``, which is removed after the block.

    Yields:
        The folder that contains the splits. An InputError in the block names the archive instead
        of ``folder``.
    """
    shutil.rmtree(folder, ignore_errors=True)  # left by a job that was killed
    try:
        extract(archive, folder)
        yield find_root(folder)
    except InputError as error:
        raise InputError(str(error).replace(str(folder), str(archive))) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def extract(archive: Path, folder: Path) -> None:
    """Unpack a tar (of any compression) or zip archive into the new folder ``folder``.

    Raises:
        InputError: the file is damaged or not an archive, would fill the disk, or has a member
            outside ``folder``.
    """
    folder.mkdir(parents=True)
    try:
        if tar := open_tar(archive):
            with tar:
                check_sizes(folder, archive, (member.size for member in tar))
                tar.extractall(folder, filter="data")
        elif zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as opened:
                _extract_zip(opened, archive, folder)
        else:
            raise InputError(f"{archive}: neither a tar nor a zip archive. Convert it to one.")
    except tarfile.FilterError as error:
        raise InputError(f"{archive}: refused as unsafe: {error}. Replace the archive.") from error
    except BAD_ARCHIVE as error:
        if isinstance(error, OSError) and error.errno:
            raise  # caused by the disk, not by the archive
        raise InputError(
            f"{archive}: the archive is damaged, encrypted or of an unknown kind ({error}). "
            "Replace it."
        ) from error


def open_tar(archive: Path) -> tarfile.TarFile | None:
    """Open a tar archive of any compression. Returns None if the file is not a tar archive."""
    try:
        return tarfile.open(archive, tarinfo=Member)
    except tarfile.TarError:
        return None


class Member(tarfile.TarInfo):
    """A member of a tar archive that refuses extended headers too large for the memory."""

    def _proc_member(self, tar: tarfile.TarFile) -> Any:
        if self.type in EXTENDED_HEADERS and self.size > MAX_HEADER_BYTES:
            raise InputError(f"{tar.name!s}: refused as a decompression bomb. Replace the archive.")
        return super()._proc_member(tar)  # type: ignore[misc]


def _extract_zip(opened: zipfile.ZipFile, archive: Path, folder: Path) -> None:
    check_sizes(folder, archive, (member.file_size for member in opened.infolist()))
    for name in opened.namelist():
        if not (folder / name).resolve().is_relative_to(folder.resolve()):
            raise InputError(
                f"{archive}: refused as unsafe: member {name!r} would be written outside the "
                "folder. Replace the archive."
            )
    opened.extractall(folder)  # noqa: S202 - every name was checked


def check_sizes(folder: Path, archive: Path, sizes: Iterable[int]) -> None:
    """Check that members of ``sizes`` bytes fit on the disk of ``folder``.

    Raises:
        InputError: they do not fit, or exceed the limits that guard against decompression bombs.
    """
    limit = max(ALLOWED_BYTES, MAX_EXPANSION * archive.stat().st_size)
    total = 0
    for size in sizes:  # a generator, so that a bomb is refused before all headers are read
        total += max(size, BLOCK_BYTES)
        if total > limit:
            raise InputError(
                f"{archive}: refused as a decompression bomb: its members need more than "
                f"{limit / 1e9:.1f} GB. Replace the archive."
            )
    require_space(folder, total)


def find_root(folder: Path) -> Path:
    """Return the folder that contains the splits: ``folder``, or one inside it.

    As long as a folder has neither split and exactly one subfolder, search that subfolder. If no
    folder contains the splits, return the last one searched.
    """
    names = [name for names in FOLDERS.values() for name in names]
    while not any((folder / name).is_dir() for name in names):
        folders = (path for path in folder.iterdir() if path.is_dir())
        inside = [p for p in folders if p.name != "__MACOSX" and not p.name.startswith(".")]
        if len(inside) != 1:
            break
        folder = inside[0]
    return folder
