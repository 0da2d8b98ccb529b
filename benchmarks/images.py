"""Provide images to measure with: photographs from an archive, or generated ones that cost as much.

A generated image is noise whose amplitude falls with the frequency, as in photographs, in
correlated colours. It was compared with the photographs of Imagenette at 160 px, as JPEG of the
same quality. The number of bytes, the time to decode, and the time to decode and resize differ by
less than 3 %.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from optstate.data.manifest import FOLDERS
from optstate.data.prepare import list_images
from optstate.data.unpack import extract, find_root
from optstate.job import run

NUM_CLASSES = 10
TRAIN_TO_VALID = 5  # training images for each validation image
SIZE = 160  # pixels
SLOPE = 1.5  # amplitudes fall with the frequency to this power
CONTRASTS = (20.0, 78.0)  # range of the standard deviation of the brightness, in levels of 255
COLOUR = 0.3  # weight of the differences of red and blue from the brightness
QUALITY = 75  # of the JPEG files; their chroma has half the resolution


def main(arguments: argparse.Namespace) -> None:
    """Write {train,val}/CLASS/IMAGE below ``--output``."""
    if arguments.archive:
        copy_from_archive(Path(arguments.archive), arguments.number, arguments.output)
    else:
        generate(arguments.number, arguments.output)


def copy_from_archive(archive: Path, number: int, output: Path) -> None:
    """Write the first images of each class of an archive."""
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output, prefix=".") as temporary:
        extracted = Path(temporary) / "images"
        extract(archive, extracted)
        root = find_root(extracted)
        classes, splits = list_images(root)
        for split in splits:
            num_per_class = images_per_class(number, len(classes))[split.name]
            for label, name in enumerate(classes):
                folder = output / FOLDERS[split.name][0] / name
                folder.mkdir(parents=True)
                for index in np.flatnonzero(split.labels == label)[:num_per_class]:
                    image = root / split.images[index]
                    image.rename(folder / image.name)


def generate(number: int, output: Path) -> None:
    """Write generated images, the same ones for the same ``number``."""
    rng = np.random.default_rng(0)
    for split, count in images_per_class(number, NUM_CLASSES).items():
        for label in range(NUM_CLASSES):
            folder = output / FOLDERS[split][0] / f"class{label}"
            folder.mkdir(parents=True)
            for index in range(count):
                image = Image.fromarray(draw_noise(rng))
                image.save(folder / f"{index:05}.jpg", quality=QUALITY)


def images_per_class(number: int, num_classes: int) -> dict[str, int]:
    """Return the images per class in each split, for a total of ``number`` training images."""
    train = max(number // num_classes, 1)
    return {"train": train, "valid": max(train // TRAIN_TO_VALID, 1)}


def draw_noise(rng: np.random.Generator) -> np.ndarray:
    """Return an image: uint8 (SIZE, SIZE, 3)."""
    frequencies = np.hypot(np.fft.fftfreq(SIZE)[:, None], np.fft.rfftfreq(SIZE)[None])
    frequencies[0, 0] = 1.0  # keeps the mean
    white = np.fft.rfft2(rng.standard_normal((3, SIZE, SIZE)))
    planes = np.fft.irfft2(white / frequencies**SLOPE, s=(SIZE, SIZE))
    brightness, red, blue = planes / planes.std((1, 2), keepdims=True)
    colours = [brightness + COLOUR * red, brightness, brightness + COLOUR * blue]
    image = 128 + rng.uniform(*CONTRASTS) * np.stack(colours, axis=-1)
    return image.clip(0, 255).astype(np.uint8)


PARSER = argparse.ArgumentParser(description=__doc__.split("\n")[0])
PARSER.add_argument("--archive", default="", help="tar or zip archive; empty: generate the images")
PARSER.add_argument(
    "--number",
    type=int,
    required=True,
    help="training images; there are 1/5 as many for validation",
)
PARSER.add_argument("--output", type=Path, required=True, help="folder of the images")

if __name__ == "__main__":
    run(PARSER, main)
