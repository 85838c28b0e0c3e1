"""What a training pass may not do is refused by name, always; what it may do is taken."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from lbdist.errors import InputError
from lbdist.objective import Objective
from lbdist.training import proof
from lbdist.training.batches import Workers, batches
from lbdist.training.learner import Learner
from lbdist.watched import Watched, differing
from tests.support.impure import KEEPING, RANDOM, FromTheSystem, OwnTorch
from tests.support.odd_networks import CLASSES, INPUTS, WIDTH, Recurrent, odd_networks


@pytest.fixture(autouse=True, scope="module")
def few() -> Iterator[None]:
    """Few passes in a row: what they alone show has a test of its own."""
    whole, proof.PASSES = proof.PASSES, 3
    yield
    proof.PASSES = whole


def proven(network: nn.Module, inputs: Tensor | None = None, thorough: bool = True) -> None:
    torch.manual_seed(0)
    inputs = torch.randn(8, INPUTS, dtype=torch.float64) if inputs is None else inputs
    labels = torch.arange(len(inputs)) % CLASSES
    learner = Learner(network, lambda named: torch.optim.SGD(named, 0.1), Workers())
    dtype = inputs.dtype if inputs.is_floating_point() else torch.float32
    (batch,) = batches(
        inputs, labels, global_batch_size=len(inputs), seed=0, epoch=0, workers=Workers(), dtype=dtype
    )
    learner.prove(batch, thorough)


def around(network: nn.Module, kind: Callable[[nn.Module], nn.Module], at: int) -> nn.Module:
    """Puts something around a dense layer that is square, in the middle of the network."""
    middle = kind(nn.Linear(WIDTH, WIDTH).double())
    layers = list(network)  # type: ignore[call-overload]
    return nn.Sequential(*layers[:-1], middle, *layers[-1:])


def pure(network: nn.Module) -> nn.Module:
    """The network without what is refused of the grammar itself: an LSTM's dropout."""
    for module in network.modules():
        if isinstance(module, Recurrent):
            module.lstm.dropout = 0.0
    return network


@given(odd_networks())
@settings(max_examples=15, deadline=None)
def test_odd_networks_are_taken(network: nn.Module) -> None:
    before = {k: v.clone() for k, v in network.state_dict().items()}
    proven(pure(network))
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())


@given(odd_networks(), st.sampled_from(RANDOM), st.sampled_from([None, 0.0, 0.5]))
@settings(max_examples=27, deadline=None)
def test_randomness_from_any_source_is_refused(network: nn.Module, kind: Any, dropout: float | None) -> None:
    """However rarely it shows, and beside an nn.Dropout, which is lbdist's own."""
    network = around(pure(network), kind, 0)
    if dropout is not None:
        network = nn.Sequential(*network, nn.Dropout(dropout))
    with pytest.raises(InputError, match=r"^network: .*draws random numbers of its own in training mode"):
        proven(network)


@given(odd_networks(), st.sampled_from(KEEPING))
@settings(max_examples=12, deadline=None)
def test_state_that_follows_the_samples_is_refused(network: nn.Module, kind: Any) -> None:
    with pytest.raises(InputError, match=r"^network: (its buffer \S+top follows|a pass in training mode)"):
        proven(around(pure(network), kind, 0))


def test_what_depends_on_the_weights_alone_is_taken() -> None:
    spectral = parametrizations.spectral_norm
    network = nn.Sequential(
        spectral(nn.Linear(INPUTS, 4)), nn.Tanh(), spectral(nn.Linear(4, CLASSES))
    ).double()
    proven(network)


class Encoder(nn.Module):
    def __init__(self, dropout: float = 0.0, **options: Any) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(20, 8, **options), nn.Linear(8, CLASSES)
        self.block = nn.TransformerEncoderLayer(8, 2, 16, dropout, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.block(self.embedding(x)).mean(1))
        return out


class Mixing(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x - x.mean(0)) if self.training else super().forward(x)


class Silent(nn.Sequential):
    def train(self, mode: bool = True) -> None:  # type: ignore[override]
        super().train(mode)


REASONS: dict[str, tuple[Callable[[], nn.Module], str | None]] = {
    "an encoder's dropout": (lambda: Encoder(0.1), r"^network: block.self_attn draws random numbers"),
    "an encoder": (Encoder, None),
    "sparse": (lambda: Encoder(sparse=True), r"^network: embedding has sparse gradients; set sparse=False"),
    "rescaled": (lambda: Encoder(max_norm=0.1), r"^network: changes its embedding.weight in a forward pass"),
    "no return": (lambda: Silent(Encoder(), nn.BatchNorm1d(CLASSES)), None),
}


