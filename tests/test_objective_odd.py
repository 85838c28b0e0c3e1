"""f is the user's function, whatever the network does with its parameters, or it is refused in one line."""

from __future__ import annotations

import copy
import random
import signal
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lbdist.errors import InputError
from lbdist.networks.flat import trainable
from lbdist.objective import BATCH_NORM_MODES, Objective
from lbdist.sharpness import box_sharpness
from lbdist.training.batches import Workers, batches
from lbdist.training.learner import Learner
from tests.support.odd_networks import CLASSES, INPUTS, odd_networks


def data(count: int = 21) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    inputs = torch.randn(count, INPUTS, generator=generator, dtype=torch.float64)
    return inputs, torch.randint(0, CLASSES, (count,), generator=generator)


def own(network: nn.Module, x: Tensor, inputs: Tensor, labels: Tensor) -> float:
    """The loss that the module itself gives once its parameters are x; it is put back by hand."""
    parameters = [p for _, p in trainable(network)]
    before, modes = [p.detach().clone() for p in parameters], [(m, m.training) for m in network.modules()]
    buffers = [
        (m, name, b, b.clone()) for m in network.modules() for name, b in m._buffers.items() if b is not None
    ]
    network.eval()
    with torch.no_grad():
        for p, part in zip(parameters, x.split([p.numel() for p in parameters]), strict=True):
            p.copy_(part.view_as(p))
        value = F.cross_entropy(network(inputs.clone()), labels).item()
        for p, part in zip(parameters, before, strict=True):
            p.copy_(part)
        for module, name, b, kept in buffers:
            module._buffers[name] = b
            b.copy_(kept)
    for module, mode in modes:
        module.training = mode
    return value


def state(network: nn.Module) -> list[object]:
    found: list[object] = [(n, m.training, getattr(m, "dropout", 0)) for n, m in network.named_modules()]
    found.append(torch.backends.cudnn.enabled)
    for name, tensor in [*network.named_parameters(), *network.named_buffers()]:
        found.append((name, tensor.data_ptr(), tensor.tolist(), tensor.grad is None, tensor.requires_grad))
    return found


@given(odd_networks(), st.integers(0, 2**31))
@settings(max_examples=60, deadline=None)
def test_value_and_gradient_are_those_of_the_module(network: nn.Module, seed: int) -> None:
    inputs, labels = data()
    before, seen = state(network), inputs.clone()
    f = Objective(network, (inputs, labels), micro_batch_size=8)
    generator = torch.Generator().manual_seed(seed)
    x = f.x + 0.05 * torch.randn(len(f.x), generator=generator, dtype=torch.float64)
    direction = torch.randn(len(x), generator=generator, dtype=torch.float64)
    value, gradient = f(x)
    assert value == pytest.approx(own(network, x, inputs, labels), rel=1e-12)
    step = 1e-6 / float(direction.norm())
    ahead, behind = (own(network, x + s * direction, inputs, labels) for s in (step, -step))
    slope, quotient = float(gradient @ direction), (ahead - behind) / (2 * step)
    assert quotient == pytest.approx(slope, rel=1e-5, abs=1e-7 * float(direction.norm()))
    (_, up), (_, down) = f(x + step * direction), f(x - step * direction)
    try:
        curved = f.curvature(x, direction)
    except InputError as error:  # PyTorch's weight norm has a wrong second backward pass
        assert "its second derivatives are not those of its loss" in str(error)
        assert any("parametrizations" in name for name, _ in network.named_parameters())
    else:
        assert ((up - down) / (2 * step) - curved).norm() <= 1e-4 * curved.norm() + 1e-6 * direction.norm()
    assert state(network) == before and torch.equal(inputs, seen)


@given(odd_networks())
@settings(max_examples=30, deadline=None)
def test_a_training_step_is_pytorchs_own(network: nn.Module) -> None:
    """One worker, and two slices whose gradients are added as two workers' are."""
    reference, (inputs, labels) = copy.deepcopy(network).train(), data()
    for m in [*network.modules(), *reference.modules()]:
        if isinstance(m, nn.Dropout):
            m.p = 0.0
        elif isinstance(m, nn.LSTM):
            m.dropout = 0.0
    seen = inputs.clone()
    learner = Learner(network, lambda named: torch.optim.SGD(named, 0.1), Workers())
    fixed = {"global_batch_size": 21, "seed": 0, "epoch": 0, "workers": Workers(), "dtype": torch.float64}
    (batch,) = batches(inputs, labels, **fixed)  # type: ignore[arg-type]
    learner.gradient(batch)
    assert torch.equal(inputs, seen)
    F.cross_entropy(reference(inputs[batch.samples]), labels[batch.samples]).backward()
    expected = [torch.zeros_like(p) if p.grad is None else p.grad for _, p in trainable(reference)]
    found = [p.grad for _, p in trainable(network)]
    for (name, _), one, other in zip(trainable(network), found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10, msg=name)
    for (name, one), (_, other) in zip(network.named_buffers(), reference.named_buffers(), strict=True):
        if "calls" not in name:
            torch.testing.assert_close(one, other, msg=name)


