"""All remedies, found by listing the folder; that workers do not matter: tests/training/test_workers.py."""

import itertools

import pytest
import torch

from lbdist.config.build import build
from lbdist.errors import InputError
from lbdist.remedies.base import make_remedy
from lbdist.remedies.growth import Growth
from lbdist.training.batches import Workers, batches
from lbdist.training.loop import train
from tests.support.cells import make_cell
from tests.support.every import NAMES, remedy
from tests.support.samples import signals


@pytest.mark.parametrize("name", NAMES)
def test_a_remedy_learns_and_counts_its_cost(name):
    cell = make_cell(remedies=[remedy(name)], epochs=12)
    rows, _ = train(cell, signals(train=300))
    final = {r["metric"]: r["value"] for r in rows if r.get("epoch") is None and r.get("split") != "train"}
    assert final["accuracy"] > 60  # chance is 25
    made = build(cell.remedies[0], "remedy")
    sizes = [made.batch_size(48, epoch, 12) for epoch in range(12)]
    steps = sum(-(-300 // size) for size in sizes)
    assert final["steps"] == steps
    assert final["gradient_evaluations"] == steps * made.gradients_per_step()
    assert final["samples"] == 12 * 300 * made.gradients_per_step()


def run(cell, data):
    return train(cell, data, dtype=torch.float64)[1]


def test_a_remedy_switched_off_is_plain_training():
    plain_run = run(make_cell(), signals())
    off = {
        "conservative": {"proximal": 0.0, "iterations": 1},
        "robust": {"rho": 0.0},
        "adversarial": {"epsilon": 0.0},
        "augmentation": {"strength": 0.0},
        "growth": {"start": 48},
    }
    for name, fields in off.items():
        x = run(make_cell(remedies=[remedy(name, **fields)]), signals())
        torch.testing.assert_close(x, plain_run, rtol=1e-9, atol=1e-12)


class Quadratic:
    """A learner whose f is ½ |x - 1|²: what each remedy does to it is known in closed form."""

    def __init__(self, x, lr):
        self.x, self.g, self.lr, self.at = x.clone(), torch.zeros_like(x), lr, []

    def gradient(self, batch, *, weight=1.0, add=False, statistics=True):
        self.at.append(self.x.clone())
        self.g.copy_(self.x - 1)

    def update(self):
        self.x -= self.lr * self.g


def step(made, learner):
    """One step of a remedy, as the loop takes it."""
    made.step(learner, None, lambda: made.gradient(learner, None))


def test_conservative_solves_the_proximal_problem():
    x = torch.randn(5, dtype=torch.float64)
    learner, strength = Quadratic(x, lr=0.3), 0.7
    step(build(remedy("conservative", proximal=strength, iterations=200), "remedy"), learner)
    torch.testing.assert_close(learner.x, (1 + strength * x) / (1 + strength))  # argmin ½|y-1|² + λ/2|y-x|²


def test_robust_descends_from_x_along_the_gradient_at_the_worst_point():
    x = torch.randn(5, dtype=torch.float64)
    learner = Quadratic(x, lr=0.1)
    step(build(remedy("robust", rho=0.25), "remedy"), learner)
    worst = x + 0.25 * (x - 1) / (x - 1).norm()
    torch.testing.assert_close(learner.at[1], worst)
    torch.testing.assert_close(learner.x, x - 0.1 * (worst - 1))
    learner = Quadratic(x, lr=0.1)
    step(build(remedy("robust", rho=0.25, ascent_steps=3, norm="inf"), "remedy"), learner)
    torch.testing.assert_close(learner.at[-1], x + 0.25 * (x - 1).sign())


def test_growth_goes_from_small_to_large():
    made = Growth(start=32, stages=4)
    sizes = [made.batch_size(400, epoch, 40) for epoch in range(40)]
    assert sizes[0] == 32 and sizes[-1] == 400 and sizes == sorted(sizes)
    assert [len(list(group)) for _, group in itertools.groupby(sizes)] == [10, 10, 10, 10]


def test_the_norm_test_grows_when_the_gradient_drowns_in_noise():
    grow = remedy("growth", rule="norm_test", start=16, theta=0.3)
    cell = make_cell(remedies=[grow], epochs=25)
    rows, _ = train(cell, signals(train=300))
    steps = [r["step"] for r in rows if r["metric"] == "running_loss"]
    per_epoch = [b - a for a, b in itertools.pairwise([0, *steps])]
    assert per_epoch[0] == 19 and per_epoch[-1] < 19 and per_epoch == sorted(per_epoch, reverse=True)


def test_a_combination_of_conservative_and_robust_is_both():
    x, strength, rho = torch.randn(5, dtype=torch.float64), 0.7, 0.01
    learner = Quadratic(x, lr=0.3)
    names = {"conservative": {"proximal": strength, "iterations": 400}, "robust": {"rho": rho}}
    step(make_remedy([{**remedy(name, **fields), "name": name} for name, fields in names.items()]), learner)
    # at the fixed point the gradient at y + rho (y - 1) / |y - 1| balances the proximal term
    y = learner.x
    gradient = y - 1 + rho * (y - 1) / (y - 1).norm()
    torch.testing.assert_close(gradient, strength * (x - y))


def test_transforms_follow_each_other():
    nodes = [{**remedy("augmentation"), "name": "a"}, {**remedy("growth", start=16), "name": "growth"}]
    both, data = make_remedy(nodes), signals()
    batch = next(iter(batches(torch.from_numpy(data.train.inputs), torch.from_numpy(data.train.labels),
                              global_batch_size=48, seed=0, epoch=0, workers=Workers())))  # fmt: skip
    alone = build(nodes[0], "remedy").transform(batch)
    assert torch.equal(both.transform(batch).inputs, alone.inputs)
    assert both.batch_size(48, 0, 8) == 16 and both.gradients_per_step() == 1.0


@pytest.mark.parametrize(
    ("names", "hook"), [(("robust", "adversarial"), "gradient"), (("growth", "growth"), "batch_size")]
)
def test_remedies_that_exclude_each_other_say_so_in_one_line(names, hook):
    nodes = [{**remedy(name), "name": f"{name}{place}"} for place, name in enumerate(names)]
    with pytest.raises(InputError) as error:
        make_remedy(nodes)
    said = str(error.value)
    assert said.startswith(f"combinations=[{names[0]}0,{names[1]}1]: must not combine") and hook in said
    assert "\n" not in said


@pytest.mark.parametrize(
    ("name", "fields", "said"),
    [
        ("robust", {"rho": -1}, "remedy.robust.rho=-1"),
        ("robust", {"norm": "1"}, "remedy.robust.norm=1"),
        ("growth", {"stages": 1}, "remedy.growth.stages=1"),
        ("adversarial", {"weight": 2}, "remedy.adversarial.weight=2"),
        ("conservative", {"iterations": 0}, "remedy.conservative.iterations=0"),
        ("augmentation", {"shift": -0.1}, "remedy.augmentation.shift=-0.1"),
    ],
)
def test_a_wrong_hyperparameter_is_one_clear_line(name, fields, said):
    with pytest.raises(InputError, match="must be") as error:
        build(remedy(name, **fields), f"remedy.{name}")
    assert str(error.value).startswith(said) and "\n" not in str(error.value)
