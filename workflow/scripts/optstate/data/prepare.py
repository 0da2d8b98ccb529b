"""Decode every image of a data set once, into uint8 arrays that training memory-maps.

``{split}_images.npy`` has the shape (images, size, size, 3) and ``{split}_labels.npy`` the shape
(images,), for the splits train and valid, ordered by class and then by file name. Images become RGB
and are squashed to a square with Pillow's antialiased bilinear filter, which is what torchvision's
``Resize((size, size))`` does to a Pillow image. ``dataset.json`` tells what is in them.
"""

import argparse
import contextlib
import gc
import hashlib
import json
import logging
import lzma
import multiprocessing
import os
import shutil
import signal
import tarfile
import warnings
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from optstate.data.manifest import file_sha256, files_in, folder_sha256, folders_in
from optstate.job import (
    InputError,
    end_with_parent,
    hold_lock,
    write_atomically,
    require_space,
    run,
)

FOLDERS = {"train": "train", "valid": "val"}  # split: folder of the archive
SMALL_BYTES = 1_000_000_000  # an archive may always take as much when it is unpacked,
MAX_EXPANSION = 100  # or this many times its own size: images hardly shrink
BLOCK_BYTES = 4096  # what the smallest file takes
CHUNK = 64  # images that a worker decodes in a row
CHUNKS_TO_DISK = 8  # after so many of them, what is written goes to the disk
THINNED = 61  # every so many bytes of the pixels tell whether pictures may be equal
HEADER_BYTES = 1_000_000  # at most in a tar's extended header, which is read into memory
COLOURLESS = {"1", "L", "LA", "La"}  # Pillow's modes of 8 bits without colour

# What is kept of an image beside its pixels: its likeness is the same for equal pictures,
# and hardly ever for others.
TRAITS = np.dtype([("colourless", bool), ("likeness", np.int64)])

EXTENDED_HEADERS = (
    tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK,
)  # fmt: skip

Image.init()
USUAL = ("JPEG", "PNG")  # each format is tried on each file, in this order,
FORMATS = [*USUAL, *sorted(Image.OPEN.keys() - {*USUAL, "EPS"})]  # but EPS would run a program
BAD_ARCHIVE = (
    tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, KeyError,
    OSError, RuntimeError, ValueError, OverflowError, MemoryError,
)  # fmt: skip


@dataclass(frozen=True)
class Split:
    """The images of one split, in the order of the arrays."""

    name: str
    images: list[str]  # paths, below the folder that holds the splits
    labels: np.ndarray  # (images,) int64, an index into the classes


def main(arguments: argparse.Namespace) -> None:
    """Write the arrays and ``dataset.json`` to ``--output``."""
    output = arguments.output
    output.mkdir(parents=True, exist_ok=True)
    with hold_lock(output.with_name(f".{output.name}.lock")), images_folder(arguments) as root:
        prepare(root, arguments.image_size, arguments.workers, output)


@contextlib.contextmanager
def images_folder(arguments: argparse.Namespace) -> Iterator[Path]:
    """The folder that holds ``train`` and ``val``: the user's own, or the archive's for a while."""
    if arguments.folder:
        if arguments.sha256 and folder_sha256(arguments.folder) != arguments.sha256:
            raise InputError(f"{arguments.folder}: its files have just changed: run again")
        yield arguments.folder
        return
    extracted = arguments.output / "extracting"
    shutil.rmtree(extracted, ignore_errors=True)  # of a job that was killed
    try:
        extract(arguments.archive, extracted)
        yield find_root(extracted)
    except InputError as error:  # a path below the archive means more than one soon removed
        raise InputError(str(error).replace(str(extracted), str(arguments.archive))) from error
    finally:
        shutil.rmtree(extracted, ignore_errors=True)


def extract(archive: Path, folder: Path) -> None:
    """Unpack a tar (of any compression) or zip archive into ``folder``, and nowhere else.

    Raises:
        InputError: it is damaged or no archive, or a member would leave ``folder``.
    """
    folder.mkdir(parents=True)
    try:
        if tar := open_tar(archive):
            with tar:
                require_room(folder, archive, (member.size for member in tar))
                tar.extractall(folder, filter="data")
        elif zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as zipped:
                require_room(folder, archive, (m.file_size for m in zipped.infolist()))
                for name in zipped.namelist():
                    if not (folder / name).resolve().is_relative_to(folder.resolve()):
                        raise InputError(f"{archive}: member {name!r} would leave the folder")
                zipped.extractall(folder)  # noqa: S202 - every name was checked
        else:
            raise InputError(f"{archive}: neither a tar nor a zip archive")
    except tarfile.FilterError as error:
        raise InputError(f"{archive}: refused as unsafe: {error}") from error
    except BAD_ARCHIVE as error:
        if isinstance(error, OSError) and error.errno:
            raise  # of the disk, not of the archive
        raise InputError(
            f"{archive}: the archive is damaged, encrypted or of an unknown kind ({error}): "
            "replace it"
        ) from error


