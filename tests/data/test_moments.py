"""The mean and deviation of inputs, and the network that takes its inputs by them."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lbdist import networks
from lbdist.data.arrays import Arrays
from lbdist.data.moments import resolved
from lbdist.networks.scaled import Scaled
from lbdist.objective import Objective
from tests.support.cells import CONVOLUTIONAL
from tests.support.samples import images


@settings(max_examples=40, deadline=None)
@given(
    shape=st.lists(st.integers(1, 5), min_size=1, max_size=3),
    scale=st.floats(1e-3, 1e3),
    shift=st.floats(-1e6, 1e6),
    seed=st.integers(0, 99),
)
def test_the_training_split_s_own_moments(shape: list[int], scale: float, shift: float, seed: int) -> None:
    inputs = np.random.default_rng(seed).normal(shift, scale, (1500, *shape)).astype("f4")
    mean, std = resolved("train", "train", inputs)
    axes = (0, *range(2, inputs.ndim))
    np.testing.assert_allclose(mean, inputs.mean(axes, dtype=np.float64), rtol=1e-5)
    expected = inputs.std(axes, dtype=np.float64)
    np.testing.assert_allclose(std, np.where(expected > 0, expected, 1), rtol=1e-5)


def test_bytes_are_scaled_first() -> None:
    inputs = images().train.inputs
    mean, std = resolved("train", "train", inputs)
    np.testing.assert_allclose(mean, (inputs / 255).mean((0, 2, 3)), rtol=1e-5)
    np.testing.assert_allclose(std, (inputs / 255).std((0, 2, 3)), rtol=1e-5)
    assert resolved([0.1, 0.2, 0.3], None, inputs) == ((0.1, 0.2, 0.3), (1.0, 1.0, 1.0))
    assert resolved(None, 2.0, np.zeros((3, 2))) == ((0.0, 0.0), (2.0, 2.0))
    assert resolved(None, None, inputs) == ((), ())


def test_a_network_takes_its_inputs_by_them() -> None:
    """f, its gradient and the names of weights are those of the bare network at inputs scaled by hand."""
    data = images()
    mean, std = resolved("train", "train", data.train.inputs)
    scaled = networks.make({**CONVOLUTIONAL, "scaled": {"mean": list(mean), "std": list(std)}}, 3)
    bare = networks.make(CONVOLUTIONAL, 3)
    assert list(scaled.state_dict()) == list(bare.state_dict())
    inputs, labels = torch.from_numpy(data.train.inputs), torch.from_numpy(data.train.labels)
    by_hand = inputs.double().div(255)
    by_hand = (by_hand - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    f, g = Objective(scaled.double(), (inputs, labels)), Objective(bare.double(), (by_hand, labels))
    one, other = f(f.x), g(g.x)
    assert one[0] == pytest.approx(other[0], rel=1e-6)
    torch.testing.assert_close(one[1], other[1], rtol=1e-5, atol=1e-9)


def test_the_hook_travels() -> None:
    network = torch.nn.Identity()
    network.register_forward_pre_hook(Scaled((1.0,), (2.0,)))
    signal, sample = torch.tensor([[3.0]]), torch.tensor([3.0])
    for same in (network, copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        assert same(signal).tolist() == [[1.0]] and same(sample).tolist() == [1.0]
        assert same(signal.bfloat16()).dtype == torch.bfloat16


def test_what_was_applied_is_said(tmp_path: Path) -> None:
    data = images()
    own = {
        f"{key}_{name}": value
        for name in ("train", "test")
        for key, value in (("x", getattr(data, name).inputs), ("y", getattr(data, name).labels))
    }
    np.savez(tmp_path / "a.npz", **own)
    source = Arrays(root=str(tmp_path / "a.npz"), mean=0.5, std=[0.1, 0.2, 0.3])
    assert source.load().mean == (0.5, 0.5, 0.5)
    assert source.notes[-1] == "data: inputs are scaled to [0, 1], then less 0.5, over 0.1, 0.2, 0.3"
    whole = Arrays(root=str(tmp_path / "a.npz"), mean="train", train_samples=20).load()
    assert whole.mean == resolved("train", None, whole.train.inputs)[0]
