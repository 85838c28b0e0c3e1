from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lbdist.errors import InputError
from lbdist.networks.flat import flatten
from lbdist.objective import BATCH_NORM_MODES, Objective
from lbdist.training.batch_norm import group_batch_norm
from lbdist.training.batches import Workers

SAMPLES, INPUTS, CLASSES = 23, 6, 4


def mlp(norm: bool = True, dtype: torch.dtype = torch.float64) -> nn.Sequential:
    """A small network with dropout; its running averages are those of a network that was trained."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for width in (INPUTS, 8):
        layers += [nn.Linear(width, 8), *([nn.BatchNorm1d(8)] if norm else []), nn.Tanh(), nn.Dropout(0.5)]
    network = nn.Sequential(*layers, nn.Linear(8, CLASSES))
    for _ in range(5):
        network(torch.randn(16, INPUTS))
    return network.to(dtype)


def samples(dtype: torch.dtype = torch.float64, count: int = SAMPLES) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(count, INPUTS, generator=generator, dtype=torch.float64)
    return inputs.to(dtype), torch.randint(0, CLASSES, (count,), generator=generator)


def norms(network: nn.Module) -> list[nn.BatchNorm1d]:
    return [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]


def reference(
    network: nn.Module, x: Tensor, data: tuple[Tensor, Tensor], sizes: list[int], batch: bool = False
) -> tuple[float, Tensor]:
    """Loss and gradient by the book: a deep copy in float64 with its own parameters, chunk by chunk."""
    network = copy.deepcopy(network).double().eval()
    torch.nn.utils.vector_to_parameters(x.double(), network.parameters())
    for norm in norms(network):
        norm.train(batch)
    inputs, labels = data[0].double(), data[1]
    total = sum(
        F.cross_entropy(network(part), target, reduction="sum")
        for part, target in zip(inputs.split(sizes), labels.split(sizes), strict=True)
    )
    loss = total / len(labels)
    gradient = torch.autograd.grad(loss, list(network.parameters()))
    return loss.item(), torch.cat([g.reshape(-1) for g in gradient])


def close(found: tuple[float, Tensor], expected: tuple[float, Tensor], tolerance: float = 1e-12) -> None:
    assert found[0] == pytest.approx(expected[0], rel=tolerance, abs=0)
    assert (found[1].double() - expected[1]).norm() <= tolerance * expected[1].norm()


def chunks(micro: int, count: int = SAMPLES) -> list[int]:
    return [min(micro, count - start) for start in range(0, count, micro)]


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("micro", [1, 7, 22, 23, 5000])  # 7 and 22 leave a ragged last micro-batch
def test_value_and_gradient_are_the_full_batch_s(norm: bool, micro: int) -> None:
    network, data = mlp(norm), samples()
    f = Objective(network, data, micro_batch_size=micro)
    for x in (f.x, f.x + 0.1 * torch.sin(torch.arange(len(f.x)))):
        expected = reference(network, x, data, [SAMPLES])
        close(f(x), expected)
        assert f.value(x) == pytest.approx(expected[0], rel=1e-12)
        loss, accuracy = f.measure(x)
        assert loss == pytest.approx(expected[0], rel=1e-12) and 0 <= accuracy <= 100


@given(st.integers(1, 40), st.integers(2, 40))
@settings(max_examples=25, deadline=None)
def test_micro_batches_do_not_matter(micro: int, count: int) -> None:
    network, data = mlp(), samples(count=count)
    whole = Objective(network, data, micro_batch_size=count)
    close(Objective(network, data, micro_batch_size=micro)(whole.x), whole(whole.x))


def test_single_precision_is_near_double() -> None:
    network, data = mlp(dtype=torch.float32), samples(torch.float32)
    f = Objective(network, data, micro_batch_size=5)
    found = f(f.x)
    assert found[1].dtype == torch.float32
    close(found, reference(network, f.x, data, [SAMPLES]), 1e-6)


def test_measure_is_at_the_network_s_own_parameters() -> None:
    network, data = mlp(), samples()
    f = Objective(network, data, micro_batch_size=5)
    loss, accuracy = f.measure()
    with torch.no_grad():
        scores = copy.deepcopy(network).eval()(data[0])
    assert loss == pytest.approx(float(F.cross_entropy(scores, data[1])), rel=1e-12)
    assert accuracy == 100 * int((scores.argmax(1) == data[1]).sum()) / SAMPLES


def test_images_are_scaled_to_one() -> None:
    network = nn.Sequential(nn.Flatten(), *mlp())
    stored = torch.randint(0, 256, (SAMPLES, 1, 2, INPUTS // 2), dtype=torch.uint8)
    labels = samples()[1]
    f = Objective(network, (stored, labels), micro_batch_size=7)
    close(f(f.x), reference(network, f.x, (stored.double() / 255, labels), [SAMPLES]))
    recalibrated = Objective(network, (stored, labels), batch_norm="recalibrated")
    floats = Objective(network, (stored.double() / 255, labels), batch_norm="recalibrated")
    close(recalibrated(f.x), floats(f.x))


def test_own_loss() -> None:
    network, data = mlp(), samples()

    def squares(scores: Tensor, labels: Tensor) -> Tensor:
        return (scores - F.one_hot(labels, CLASSES)).square().sum()

    f = Objective(network, data, loss=squares, micro_batch_size=5)
    with torch.no_grad():
        scores = copy.deepcopy(network).eval()(data[0])
    assert f(f.x)[0] == pytest.approx(float(squares(scores, data[1])) / SAMPLES, rel=1e-12)


# batch normalisation


def recalibrate(network: nn.Module, inputs: Tensor) -> nn.Module:
    """A copy whose running averages are the whole data set's statistics, one layer after the other."""
    network = copy.deepcopy(network).eval()
    for norm in norms(network):
        seen: list[Tensor] = []
        hook = norm.register_forward_pre_hook(lambda module, given, seen=seen: seen.append(given[0]))
        with torch.no_grad():
            network(inputs)
        hook.remove()
        norm.running_mean.copy_(seen[0].mean(0))
        norm.running_var.copy_(seen[0].var(0))
    return network