class Snapshot(nn.Module):
    """Computes with a copy of its weight that it made when it was built."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(INPUTS, CLASSES)
        self.kept = self.layer.weight.detach().clone()

    def forward(self, x: Tensor) -> Tensor:
        # the value ignores the weight, the gradient does not: a straight-through estimator
        weight = self.layer.weight + (self.kept - self.layer.weight).detach()
        return F.linear(x, weight, self.layer.bias)


class Memo(nn.Module):
    """Remembers what it gave for as many samples, whatever they are."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.kept = nn.Linear(INPUTS, CLASSES), {}

    def forward(self, x: Tensor) -> Tensor:
        if x.requires_grad or torch.is_grad_enabled():
            return self.layer(x)
        if len(x) not in self.kept:
            self.kept[len(x)] = self.layer(x)
        return self.kept[len(x)]


class Counter(nn.Module):
    """Gives something else every time."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.calls = nn.Linear(INPUTS, CLASSES), 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.layer(x) * (1 + 1e-6 * self.calls)


class Reentrant(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(INPUTS, INPUTS), nn.Linear(INPUTS, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(checkpoint(self.one, x.requires_grad_(), use_reentrant=True))


class Coarse(nn.Module):
    """Normalises in float32, whatever it is given, as many a language model does."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(INPUTS, INPUTS), nn.Linear(INPUTS, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        h = self.one(x).float()
        return self.two((h * (h.square().mean(1, keepdim=True) + 1e-6).rsqrt()).to(x.dtype))


def test_a_part_may_be_coarser_than_the_rest() -> None:
    torch.manual_seed(0)
    network, (inputs, labels) = Coarse().double(), data()
    f = Objective(network, (inputs, labels))
    expected = torch.autograd.grad(F.cross_entropy(network(inputs), labels), list(network.parameters()))
    torch.testing.assert_close(f(f.x)[1], torch.cat([g.flatten() for g in expected]), rtol=1e-5, atol=1e-7)
    v, w = torch.randn(2, len(f.x), dtype=torch.float64)
    assert float(v @ f.curvature(f.x, w)) == pytest.approx(float(w @ f.curvature(f.x, v)), rel=1e-4)


class Single(nn.Module):
    """Runs in float32 or not at all, with kinks, and a layer whose Hessian may be wrong."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer, self.head = layer, nn.Linear(64, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        assert x.dtype == torch.float32
        return self.head(F.relu(self.layer(x)))


class HalfDetached(torch.autograd.Function):
    """x times its sum, whose backward pass hides a part of its dependence on x from the second one."""

    @staticmethod
    def forward(context, x):
        context.save_for_backward(x)
        return x * x.sum(1, keepdim=True)

    @staticmethod
    def backward(context, gradient):
        (x,) = context.saved_tensors
        return gradient * x.sum(1, keepdim=True) + (gradient * x.detach()).sum(1, keepdim=True)


class Applied(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return HalfDetached.apply(x)


def test_a_hessian_is_proven_where_float64_is_not_to_be_had() -> None:
    torch.manual_seed(0)
    inputs, labels = data()
    given = inputs.float(), labels
    f = Objective(Single(nn.Linear(INPUTS, 64)), given)
    assert f.curvature(f.x, torch.ones_like(f.x)).norm() > 0

    def wrong() -> None:
        f = Objective(Single(nn.Sequential(nn.Linear(INPUTS, 64), Applied())), given)
        assert f(f.x)[0] > 0  # its gradient is right
        f.curvature(f.x, torch.ones_like(f.x))

    # one pair of directions misses one start in six
    assert refused(wrong, "its second derivatives are not those of its loss", 30) >= 29


def refused(make: Callable[[], object], says: str, starts: int) -> int:
    """How many starts of a network are refused."""
    count = 0
    for _ in range(starts):
        try:
            make()
        except InputError as error:
            count += says in str(error)
    return count


def test_what_moves_by_the_rounding_of_f_is_refused() -> None:
    """Two evaluations miss one start in twelve, nine one in some 3,000."""
    inputs, labels = data()

    def moving() -> None:
        f = Objective(Counter(), (inputs.float(), labels))
        f(f.x)

    assert refused(moving, "two evaluations of one x", 200) >= 197


def shared_memory() -> nn.Module:
    network = nn.Sequential(nn.Linear(INPUTS, INPUTS), nn.Tanh(), nn.Linear(INPUTS, INPUTS))
    network[2].weight.data = network[0].weight.data
    return network


class Half(nn.Module):
    """Casts to bfloat16 by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(INPUTS, CLASSES).bfloat16()

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.bfloat16())