def open_tar(archive: Path) -> tarfile.TarFile | None:
    """A tar archive of any compression; None if it is something else."""
    try:
        return tarfile.open(archive, tarinfo=Member)
    except tarfile.TarError:
        return None


class Member(tarfile.TarInfo):
    """A member of a tar archive whose long names and further properties are not too long."""

    def _proc_member(self, tar: tarfile.TarFile) -> Any:
        if self.type in EXTENDED_HEADERS and self.size > HEADER_BYTES:
            raise InputError(f"{tar.name!s}: refused as a decompression bomb: replace it")
        return super()._proc_member(tar)  # type: ignore[misc]


def require_room(folder: Path, archive: Path, sizes: Iterable[int]) -> None:
    """Refuse an archive whose members, of ``sizes`` bytes, would fill the disk.

    Raises:
        InputError: there is not enough space, or so much that it must be a decompression bomb.
    """
    limit = max(SMALL_BYTES, MAX_EXPANSION * archive.stat().st_size)
    total = 0
    for size in sizes:  # of a bomb, no more are read than it takes to see that it is one
        total += max(size, BLOCK_BYTES)
        if total > limit:
            raise InputError(
                f"{archive}: refused as a decompression bomb: unpacked it takes more than "
                f"{limit / 1e9:.1f} GB: replace it"
            )
    require_space(folder, total)


def find_root(folder: Path) -> Path:
    """The folder in or below ``folder`` that holds the splits, through lone top-level folders."""
    while not any((folder / name).is_dir() for name in FOLDERS.values()):
        inside = [p for p in folder.iterdir() if p.is_dir() and p.name != "__MACOSX"]
        if len(inside) != 1:
            break
        folder = inside[0]
    return folder