@pytest.mark.parametrize("micro", [4, 7, 21, 5000])
def test_batch_mode_uses_each_micro_batch_s_statistics(micro: int) -> None:
    network, data = mlp(), samples()
    f = Objective(network, data, batch_norm="batch", micro_batch_size=micro)
    sizes = chunks(micro)
    assert len(sizes) == 1 or sizes[-1] != sizes[0]
    close(f(f.x), reference(network, f.x, data, sizes, batch=True))
    moved = f.x + 0.05
    close(f(moved), reference(network, moved, data, sizes, batch=True))


@pytest.mark.parametrize("micro", [7, 21, 5000])
def test_recalibrated_mode_uses_the_data_set_s_statistics(micro: int) -> None:
    network, data = mlp(), samples()
    f = Objective(network, data, batch_norm="recalibrated", micro_batch_size=micro)
    expected = recalibrate(network, data[0])
    close(f(f.x), reference(expected, f.x, data, [SAMPLES]))
    moved = f.x + 0.05  # the statistics are those at the network's own parameters
    close(f(moved), reference(expected, moved, data, [SAMPLES]))


def test_recalibration_works_on_a_network_that_the_training_loop_holds() -> None:
    network, data = mlp(), samples()
    expected = Objective(network, data, batch_norm="recalibrated", micro_batch_size=7)
    trained = copy.deepcopy(network)
    group_batch_norm(trained, Workers(), None)
    found = Objective(trained, data, batch_norm="recalibrated", micro_batch_size=7)
    close(found(expected.x), expected(expected.x))