class Named(nn.Linear):
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"logits": super().forward(x)}


REFUSED = {
    "straight through": (Snapshot, "its gradient is not that of its loss"),
    "memo": (Memo, "its gradient is not that of its loss"),
    "counter": (Counter, "two evaluations of one x"),
    "reentrant": (Reentrant, "its gradient is not that of its loss"),
    "shared memory": (shared_memory, "0.weight and 2.weight share memory"),
    "frozen": (lambda: nn.Linear(INPUTS, CLASSES).requires_grad_(False), "no trainable parameters"),
    "nothing": (nn.Identity, "no trainable parameters"),
    "lazy": (lambda: nn.LazyLinear(CLASSES), "weight is lazy"),
    "own precision": (Half, "lbdist measures in torch.float32"),
    "dict": (lambda: Named(INPUTS, CLASSES), "gives a dict in evaluation mode"),
    "shape": (lambda: nn.Linear(INPUTS - 1, CLASSES), "RuntimeError in evaluation mode"),
    "too few classes": (lambda: nn.Linear(INPUTS, 2), "gives 2 outputs per sample, but there is a label 2"),
    "tokens": (
        lambda: nn.Sequential(nn.Linear(INPUTS, 12), nn.Unflatten(1, (3, 4))),
        "Tokens takes sequences",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_function_of_x_is_refused(kind: str) -> None:
    make, says = REFUSED[kind]
    inputs, labels = data()
    with pytest.raises(InputError, match=r"^network") as caught:
        network = make()
        f = Objective(network, (inputs.float(), labels))
        f(f.x)
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_nothing_is_left_of_a_call_that_is_interrupted() -> None:
    """A signal at 150 random moments: parameters, buffers and modes are as they were."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(INPUTS, 64), nn.BatchNorm1d(64), nn.Tanh(), nn.Linear(64, CLASSES))
    inputs, labels = data(400)
    fs = [
        Objective(network, (inputs.float(), labels), batch_norm=m, micro_batch_size=37)
        for m in BATCH_NORM_MODES
    ]
    for f in fs:
        f(f.x)
    before, chance, interrupted = state(network), random.Random(0), 0

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGALRM, interrupt)
    try:
        for round_ in range(150):
            f = fs[round_ % 3]
            x = f.x + 1
            try:
                try:
                    signal.setitimer(signal.ITIMER_REAL, chance.uniform(1e-4, 6e-3))
                    for _ in range(100):  # an interrupt that comes in a destructor is lost
                        f(x)
                finally:  # none comes once this is over
                    signal.setitimer(signal.ITIMER_REAL, 0)
            except KeyboardInterrupt:
                interrupted += 1
            assert state(network) == before and torch.is_grad_enabled()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    assert interrupted > 100


@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16])
def test_a_network_in_half_precision_is_measured_in_float32(low: torch.dtype) -> None:
    torch.manual_seed(0)
    inputs = torch.randn(300, INPUTS)
    labels = inputs[:, :CLASSES].argmax(1)
    network = nn.Sequential(nn.Linear(INPUTS, 32), nn.LayerNorm(32), nn.ReLU(), nn.Linear(32, CLASSES))
    optimizer = torch.optim.Adam(network.parameters(), 1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        F.cross_entropy(network(inputs), labels).backward()
        optimizer.step()
    network = network.to(low)
    exact = copy.deepcopy(network).double()
    given = inputs.to(low)
    before = state(network)
    f, g = Objective(network, (given, labels)), Objective(exact, (given.double(), labels))
    assert f.x.dtype == torch.float32 and torch.equal(f.x.double(), g.x)
    for epsilon in (1e-3, 2e-4):
        found, expected = (box_sharpness(h, h.x, epsilon=epsilon).value for h in (f, g))
        assert found == pytest.approx(expected, rel=0.02)
    assert state(network) == before


def test_mixed_precision_is_measured_in_the_highest() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(INPUTS, 8).bfloat16(), nn.Linear(8, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(torch.tanh(self.a(x.to(self.a.weight.dtype))).to(self.b.weight.dtype))

    inputs, labels = data()
    f = Objective(Mixed(), (inputs.float(), labels))
    assert f(f.x)[1].dtype == torch.float32


def test_token_ids_stay_integers() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.head = nn.Embedding(4000, 4), nn.Linear(4, CLASSES)
            self.seen: list[Tensor] = []

        def forward(self, tokens: Tensor) -> Tensor:
            self.seen.append(tokens)
            return self.head(self.table(tokens).mean(1))

    network, ids = Tokens(), torch.arange(3001, 3013)[:, None]
    f = Objective(network.bfloat16(), (ids, torch.zeros(12).long()))
    f(f.x)
    assert all(torch.equal(seen, ids[: len(seen)]) for seen in f.network.seen)


@given(st.permutations(range(60)), st.integers(1, 70))
@settings(max_examples=25, deadline=None)
def test_recalibrated_statistics_are_those_of_the_data_in_any_order(order: list[int], micro: int) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Linear(INPUTS, 5),
        nn.BatchNorm1d(5),
        nn.Tanh(),
        nn.Linear(5, 4),
        nn.BatchNorm1d(4),
        nn.Linear(4, CLASSES),
    ).double()
    inputs, labels = data(60)
    inputs = inputs[labels.argsort()] + 3 * labels.sort().values[:, None]  # sorted by class, and apart
    labels = labels.sort().values
    whole = Objective(network, (inputs, labels), batch_norm="recalibrated", micro_batch_size=60)
    f = Objective(network, (inputs[order], labels[order]), batch_norm="recalibrated", micro_batch_size=micro)
    assert f.measure()[0] == pytest.approx(whole.measure()[0], rel=1e-10)
    first = network[0](inputs).detach()
    torch.testing.assert_close(f._buffers["1.running_var"], first.var(0))
    second = network[3](torch.tanh((first - first.mean(0)) / (first.var(0) + 1e-5).sqrt())).detach()
    torch.testing.assert_close(f._buffers["4.running_mean"], second.mean(0))


@pytest.mark.parametrize("mode", BATCH_NORM_MODES)
def test_a_last_micro_batch_of_one_joins_the_one_before(mode: str) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(INPUTS, 5), nn.BatchNorm1d(5), nn.Linear(5, CLASSES)).double()
    f = Objective(network, data(31), batch_norm=mode, micro_batch_size=10)
    assert f(f.x)[0] > 0
    if mode == "batch":
        inputs, labels = data(31)
        with torch.no_grad():
            parts = [network.train()(part) for part in inputs.split([10, 10, 11])]
        assert f.value(f.x) == pytest.approx(F.cross_entropy(torch.cat(parts), labels).item())


def test_an_x_of_another_precision_is_refused() -> None:
    inputs, labels = data()
    f = Objective(nn.Linear(INPUTS, CLASSES), (inputs.float(), labels))
    with pytest.raises(ValueError, match=r"x is torch\.float64; f is computed in torch\.float32"):
        f(f.x.double())


def test_a_sparse_buffer_is_kept() -> None:
    """Such as a graph's adjacency matrix; buffers are copied together, which sparse ones cannot be."""

    class Graph(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 3)
            self.register_buffer("adjacency", (2 * torch.eye(4)).to_sparse())
            self.register_buffer("empty", torch.zeros(0))

        def forward(self, x: Tensor) -> Tensor:
            return self.layer((self.adjacency @ x.T).T)

    torch.manual_seed(0)
    network, x = Graph(), torch.randn(9, 4)
    labels = torch.arange(9) % 3
    expected = nn.functional.cross_entropy(network.layer(2 * x), labels)
    f = Objective(network, (x, labels))
    assert f(f.x)[0] == pytest.approx(expected.item(), rel=1e-6)
    assert network.adjacency.is_sparse and torch.equal(network.adjacency.to_dense(), 2 * torch.eye(4))
