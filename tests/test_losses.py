"""Every loss: closed forms, sums that can be cut anywhere, refused targets, and f and the loop on it."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lbdist.config.build import build, plain
from lbdist.config.compose import compose, options
from lbdist.data.base import Dataset, Split
from lbdist.errors import InputError
from lbdist.losses import BinaryCrossEntropy, CrossEntropy, Given, Loss, MeanSquaredError, Tokens
from lbdist.objective import Objective
from lbdist.plan import Cell
from lbdist.training.batches import Workers, batches
from lbdist.training.learner import Learner
from lbdist.training.loop import train

# float64: what is equal on paper is compared to far below what a float32 sum may lose by cancelling
INPUTS = torch.randn(20, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
SEQUENCES = torch.randint(0, 7, (20, 5), generator=torch.Generator().manual_seed(1))


def _tokens() -> Tensor:
    labels = (SEQUENCES + 1) % 7
    labels[:, 3:] = -100
    labels[0, 1:] = -100  # a sequence with one token that counts
    return labels


# loss, a network for it, inputs, labels, and PyTorch's own mean loss
CASES: dict[str, tuple[Loss, nn.Module, Tensor, Tensor]] = {
    "classes": (CrossEntropy(), nn.Linear(4, 6).double(), INPUTS, torch.arange(20) % 6),
    "classes-int32": (CrossEntropy(), nn.Linear(4, 6).double(), INPUTS, (torch.arange(20) % 6).int()),
    "tokens": (Tokens(), nn.Sequential(nn.Embedding(7, 8), nn.Linear(8, 7)).double(), SEQUENCES, _tokens()),
    "regression": (MeanSquaredError(), nn.Linear(4, 3).double(), INPUTS, INPUTS[:, :3] * 2 + 1),
    "regression-squeezed": (MeanSquaredError(), nn.Linear(4, 1).double(), INPUTS, INPUTS.sum(1)),
    "multi-label": (
        BinaryCrossEntropy(),
        nn.Linear(4, 6).double(),
        INPUTS,
        (torch.rand(20, 6) > 0.5).double(),
    ),
}


def reference(loss: Loss, outputs: Tensor, labels: Tensor) -> Tensor:
    """The mean loss by PyTorch's own functions, a sample at a time."""
    single = {
        CrossEntropy: lambda o, y: F.cross_entropy(o, y.long()),
        Tokens: lambda o, y: F.cross_entropy(o, y, ignore_index=-100),
        MeanSquaredError: lambda o, y: F.mse_loss(o.view_as(y), y),
        BinaryCrossEntropy: F.binary_cross_entropy_with_logits,
    }[type(loss)]
    return torch.stack([single(o, y) for o, y in zip(outputs, labels, strict=True)]).mean()


