from __future__ import annotations

import pytest
import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as reference

from lbdist.data.augmentation import augment_images, augment_signals
from lbdist.random import keys, normal, uniform

PAPER = {"flip": True, "degrees": 10.0, "translate": 0.2}
SIGNAL = {"shift": 0.1, "scale": 0.2, "noise_level": 0.05}


def draw(count: int, width: int) -> torch.Tensor:
    return uniform(keys(torch.arange(count), seed=0, epoch=0), width)


def images(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("size", [(28, 28), (12, 31), (9, 6), (1, 5)])
def test_images_agree_with_torchvision(size: tuple[int, int]) -> None:
    """Float64, image by image, to 1e-5 (torchvision computes its grid in float32)."""
    x, u = images(24, 3, *size).double(), draw(24, 4).double()
    ours = augment_images(x, u, **PAPER)
    for image, (flip, angle, right, down), got in zip(x, u.tolist(), ours, strict=True):
        expected = reference.affine(
            reference.hflip(image) if flip < 0.5 else image,
            angle=(2 * angle - 1) * 10,
            translate=[(2 * right - 1) * 0.2 * size[1], (2 * down - 1) * 0.2 * size[0]],
            scale=1.0,
            shear=[0.0],
            interpolation=InterpolationMode.BILINEAR,
        )
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)


def test_image_identity() -> None:
    x = images(5, 3, 8, 11)
    same = augment_images(x, draw(5, 4), flip=False, degrees=0, translate=0)
    torch.testing.assert_close(same, x, rtol=0, atol=2e-6)


def test_image_flip_is_a_mirror() -> None:
    x, u = images(64, 1, 6, 7), draw(64, 4)
    flipped = augment_images(x, u, flip=True, degrees=0, translate=0)
    mirrored = u[:, 0] < 0.5
    assert 16 < mirrored.sum() < 48
    torch.testing.assert_close(flipped[mirrored], x[mirrored].flip(-1), rtol=0, atol=2e-6)
    torch.testing.assert_close(flipped[~mirrored], x[~mirrored], rtol=0, atol=2e-6)


def test_image_translation_by_whole_pixels() -> None:
    """A tenth of 10 columns right, a fifth of 10 rows up; zeros come in."""
    x = images(1, 1, 10, 10)
    moved = augment_images(x, torch.tensor([[0.9, 0.5, 0.75, 0.0]]), flip=False, degrees=0, translate=0.2)
    torch.testing.assert_close(moved[..., :8, 1:], x[..., 2:, :9], rtol=0, atol=2e-6)
    assert moved[..., 8:, :].abs().max() < 2e-6 and moved[..., :1].abs().max() < 2e-6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_images_keep_their_dtype(dtype: torch.dtype) -> None:
    x, u = images(4, 1, 28, 28), draw(4, 4)
    got = augment_images(x.to(dtype), u, **PAPER)
    assert got.dtype == dtype
    torch.testing.assert_close(got.float(), augment_images(x, u, **PAPER), rtol=0, atol=0.01)


def test_images_do_not_depend_on_the_batch() -> None:
    x, u = images(50, 3, 28, 28), draw(50, 4)
    whole = augment_images(x, u, **PAPER)
    parts = [
        augment_images(a, b, **PAPER) for a, b in zip(x.split([1, 9, 40]), u.split([1, 9, 40]), strict=True)
    ]
    assert whole.equal(torch.cat(parts))
    assert not whole.equal(x)


def test_signal_identity() -> None:
    x = torch.randn(5, 40, generator=torch.Generator().manual_seed(0))
    noise = torch.ones(5, 40)
    assert augment_signals(x, draw(5, 2), noise, shift=0, scale=0, noise_level=0).equal(x)
    assert augment_signals(x, draw(5, 2), noise, shift=0, scale=0, noise_level=2).equal(x + 2)


def test_signal_shift_interpolates_and_repeats_the_ends() -> None:
    x = torch.tensor([[0.0, 10.0, 20.0, 40.0]]).repeat(3, 1)
    u = torch.tensor(
        [[1.0, 0.5], [0.0, 0.5], [0.75, 0.5]]
    )  # 1 to the right, 1 to the left, a half to the right
    got = augment_signals(x, u, torch.zeros_like(x), shift=0.25, scale=0.5, noise_level=1)
    assert got.tolist() == [[0, 0, 10, 20], [10, 20, 40, 40], [0, 5, 15, 30]]


def test_signal_scale() -> None:
    x = torch.ones(2, 4)
    u = torch.tensor([[0.5, 0.0], [0.5, 1.0]])
    got = augment_signals(x, u, torch.zeros(2, 4), shift=0.5, scale=0.25, noise_level=0)
    assert got.tolist() == [[0.75] * 4, [1.25] * 4]


def test_signals_do_not_depend_on_the_batch() -> None:
    key = keys(torch.arange(50), seed=0, epoch=0, stream=1)
    x, u, noise = normal(key, 41), draw(50, 2), normal(key, 41)
    whole = augment_signals(x, u, noise, **SIGNAL)
    cuts = [tensor.split([1, 9, 40]) for tensor in (x, u, noise)]
    assert whole.equal(torch.cat([augment_signals(*part, **SIGNAL) for part in zip(*cuts, strict=True)]))
    assert whole.shape == x.shape and whole.isfinite().all()
    assert augment_signals(x.bfloat16(), u, noise, **SIGNAL).dtype == torch.bfloat16
