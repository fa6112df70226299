"""Readers of images with classes: a folder per class, parquet files, a .npz file."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

PARTS = ("train", "test", "unlabelled")
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
IMAGE, LABEL = ("image", "img"), ("label", "labels")
"""Names that a column of a parquet file may have."""


class Labelled(NamedTuple):
    """An image, (height, width, 3) bytes, and its class, `None` where that is not known."""

    pixels: np.ndarray
    label: str | int | None


def read_images(source: Path, limit: int | None = None) -> dict[str, list[Labelled]]:
    """Return the images of each part: train, test, unlabelled.

    Args:
        source: a folder with a folder per class, or with parquet files; or a .parquet or .npz
            file. See `images` for the layouts.
        limit: read that many images of each part, or `None` for all.

    Raises:
        ValueError: there are no images, or a file lacks a column or cannot be read.
    """
    if source.suffix == ".npz":
        reader, files = _npz, [source]
    elif source.suffix == ".parquet":
        reader, files = _parquet, [source]
    elif source.is_dir():
        files = sorted(source.rglob("*.parquet"))
        reader = _parquet if files else _folders
        files = files or [source]
    else:
        raise ValueError(
            f"images needs a folder, a .parquet or a .npz file as problem.data.source; got {source}"
            f"{'' if source.exists() else ', which does not exist'}."
        )
    parts: dict[str, list[Labelled]] = {part: [] for part in PARTS}
    for file in files:
        for part, image in reader(file):
            if limit is None or len(parts[part]) < limit:
                parts[part].append(image() if callable(image) else image)
    if not any(parts.values()):
        raise ValueError(
            f"there are no images in {source}. It needs a folder per class with files "
            f"{', '.join(SUFFIXES)} (or train/<class>, test/<class>, unlabelled), or parquet files."
        )
    return parts


def decode(data: bytes | Path) -> np.ndarray:
    """Return an encoded image as (height, width, 3) bytes.

    Raises:
        ValueError: it is none that PIL reads.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(data) if isinstance(data, bytes) else data) as image:
            return np.asarray(image.convert("RGB"))
    except (UnidentifiedImageError, OSError) as error:
        what = f"{len(data)} bytes" if isinstance(data, bytes) else data
        raise ValueError(f"{what} cannot be read as an image: {error}.") from error


def _folders(source: Path) -> Iterator[tuple[str, Any]]:
    """Yield part and a reader of each file; the class is the name of the folder it lies in."""
    train = source / "train" if (source / "train").is_dir() else source
    unlabelled = [source / name for name in ("unlabelled", "unlabeled")]
    skipped = {source / "train", source / "test", *unlabelled}
    classes = [f for f in sorted(train.iterdir()) if f.is_dir() and f not in skipped]
    tested = sorted((source / "test").iterdir()) if (source / "test").is_dir() else []
    places = [("train", f, f.name) for f in classes]
    places += [("test", f, f.name) for f in tested if f.is_dir()]
    places += [("unlabelled", f, None) for f in unlabelled if f.is_dir()]
    for part, folder, label in places:
        for file in sorted(folder.rglob("*")):
            if file.suffix.lower() in SUFFIXES:
                yield part, lambda file=file, label=label: Labelled(decode(file), label)


def _parquet(file: Path) -> Iterator[tuple[str, Any]]:
    """Yield part and a reader of each row; a file's part is how its name starts."""
    import pyarrow.parquet as pq

    names = pq.read_schema(file).names
    image = next((name for name in IMAGE if name in names), None)
    label = next((name for name in LABEL if name in names), None)
    part = next((p for p in PARTS if file.name.startswith(p[:7])), "train")
    if image is None or (label is None and part != "unlabelled"):
        raise ValueError(
            f"{file} has the columns {sorted(names)}; it needs `image` (or `img`) and `label`."
        )
    for rows in pq.ParquetFile(file).iter_batches(256, [c for c in (image, label) if c]):
        for row in rows.to_pylist():
            cell, value = row[image], row[label] if label else None
            data = cell["bytes"] if isinstance(cell, dict) else cell
            if not isinstance(data, bytes):
                raise ValueError(
                    f"column {image!r} of {file} must hold encoded images, as bytes or as "
                    f"{{bytes, path}}; it holds {type(data).__name__}."
                )
            to = part if value is not None else "unlabelled"
            yield to, lambda data=data, value=value: Labelled(decode(data), value)


def _npz(file: Path) -> Iterator[tuple[str, Any]]:
    """Yield part and image; a label of -1 says that the class is not known."""
    with np.load(file) as arrays:
        held = {name: arrays[name] for name in arrays.files}
    if "images" not in held or "labels" not in held:
        raise ValueError(
            f"{file} holds {sorted(held)}; it needs `images` (n, H, W) or (n, H, W, C) and "
            "`labels` (n), and may hold `test_images`, `test_labels` and `unlabelled_images`."
        )
    for part, prefix in zip(PARTS, ("", "test_", "unlabelled_"), strict=True):
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
                yield part if known else "unlabelled", Labelled(image, label if known else None)


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


def resized(images: Sequence[Labelled], size: int) -> np.ndarray:
    """Return images (n, size, size, 3); those of another size are resampled, aspect and all."""
    from PIL import Image

    def fit(pixels: np.ndarray) -> np.ndarray:
        if pixels.shape[:2] == (size, size):
            return pixels
        image = Image.fromarray(np.ascontiguousarray(pixels))
        return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR))

    return np.stack([fit(image.pixels) for image in images])
