"""Decode every image of a data set once, into uint8 arrays that training memory-maps.

``{split}_images.npy`` has the shape (num_images, size, size, 3) and ``{split}_labels.npy`` the
shape (num_images,), for the splits train and valid. Images are ordered by class, then by file name.
They are turned upright as their EXIF orientation says, converted to RGB, and resized to a square
with Pillow's antialiased bilinear filter, as torchvision's ``Resize((size, size))`` does with a
Pillow image. ``dataset.json`` describes them, and ``dataset.sha256`` lists the SHA-256 of all these
files.
"""

import argparse
import contextlib
import dataclasses
import gc
import hashlib
import io
import itertools
import json
import logging
import multiprocessing
import os
import signal
import tempfile
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import ExifTags, Image, ImageOps

from optstate.checksums import file_sha256, format_listing, verify
from optstate.data.manifest import Listing, folder_sha256, list_dataset
from optstate.data.unpack import unpack_temporarily
from optstate.job import (
    InputError,
    end_with_parent,
    hold_lock,
    require_space,
    run,
    show_progress,
    write_atomically,
)

CHUNK = 64  # images that a worker decodes per task
READ_BYTES = 1 << 24  # at once, while arrays are hashed
CHUNKS_PER_SYNC = 8  # chunks that are decoded between two writes to the disk
HASH_STRIDE = 61  # only every 61st byte of the pixels is hashed to find possible duplicates
COLOURLESS = {"1", "L", "LA", "La"}  # Pillow's modes of up to 8 bits without colour

# Recorded for each image in addition to its pixels. Equal pictures have the same `likeness`, and
# different pictures hardly ever do.
TRAITS = np.dtype([("colourless", bool), ("rotated", bool), ("likeness", np.int64)])

Image.init()
USUAL = ("JPEG", "PNG")  # Pillow tries the formats on each file in this order
FORMATS = [*USUAL, *sorted(Image.OPEN.keys() - {*USUAL, "EPS"})]  # EPS would run Ghostscript


class Holdout(NamedTuple):
    """How validation images are chosen from the training images, if they have no folder.

    Attributes:
        valid_fraction: this fraction of each class, between 0 and 1, is for validation.
        valid_seed: seeds the random choice of these images. Without it, they are the last ones in
            name order.
    """

    valid_fraction: float
    valid_seed: int | None


@dataclasses.dataclass(frozen=True)
class Split:
    """The images of one split, in the order of the arrays."""

    name: str
    folder: str  # its name in the data set
    images: list[str]  # paths relative to the folder of the splits
    labels: np.ndarray  # (num_images,) int64, indices of classes
    left_out: list[str]  # paths of all other files of the split


def main(arguments: argparse.Namespace) -> None:
    """Write the arrays, ``dataset.json`` and ``dataset.sha256`` to the folder ``--output``."""
    output = arguments.output
    if arguments.archive:
        verify(arguments.archive)
    output.mkdir(parents=True, exist_ok=True)
    lock = hold_lock(output.with_name(f".{output.name}.lock"))
    with lock, open_folder(arguments) as (root, require_unchanged):
        require_unchanged()
        holdout = get_holdout(arguments)
        size, workers = arguments.image_size, arguments.workers
        prepare(root, size, workers, output, holdout, require_unchanged, arguments.sha256)


def get_holdout(arguments: argparse.Namespace) -> Holdout | None:
    """Return how to choose validation images from the training images, if the options say so."""
    if arguments.valid_fraction is None:
        return None
    return Holdout(arguments.valid_fraction, arguments.valid_seed)


@contextlib.contextmanager
def open_folder(arguments: argparse.Namespace) -> Iterator[tuple[Path, Callable[[], None]]]:
    """Yield the folder that contains the splits: the user's own, or that of the unpacked archive.

    The second value is a function that raises an InputError if the manifest of ``--folder`` does
    not match ``--sha256``. It reads only files that have changed since its last call.

    Raises:
        InputError: the archive is refused.
    """
    folder, expected = arguments.folder, arguments.sha256
    if folder is None:
        with unpack_temporarily(arguments.archive, arguments.output / "extracting") as root:
            yield root, lambda: None
        return
    with tempfile.TemporaryDirectory() as cache:

        def require_unchanged() -> None:
            is_whole = arguments.valid_fraction is None
            if expected and expected != folder_sha256(folder, Path(cache, "hashes.json"), is_whole):
                raise InputError(
                    f"{folder}: its files have changed since Snakemake started. Run again."
                )

        yield folder, require_unchanged


