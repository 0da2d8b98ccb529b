"""List the files of a data set, and identify it by their SHA-256 as `sha256sum` prints it.

The submitting host imports this module, so it needs nothing but the standard library.
"""

import errno
import hashlib
import itertools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from optstate.checksums import hash_files
from optstate.job import InputError

# The names that the folder of each split may have in a data set. Exactly one of them must exist.
FOLDERS = {"train": ("train",), "valid": ("val", "valid", "validation")}
NOT_READ = "0" * 64  # in a manifest, the SHA-256 of what is listed but never opened
LEADS_NOWHERE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)  # errors of following a link


@dataclass(frozen=True)
class Listing:
    """What the folder of one split contains, without hidden names. Links are followed.

    Attributes:
        folder: the name of the split's folder.
        classes: the sorted names of the regular files in each class folder, by class.
        others: the paths of special files, such as FIFOs, and of files outside class folders.
        nested: the paths of folders inside class folders.
        broken: the paths of links that lead nowhere.

    All paths are relative to the folder of the splits.
    """

    folder: str
    classes: dict[str, list[str]]
    others: list[str]
    nested: list[str]
    broken: list[str]


def folder_sha256(folder: Path, cache: Path | None = None, has_valid_folder: bool = True) -> str:
    """Return the SHA-256 of a data set's manifest, as 64 hexadecimal digits.

    The manifest has a line ``sha256  path`` for each file in a class folder, ordered by split,
    class and file name. After these come the other files, which are not read, with ``NOT_READ``.

    Args:
        folder: contains {train,val}/CLASS/FILE, see ``FOLDERS``. Links are followed and hidden
            files are ignored. Paths in the manifest are relative to this folder.
        cache: a file that stores hashes, so that only new and changed files are read.
        has_valid_folder: see :func:`list_dataset`.

    Raises:
        InputError: the folder does not exist or has a different layout.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder. Correct the path of `folder`.")
    listings = list_dataset(folder, has_valid_folder)
    files = [
        f"{listing.folder}/{class_}/{name}"
        for listing in listings.values()
        for class_, names in listing.classes.items()
        for name in names
    ]
    others = [path for listing in listings.values() for path in listing.others]
    hashes = hash_files([f"{folder}/{file}" for file in files], cache) + [NOT_READ] * len(others)
    manifest = hashlib.sha256()
    for sha256, path in zip(hashes, files + others, strict=True):
        manifest.update(_format_line(sha256, path).encode("utf-8", "surrogateescape"))
    return manifest.hexdigest()


def list_dataset(root: Path, has_valid_folder: bool = True) -> dict[str, Listing]:
    """Return what the folder of each split in ``root`` contains. Other folders are ignored.

    Args:
        root: the folder of the splits.
        has_valid_folder: whether the split valid has a folder. If not, the result has only train.

    Raises:
        InputError: a split has no folder, several, or one that would not be used, the splits have
            different classes or fewer than two, a link leads nowhere, or a class folder contains a
            folder. Otherwise their images would be missing without a message.
    """
    listings = {
        split: _list_split(root, folder)
        for split, folder in _find_folders(root, has_valid_folder).items()
    }
    _require_unbroken(root, [path for listing in listings.values() for path in listing.broken])
    _require_none(
        [f"{root}/{path}" for listing in listings.values() for path in listing.nested],
        "a folder inside a class folder, whose files would not be used",
        "Move its files into the class folder, or remove it.",
    )
    _require_classes(f"{root}/train", list(listings["train"].classes))
    _require_same_classes(root, *listings.values())
    return listings


def _find_folders(root: Path, has_valid_folder: bool) -> dict[str, str]:
    """Return the name of each split's folder in ``root``.

    Raises:
        InputError: other folders exist than expected, or a link to one leads nowhere.
    """
    paths = [root / name for names in FOLDERS.values() for name in names]
    _require_unbroken(root, [p.name for p in paths if p.is_symlink() and not p.exists()])
    existing = [path.name for path in paths if path.is_dir()]
    found = {split: [n for n in names if n in existing] for split, names in FOLDERS.items()}
    if not found["train"]:
        raise InputError(f"{root}: has no folder 'train'. The layout must be train/CLASS/IMAGE.")
    if found["valid"] and not has_valid_folder:
        raise InputError(
            f"{root}/{found['valid'][0]}: this validation folder would not be used, because "
            "`valid_fraction` is set. Set `valid_fraction` to null, or remove or rename the folder."
        )
    if has_valid_folder and not found["valid"]:
        raise InputError(
            f"{root}: has no validation folder ('val', 'valid' or 'validation'). Add one, or set "
            "`valid_fraction: 0.2` for this data set to validate on a part of the training images."
        )
    if len(found["valid"]) > 1:
        raise InputError(
            f"{root}: has several validation folders ({' and '.join(map(repr, found['valid']))}). "
            "Keep one, and remove or rename the others."
        )
    return {split: folders[0] for split, folders in found.items() if folders}


def _require_classes(folder: str, classes: Sequence[str]) -> None:
    """Check that there are enough classes to learn to tell them apart."""
    if not classes:
        raise InputError(f"{folder}: has no class folder. The layout must be train/CLASS/IMAGE.")
    if len(classes) == 1:
        raise InputError(
            f"{folder}: only one class, {classes[0]!r}. A classifier needs at least two. "
            "Add a folder for each other class."
        )


def _require_same_classes(root: Path, *listings: Listing) -> None:
    """Check that the folders of all splits have the same classes."""
    for listing, other in itertools.permutations(listings, 2):
        for class_ in sorted(listing.classes.keys() - other.classes.keys()):
            raise InputError(
                f"{root}: class {class_!r} is in {listing.folder} but not in {other.folder}. "
                "Add it there, or remove it from both."
            )


def _require_unbroken(root: Path, broken: Sequence[str]) -> None:
    """Raise an InputError that names the first of ``broken``, links below ``root``."""
    _require_none(
        [f"{root}/{path}" for path in broken],
        "a link that leads nowhere",
        "Mount or restore what it points to, or remove the link.",
    )


def _require_none(paths: Sequence[str], problem: str, fix: str) -> None:
    """Raise an InputError that names the first of ``paths``, if there are any."""
    if paths:
        number = f" (the first of {len(paths):,})" if len(paths) > 1 else ""
        raise InputError(f"{paths[0]}: {problem}{number}. {fix}")


def _list_split(root: Path, folder: str) -> Listing:
    """Return what the folder ``root / folder`` of one split contains."""
    content = _scan(root / folder)
    names = content["file"] + content["special"]
    listing = Listing(folder, {}, [f"{folder}/{name}" for name in names], [], [])
    listing.broken.extend(f"{folder}/{name}" for name in content["broken"])
    for class_ in content["folder"]:
        inside = _scan(root / folder / class_)
        listing.classes[class_] = inside["file"]
        for paths, kind in (
            (listing.others, "special"),
            (listing.nested, "folder"),
            (listing.broken, "broken"),
        ):
            paths.extend(f"{folder}/{class_}/{name}" for name in inside[kind])
    return listing


def _scan(folder: Path) -> dict[str, list[str]]:
    """Return the sorted names in a folder by their kind, without hidden ones. Opens no file."""
    names: dict[str, list[str]] = {kind: [] for kind in ("file", "folder", "special", "broken")}
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if not entry.name.startswith("."):
                names[_find_kind(entry)].append(entry.name)
    return names


def _find_kind(entry: os.DirEntry[str]) -> str:
    """Return ``file``, ``folder`` or ``special``, following links; ``broken`` if that fails."""
    try:
        if entry.is_file():
            return "file"
        if entry.is_dir():
            return "folder"
        entry.stat()  # fails if a link leads nowhere
    except OSError as error:
        if entry.is_symlink() and error.errno in LEADS_NOWHERE:
            return "broken"
        raise
    return "special"


def _format_line(sha256: str, name: str) -> str:
    """Return a file's line as `sha256sum` prints it: with a backslash before an escaped name."""
    escaped = name.replace("\\", r"\\").replace("\n", r"\n").replace("\r", r"\r")
    mark = "\\" if escaped != name else ""
    return f"{mark}{sha256}  {escaped}\n"
