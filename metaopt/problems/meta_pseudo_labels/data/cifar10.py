"""CIFAR-10 with few labels, from the hub or from parquet files."""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metaopt.data.folder import find_data
from metaopt.problems.meta_pseudo_labels.data.augment import Shift
from metaopt.problems.meta_pseudo_labels.data.rand_augment import RandAugment
from metaopt.problems.meta_pseudo_labels.data.semi_supervised import SemiSupervised, choose_labelled

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
SHARED = "cifar10_jpeg"


def cifar10(
    source: str | None = None,
    labels_per_class: int = 400,
    count: int = 2,
    cutout: int = 16,
    shift: int = 4,
    limit: int | None = None,
    seed: int = 0,
) -> SemiSupervised:
    """Return CIFAR-10, normalised by channel, with RandAugment as the strong view.

    Args:
        source: a folder with `train*.parquet` and `test*.parquet` (at any depth; columns `img` or
            `image`, and `label`), or a data set id of the hub such as "uoft-cs/cifar10", or `None`
            for the folder cifar10_jpeg in the data folder. JPEG copies of the data set give
            accuracies that differ in the last tenth from its original PNG files.
        labels_per_class: 400 for the usual 4,000 labels.
        count, cutout, shift: see `RandAugment`; the weak view shifts and mirrors only.
        limit: use that many images of each part only, or `None` for all.
        seed: seed of the choice of labels.

    Raises:
        FileNotFoundError: the source is missing or holds no such files.
        ValueError: a file lacks a column.
    """
    (x, y), (test, test_labels) = (_part(source, part, limit) for part in ("train", "test"))
    chosen = choose_labelled(y, labels_per_class, 10, torch.Generator().manual_seed(seed))
    return SemiSupervised(
        x[chosen], y[chosen], x, y, test, test_labels, 10,
        weak=Shift(shift, flip=True), strong=RandAugment(MEAN, STD, count, cutout, shift),
    )  # fmt: skip


def _part(source: str | None, part: str, limit: int | None) -> tuple[Tensor, Tensor]:
    """Return normalised images (n, 3, 32, 32) and classes (n,) of one part."""
    folder = _folder(source)
    rows = _hub_rows(str(source), part) if folder is None else _parquet_rows(folder, part)
    columns = set(rows.column_names)
    image = next((name for name in ("img", "image") if name in columns), None)
    if image is None or "label" not in columns:
        raise ValueError(
            f"the {part} part of {source or folder} has the columns {sorted(columns)}; "
            f"it needs `img` or `image`, and `label`."
        )
    rows = rows.slice(0, limit)
    pixels = np.stack([_decode(cell) for cell in _cells(rows[image])])
    x = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    x = (x - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    return x.contiguous(), torch.tensor(rows["label"].to_pylist())


def _folder(source: str | None) -> Path | None:
    """Return the folder that holds the files, or `None` for a data set of the hub."""
    if source is None:
        try:
            return find_data(SHARED, "cifar10")
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"{error} Or set problem.data.source to a folder with train.parquet and "
                f"test.parquet, or to a data set of the hub such as uoft-cs/cifar10."
            ) from error
    if Path(source).is_dir():
        return Path(source)
    if source.count("/") == 1 and not source.startswith((".", "/", "~")):
        return None
    raise FileNotFoundError(
        f"problem.data.source={source} is neither a folder nor a data set of the hub (owner/name)."
    )


def _parquet_rows(folder: Path, part: str) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    files = sorted(folder.rglob(f"{part}*.parquet"))
    if not files:
        raise FileNotFoundError(f"there is no {part}*.parquet in {folder} or below it.")
    return pa.concat_tables([pq.read_table(file) for file in files])


def _hub_rows(name: str, part: str) -> Any:
    from datasets import load_dataset
    from datasets.exceptions import DatasetNotFoundError

    try:
        return load_dataset(name, split=part).with_format("arrow")[:]
    except (DatasetNotFoundError, ConnectionError) as error:
        raise FileNotFoundError(
            f"the hub's data set {name} cannot be read ({type(error).__name__}). Check the name "
            f"and the network, or set problem.data.source to a folder with its parquet files."
        ) from error


def _cells(column: Any) -> Iterable[dict[str, Any]]:
    return (cell.as_py() for cell in column)


def _decode(cell: dict[str, Any]) -> np.ndarray:
    from PIL import Image

    with Image.open(io.BytesIO(cell["bytes"])) as image:
        return np.asarray(image.convert("RGB"))