class Scaled(nn.Module):
    """A network with a buffer that has nothing to do with batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.body = mlp()
        self.register_buffer("scale", torch.tensor(3.0, dtype=torch.float64))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.body(inputs * self.scale)


def test_recalibration_leaves_other_buffers_alone() -> None:
    network, (inputs, labels) = Scaled(), samples()
    f = Objective(network, (inputs, labels), batch_norm="recalibrated")
    plain = Objective(network.body, (3 * inputs, labels), batch_norm="recalibrated")
    close(f(f.x), plain(f.x))


def test_modes_differ_and_do_not_matter_without_batch_norm() -> None:
    data = samples()
    with_norm = {
        m: Objective(mlp(), data, batch_norm=m, micro_batch_size=7).measure()[0] for m in BATCH_NORM_MODES
    }
    assert len(set(with_norm.values())) == 3
    without = {
        Objective(mlp(False), data, batch_norm=m, micro_batch_size=7).measure() for m in BATCH_NORM_MODES
    }
    assert len(without) == 1


# the network stays as it was


def snapshot(network: nn.Module) -> dict[str, Any]:
    return {
        "state": {k: (v.clone(), v.data_ptr()) for k, v in network.state_dict().items()},
        "training": {name: m.training for name, m in network.named_modules()},
        "momentum": [m.momentum for m in norms(network)],
        "gradient": [p.grad for p in network.parameters()],
        "requires": [p.requires_grad for p in network.parameters()],
    }


def unchanged(network: nn.Module, before: dict[str, Any]) -> None:
    after = snapshot(network)
    for name, (value, place) in before["state"].items():
        assert torch.equal(after["state"][name][0], value) and after["state"][name][1] == place, name
    for key in ("training", "momentum", "gradient", "requires"):
        assert after[key] == before[key], key


def mixed() -> nn.Sequential:
    """Training flags that are neither all on nor all off."""
    network = mlp().train()
    network[1].eval()
    network[3].eval()
    return network


@pytest.mark.parametrize("mode", BATCH_NORM_MODES)
def test_network_is_left_bit_identical(mode: str) -> None:
    network = mixed()
    before = snapshot(network)
    assert int(network[1].num_batches_tracked) == 5
    f = Objective(network, samples(), batch_norm=mode, micro_batch_size=7)
    unchanged(network, before)
    f(f.x + 1)
    f.value(f.x)
    f.measure()
    unchanged(network, before)


class Failing(nn.Module):
    """Raises at one forward pass."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.body, self.left = mixed(), at

    def forward(self, inputs: Tensor) -> Tensor:
        scores = self.body(inputs)
        self.left -= 1
        if self.left == 0:
            raise RuntimeError("boom")
        return scores


@pytest.mark.parametrize("mode", BATCH_NORM_MODES)
@pytest.mark.parametrize("at", [1, 2, 6, 10])
def test_network_is_left_bit_identical_when_it_raises(mode: str, at: int) -> None:
    network = Failing(at)
    before = snapshot(network)
    with pytest.raises((RuntimeError, InputError), match="boom"):
        f = Objective(network, samples(), batch_norm=mode, micro_batch_size=7)
        f(f.x)
    unchanged(network, before)


def test_network_is_left_bit_identical_when_the_loss_raises() -> None:
    network = mixed()
    before = snapshot(network)

    def boom(scores: Tensor, labels: Tensor) -> Tensor:
        raise RuntimeError("boom")

    f = Objective(network, samples(), batch_norm="batch", loss=boom)
    with pytest.raises(InputError, match=r"^network: RuntimeError in evaluation mode: boom$") as info:
        f.measure()
    unchanged(network, before)  # while the traceback is held, as a debugger or a retry does
    assert info.traceback


