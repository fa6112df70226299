"""RandAugment: strengths drawn, and at a fixed magnitude, against Pillow."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps

from metaopt.engine.random import generator
from metaopt.problems.meta_pseudo_labels.data import RandAugment
from metaopt.problems.meta_pseudo_labels.data.images import MEAN, STD
from metaopt.problems.meta_pseudo_labels.data.rand_augment import (
    FIXED,
    OPERATIONS,
    fixed_strengths,
    rotate,
    translate_x,
)


def images(count=8):
    x = torch.rand(count, 3, 32, 32, generator=generator(0))
    return (x - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda f: f.__name__)
def test_operations_keep_the_shape_and_act_row_by_row(operation):
    x = torch.rand(4, 3, 32, 32, generator=generator(0))
    strength = torch.tensor([0.9, -0.9, 0.3, 0.0]).view(4, 1, 1, 1)
    changed = operation(x, strength)
    assert changed.shape == x.shape
    assert torch.isfinite(changed).all()
    alone = torch.cat([operation(x[i : i + 1], strength[i : i + 1]) for i in range(4)])
    assert torch.allclose(changed, alone, atol=1e-6)


@pytest.mark.parametrize(
    "operation",
    [f for f in OPERATIONS if f.__name__ not in ("autocontrast", "equalize")],
    ids=lambda f: f.__name__,
)
def test_operations_of_no_strength_leave_the_image(operation):
    x = (torch.rand(2, 3, 32, 32, generator=generator(0)) * 255).round() / 255
    assert torch.allclose(operation(x, torch.zeros(2, 1, 1, 1)), x, atol=1e-5)


def test_translation_moves_and_rotation_turns():
    x = torch.full((1, 3, 32, 32), 0.5)
    x[..., 16, 20] = 1.0
    moved = translate_x(x, torch.full((1, 1, 1, 1), 4 / (0.3 * 32)))
    assert moved[0, 0].flatten().argmax() == 16 * 32 + 16
    turned = rotate(x, torch.ones(1, 1, 1, 1))
    row, column = divmod(int(turned[0, 0].flatten().argmax()), 32)
    assert abs(row - 16) == 2
    assert column in (19, 20)


def test_rand_augment_is_a_function_of_the_generator_and_stays_in_range():
    x = images()
    augment = RandAugment(MEAN, STD)
    first, again, other = (augment(x, generator(k)) for k in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    low = (0 - torch.tensor(MEAN)) / torch.tensor(STD)
    high = (1 - torch.tensor(MEAN)) / torch.tensor(STD)
    assert (first >= low.view(3, 1, 1) - 1e-5).all()
    assert (first <= high.view(3, 1, 1) + 1e-5).all()


def test_cutout_greys_a_square():
    x = images(64)
    plain = RandAugment(MEAN, STD, count=0, cutout=0)(x, generator(3))
    cut = RandAugment(MEAN, STD, count=0, cutout=16)(x, generator(3))
    changed = (plain != cut).any(1).sum((1, 2))
    assert changed.max() == 16 * 16
    assert changed.min() >= 8 * 8 - 16


PILLOW = {
    "posterize": lambda image: ImageOps.posterize(image, 6),
    "solarize": lambda image: ImageOps.solarize(image, 153),  # 409 as a byte
    "invert": ImageOps.invert,
    "colour": lambda image: ImageEnhance.Color(image).enhance(2.98),
    "brightness": lambda image: ImageEnhance.Brightness(image).enhance(2.98),
    "rotate": lambda image: image.rotate(48, Image.Resampling.BILINEAR, fillcolor=(128,) * 3),
}


@pytest.mark.parametrize("name", PILLOW)
def test_operations_of_magnitude_16_are_pillows(name):
    smooth = torch.rand(1, 3, 6, 6, generator=generator(0))
    x = torch.nn.functional.interpolate(smooth, (32, 32), mode="bicubic").clamp(0, 1)
    x = (x * 255).round() / 255
    pixels = (x[0].permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()
    index = [operation.__name__ for operation in FIXED].index(name)
    strength = fixed_strengths(16.0)[0][index].view(1, 1, 1, 1)
    actual = FIXED[index](x, strength).clamp(0, 1)
    expected = np.asarray(PILLOW[name](Image.fromarray(pixels))) / 255.0
    difference = (actual[0].permute(1, 2, 0) - torch.from_numpy(expected)).abs()
    # Pillow rounds greys to a byte, and interpolates at the border of a rotated image otherwise.
    if name == "rotate":
        assert difference[8:24, 8:24].max() < 0.02
    else:
        assert difference.max() < {"colour": 2.98 / 255}.get(name, 1.01 / 255)


def test_shifts_of_magnitude_16_go_either_way_by_a_fifth_of_the_side():
    names = [operation.__name__ for operation in FIXED]
    strengths, signed = fixed_strengths(16.0)
    x = torch.full((1, 3, 80, 80), 0.5)
    x[..., 40, 40] = 1.0
    moved = translate_x(x, strengths[-3].view(1, 1, 1, 1))
    assert abs(int(moved[0, 0].flatten().argmax()) - (40 * 80 + 40)) == 16
    assert len(strengths) == len(signed) == len(FIXED) == 15
    assert [n for n, s in zip(names, signed, strict=True) if s] == [
        "rotate", "change", "change", "change", "change",
    ]  # fmt: skip
    enhanced = [strengths[names.index(n)] for n in ("colour", "contrast", "brightness")]
    assert all(1 + 0.95 * s == pytest.approx(2.98) for s in enhanced)


def test_a_fixed_magnitude_leaves_out_some_operations_and_cuts_squares():
    x = images(64)
    augment = RandAugment(MEAN, STD, count=1, cutout=0, shift=0, flip=False, magnitude=16)
    first, again = augment(x, generator(1)), augment(x, generator(1))
    assert torch.equal(first, again)
    changed = (first - x).abs().flatten(1).amax(1) > 1e-4
    assert 0.3 < changed.float().mean() < 0.7  # half are left out
    squares = RandAugment(MEAN, STD, count=0, cutout=16, shift=0, flip=False, magnitude=16)
    grey = ((squares(x, generator(2)) - x).abs() > 1e-4).any(1).sum((1, 2))
    assert grey.max() == 16 * 16
    with pytest.raises(ValueError, match="magnitude"):
        RandAugment(MEAN, STD, magnitude=-1)


def test_a_fixed_magnitude_crops_again_after_the_square():
    x = torch.ones(32, 3, 32, 32)
    augment = RandAugment((0.0,) * 3, (1.0,) * 3, count=0, cutout=0, shift=4, magnitude=16)
    once = RandAugment((0.0,) * 3, (1.0,) * 3, count=0, cutout=0, shift=4)
    empty = [(a(x, generator(0)) == 0).all(1).sum((1, 2)) for a in (augment, once)]
    assert empty[0].float().mean() > empty[1].float().mean()
    assert (empty[0] > 32 * 32 - 28 * 28).any()  # farther than one shift reaches