@pytest.mark.parametrize("name", CASES)
def test_f_is_the_mean_of_pytorchs_own_loss(name: str) -> None:
    loss, network, inputs, labels = CASES[name]
    f = Objective(network, (inputs, labels), loss=loss, micro_batch_size=7)
    wanted = reference(loss, network(inputs), labels)
    gradient = torch.autograd.grad(wanted, list(network.parameters()))
    value, found = f(f.x)
    assert value == pytest.approx(float(wanted.detach()), rel=1e-12)
    torch.testing.assert_close(found, torch.cat([g.flatten() for g in gradient]), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_the_loop_and_f_are_one_function(name: str) -> None:
    loss, network, inputs, labels = CASES[name]
    learner = Learner(network, lambda p: torch.optim.SGD(p, lr=0.0), Workers(), criterion=loss)
    arguments = {"global_batch_size": 20, "seed": 0, "epoch": 0, "workers": Workers(), "dtype": torch.float64}
    (batch,) = batches(inputs, labels, **arguments)
    assert batch.inputs.dtype == inputs.dtype  # tokens stay integers
    learner.gradient(batch)
    f = Objective(network, (inputs, labels), loss=loss)
    value, gradient = f(f.x)
    torch.testing.assert_close(learner.g, gradient, rtol=1e-9, atol=1e-12)
    assert float(learner.loss) / 20 == pytest.approx(value, rel=1e-12)
    assert learner.evaluate((inputs, labels), micro_batch_size=6) == pytest.approx(f.measure(), rel=1e-12)


@pytest.mark.parametrize("name", CASES)
@hypothesis_settings(deadline=None, max_examples=20)
@given(cuts=st.sets(st.integers(1, 19)))
def test_sums_can_be_cut_anywhere(name: str, cuts: set[int]) -> None:
    loss, network, inputs, labels = CASES[name]
    outputs = network(inputs).detach()
    bounds = [0, *sorted(cuts), 20]
    parts = [slice(a, b) for a, b in pairwise(bounds)]
    total = sum(float(loss.total(outputs[p], labels[p])) for p in parts)
    assert total == pytest.approx(float(loss.total(outputs, labels)), rel=1e-12)
    sums = torch.stack([loss.scored(outputs[p], labels[p]) for p in parts]).sum(0)
    torch.testing.assert_close(sums, loss.scored(outputs, labels))


@pytest.mark.parametrize("name", CASES)
def test_a_perfect_and_a_chance_score(name: str) -> None:
    loss, _, _, labels = CASES[name]
    if isinstance(loss, CrossEntropy | Tokens):
        perfect = F.one_hot(labels.long().clamp_min(0), 7).float()
    else:
        perfect = labels if isinstance(loss, MeanSquaredError) else 2 * labels - 1
    best = 1.0 if isinstance(loss, MeanSquaredError) else 100.0
    assert loss.value(loss.scored(perfect, labels), 20) == pytest.approx(best)
    if isinstance(loss, MeanSquaredError):
        mean = labels.mean(0, keepdim=True).expand_as(labels)
        assert loss.value(loss.scored(mean, labels), 20) == pytest.approx(0, abs=1e-6)
        assert math.isnan(loss.value(loss.scored(mean, mean), 20))
    else:
        assert loss.value(loss.scored(-perfect, labels), 20) == 0


@hypothesis_settings(deadline=None, max_examples=50)
@given(
    constant=st.floats(2**-10, 2**20, width=32) | st.floats(-(2**20), -(2**-10), width=32),
    samples=st.integers(2, 500),
    batch=st.integers(10, 500),
)
def test_labels_that_do_not_vary_have_no_r2(constant: float, samples: int, batch: int) -> None:
    """However their sums round; and those that vary by a hundred thousandth have one."""
    loss, labels = MeanSquaredError(), torch.full((samples,), constant)

    def value(labels: Tensor, outputs: Tensor) -> float:
        parts = zip(outputs.split(batch), labels.split(batch), strict=True)
        return loss.value(torch.stack([loss.scored(o, y) for o, y in parts]).sum(0), samples)

    assert math.isnan(value(labels, labels)) and math.isnan(value(labels, 2 * labels))
    varied = labels * (1 + 1e-5 * (torch.arange(samples) % 2))
    assert value(varied, varied) == 1 and value(varied, 2 * varied) < -1e6


def data(labels: np.ndarray, test: np.ndarray | None = None, classes: int | None = None) -> Dataset:
    test = labels if test is None else test
    return Dataset(
        Split(np.zeros((len(labels), 3), "f4"), labels), Split(np.zeros((len(test), 3), "f4"), test), classes
    )


@pytest.mark.parametrize(
    ("loss", "good", "shape"),
    [
        (CrossEntropy(), data(np.array([0, 1, 2])), (3,)),
        (CrossEntropy(), data(np.array([0, 1, 2]), classes=5), (5,)),
        (Tokens(), data(np.array([[0, -100], [3, 1]])), (2, 4)),
        (MeanSquaredError(), data(np.zeros(3, "f4")), (1,)),
        (MeanSquaredError(), data(np.zeros((3, 2), "f4")), (2,)),
        (BinaryCrossEntropy(), data(np.array([[0, 1], [1, 1]])), (2,)),
    ],
)
def test_the_shape_of_an_output(loss: Loss, good: Dataset, shape: tuple[int, ...]) -> None:
    assert loss.check(good) == shape


@pytest.mark.parametrize(
    ("loss", "wrong", "said"),
    [
        (CrossEntropy(), data(np.zeros(3, "f4")), "labels are float32"),
        (CrossEntropy(), data(np.zeros((3, 2), "i8")), "no classes"),
        (CrossEntropy(), data(np.array([0, 2]), classes=2), "label 2 in the train split; allowed are 0 to 1"),
        (CrossEntropy(), data(np.array([0, 1]), np.array([-1])), "label -1 in the test split"),
        (Tokens(), data(np.array([0, 1])), r"not \(N, T\)"),
        (Tokens(), data(np.array([[0, 1], [-100, -100]])), "sequence 1 of the train split has no token"),
        (Tokens(), data(np.array([[0, -3]])), "label -3 in the train split"),
        (Tokens(), data(np.array([[0, 1]]), np.array([[0, 2]])), "label 2: must be below the 2 classes"),
        (MeanSquaredError(), data(np.array([0, 1])), "must be finite floating-point numbers"),
        (MeanSquaredError(), data(np.array([0, np.nan])), "must be finite floating-point numbers"),
        (MeanSquaredError(), data(np.zeros((2, 2)), np.zeros((2, 3))), "must be of one shape"),
        (BinaryCrossEntropy(), data(np.array([[0, 2]])), "must be 0 or 1"),
        (BinaryCrossEntropy(), data(np.array([0, 1])), r"of shape \(N, K\)"),
    ],
)
def test_wrong_targets_are_one_line(loss: Loss, wrong: Dataset, said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        loss.check(wrong)
    assert "\n" not in str(caught.value)


def test_outputs_are_never_broadcast_against_labels() -> None:
    with pytest.raises(InputError, match="network: gives outputs of shape"):
        MeanSquaredError().total(torch.zeros(3, 2), torch.zeros(3))
    with pytest.raises(InputError, match="network: gives outputs of shape"):
        BinaryCrossEntropy().total(torch.zeros(3, 1), torch.zeros(3, 2))


def test_the_validation_split_of_labels_that_are_no_classes() -> None:
    carved = data(np.random.default_rng(0).normal(size=(10, 2))).validation_split(0.3)
    assert (len(carved.train), len(carved.test)) == (7, 3)


class Embedded(nn.Sequential):
    """A network for tokens."""

    def __init__(self) -> None:
        super().__init__(nn.Embedding(7, 8), nn.Linear(8, 7))


NODES = {
    "cross_entropy": ("classes", {"_target_": "torch.nn.Linear", "in_features": 4, "out_features": 6}),
    "tokens": ("tokens", {"_target_": f"{__name__}.Embedded"}),
    "mean_squared_error": (
        "regression",
        {"_target_": "torch.nn.Linear", "in_features": 4, "out_features": 3},
    ),
    "binary_cross_entropy": (
        "multi-label",
        {"_target_": "torch.nn.Linear", "in_features": 4, "out_features": 6},
    ),
}


@pytest.mark.parametrize("name", options("loss"))
def test_a_cell_learns_by_every_loss_that_is_shipped(name: str) -> None:
    case, network = NODES[name]
    loss, _, inputs, labels = CASES[case]
    node = plain(compose([f"loss={name}", "experiment=gap"]).loss)
    assert type(build(node, "loss", kind=Loss)) is type(loss)
    stored = [x.float() if x.is_floating_point() else x for x in (inputs, labels)]
    split = Split(*(x.numpy() for x in stored))
    data = Dataset(split, split)
    cell = Cell(network=network, data={"_target_": ""}, loss=node, global_batch_size=6, epochs=30, seed=0,
                optimizer={"_target_": "torch.optim.Adam", "lr": 0.05}, remedies=())  # fmt: skip
    rows, _ = train(cell, data)
    curve = [r["value"] for r in rows if (r["metric"], r.get("split")) == (loss.score, "test")]
    final = {(r["metric"], r.get("split")): r["value"] for r in rows if r.get("epoch") is None}
    assert final[loss.score, "test"] == curve[-1] == final[loss.score, "train"]
    losses = [r["value"] for r in rows if r["metric"] == "running_loss"]
    assert losses[-1] < 0.97 * losses[0]


@pytest.mark.parametrize("label", [-1, 4, 5])
def test_a_label_beyond_the_outputs_is_refused(label: int) -> None:
    with pytest.raises(InputError, match=f"gives 4 outputs per sample, but there is a label {label}"):
        CrossEntropy().fits(torch.zeros(3, 4), torch.tensor([0, 3, label]))
    CrossEntropy().fits(torch.zeros(2, 4), torch.tensor([0, 3]))


def test_a_function_of_the_users_is_scored_only_where_its_outputs_are_scores_of_classes() -> None:
    given = Given(lambda outputs, targets: (outputs[:, 0] - targets).square().sum())
    outputs = torch.tensor([[0.0, 1.0], [3.0, 1.0]])
    assert float(given.scored(outputs, torch.tensor([1, 1]))[0]) == 1.0
    for targets in (torch.tensor([1.0, 1.0]), torch.tensor([[1, 0], [0, 1]])):
        assert bool(given.scored(outputs, targets).isnan().all())
    assert float(given.total(outputs, torch.tensor([1, 1]))) == 5.0
