from __future__ import annotations

import itertools
import math
import random
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lbdist import networks
from lbdist.config.build import plain
from lbdist.config.compose import compose, options
from lbdist.errors import InputError
from lbdist.networks.convolutional import Deep, Shallow
from lbdist.networks.dense import Dense
from lbdist.networks.flat import Flat, flatten, trainable, views

IMAGE = (3, 32, 32)
# name: sample shape, classes, parameters (the paper's table, appendix B)
PAPER = {
    "f1": ((784,), 10, 1_462_794),
    "f2": ((360,), 1973, 2_780_085),
    "c1": (IMAGE, 10, 1_757_834),
    "c3": (IMAGE, 100, 1_775_204),
    "c2": (IMAGE, 10, 14_991_946),
    "c4": (IMAGE, 100, 15_038_116),
}


def node(name: str, shape: tuple[int, ...], classes: int) -> dict[str, Any]:
    """A shipped network's configuration, completed from the data as the program does it."""
    config = compose([f"network={name}"])
    config.derived.inputs = math.prod(shape)
    config.derived.channels, config.derived.classes = shape[0], classes
    found: dict[str, Any] = plain(config.network)
    return found


def spy(network: nn.Module, kind: type[nn.Module], batch: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Input and output of every layer of a kind in one forward pass."""
    seen: list[tuple[Tensor, Tensor]] = []
    for module in network.modules():
        if isinstance(module, kind):
            module.register_forward_hook(lambda _, given, out: seen.append((given[0], out)))
    with torch.no_grad():
        network.eval()(batch)
    return seen


@pytest.mark.parametrize("name", PAPER)
def test_parameter_counts_and_scores_of_the_paper(name: str) -> None:
    shape, classes, count = PAPER[name]
    network = networks.make(node(name, shape, classes))
    assert networks.parameter_count(network) == count == len(flatten(network))
    with torch.no_grad():
        assert network.eval()(torch.rand(2, *shape)).shape == (2, classes)


@pytest.mark.parametrize("name", options("network"))
def test_every_shipped_network_builds_from_its_yaml(name: str) -> None:
    made = node(name, IMAGE, 7)
    assert made["name"] == name  # the name that the tables show
    inputs = np.zeros((2, *IMAGE), np.uint8)
    assert networks.sample_flops(networks.make(made), inputs, (7,)) > 0


def test_frozen_parameters_do_not_count() -> None:
    network = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
    network[0].weight.requires_grad = False
    assert networks.parameter_count(network) == 2 + 2 + 1 == len(flatten(network))


def test_c1_halves_the_image_twice() -> None:
    seen = spy(Shallow(), nn.MaxPool2d, torch.rand(1, *IMAGE))
    assert [(a.shape[-1], b.shape[-1]) for a, b in seen] == [(32, 16), (16, 8)]
    for given_, out in seen:  # 'same' with an even size pads one row and column at the far edge
        padded = F.pad(given_, (0, 1, 0, 1), value=-math.inf)
        assert torch.equal(out, F.max_pool2d(padded, 3, 2))
    convolutions = spy(Shallow(), nn.Conv2d, torch.rand(1, *IMAGE))
    assert [b.shape[1:] for _, b in convolutions] == [(64, 32, 32), (64, 16, 16)]  # stride 1


def test_c2_halves_the_image_five_times() -> None:
    seen = spy(Deep(), nn.MaxPool2d, torch.rand(1, *IMAGE))
    assert [b.shape[1:] for _, b in seen] == [
        (64, 16, 16),
        (128, 8, 8),
        (256, 4, 4),
        (512, 2, 2),
        (512, 1, 1),
    ]


@pytest.mark.parametrize("channels", [1, 3])
def test_c2_dropout_is_the_released_code_s(channels: int) -> None:
    order = [m for m in Deep(channels) if isinstance(m, nn.Conv2d | nn.Dropout | nn.MaxPool2d | nn.Linear)]
    after = {i: m.p for i, m in enumerate(order) if isinstance(m, nn.Dropout)}
    kinds = "".join(
        {"Conv2d": "c", "Dropout": "d", "MaxPool2d": "p", "Linear": "l"}[type(m).__name__] for m in order
    )
    assert kinds == "cdcp" * 2 + "cdcdcp" * 3 + "dldl"
    assert list(after.values()) == [0.3] + [0.4] * 7 + [0.5, 0.5]


def test_c1_dropout_is_an_argument() -> None:
    assert [m.p for m in Shallow(dropout=0.25) if isinstance(m, nn.Dropout)] == [0.25, 0.25]


def test_start_depends_on_the_seed_alone() -> None:
    mlp = node("mlp", (40,), 10)
    torch.manual_seed(1)
    first = flatten(networks.make(mlp, seed=3))
    torch.manual_seed(2)
    assert torch.equal(flatten(networks.make(mlp, seed=3)), first)
    assert not torch.equal(flatten(networks.make(mlp, seed=4)), first)


def test_other_parameters_follow_the_seed_too() -> None:
    embedding = {"_target_": "torch.nn.Embedding", "num_embeddings": 5, "embedding_dim": 3}
    weights = [networks.make(embedding, seed).weight for seed in (0, 0, 1)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_global_random_state_is_untouched() -> None:
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    networks.make(node("mlp", (40,), 10), seed=9)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all() and random.getstate() == before[2]


@pytest.mark.parametrize("name", ["mlp", "c1"])
def test_start_is_glorot_uniform_with_zero_biases(name: str) -> None:
    network = networks.make(node(name, IMAGE, 10))
    layers = [m for m in network.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    for layer in layers:
        weight = layer.weight.detach()
        field = weight[0, 0].numel()
        bound = math.sqrt(6 / (field * (weight.shape[0] + weight.shape[1])))
        assert 0.98 * bound < weight.max() <= bound and -bound <= weight.min() < -0.98 * bound
        assert weight.std() == pytest.approx(bound / math.sqrt(3), rel=0.05)  # uniform
        assert not layer.bias.any()
    norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert len(layers) >= 4 and len(norms) == len(layers) - 1
    assert all((m.weight == 1).all() and not m.bias.any() for m in norms)


def test_flops_of_a_dense_network() -> None:
    network = Dense(40, [16, 8], 10)
    work = 2 * (40 * 16 + 16 * 8 + 8 * 10)  # a multiplication and an addition a weight
    assert networks.sample_flops(network, np.zeros((3, 40), np.float32), (10,)) == 3 * work


@pytest.mark.parametrize(
    ("network", "inputs", "classes", "says"),
    [
        (Dense(40, [8], 10), np.zeros((2, 41), np.float32), 10, "samples of shape (41,)"),
        (Shallow(), np.zeros((2, 1, 32, 32), np.uint8), 10, "samples of shape (1, 32, 32)"),
        (Deep(), np.zeros((2, 3, 28, 28), np.uint8), 10, "samples of shape (3, 28, 28)"),
        (Dense(40, [8], 9), np.zeros((2, 40), np.float32), 10, "outputs of shape (2, 9) for 2 samples"),
        (nn.Conv1d(1, 1, 1), np.zeros((2, 1, 10), np.float32), 10, "outputs of shape (2, 1, 10)"),
    ],
)
def test_wrong_shapes_are_one_line(network: nn.Module, inputs: np.ndarray, classes: int, says: str) -> None:
    with pytest.raises(InputError) as info:
        networks.sample_flops(network, inputs, (classes,))
    text = str(info.value)
    assert text.startswith("network: ") and says in text and "\n" not in text


def test_wrong_arguments_are_one_line() -> None:
    for bad in ({"_target_": "torch.nn.Linear", "in_features": 3}, {"_target_": "lbdist.nowhere.Net"}, {}):
        with pytest.raises(InputError, match=r"^network[.:]") as info:
            networks.make(bad)
        assert "\n" not in str(info.value)


# flat.py


class Odd(nn.Module):
    """Frozen, tied, zero-dimensional and channels-last parameters, and two kinds of buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4, bias=False)
        self.second = nn.Linear(4, 4)
        self.second.weight = self.first.weight
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.frozen = nn.Parameter(torch.ones(3), requires_grad=False)
        self.convolution = nn.Conv2d(2, 3, 2).to(memory_format=torch.channels_last)
        self.register_buffer("kept", torch.zeros(2))
        self.register_buffer("dropped", torch.zeros(2), persistent=False)