def test_reduced_precision_around_it_changes_nothing() -> None:
    f = Objective(mlp(dtype=torch.float32), samples(torch.float32), micro_batch_size=7)
    value, gradient = f(f.x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        again, again_gradient = f(f.x)
        assert torch.is_autocast_enabled("cpu")
    assert again == value and torch.equal(again_gradient, gradient)
    matmul, cudnn = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    try:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = True, False
        f(f.x)
        assert torch.backends.cuda.matmul.allow_tf32 and not torch.backends.cudnn.allow_tf32
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = matmul, cudnn


# determinism and errors


class Noisy(nn.Module):
    """Noise of its own, which evaluation mode does not turn off."""

    def __init__(self) -> None:
        super().__init__()
        self.body = mlp(False)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.body(inputs + 1e-6 * torch.rand(inputs.shape, dtype=inputs.dtype))


def test_noisy_network_is_refused() -> None:
    f = Objective(Noisy(), samples())
    with pytest.raises(
        InputError, match=r"^network: it draws random numbers in evaluation mode \(rand\)"
    ) as info:
        f(f.x)
    assert "\n" not in str(info.value)


def test_dropout_is_off_and_one_x_has_one_value() -> None:
    f = Objective(mlp().train(), samples(), micro_batch_size=5)
    (value, gradient), (again, again_gradient) = f(f.x), f(f.x)
    assert value == again and torch.equal(gradient, again_gradient)


def test_a_diverged_x_is_not_called_noise() -> None:
    f = Objective(mlp(), samples())
    value, _ = f(torch.full_like(f.x, float("nan")))
    assert value != value


def test_evaluations_count_gradients() -> None:
    f = Objective(mlp(), samples(), micro_batch_size=5)
    for _ in range(3):
        f(f.x)
    f.value(f.x)
    f.measure()
    assert f.evaluations == 3


def test_bad_input_is_one_line() -> None:
    data = samples()
    empty = data[0][:0], data[1][:0]
    for wrong, arguments, says in (
        (empty, {}, "data: an empty data set"),
        (data, {"batch_norm": "train"}, "batch_norm=train: must be one of running, batch, recalibrated"),
        (data, {"micro_batch_size": 0}, "micro_batch_size=0: must be at least 1"),
        (data, {"micro_batch_size": -5}, "micro_batch_size=-5: must be at least 1"),
    ):
        with pytest.raises(InputError) as info:
            Objective(mlp(), wrong, **arguments)
        assert str(info.value).startswith(says) and "\n" not in str(info.value)


def test_wrong_length_of_x() -> None:
    f = Objective(mlp(), samples())
    with pytest.raises(ValueError, match="a vector of"):
        f(torch.zeros(3, dtype=torch.float64))


@pytest.mark.parametrize("mode", BATCH_NORM_MODES)
def test_gradient_is_the_finite_difference(mode: str) -> None:
    f = Objective(mlp(), samples(), batch_norm=mode, micro_batch_size=8)
    x, step = f.x, 1e-6
    gradient = f(x)[1]
    generator = torch.Generator().manual_seed(2)
    directions = itertools.chain(
        torch.randn(5, len(x), generator=generator, dtype=x.dtype),
        torch.eye(len(x), dtype=x.dtype)[:: len(x) // 20],
    )
    for direction in directions:
        slope = (f.value(x + step * direction) - f.value(x - step * direction)) / (2 * step)
        assert slope == pytest.approx(float(gradient @ direction), rel=1e-6, abs=1e-8)


def test_x_is_the_network_s() -> None:
    network = mlp()
    f = Objective(network, samples())
    assert torch.equal(f.x, flatten(network))
    f.x.zero_()
    assert flatten(network).any()


@pytest.mark.parametrize("parts", [1, 2, 3, 7])
@pytest.mark.parametrize("mode", ["running", "batch"])
def test_parts_sum_to_the_whole(parts: int, mode: str) -> None:
    """Ragged parts, and more of them than micro-batches."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3)).double()
    data = torch.randn(47, 5, dtype=torch.float64), torch.randint(0, 3, (47,))
    f = Objective(network, data, batch_norm=mode, micro_batch_size=10)
    x, v = f.x, torch.randn_like(f.x)
    value, gradient = f(x)
    found = [f.sums(x, None, part, parts) for part in range(parts)]
    assert float(sum(total for total, _ in found)) / 47 == pytest.approx(value, rel=1e-12)
    torch.testing.assert_close(sum(g for _, g in found) / 47, gradient, rtol=1e-10, atol=1e-14)
    product = sum(f.sums(x, v, part, parts)[1] for part in range(parts)) / 47
    torch.testing.assert_close(product, f.curvature(x, v), rtol=1e-10, atol=1e-13)


def test_alike_is_the_loss_towards_one_label() -> None:
    torch.manual_seed(0)
    network, inputs = nn.Linear(5, 3).double(), torch.randn(7, 5, dtype=torch.float64)
    f = Objective(network, (inputs, torch.arange(7) % 3))
    expected = nn.functional.cross_entropy(network(inputs), torch.full((7,), 2))
    expected.backward()
    value, gradient = f.alike(2)(f.x)
    assert value == pytest.approx(expected.item(), rel=1e-12)
    torch.testing.assert_close(gradient, torch.cat([network.weight.grad.flatten(), network.bias.grad]))
    assert f.labels.unique().tolist() == [0, 1, 2]
