from __future__ import annotations

import pytest
import torch

from lbdist.random import _signed, keep_mask, keys, mix, normal, permutation, uniform

N = 20_000


def test_mix_is_splitmix64() -> None:
    """The reference's published outputs for seed 1234567."""
    golden = 0x9E3779B97F4A7C15
    states = torch.tensor([_signed(1234567 + golden * i) for i in (1, 2, 3)])
    outputs = [value & (2**64 - 1) for value in mix(states).tolist()]
    assert outputs == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_values_never_change() -> None:
    """Golden values: a change here changes every published trajectory."""
    key = keys(torch.arange(2), seed=1, epoch=2, stream=3)
    assert key.tolist() == [-1940329224344385344, 8442993811948235340]
    assert uniform(key, 2).flatten().tolist() == [
        0.5623277425765991,
        0.4730609655380249,
        0.9501380324363708,
        0.8881340026855469,
    ]


@pytest.mark.parametrize("draw", [uniform, normal, lambda key, count: keep_mask(key, count, 0.3)])
def test_numbers_do_not_depend_on_the_batch(draw) -> None:  # type: ignore[no-untyped-def]
    samples = permutation(1000, seed=0, epoch=0)
    whole = draw(keys(samples, seed=7, epoch=3), 5)
    cut = torch.cat([draw(keys(part, seed=7, epoch=3), 5) for part in samples.split([1, 7, 300, 692])])
    assert whole.equal(cut)


def test_keys_differ_by_seed_epoch_stream_and_sample() -> None:
    samples = torch.arange(1000)
    drawn = [
        keys(samples, seed=seed, epoch=epoch, stream=stream)
        for seed in range(4)
        for epoch in range(4)
        for stream in range(4)
    ]
    assert torch.cat(drawn).unique().numel() == 64_000


def test_uniform_moments() -> None:
    u = uniform(keys(torch.arange(N), seed=0, epoch=0), 4, torch.float64)
    assert u.shape == (N, 4) and u.min() >= 0 and u.max() < 1
    # five standard errors
    assert u.mean().item() == pytest.approx(1 / 2, abs=5 * (1 / 12 / (4 * N)) ** 0.5)
    assert u.var().item() == pytest.approx(1 / 12, abs=5 * (1 / 180 / (4 * N)) ** 0.5)
    assert (torch.corrcoef(u.T) - torch.eye(4)).abs().max() < 5 / N**0.5


@pytest.mark.parametrize("count", [3, 4])
def test_normal_moments(count: int) -> None:
    z = normal(keys(torch.arange(N), seed=0, epoch=1), count, torch.float64)
    assert z.shape == (N, count) and z.isfinite().all()
    error = 1 / (count * N) ** 0.5
    assert z.mean().item() == pytest.approx(0, abs=5 * error)
    assert z.var().item() == pytest.approx(1, abs=5 * 2**0.5 * error)
    assert (z**4).mean().item() == pytest.approx(3, abs=5 * 96**0.5 * error)
    assert (torch.corrcoef(z.T) - torch.eye(count)).abs().max() < 5 / N**0.5


@pytest.mark.parametrize("p", [0.0, 0.2, 0.5, 0.75])
def test_keep_mask_rate(p: float) -> None:
    mask = keep_mask(keys(torch.arange(N), seed=0, epoch=2), 6, p)
    assert mask.shape == (N, 6) and mask.dtype == torch.bool
    assert mask.double().mean().item() == pytest.approx(1 - p, abs=5 * (p * (1 - p) / (6 * N)) ** 0.5 + 1e-12)
    if p:
        assert (torch.corrcoef(mask.double().T) - torch.eye(6)).abs().max() < 5 / N**0.5


def test_permutation() -> None:
    first = permutation(100, seed=0, epoch=0)
    assert first.sort().values.equal(torch.arange(100))
    assert first.equal(permutation(100, seed=0, epoch=0))
    assert not first.equal(permutation(100, seed=0, epoch=1))
    assert not first.equal(permutation(100, seed=1, epoch=0))