def test_flat_vector_holds_the_trainable_parameters_in_order() -> None:
    network = Odd()
    names = ["scale", "first.weight", "second.bias", "convolution.weight", "convolution.bias"]
    assert [name for name, _ in trainable(network)] == names
    x = flatten(network)
    assert len(x) == 1 + 16 + 4 + 24 + 3
    parts = views(network, x)
    assert list(parts) == names
    for name, part in parts.items():
        assert torch.equal(part, network.get_parameter(name))


def test_flatten_copies() -> None:
    network = nn.Linear(2, 2)
    x = flatten(network)
    x.zero_()
    assert network.weight.any() and not x.requires_grad


@given(st.lists(st.integers(1, 7), min_size=2, max_size=5), st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_views_round_trip(widths: list[int], seed: int) -> None:
    network = nn.Sequential(*(nn.Linear(a, b) for a, b in itertools.pairwise(widths)))
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(networks.parameter_count(network), generator=generator)
    parts = views(network, x)
    assert torch.equal(torch.cat([part.reshape(-1) for part in parts.values()]), x)
    assert all(part.untyped_storage().data_ptr() == x.untyped_storage().data_ptr() for part in parts.values())
    network.load_state_dict(parts)
    assert torch.equal(flatten(network), x)


def test_views_carry_gradients_to_the_vector() -> None:
    network = nn.Linear(3, 1)
    x = torch.tensor([1.0, 2.0, 3.0, 4.0], requires_grad=True)
    views(network, x)["weight"].square().sum().backward()
    assert x.grad is not None and x.grad.tolist() == [2, 4, 6, 0]


def test_wrong_length_names_both() -> None:
    for length in (0, 7, 9):
        with pytest.raises(ValueError, match=f"a vector of {length} numbers for a network of 8 parameters"):
            views(nn.Linear(3, 2), torch.zeros(length))


def test_flat_shares_storage_both_ways() -> None:
    network = Odd()
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    flat = Flat(network)
    assert all(torch.equal(p, before[name]) for name, p in network.named_parameters())  # values are kept
    assert not flat.g.any()
    with torch.no_grad():
        flat.x += 1
    for name, parameter in trainable(network):
        assert torch.equal(parameter, before[name] + 1)
    assert torch.equal(network.frozen, before["frozen"])
    with torch.no_grad():
        network.scale.fill_(-5)
    assert flat.x[0] == -5
    assert network.second.weight is network.first.weight  # still tied


def test_backward_fills_flat_gradient_and_an_optimiser_steps_on_it() -> None:
    torch.manual_seed(0)
    network, twin = Dense(5, [4], 3), Dense(5, [4], 3)
    twin.load_state_dict(network.state_dict())
    flat = Flat(network)
    ours, theirs = torch.optim.SGD(network.parameters(), lr=0.1), torch.optim.SGD(twin.parameters(), lr=0.1)
    batch, labels = torch.randn(6, 5), torch.tensor([0, 1, 2, 0, 1, 2])
    for _ in range(3):
        flat.g.zero_()
        theirs.zero_grad()
        for each in (network, twin):
            F.cross_entropy(each(batch), labels).backward()
        assert flat.g.any()
        torch.testing.assert_close(flat.g, torch.cat([p.grad.reshape(-1) for p in twin.parameters()]))
        ours.step()
        theirs.step()
    torch.testing.assert_close(flat.x.detach(), flatten(twin))
    assert torch.equal(flat.x.detach(), flatten(network))
