"""Images of your own: every layout gives the same data, and what is wrong is named."""

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from metaopt.engine.inner_optimizers import SGD
from metaopt.engine.random import generator
from metaopt.nn import MLP, Network
from metaopt.problems.meta_pseudo_labels.data import images
from metaopt.problems.meta_pseudo_labels.phases import Pretraining

CLASSES = ("cat", "dog", "owl")


def drawn(count, key, side=16):
    """Images (count, side, side, 3) whose class is their brightest channel."""
    pixels = np.random.default_rng(key).integers(0, 80, (count, side, side, 3), dtype=np.uint8)
    for i in range(count):
        pixels[i, ..., i % 3] += 150
    return pixels


TRAIN, TEST, FURTHER = drawn(12, 0), drawn(6, 1), drawn(5, 2)


def encoded(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def folder(root):
    for part, pixels in (("train", TRAIN), ("test", TEST), ("unlabelled", FURTHER)):
        for i, image in enumerate(pixels):
            place = root / part / (CLASSES[i % 3] if part != "unlabelled" else "")
            place.mkdir(parents=True, exist_ok=True)
            (place / f"{i:02}.png").write_bytes(encoded(image))
    return root


def parquet(root):
    for part, pixels in (("train", TRAIN), ("test", TEST), ("unlabelled", FURTHER)):
        table = {"image": [encoded(image) for image in pixels]}
        if part != "unlabelled":
            table["label"] = [CLASSES[i % 3] for i in range(len(pixels))]
        pq.write_table(pa.table(table), root / f"{part}-0.parquet")
    return root


def npz(root):
    labels, tested = np.arange(12) % 3, np.arange(6) % 3
    np.savez(root / "own.npz", images=np.concatenate([TRAIN, FURTHER]),
             labels=np.concatenate([labels, np.full(5, -1)]), test_images=TEST / 255,
             test_labels=tested)  # fmt: skip
    return root / "own.npz"


def test_new_files_are_made_inputs_as_the_training_images_are(tmp_path):
    data = images(str(folder(tmp_path)), size=16)
    assert list(data.names) == sorted(CLASSES)
    files = sorted((tmp_path / "test").rglob("*.png"))
    by_class = data.test_labels.argsort(stable=True)
    assert torch.equal(data.prepare(files), data.test[by_class])
    assert [data.names[c] for c in data.test_labels[by_class]] == [f.parent.name for f in files]


@pytest.mark.parametrize("write", [folder, parquet, npz])
def test_each_layout_gives_the_same_examples(write, tmp_path):
    data = images(str(write(tmp_path)), size=16)
    assert data.shape == (3, 16, 16)
    assert data.classes == 3
    assert data.labels.bincount().tolist() == [4, 4, 4]
    assert data.test_labels.bincount().tolist() == [2, 2, 2]
    assert sorted(data.hidden_labels.tolist()) == [-1] * 5 + [0] * 4 + [1] * 4 + [2] * 4
    raw = torch.from_numpy(TRAIN).permute(0, 3, 1, 2) / 255
    mean, std = raw.mean((0, 2, 3)).view(3, 1, 1), raw.std((0, 2, 3)).view(3, 1, 1)
    for x, pixels in ((data.labelled, TRAIN), (data.test, TEST)):
        expected = (torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255 - mean) / std
        order = [x.flatten(1).sum(1).argsort() for x in (x, expected)]
        torch.testing.assert_close(x[order[0]], expected[order[1]], atol=1e-5, rtol=1e-4)
    brightest = data.labelled.mul(std).add(mean).mean((2, 3)).argmax(1)
    assert torch.equal(brightest, data.labels)
    view = data.strong(data.labelled, generator(0))
    assert view.shape == data.labelled.shape
    assert not torch.equal(view, data.strong(data.labelled, generator(1)))


def test_without_a_test_part_a_share_of_each_class_is_held_out(tmp_path):
    for name in ("test", "unlabelled"):
        (folder(tmp_path / name) / name).rename(tmp_path / f"{name}-away")
    data = images(str(tmp_path / "test"), size=16, test_share=0.25)
    assert data.test_labels.bincount().tolist() == [1, 1, 1]
    assert data.labels.bincount().tolist() == [3, 3, 3]
    few = images(str(tmp_path / "unlabelled"), size=8, labels_per_class=2, flip=False)
    assert few.labelled.shape == (6, 3, 8, 8)
    assert few.unlabelled.shape == (12, 3, 8, 8)
    assert torch.equal(images(str(tmp_path / "test"), seed=0).test,
                       images(str(tmp_path / "test"), seed=0).test)  # fmt: skip


def test_images_outside_of_a_class_folder_are_mentioned(tmp_path, caplog):
    folder(tmp_path / "mine")
    images(tmp_path / "mine", size=16, labels_per_class=None)
    assert caplog.messages == []
    (tmp_path / "mine" / "train" / "notes.txt").write_text("x")
    images(tmp_path / "mine", size=16, labels_per_class=None)
    assert "1 files lie in no class folder and are left out: notes.txt" in caplog.text


def test_grey_images_and_limits(tmp_path):
    np.savez(tmp_path / "grey.npz", images=TRAIN[..., 0], labels=np.arange(12) % 3)
    data = images(str(tmp_path / "grey.npz"), size=16, limit=9)
    assert len(data.unlabelled) + len(data.test) == 9
    grey = data.test * data.labelled.new_tensor(data.strong.std).view(3, 1, 1)
    assert torch.allclose(grey[:, :1], grey[:, 1:2], atol=1e-5)


@pytest.mark.parametrize("name", ["cat/a.png", "all.npz"])
def test_pointers_to_images_are_named(tmp_path, name):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(ValueError, match=rf"{name} is a Git LFS pointer, not the data"):
        images(str(path if path.suffix == ".npz" else tmp_path))


def test_wrong_sources_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"images needs a folder.*nowhere, which is none"):
        images(str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="no images in"):
        images(str(tmp_path))
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "a.png").write_text("no image")
    with pytest.raises(ValueError, match=r"a.png: cannot be read as an image"):
        images(str(tmp_path))
    (tmp_path / "cat" / "a.png").write_bytes(encoded(TRAIN[0]))
    with pytest.raises(ValueError, match=r"two or more classes .* found the classes \['cat'\]"):
        images(str(tmp_path))
    (tmp_path / "dog").mkdir()
    (tmp_path / "dog" / "a.png").write_bytes(encoded(TRAIN[1]))
    with pytest.raises(ValueError, match="class 'cat' has one image"):
        images(str(tmp_path))
    pq.write_table(pa.table({"picture": [b""], "label": [0]}), tmp_path / "train.parquet")
    with pytest.raises(ValueError, match=r"columns \['label', 'picture'\]; it needs `image`"):
        images(str(tmp_path))
    for wrong, match in (
        ({"x": TRAIN}, "it needs `images`"),
        ({"images": TRAIN, "labels": np.zeros(3)}, "as many labels as images"),
        ({"images": TRAIN * 1.0, "labels": np.zeros(12)}, r"numbers in \[0, 1\]"),
        ({"images": TRAIN[..., :2], "labels": np.zeros(12)}, "1 or 3 channels"),
    ):
        np.savez(tmp_path / "wrong.npz", **wrong)
        with pytest.raises(ValueError, match=match):
            images(str(tmp_path / "wrong.npz"))
    with pytest.raises(ValueError, match="size >= 8"):
        images(str(tmp_path), size=4)


def test_a_teacher_of_wrong_labels_needs_the_hidden_classes(tmp_path):
    data = images(str(npz(tmp_path)), size=16)
    pretraining = Pretraining(SGD(lr=0.1), steps=1, examples="noisy")
    network = Network(lambda: MLP(data.shape, data.classes))
    with pytest.raises(ValueError, match="examples=noisy needs the classes of all unlabelled"):
        pretraining(network, data, None, 0)


def test_the_command_takes_images_at_the_first_try(metaopt, tmp_path):
    chosen = "data@problem.data=meta_pseudo_labels/images"
    done = metaopt("problem=meta_pseudo_labels", chosen, f"problem.data.source={folder(tmp_path)}",
                   "outer_steps=2", "figures=false")  # fmt: skip
    assert done.code == 0, done.err
    assert "eval/test_accuracy" in done.out