def prepare(root: Path, image_size: int, workers: int, output: Path) -> None:
    """Decode the images below ``root`` with ``workers`` processes into ``output``.

    Raises:
        InputError: the layout is not {train,val}/CLASS/IMAGE, or an image does not decode.
    """
    classes, splits = list_images(root)
    num_images = sum(len(split.images) for split in splits)
    require_space(output, num_images * image_size**2 * 3)
    names = [f"{split.name}_{what}.npy" for split in splits for what in ("images", "labels")]
    with contextlib.ExitStack() as outputs:  # all of them appear, or none
        arrays = {name: outputs.enter_context(write_atomically(output / name)) for name in names}
        checksums, traits = {}, {}
        with decoding_processes(workers) as pool:
            for split in splits:
                images, labels = f"{split.name}_images.npy", f"{split.name}_labels.npy"
                traits[split.name], checksums[images] = decode_split(
                    split, root, image_size, pool, arrays[images]
                )
                with arrays[labels].open("wb") as file:
                    np.save(file, split.labels)
                checksums[labels] = file_sha256(arrays[labels])
        card = describe(root, image_size, classes, splits, traits) | {"sha256": checksums}
        path = outputs.enter_context(write_atomically(output / "dataset.json"))
        path.write_text(json.dumps(card, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    log_card(card)


def list_images(root: Path) -> tuple[list[str], list[Split]]:
    """The classes, in name order, and the images of both splits.

    Raises:
        InputError: a split or a class is missing or empty.
    """
    suffixes = Image.registered_extensions().items()
    readable = tuple(suffix for suffix, kind in suffixes if kind in FORMATS)
    found = {name: _files_by_class(root, folder) for name, folder in FOLDERS.items()}
    classes = sorted(found["train"])
    if not classes:
        raise InputError(
            f"{root / 'train'}: has no class folder: expected {{train,val}}/CLASS/IMAGE"
        )
    for class_ in sorted(set(found["train"]) ^ set(found["valid"])):
        there, missing = ("train", "val") if class_ in found["train"] else ("val", "train")
        raise InputError(
            f"{root}: class {class_!r} is in {there} but not in {missing}: both need every class"
        )
    splits = []
    for name, files in found.items():
        images: list[str] = []
        num_images = []
        for class_ in classes:
            folder = f"{FOLDERS[name]}/{class_}"
            of_class = [file for file in files[class_] if file.lower().endswith(readable)]
            if not of_class:
                raise InputError(
                    f"{root / folder}: no image in this class folder: "
                    "add some, or remove the class from both splits"
                )
            for file in sorted(set(files[class_]) - set(of_class)):
                logging.info("left out, no image by its name: %s/%s", folder, file)
            images += [f"{folder}/{file}" for file in of_class]
            num_images.append(len(of_class))
        splits.append(Split(name, images, np.repeat(np.arange(len(classes)), num_images)))
    return classes, splits


def _files_by_class(root: Path, folder: str) -> dict[str, list[str]]:
    """The files of each class of one split, in name order; hidden ones are no part of it."""
    if not (root / folder).is_dir():
        raise InputError(f"{root}: has no folder {folder!r}: expected {{train,val}}/CLASS/IMAGE")
    files = {class_: files_in(root / folder / class_) for class_ in folders_in(root / folder)}
    for class_, name in ((class_, name) for class_, names in files.items() for name in names):
        try:
            class_.encode(), name.encode()
        except UnicodeEncodeError as error:
            path = root / folder / class_ / name
            raise InputError(f"{path}: its name is not UTF-8: rename it") from error
    return files


@contextlib.contextmanager
def decoding_processes(workers: int) -> Iterator[ProcessPoolExecutor]:
    """Processes that end with this one.

    Raises:
        InputError: one of them was killed.
    """
    fork = multiprocessing.get_context("fork")  # else the workers' parent is another process
    with ProcessPoolExecutor(workers, fork, _start_worker, (os.getpid(),)) as pool:
        try:
            yield pool
        except BrokenProcessPool as error:
            raise InputError(
                "a decoding process was killed, probably for lack of memory: use fewer cores"
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def _start_worker(parent: int) -> None:
    """Let this process end with its ``parent``, and use the memory of an image for the next."""
    end_with_parent(signal.SIGKILL, parent)
    gc.freeze()  # else collecting garbage would copy the parent's memory
    Image.core.set_blocks_max(4)  # else the kernel takes, clears and gives it for every image


def decode_split(
    split: Split, root: Path, image_size: int, pool: ProcessPoolExecutor, output: Path
) -> tuple[np.ndarray, str]:
    """Write the array of a split's images. Returns their TRAITS, and its SHA-256."""
    num_bytes = image_size**2 * 3  # of an image
    header = allocate(output, (len(split.images), image_size, image_size, 3))
    tasks = (
        (output, header + first * num_bytes, root, split.images[first : first + CHUNK], image_size)
        for first in range(0, len(split.images), CHUNK)
    )
    traits = []
    with (
        output.open("rb", buffering=0) as written,
        tqdm(None, f"decode {split.name}", len(split.images), unit="image", disable=None) as bar,
    ):
        digest = hashlib.sha256(written.read(header))
        for number, of_chunk in enumerate(pool.map(_decode_chunk, tasks), 1):
            digest.update(written.read(len(of_chunk) * num_bytes))  # while others are being decoded
            traits.append(of_chunk)
            if number % CHUNKS_TO_DISK == 0:
                os.fsync(written.fileno())  # so that there is little to wait for in the end
            bar.update(len(of_chunk))
    return np.concatenate(traits), digest.hexdigest()


def allocate(path: Path, shape: tuple[int, ...]) -> int:
    """Make an uint8 .npy file whose disk blocks exist. Returns how long its header is, in bytes.

    So a full disk is told before anything is decoded.
    """
    header = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape).offset
    with path.open("r+b") as file:
        if hasattr(os, "posix_fallocate"):  # not on macOS
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return header


def _decode_chunk(task: tuple[Path, int, Path, list[str], int]) -> np.ndarray:
    """Decode images into consecutive rows of an array, the first of which begins at ``offset``."""
    array_path, offset, root, images, image_size = task
    traits, rows = np.empty(len(images), TRAITS), []
    with warnings.catch_warnings(action="ignore"):
        for index, image in enumerate(images):
            mode, picture = open_rgb(f"{root}/{image}")
            resized = picture.resize((image_size, image_size), Image.Resampling.BILINEAR)
            pixels = resized.tobytes()
            rows.append(pixels)
            traits[index] = mode in COLOURLESS, hash((picture.size, pixels[::THINNED]))
    with array_path.open("r+b") as array:
        array.seek(offset)
        array.write(b"".join(rows))  # at once, for which the kernel takes less time
    return traits


def open_rgb(path: str) -> tuple[str, Image.Image]:
    """The mode of an image file, and its picture in RGB.

    Raises:
        InputError: it does not decode, or has more than 8 bits a pixel.
    """
    try:
        with Image.open(path, formats=FORMATS) as image:
            mode = image.mode
            image.load()
            picture = image if image.mode == "RGB" else image.convert("RGB")  # which would copy
    except Exception as error:  # Pillow's plugins raise what they like on damaged files
        raise InputError(
            f"{path}: does not decode as an image ({error}): replace or remove it"
        ) from error
    if mode == "F" or mode.startswith("I"):
        raise InputError(
            f"{path}: has more than 8 bits a pixel (mode {mode}), which would be clipped: "
            "convert it to 8 bits"
        )
    return mode, picture


def describe(
    root: Path,
    image_size: int,
    classes: Sequence[str],
    splits: Sequence[Split],
    traits: dict[str, np.ndarray],
) -> dict[str, object]:
    """What ``dataset.json`` says: classes, counts, greyscale images, duplicates."""
    counts = {s.name: np.bincount(s.labels, minlength=len(classes)) for s in splits}
    return {
        "image_size": image_size,
        "num_images": {split.name: len(split.images) for split in splits},
        "classes": [
            {"label": label, "name": name}
            | {split: int(count[label]) for split, count in counts.items()}
            for label, name in enumerate(classes)
        ],
        "greyscale": {
            s.name: [s.images[index] for index in np.flatnonzero(traits[s.name]["colourless"])]
            for s in splits
        },
        "duplicates": duplicates(root, splits, traits),
    }


def duplicates(
    root: Path, splits: Sequence[Split], traits: dict[str, np.ndarray]
) -> dict[str, list[list[str]]]:
    """Groups of images whose pictures are equal pixel for pixel, within a split or across both.

    Those that are alike are decoded again to tell.
    """
    likeness = np.concatenate([of_split["likeness"] for of_split in traits.values()])
    found, counts = np.unique(likeness, return_counts=True)
    groups: dict[bytes, list[tuple[str, str]]] = defaultdict(list)
    for split in splits:
        alike = np.isin(traits[split.name]["likeness"], found[counts > 1])
        for name in (split.images[index] for index in np.flatnonzero(alike)):
            with warnings.catch_warnings(action="ignore"):
                _, picture = open_rgb(f"{root}/{name}")
            content = f"{picture.size}".encode() + picture.tobytes()
            groups[hashlib.sha256(content).digest()].append((split.name, name))
    sorted_groups: dict[str, list[list[str]]] = {"train": [], "valid": [], "across_splits": []}
    for group in groups.values():
        if len(group) > 1:
            among = {split for split, _ in group}
            kind = among.pop() if len(among) == 1 else "across_splits"
            sorted_groups[kind].append([name for _, name in group])
    return sorted_groups


def log_card(card: dict) -> None:
    """Say in the log what was found."""
    for entry in card["classes"]:
        logging.info("class %(label)d: %(name)s, %(train)d train, %(valid)d valid", entry)
    for split, images in card["greyscale"].items():
        logging.info("%s: %d of %d greyscale", split, len(images), card["num_images"][split])
    for kind, groups in card["duplicates"].items():
        for group in groups:
            logging.info("equal pictures (%s): %s", kind, " = ".join(group))


PARSER = argparse.ArgumentParser(description=__doc__.split("\n")[0])
source = PARSER.add_mutually_exclusive_group(required=True)
source.add_argument("--archive", type=Path, help="a verified tar or zip archive")
source.add_argument("--folder", type=Path, help="a folder of {train,val}/CLASS/IMAGE")
PARSER.add_argument("--sha256", help="of the manifest that --folder should have")
PARSER.add_argument("--image-size", type=int, required=True, help="pixels")
PARSER.add_argument("--workers", type=int, default=1, help="decoding processes")
PARSER.add_argument("--output", type=Path, required=True, help="folder")

if __name__ == "__main__":
    run(PARSER, main)
