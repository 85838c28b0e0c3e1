"""Buckets go on their way in the backward pass, in one order, each once (with several workers: see there)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lbdist.networks.flat import Flat, trainable
from lbdist.training import buckets
from lbdist.training.batches import Workers


@pytest.fixture
def group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A group of this process alone, whose sums are what it has."""
    monkeypatch.setattr(buckets, "BUCKET_BYTES", 40)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


class Net(nn.Module):
    """Three layers, of which the middle one may be passed over, or computed in two reentrant pieces."""

    def __init__(self, reentrant: bool = False) -> None:
        super().__init__()
        self.first, self.middle, self.last = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2)
        self.reentrant, self.over = reentrant, False

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for _ in range(2 if not self.over else 0):
            x = checkpoint(self.middle, x, use_reentrant=True) if self.reentrant else self.middle(x)
        return self.last(x)


def make(network: nn.Module) -> tuple[Tensor, buckets.Buckets]:
    flat = Flat(network)
    parameters = [p for _, p in trainable(network)]
    for parameter in parameters:
        parameter.grad = None
    views = list(zip(parameters, flat.g.split([p.numel() for p in parameters]), strict=True))

    def take(which: list[int]) -> None:
        for parameter, view in (views[number] for number in which):
            view.copy_(0.0 * view if parameter.grad is None else parameter.grad.reshape(-1))
            parameter.grad = None

    return flat.g, buckets.Buckets(parameters, flat.g, Workers(), take)


def step(network: nn.Module, over: buckets.Buckets) -> int:
    """The buckets that were on their way before the backward pass had ended."""
    over.begin()
    network(torch.ones(5, 3)).square().sum().backward()
    early = len(over._sent)
    over.finish()
    return early


def expected(network: nn.Module) -> Tensor:
    loss = network(torch.ones(5, 3)).square().sum()
    parts = torch.autograd.grad(loss, list(network.parameters()), materialize_grads=True)
    return torch.cat([part.reshape(-1) for part in parts])


def test_a_bucket_leaves_as_soon_as_it_is_whole(group: None) -> None:
    torch.manual_seed(0)
    network = Net()
    g, over = make(network)
    sizes = [len(bucket.part) for bucket in over._buckets]
    # last.bias and last.weight; middle.bias and middle.weight; first.bias and first.weight
    assert sizes == [10, 20, 16] and sum(sizes) == len(g)
    assert [step(network, over) for _ in range(3)] == [0, 3, 3]  # the first pass looks on
    torch.testing.assert_close(g, expected(network))
    network.over = True  # what the loss does not depend on goes last, and what would follow it too
    assert step(network, over) == 1
    torch.testing.assert_close(g, expected(network))
    assert g[16:36].abs().max() == 0
    network.over = False
    assert step(network, over) == 3
    torch.testing.assert_close(g, expected(network))


def test_gradients_that_come_in_parts_are_waited_for(group: None) -> None:
    torch.manual_seed(0)
    network = Net(reentrant=True)
    g, over = make(network)
    assert [step(network, over) for _ in range(2)] == [0, 0] and over._came[2] > 2
    network.reentrant = False
    torch.testing.assert_close(g, expected(network))