@pytest.mark.parametrize("name", REASONS)
def test_a_refusal_says_the_reason_and_the_layer(name: str) -> None:
    make, said = REASONS[name]
    tokens = torch.randint(0, 20, (8, 6), generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    if said is None:
        proven(make(), tokens)
    else:
        with pytest.raises(InputError, match=said):
            proven(make(), tokens)


def test_what_no_generator_shows_shows_in_many_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A layer that is dropped in 1 % by the system's own random numbers; chance that this fails: 0.7 %^2."""
    monkeypatch.setattr(proof, "PASSES", 500)
    monkeypatch.setattr(proof, "PASSES_SECONDS", 60.0)
    for _ in range(2):
        try:
            proven(
                nn.Sequential(nn.Linear(INPUTS, 4), FromTheSystem(nn.Linear(4, 4)), nn.Linear(4, 3)).double()
            )
        except InputError as error:
            assert "two passes of the same samples differ" in str(error)
            return
    pytest.fail("taken twice")


def test_the_layer_that_mixes_samples_is_named() -> None:
    network = nn.Sequential(nn.Linear(INPUTS, 4), nn.Tanh(), Mixing(4, 4), nn.Linear(4, CLASSES)).double()
    with pytest.raises(InputError, match=r"^network: what 2 gives for a sample .* depends on the others"):
        proven(network)


def test_a_padding_row_is_named_where_its_gradient_is_missed() -> None:
    torch.manual_seed(1)
    network, tokens = Encoder(padding_idx=0), torch.randint(0, 3, (64, 6))
    f = Objective(network, (tokens, torch.arange(64) % CLASSES))
    with pytest.raises(InputError, match=r"its loss \(embedding has a padding row, padding_idx=0"):
        f(f.x)


def test_stochastic_depth_of_torchvision_is_named() -> None:
    network = torchvision.models.efficientnet_b0(num_classes=CLASSES)
    with pytest.raises(InputError, match=r"^network: features\.2\.1\.stochastic_depth draws random numbers"):
        proven(network, torch.rand(4, 3, 32, 32), thorough=False)


def test_complex_parameters_are_named() -> None:
    class Complex(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.randn(INPUTS, CLASSES, dtype=torch.cfloat))

        def forward(self, x: Tensor) -> Tensor:
            return (x.to(torch.cfloat) @ self.w).abs()

    with pytest.raises(InputError, match=r"^network: w is complex"):
        proven(Complex())


class Coarse(nn.Module):
    """A layer in a lower precision, by autocast or by hand."""

    def __init__(self, low: torch.dtype, by_hand: bool) -> None:
        super().__init__()
        self.low, self.by_hand, self.layer = low, by_hand, nn.Linear(6, 8)

    def forward(self, x: Tensor) -> Tensor:
        if self.by_hand:
            return (x.to(self.low) @ self.layer.weight.T.to(self.low)).float() + self.layer.bias
        with torch.autocast("cpu", self.low):
            out: Tensor = self.layer(x)
        return out.float()


@given(st.integers(0, 10_000), st.sampled_from([torch.bfloat16, torch.float16]), st.booleans())
@settings(max_examples=30, deadline=None)
def test_a_lower_precision_inside_is_refused_always(seed: int, low: torch.dtype, by_hand: bool) -> None:
    torch.manual_seed(seed)
    network = nn.Sequential(Coarse(low, by_hand), nn.ReLU(), nn.Linear(8, CLASSES))
    f = Objective(network, (torch.randn(40, 6), torch.arange(40) % CLASSES))
    with pytest.raises(InputError, match=r"^network: 0(\.layer)? computes in b?float16 by itself"):
        f(f.x)


def test_draws_are_seen_by_the_state_of_their_generator() -> None:
    """A network that seeds its own generator anew for every pass draws the same numbers: none of its own."""

    class Fixed(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            noise = torch.randn(x.shape[1], generator=torch.Generator().manual_seed(3))
            return super().forward(x + noise)

    def passes(network: nn.Module) -> tuple[str, str] | None:
        seen = []
        for seed in (1, 2):
            torch.manual_seed(seed)
            with torch.no_grad(), Watched(network) as watched:
                network(torch.ones(2, 3))
            seen.append(watched)
        return differing(*seen)

    assert passes(Fixed(3, 3)) is None
    assert passes(nn.Sequential(Fixed(3, 3), OwnTorch(nn.Linear(3, 3)))) == ("1", "rand")
    assert passes(nn.Dropout(0.0)) is None and passes(nn.RReLU().eval()) is None
    assert np.random.get_state() is not None
