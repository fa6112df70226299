"""Readers of images with classes: a folder per class, parquet files, a .npz file, the hub."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from metaopt.data.pointers import refuse_pointer
from metaopt.data.records import Record, records

SPLITS = ("train", "test", "unlabelled")
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
IMAGE, LABEL = ("image", "img"), ("label", "labels")
"""Names that a column of a parquet file may have."""


class Labelled(NamedTuple):
    """An image, (height, width, 3) bytes, and its class, `None` where that is not known."""

    pixels: np.ndarray
    label: str | int | None


Lazy = tuple[str, Callable[[], Labelled]]
"""The part that an image belongs to, and what reads it."""


def read_images(source: str | Path, limit: int | None = None) -> dict[str, list[Labelled]]:
    """Return the images of each part: train, test, unlabelled.

    Args:
        source: a folder with a folder per class, or with parquet files; a .parquet or .npz file;
            or a data set id of the hub. See `images` for the layouts.
        limit: read that many images of each part, or `None` for all.

    Raises:
        FileNotFoundError: there is no such source.
        ValueError: there are no images, or a file lacks a column or cannot be read.
    """
    parts: dict[str, list[Labelled]] = {part: [] for part in SPLITS}
    for part, read in _images(Path(source).expanduser(), str(source)):
        if limit is None or len(parts[part]) < limit:
            parts[part].append(read())
    if not any(parts.values()):
        raise ValueError(
            f"there are no images in {source}. It needs a folder per class with files "
            f"{', '.join(SUFFIXES)} (or train/<class>, test/<class>, unlabelled), or parquet files."
        )
    return parts


def prepare(paths: Sequence[str | Path], size: int, mean: Tensor, std: Tensor) -> Tensor:
    """Return image files as inputs (n, 3, size, size), standardized by mean and std (3, 1, 1)."""
    read = [_labelled(Path(path), None, path) for path in paths]
    return (tensors(read, (), size)[0] - mean) / std


def tensors(images: Sequence[Labelled], names: Sequence[Any], size: int) -> tuple[Tensor, Tensor]:
    """Return images (n, 3, size, size) in [0, 1], and classes (n), -1 where one is not known.

    Args:
        images: of any size; those of another than `size` are resampled, aspect and all.
        names: of the classes, in order.
        size: height and width of the result.
    """
    if not images:
        return torch.zeros(0, 3, size, size), torch.zeros(0, dtype=torch.long)
    index = {name: i for i, name in enumerate(names)}
    classes = [-1 if image.label is None else index[image.label] for image in images]
    pixels = np.stack([_resized(image.pixels, size) for image in images])
    x = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    return x.contiguous(), torch.tensor(classes)


def _images(path: Path, name: str) -> Iterator[Lazy]:
    if path.suffix == ".npz" and path.is_file():
        return _npz(path)
    if path.is_dir() and not any(path.rglob("*.parquet")):
        return _folders(path)
    if path.is_dir() or path.suffix == ".parquet":
        return _of_records(records(path))
    if path.exists() or name.count("/") != 1 or name[0] in "./~":
        raise FileNotFoundError(
            f"images needs a folder, a .parquet or .npz file, or a data set of the hub (owner/name)"
            f" as problem.data.source; got {name}{'' if path.exists() else ', which is none'}."
        )
    return _of_records(r for split in ("train", "test") for r in records(name, split=split))


def _decoded(data: Any, place: object) -> np.ndarray:
    """Return an encoded image as (height, width, 3) bytes."""
    from PIL import Image, UnidentifiedImageError

    data = data["bytes"] if isinstance(data, dict) else data
    if isinstance(data, Image.Image):  # the hub's reader has decoded it
        return np.asarray(data.convert("RGB"))
    if not isinstance(data, (bytes, Path)):
        raise ValueError(
            f"{place}: an image must be an encoded file, as bytes or as {{bytes, path}}; got "
            f"{type(data).__name__}."
        )
    try:
        with Image.open(io.BytesIO(data) if isinstance(data, bytes) else data) as image:
            return np.asarray(image.convert("RGB"))
    except (UnidentifiedImageError, OSError) as error:
        if isinstance(data, Path):
            refuse_pointer(data)
        raise ValueError(f"{place}: cannot be read as an image: {error}.") from error


def _resized(pixels: np.ndarray, size: int) -> np.ndarray:
    from PIL import Image

    if pixels.shape[:2] == (size, size):
        return pixels
    image = Image.fromarray(np.ascontiguousarray(pixels))
    return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR))


def _folders(source: Path) -> Iterator[Lazy]:
    """Yield part and a reader of each file; the class is the name of the folder it lies in."""
    train = source / "train" if (source / "train").is_dir() else source
    unlabelled = [source / name for name in ("unlabelled", "unlabeled")]
    skipped = {source / "train", source / "test", *unlabelled}
    classes = [f for f in sorted(train.iterdir()) if f.is_dir() and f not in skipped]
    tested = sorted((source / "test").iterdir()) if (source / "test").is_dir() else []
    places: list[tuple[str, Path, str | None]]
    places = [("train", f, f.name) for f in classes]
    places += [("test", f, f.name) for f in tested if f.is_dir()]
    places += [("unlabelled", f, None) for f in unlabelled if f.is_dir()]
    strays = [f.name for f in sorted(train.iterdir()) if f.is_file() and f.name[0] != "."]
    if strays:
        logging.getLogger(__name__).warning(
            "%s: %d files lie in no class folder and are left out: %s",
            train,
            len(strays),
            ", ".join(strays[:3]) + (", ..." if len(strays) > 3 else ""),
        )
    for part, folder, label in places:
        for file in sorted(folder.rglob("*")):
            if file.suffix.lower() in SUFFIXES:
                yield part, partial(_labelled, file, label, file)


def _of_records(items: Iterable[Record]) -> Iterator[Lazy]:
    """Yield part and a reader of each record; its part is how the name of its file starts."""
    for item in items:
        image = next((item.value[name] for name in IMAGE if name in item.value), None)
        label = next((item.value[name] for name in LABEL if name in item.value), None)
        if image is None:
            raise ValueError(
                f"{item.place} has the columns {sorted(item.value)}; it needs `image` (or `img`), "
                "and `label` where its class is known."
            )
        split = "test" if "(test)" in item.file else item.part
        part = next((part for part in SPLITS if split.startswith(part[:7])), "train")
        part = "unlabelled" if label is None else part
        yield part, partial(_labelled, image, label, item.place)


def _labelled(data: Any, label: str | int | None, place: object) -> Labelled:
    return Labelled(_decoded(data, place), label)


def _npz(file: Path) -> Iterator[Lazy]:
    """Yield part and a reader of each image; a label of -1 says that the class is not known."""
    refuse_pointer(file)
    with np.load(file) as arrays:
        held = {name: arrays[name] for name in arrays.files}
    if "images" not in held or "labels" not in held:
        raise ValueError(
            f"{file} holds {sorted(held)}; it needs `images` (n, H, W) or (n, H, W, C) and "
            "`labels` (n), and may hold `test_images`, `test_labels` and `unlabelled_images`."
        )
    for part, prefix in zip(SPLITS, ("", "test_", "unlabelled_"), strict=True):
        if f"{prefix}images" in held:
            pixels = held[f"{prefix}images"]
            labels = held.get(f"{prefix}labels", np.full(len(pixels), -1))
            if len(labels) != len(pixels) or pixels.ndim not in (3, 4):
                raise ValueError(
                    f"{file} needs as many {prefix}labels as {prefix}images, and images (n, H, W) "
                    f"or (n, H, W, C); got shapes {labels.shape} and {pixels.shape}."
                )
            for image, label in zip(_bytes(pixels, file), labels.tolist(), strict=True):
                known = label != -1
                yield (
                    part if known else "unlabelled",
                    partial(Labelled, image, label if known else None),
                )


def _bytes(pixels: np.ndarray, file: Path) -> np.ndarray:
    """Return images (n, H, W, 3) of bytes from bytes, or numbers in [0, 1]; grey or colour."""
    if pixels.ndim == 3:
        pixels = pixels[..., None]
    if pixels.shape[-1] not in (1, 3):
        raise ValueError(
            f"{file} needs images with 1 or 3 channels, last; got the shape {pixels.shape}."
        )
    if pixels.dtype != np.uint8:
        if not (np.isfinite(pixels).all() and pixels.min() >= 0 and pixels.max() <= 1):
            raise ValueError(
                f"{file} needs images of bytes (uint8), or of numbers in [0, 1]; got "
                f"{pixels.dtype} from {pixels.min()} to {pixels.max()}."
            )
        pixels = np.rint(pixels * 255).astype(np.uint8)
    return np.broadcast_to(pixels, (*pixels.shape[:3], 3))
