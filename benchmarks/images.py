"""Images to measure on: photographs of an archive, or made ones that cost as much to decode.

The made ones are noise whose amplitudes fall with the frequency, as those of photographs do, in
correlated colours. Against the photographs of Imagenette at 160 px, in JPEG of the same quality, as
many bytes, the same time to decode, and the same to decode and resize: each within 3 %.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from optstate.data.prepare import FOLDERS, extract, find_root, list_images
from optstate.job import run

NUM_CLASSES = 10
TRAIN_TO_VALID = 5  # images of train for one of valid
SIDE = 160  # pixels
SLOPE = 1.5  # amplitudes fall with the frequency to this power
CONTRASTS = (20.0, 78.0)  # standard deviations of the brightness, of 255
COLOUR = 0.3  # how strong red and blue differ from it
QUALITY = 75  # of the JPEG files, with halved chroma


def main(arguments: argparse.Namespace) -> None:
    """Write {train,val}/CLASS/IMAGE below ``--output``."""
    if arguments.archive:
        take(Path(arguments.archive), arguments.number, arguments.output)
    else:
        make(arguments.number, arguments.output)


def take(archive: Path, number: int, output: Path) -> None:
    """The first images of each class of an archive."""
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output, prefix=".") as temporary:
        extracted = Path(temporary) / "images"
        extract(archive, extracted)
        root = find_root(extracted)
        classes, splits = list_images(root)
        for split in splits:
            for label, name in enumerate(classes):
                (output / FOLDERS[split.name] / name).mkdir(parents=True)
                of_class = np.flatnonzero(split.labels == label)
                for index in of_class[: per_class(number, len(classes))[split.name]]:
                    (root / split.images[index]).rename(output / split.images[index])


def make(number: int, output: Path) -> None:
    """Made images: the same ones for the same ``number``."""
    rng = np.random.default_rng(0)
    for split, count in per_class(number, NUM_CLASSES).items():
        for label in range(NUM_CLASSES):
            folder = output / FOLDERS[split] / f"class{label}"
            folder.mkdir(parents=True)
            for index in range(count):
                Image.fromarray(noise(rng)).save(folder / f"{index:05}.jpg", quality=QUALITY)


def per_class(number: int, num_classes: int) -> dict[str, int]:
    """How many images of a class there are in each split, with ``number`` in train."""
    train = max(number // num_classes, 1)
    return {"train": train, "valid": max(train // TRAIN_TO_VALID, 1)}


def noise(rng: np.random.Generator) -> np.ndarray:
    """A picture, uint8 (SIDE, SIDE, 3)."""
    frequencies = np.hypot(np.fft.fftfreq(SIDE)[:, None], np.fft.rfftfreq(SIDE)[None])
    frequencies[0, 0] = 1.0  # of the mean, which stays what it is
    white = np.fft.rfft2(rng.standard_normal((3, SIDE, SIDE)))
    planes = np.fft.irfft2(white / frequencies**SLOPE, s=(SIDE, SIDE))
    brightness, red, blue = planes / planes.std((1, 2), keepdims=True)
    colours = [brightness + COLOUR * red, brightness, brightness + COLOUR * blue]
    picture = 128 + rng.uniform(*CONTRASTS) * np.stack(colours, axis=-1)
    return picture.clip(0, 255).astype(np.uint8)


PARSER = argparse.ArgumentParser(description=__doc__.split("\n")[0])
PARSER.add_argument("--archive", default="", help="a tar or zip archive; empty: made images")
PARSER.add_argument("--number", type=int, required=True, help="of train; a fifth more of val")
PARSER.add_argument("--output", type=Path, required=True, help="folder")

if __name__ == "__main__":
    run(PARSER, main)