def prepare(
    root: Path,
    image_size: int,
    workers: int,
    output: Path,
    holdout: Holdout | None = None,
    require_unchanged: Callable[[], None] = lambda: None,
    source_sha256: str | None = None,
) -> None:
    """Decode the images below ``root`` with ``workers`` processes into the folder ``output``.

    ``dataset.sha256`` appears last in ``output``, when all other files are there.

    Args:
        root: contains {train,val}/CLASS/IMAGE, see ``FOLDERS`` of the manifest.
        image_size: height and width of the decoded images, in pixels.
        workers: the number of processes.
        output: the folder of the arrays.
        holdout: how to choose validation images from the training images, if they have no folder.
        require_unchanged: called when all images have been read. Raises if one may have changed.
        source_sha256: identifies the data set in ``dataset.json``.

    Raises:
        InputError: the layout is different, images do not decode, or the disk is too full.
    """
    classes, splits = list_images(root, holdout)
    num_images = sum(len(split.images) for split in splits)
    require_space(output, num_images * image_size**2 * 3)
    with contextlib.ExitStack() as outputs:

        def add(name: str) -> Path:
            return outputs.enter_context(write_atomically(output / name))

        listing = add("dataset.sha256")  # the first one added appears last
        with start_workers(workers) as pool:
            traits, checksums = write_arrays(root, image_size, splits, pool, add)
        require_unchanged()
        card = make_card(root, image_size, classes, splits, traits) | {
            **({"source_sha256": source_sha256} if source_sha256 else {}),
            "split": holdout._asdict() if holdout else {"folder": splits[1].folder},
            "sha256": checksums,
        }
        path = add("dataset.json")
        path.write_text(json.dumps(card, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        listed = {**checksums, "dataset.json": file_sha256(path)}
        listing.write_text(format_listing(dict(sorted(listed.items()))))
    log_card(card, output / "dataset.json")


def write_arrays(
    root: Path,
    image_size: int,
    splits: Sequence[Split],
    pool: ProcessPoolExecutor,
    add: Callable[[str], Path],
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Write the arrays of all splits.

    Args:
        root: the folder of the splits.
        image_size: height and width of the decoded images, in pixels.
        splits: the images and labels.
        pool: the processes that decode.
        add: returns the path to write to for the name of an output.

    Returns:
        The images' TRAITS (num_images,) by split, and the SHA-256 of each array by its name.

    Raises:
        InputError: images cannot be used. The log names all of them.
    """
    traits, checksums, problems = {}, {}, []
    for split in splits:
        images, labels = f"{split.name}_images.npy", f"{split.name}_labels.npy"
        traits[split.name], checksums[images], in_split = decode_split(
            split, root, image_size, pool, add(images)
        )
        problems += in_split
        with (path := add(labels)).open("wb") as file:
            np.save(file, split.labels)
        checksums[labels] = file_sha256(path)
    refuse_images(problems, root)
    return traits, checksums


def refuse_images(problems: Sequence[str], root: Path) -> None:
    """Raise an InputError with the first of ``problems``, if there are any. The log has all."""
    for problem in problems:
        logging.info("%s", problem.replace(f"{root}/", ""))
    if problems:
        more = f" The log names {len(problems) - 1:,} more." if len(problems) > 1 else ""
        raise InputError(problems[0] + more)


def list_images(root: Path, holdout: Holdout | None = None) -> tuple[list[str], list[Split]]:
    """Return the classes, in name order, and the images of both splits.

    Args:
        root: the folder of the splits.
        holdout: how to choose validation images from the training images, if they have no folder.

    Raises:
        InputError: a split or a class is missing or empty, there are fewer than two classes, a
            name is not UTF-8, a link leads nowhere, or a class folder contains a folder.
    """
    listings = list_dataset(root, has_valid_folder=holdout is None)
    for listing in listings.values():
        _require_utf8(root, listing)
    classes = sorted(listings["train"].classes)
    splits = [_select_images(root, name, classes, listings[name]) for name in listings]
    return classes, hold_out(root, splits[0], classes, holdout) if holdout else splits


def hold_out(root: Path, train: Split, classes: Sequence[str], holdout: Holdout) -> list[Split]:
    """Divide the training images into the splits train and valid. Their order stays the same.

    Of each class, ``round(num_images * valid_fraction)`` images, but at least one, are for
    validation: the last ones in name order. With a seed, the class is first shuffled by
    ``numpy.random.default_rng([valid_seed, label])``.

    Raises:
        InputError: a class would have no training image.
    """
    is_valid = np.zeros(len(train.images), bool)
    for label, class_ in enumerate(classes):
        indices = np.flatnonzero(train.labels == label)
        if holdout.valid_seed is not None:
            indices = np.random.default_rng([holdout.valid_seed, label]).permutation(indices)
        number = max(round(len(indices) * holdout.valid_fraction), 1)
        if number == len(indices):
            raise InputError(
                f"{root}/{train.folder}/{class_}: no training image would remain, because "
                f"`valid_fraction: {holdout.valid_fraction}` takes {number} of {number} for "
                "validation. Add images, or choose a smaller fraction."
            )
        is_valid[indices[-number:]] = True
    remaining, chosen = (
        list(itertools.compress(train.images, is_part)) for is_part in (~is_valid, is_valid)
    )
    return [
        dataclasses.replace(train, images=remaining, labels=train.labels[~is_valid]),
        Split("valid", train.folder, chosen, train.labels[is_valid], left_out=[]),
    ]


def _require_utf8(root: Path, listing: Listing) -> None:
    """Check that all names in the folder of a split are UTF-8, since they go into text files."""
    names = [f"{class_}/{name}" for class_, names in listing.classes.items() for name in names]
    inside = [f"{listing.folder}/{name}" for name in [*listing.classes, *names]]
    for path in inside + listing.others:
        try:
            path.encode()
        except UnicodeEncodeError as error:
            raise InputError(f"{root / path}: its name is not UTF-8. Rename it.") from error


def _select_images(root: Path, split: str, classes: Sequence[str], listing: Listing) -> Split:
    """Return the files of a split that have the extension of an image.

    Raises:
        InputError: a class has no image.
    """
    extensions = Image.registered_extensions().items()
    readable = tuple(extension for extension, kind in extensions if kind in FORMATS)
    images: list[str] = []
    left_out = list(listing.others)
    num_images = []
    for class_ in classes:
        folder = f"{listing.folder}/{class_}"
        is_image = {name: name.lower().endswith(readable) for name in listing.classes[class_]}
        if not any(is_image.values()):
            example = f", only files such as {next(iter(is_image))!r}" if is_image else ""
            raise InputError(
                f"{root / folder}: no image in this class folder{example}. "
                "Add images, or remove the class."
            )
        for name, belongs in is_image.items():
            (images if belongs else left_out).append(f"{folder}/{name}")
        num_images.append(sum(is_image.values()))
    labels = np.repeat(np.arange(len(classes)), num_images)
    return Split(split, listing.folder, images, labels, sorted(left_out))


@contextlib.contextmanager
def start_workers(workers: int) -> Iterator[ProcessPoolExecutor]:
    """Yield a pool of processes that end with the block or with this process.

    Raises:
        InputError: one of the processes was killed.
    """
    fork = multiprocessing.get_context("fork")  # others put a process in between
    with ProcessPoolExecutor(workers, fork, _set_up_worker, (os.getpid(),)) as pool:
        try:
            yield pool
        except BrokenProcessPool as error:
            raise InputError(
                "a decoding process was killed, probably for lack of memory. Use fewer cores."
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def _set_up_worker(parent: int) -> None:
    """Make this process end with its ``parent`` and reuse an image's memory for the next image."""
    end_with_parent(signal.SIGKILL, parent)
    gc.freeze()  # garbage collection would copy the parent's memory
    Image.core.set_blocks_max(4)  # without it, the kernel maps and clears memory for every image


def decode_split(
    split: Split, root: Path, image_size: int, pool: ProcessPoolExecutor, output: Path
) -> tuple[np.ndarray, str, list[str]]:
    """Write the images of a split as one array to ``output``.

    Returns:
        The images' TRAITS (num_images,), the SHA-256 of the file, and an error message for each
        image that cannot be used.
    """
    num_bytes = image_size**2 * 3  # per image
    header = allocate(output, (len(split.images), image_size, image_size, 3))
    tasks = (
        (output, header + first * num_bytes, root, split.images[first : first + CHUNK], image_size)
        for first in range(0, len(split.images), CHUNK)
    )
    traits, problems = [], []
    with (
        output.open("rb", buffering=0) as written,
        show_progress(f"decode {split.name}", len(split.images), unit="images") as progress,
    ):
        digest = hashlib.sha256()
        update_digest(digest, written, header)
        for number, (of_chunk, in_chunk) in enumerate(pool.map(_decode_chunk, tasks), 1):
            problems += in_chunk
            update_digest(digest, written, len(of_chunk) * num_bytes)  # while the workers decode
            traits.append(of_chunk)
            if number % CHUNKS_PER_SYNC == 0:
                os.fsync(written.fileno())  # spreads the writes, so that the last sync is short
            progress.update(len(of_chunk))
    return np.concatenate(traits), digest.hexdigest(), problems


def update_digest(digest: "hashlib._Hash", file: io.FileIO, num_bytes: int) -> None:
    """Add the next ``num_bytes`` of an unbuffered file. A single read returns less than 2 GiB."""
    while num_bytes:
        part = file.read(min(num_bytes, READ_BYTES))
        if not part:
            raise EOFError(f"{num_bytes} bytes are missing at the end of an array")
        digest.update(part)
        num_bytes -= len(part)


def allocate(path: Path, shape: tuple[int, ...]) -> int:
    """Create a uint8 .npy file and reserve its disk blocks, so that a full disk fails at once.

    Returns:
        The size of the file's header in bytes.
    """
    header = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape).offset
    with path.open("r+b") as file:
        if hasattr(os, "posix_fallocate"):  # not on macOS
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return header


def _decode_chunk(
    task: tuple[Path, int, Path, list[str], int],
) -> tuple[np.ndarray, list[str]]:
    """Decode images into consecutive rows of an array file.

    Args:
        task: the array file, the byte at which the rows begin, the folder of the splits, the
            images' paths below that folder, and the size to resize them to, in pixels.

    Returns:
        The images' TRAITS (num_images,), and an error message for each image that cannot be used.
        The rows of these images are black.
    """
    array_path, offset, root, images, image_size = task
    traits, rows, problems = np.empty(len(images), TRAITS), [], []
    with warnings.catch_warnings(action="ignore"):
        for index, image in enumerate(images):
            try:
                mode, is_rotated, picture = open_rgb(f"{root}/{image}")
            except InputError as error:
                problems.append(str(error))
                rows.append(bytes(image_size**2 * 3))
                continue
            resized = picture.resize((image_size, image_size), Image.Resampling.BILINEAR)
            pixels = resized.tobytes()
            rows.append(pixels)
            # All workers have the parent's hash seed, so that their hashes are comparable.
            likeness = hash((picture.size, pixels[::HASH_STRIDE]))
            traits[index] = mode in COLOURLESS, is_rotated, likeness
    with array_path.open("r+b") as array:
        array.seek(offset)
        array.write(b"".join(rows))  # one write takes the kernel less time than many
    return traits, problems


def open_rgb(path: str) -> tuple[str, bool, Image.Image]:
    """Read an image file.

    Returns:
        The mode of the file, whether its EXIF orientation was applied, and the picture in RGB.

    Raises:
        InputError: the file does not decode, or is greyscale with more than 8 bits.
    """
    try:
        with Image.open(path, formats=FORMATS) as image:
            mode = image.mode
            is_rotated = turn_upright(image)
            picture = image if image.mode == "RGB" else image.convert("RGB")  # convert would copy
    except Exception as error:  # Pillow's plugins raise any exception for damaged files
        raise InputError(
            f"{path}: does not decode as an image ({error}). Replace or remove it."
        ) from error
    if mode == "F" or mode.startswith("I"):
        raise InputError(
            f"{path}: has more than 8 bits per channel (mode {mode}), which would be clipped. "
            "Convert it to 8 bits."
        )
    return mode, is_rotated, picture


def turn_upright(image: Image.Image) -> bool:
    """Load an image and apply its EXIF orientation in place. A damaged EXIF block is ignored.

    Returns:
        Whether this rotated or mirrored the picture.
    """
    of_tiff = getattr(image, "tag_v2", {}).get(ExifTags.Base.Orientation, 1)
    image.load()  # applies the orientation of a TIFF file, and removes it
    loaded = image.im
    with contextlib.suppress(Exception):  # Pillow raises any exception for a damaged block
        ImageOps.exif_transpose(image, in_place=True)
    return image.im is not loaded or of_tiff in range(2, 9)


def make_card(
    root: Path,
    image_size: int,
    classes: Sequence[str],
    splits: Sequence[Split],
    traits: Mapping[str, np.ndarray],
) -> dict[str, object]:
    """Return the content of ``dataset.json``: classes, counts, and lists of notable files."""
    counts = {s.name: np.bincount(s.labels, minlength=len(classes)) for s in splits}
    return {
        "image_size": image_size,
        "num_images": {split.name: len(split.images) for split in splits},
        "classes": [
            {"label": label, "name": name}
            | {split: int(count[label]) for split, count in counts.items()}
            for label, name in enumerate(classes)
        ],
        "left_out": {split.name: split.left_out for split in splits},
        "greyscale": _list_images_with("colourless", splits, traits),
        "rotated": _list_images_with("rotated", splits, traits),
        "duplicates": find_duplicates(root, splits, traits),
    }


def _list_images_with(
    trait: str, splits: Sequence[Split], traits: Mapping[str, np.ndarray]
) -> dict[str, list[str]]:
    """Return the images of each split for which ``trait`` is true."""
    return {
        split.name: [split.images[index] for index in np.flatnonzero(traits[split.name][trait])]
        for split in splits
    }


def find_duplicates(
    root: Path, splits: Sequence[Split], traits: Mapping[str, np.ndarray]
) -> dict[str, list[list[str]]]:
    """Return groups of images whose pictures are equal pixel for pixel.

    Images with the same likeness are decoded again and compared at full size.

    Returns:
        The groups within ``train``, within ``valid``, and ``across_splits``.
    """
    likeness = np.concatenate([traits[split.name]["likeness"] for split in splits])
    values, counts = np.unique(likeness, return_counts=True)
    groups: dict[bytes, list[tuple[str, str]]] = defaultdict(list)
    for split in splits:
        is_alike = np.isin(traits[split.name]["likeness"], values[counts > 1])
        for name in (split.images[index] for index in np.flatnonzero(is_alike)):
            groups[_hash_picture(f"{root}/{name}")].append((split.name, name))
    duplicates: dict[str, list[list[str]]] = {"train": [], "valid": [], "across_splits": []}
    for group in groups.values():
        if len(group) > 1:
            of_splits = {split for split, _ in group}
            kind = of_splits.pop() if len(of_splits) == 1 else "across_splits"
            duplicates[kind].append([name for _, name in group])
    return duplicates


def _hash_picture(path: str) -> bytes:
    """Return a digest of an image's size and RGB pixels."""
    with warnings.catch_warnings(action="ignore"):
        *_, picture = open_rgb(path)
    return hashlib.sha256(f"{picture.size}".encode() + picture.tobytes()).digest()


def log_card(card: dict, path: Path) -> None:
    """Log the content of ``dataset.json``, and warn of files that are left out."""
    for entry in card["classes"]:
        logging.info("class %(label)d: %(name)s, %(train)d train, %(valid)d valid", entry)
    for split, number in card["num_images"].items():
        logging.info(
            "%s: %d images, %d of them greyscale, %d rotated as their EXIF orientation says",
            split, number, len(card["greyscale"][split]), len(card["rotated"][split]),
        )  # fmt: skip
    for kind, groups in card["duplicates"].items():
        for group in groups:
            logging.info("equal pictures (%s): %s", kind, " = ".join(group))
    left_out = [file for files in card["left_out"].values() for file in files]
    for file in left_out:
        logging.info("%s: left out, because it is not an image file in a class folder", file)
    if left_out:
        number = f"{len(left_out):,} file{'s' * (len(left_out) > 1)}"
        logging.warning(
            "%s left out, because only image files in class folders are used (the first: %r). "
            "See `left_out` in %s.",
            number, left_out[0], path,
        )  # fmt: skip


PARSER = argparse.ArgumentParser(description=__doc__.split("\n")[0])
source = PARSER.add_mutually_exclusive_group(required=True)
source.add_argument("--archive", type=Path, help="a verified tar or zip archive")
source.add_argument("--folder", type=Path, help="a folder of {train,val}/CLASS/IMAGE")
PARSER.add_argument("--sha256", help="SHA-256 of --archive, or of the manifest of --folder")
PARSER.add_argument("--valid-fraction", type=float, help="validate on this fraction of train/")
PARSER.add_argument("--valid-seed", type=int, help="choose the fraction at random")
PARSER.add_argument("--image-size", type=int, required=True, help="height and width, in pixels")
PARSER.add_argument("--workers", type=int, default=1, help="number of decoding processes")
PARSER.add_argument("--output", type=Path, required=True, help="folder of the arrays")

if __name__ == "__main__":
    run(PARSER, main)
