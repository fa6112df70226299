"""Data sets with few labels, and their augmentations."""

import io
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from metaopt.engine.random import generator
from metaopt.problems.meta_pseudo_labels.data import (
    GaussianNoise,
    RandAugment,
    Shift,
    cifar10,
    digits,
    two_moons,
)
from metaopt.problems.meta_pseudo_labels.data.images import MEAN, STD


def test_two_moons_has_the_papers_sizes():
    data = two_moons(seed=1)
    assert data.unlabelled.shape == (2000, 2)
    assert data.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert torch.allclose(data.unlabelled.mean(0), torch.zeros(2), atol=1e-5)
    assert torch.allclose(data.unlabelled.std(0), torch.ones(2), atol=1e-3)
    rows = {tuple(row) for row in data.unlabelled.tolist()}
    assert all(tuple(row) in rows for row in data.labelled.tolist())
    assert not any(tuple(row) in rows for row in data.test.tolist())


@pytest.mark.parametrize("make", [two_moons, digits])
def test_data_is_a_function_of_the_seed(make):
    first, again, other = make(seed=1), make(seed=1), make(seed=2)
    assert torch.equal(first.labelled, again.labelled)
    assert torch.equal(first.test, again.test)
    assert not torch.equal(first.labelled, other.labelled)


def test_digits_keeps_its_test_part_apart():
    data = digits(labels_per_class=2, seed=0)
    assert data.test.shape == (500, 1, 8, 8)
    assert data.unlabelled.shape == (1297, 1, 8, 8)
    assert data.labels.bincount().tolist() == [2] * 10
    assert data.unlabelled.min() == 0
    assert data.unlabelled.max() == 1
    assert data.resplit == 500 / 1297
    assert two_moons().resplit == 0


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: two_moons(labels_per_class=0), "labels_per_class"),
        (lambda: digits(labels_per_class=1000), "labels_per_class"),
        (lambda: digits(test_points=2000), "test_points"),
        (lambda: GaussianNoise(-1.0), "sigma"),
        (lambda: Shift(-1), "pixels"),
        (lambda: RandAugment(MEAN, STD, count=-1), "count"),
    ],
)
def test_wrong_settings_are_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_shift_moves_every_image_by_whole_pixels():
    x = torch.zeros(64, 2, 7, 7)
    x[:, 0, 3, 3], x[:, 1, 3, 3] = 1.0, 2.0
    moved = Shift(2)(x, generator(0))
    where = moved[:, 0].flatten(1).argmax(-1)
    assert torch.equal(moved[:, 1], 2 * moved[:, 0])
    assert torch.equal(moved.sum((1, 2, 3)), torch.full((64,), 3.0))
    assert set((where // 7).tolist()) == {1, 2, 3, 4, 5}
    assert set((where % 7).tolist()) == {1, 2, 3, 4, 5}


def test_shift_fills_with_zeros_and_mirrors_half():
    x = torch.arange(1.0, 10).view(1, 1, 3, 3).expand(200, 1, 3, 3)
    mirrored = Shift(0, flip=True)(x, generator(0))
    plain = (mirrored == x).flatten(1).all(1)
    flipped = (mirrored == x.flip(-1)).flatten(1).all(1)
    assert (plain ^ flipped).all()
    assert 70 < plain.sum() < 130
    assert (Shift(1)(x, generator(1)) == 0).any()


def write_cifar(folder, image="img", label="label", count=40):
    folder.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(0)
    for part in ("train", "test"):
        cells = []
        for _ in range(count):
            buffer = io.BytesIO()
            pixels = draw.integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(buffer, format="PNG")
            cells.append({"bytes": buffer.getvalue(), "path": None})
        table = pa.table({image: cells, label: [i % 10 for i in range(count)]})
        pq.write_table(table, folder / f"{part}-00000-of-00001.parquet")
    return pixels


@pytest.mark.parametrize("image", ["img", "image"])
def test_cifar10_reads_the_hubs_schema(tmp_path, image):
    pixels = write_cifar(tmp_path / "plain_text", image)
    data = cifar10(str(tmp_path), labels_per_class=2)
    assert data.labelled.shape == (20, 3, 32, 32)
    assert data.unlabelled.shape == (40, 3, 32, 32)
    last = data.test[-1] * torch.tensor(STD).view(3, 1, 1) + torch.tensor(MEAN).view(3, 1, 1)
    assert torch.allclose(last.permute(1, 2, 0) * 255, torch.from_numpy(pixels).float(), atol=1e-3)
    assert data.weak(data.labelled, generator(0)).shape == data.labelled.shape
    assert data.strong(data.labelled, generator(0)).shape == data.labelled.shape


def test_cifar10_says_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setenv("METAOPT_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match="METAOPT_DATA"):
        cifar10()
    with pytest.raises(FileNotFoundError, match="images needs a folder"):
        cifar10(str(tmp_path / "missing"))
    with pytest.raises(ValueError, match="no images in"):
        cifar10(str(tmp_path))
    write_cifar(tmp_path, label="class")
    with pytest.raises(ValueError, match=r"needs images in train\*\.parquet.*label"):
        cifar10(str(tmp_path))


HERE = Path(os.environ.get("METAOPT_DATA", "")) / "cifar10_jpeg"


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.skipif(not HERE.is_dir(), reason=f"CIFAR-10 is not in {HERE}")
def test_cifar10_is_complete():
    data = cifar10(limit=2000, labels_per_class=10)
    assert data.labels.bincount().tolist() == [10] * 10
    assert abs(data.unlabelled.mean()) < 0.1
    assert abs(data.unlabelled.std() - 1) < 0.1
