"""The model that is trained is the one that is measured, in every way that it travels."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lbdist import networks, results
from lbdist.data.base import on_device
from lbdist.errors import InputError
from lbdist.networks.flat import state_of
from lbdist.plan import Measurement, Point
from lbdist.sharpness.evaluator import Evaluator
from lbdist.storage import Store
from lbdist.training import checkpoint, rehearsal
from lbdist.training.batches import Workers, batches
from lbdist.training.cell import run_cell
from lbdist.training.learner import Learner, evaluating, make_learner
from lbdist.training.loop import train
from tests.support.cells import make_cell
from tests.support.impure import Versioned
from tests.support.odd_networks import INPUTS, WIDTH, odd_networks
from tests.support.samples import signals

FIT = {"_target_": "lbdist.sharpness.fit.Fit", "name": "fit"}


def equal(one: Any, other: Any) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@given(odd_networks(), st.sampled_from(["kept", "torch.save", "safetensors", "resumed"]))
@settings(max_examples=80, deadline=None)
def test_a_network_is_what_it_was_once_it_is_loaded(
    tmp_path_factory: pytest.TempPathFactory, network: nn.Module, way: str
) -> None:
    """Modules with versions among them, whose upgrade of old files is not for new ones."""
    folder = tmp_path_factory.mktemp("model")
    network = nn.Sequential(network[:-1], Versioned(nn.Linear(WIDTH, WIDTH).double()), network[-1])  # type: ignore[index]
    expected, other = state_of(network), blurred(network, frozen=way != "resumed")
    if way == "kept":
        store = Store(folder / "cells" / "abc")
        checkpoint.save_model(store, "model.safetensors", state_of(network))
        other.load_state_dict(checkpoint.load_model(store, "model.safetensors"))
    elif way == "resumed":
        learners = [Learner(n, lambda p: torch.optim.Adam(p, 0.1), Workers()) for n in (network, other)]
        content = checkpoint.pickled(learners[0].state())
        learners[1].restore(checkpoint.tensors(bytes(content), "here", "cpu"))
    else:
        file = folder / "model.pt"
        if way == "torch.save":
            torch.save(network.state_dict(), file)
        else:
            safetensors.torch.save_file({k: v.clone() for k, v in network.state_dict().items()}, file)
        other.load_state_dict(checkpoint.load_file(other, file))
    assert equal(other.state_dict(), expected)
    x = torch.randn(7, INPUTS, dtype=torch.float64)
    assert torch.equal(network.eval()(x.clone()), other.eval()(x.clone()))


def blurred(network: nn.Module, frozen: bool) -> nn.Module:
    """Another network of the same layers, its numbers others; what is frozen begins as it is when resumed."""
    other = copy.deepcopy(network)
    with torch.no_grad():
        for value in (*other.parameters(), *other.buffers()):
            if frozen or value.requires_grad or not isinstance(value, nn.Parameter):
                value.add_(1)
    return other


class Extra(nn.Linear):
    """Keeps a state that is no tensor."""

    def __init__(self) -> None:
        super().__init__(12, 4)
        self.scale = 1.0

    def get_extra_state(self) -> dict[str, float]:
        return {"scale": self.scale}

    def set_extra_state(self, state: dict[str, float]) -> None:
        self.scale = state["scale"]


class Hidden(nn.Linear):
    """A part of what it learns is in no state dict."""

    def __init__(self) -> None:
        super().__init__(12, 4)
        self.register_buffer("shift", torch.rand(4), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.shift


class Stepping(torch.optim.SGD):
    """An optimiser that counts its steps where no state dict sees it."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.steps = 0

    def step(self, closure: Any = None) -> Any:
        self.steps += 1
        for group in self.param_groups:
            group["lr"] = 0.1 / self.steps
        return super().step(closure)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"network": {"_target_": f"{__name__}.Extra"}}, "network: its _extra_state is a dict"),
        (
            {"optimizer": {"_target_": f"{__name__}.Stepping", "lr": 0.1}},
            "optimizer: its next step is another one once its state is saved",
        ),
    ],
)
def test_what_does_not_travel_is_found_before_training(change: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=f"^{said}"):
        rehearsal.rehearse(make_cell(**change), signals())


class ScheduleFree(torch.optim.Optimizer):
    """y = (1 - beta) z + beta x is where gradients are taken; x, the mean of the z, is the model."""

    def __init__(self, params: Any, lr: float = 0.5, beta: float = 0.9) -> None:
        super().__init__(params, {"lr": lr, "beta": beta})
        self.training = False

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        assert self.training
        for group in self.param_groups:
            for p in group["params"]:
                s = self.state[p]
                if not s:
                    s["x"], s["z"], s["k"] = p.clone(), p.clone(), torch.zeros(())
                s["k"] += 1
                s["z"].sub_(p.grad, alpha=group["lr"])
                s["x"].lerp_(s["z"], 1 / float(s["k"]))
                p.copy_(s["z"].lerp(s["x"], group["beta"]))

    @torch.no_grad()
    def eval(self) -> None:
        for group in self.param_groups if self.training else ():
            for p in group["params"]:
                p.copy_(self.state[p]["x"])
        self.training = False

    @torch.no_grad()
    def train(self) -> None:
        for group in self.param_groups if not self.training and self.state else ():
            for p in group["params"]:
                p.copy_(self.state[p]["z"].lerp(self.state[p]["x"], group["beta"]))
        self.training = True


FREE = {
    "by hand": {"_target_": f"{__name__}.ScheduleFree", "lr": 1.0},
    "pytorch-optimizer": {"_target_": "pytorch_optimizer.ScheduleFreeAdamW", "lr": 0.05},
    "schedulefree": {"_target_": "schedulefree.SGDScheduleFree", "lr": 1.0},
}


@pytest.mark.usefixtures("every_epoch")
@pytest.mark.parametrize("name", FREE)
def test_an_optimiser_that_evaluates_elsewhere_is_measured_there(name: str, tmp_path: Path) -> None:
    """Rows are of the model that is kept, which is the optimiser's own; a resumed run goes on alike."""
    if name == "schedulefree":
        pytest.importorskip("schedulefree")
    cell, data, store = make_cell(optimizer=FREE[name], epochs=4, test_points=4), signals(), Store(tmp_path)
    rehearsal.rehearse(cell, data)
    final = run_cell(cell, data, store)
    rows = Evaluator(data, store, "cpu").measure(Measurement(FIT, (Point(cell),)))
    measured = {row["split"]: row["value"] for row in rows if row["metric"] == "loss"}
    for split, value in measured.items():
        assert value == pytest.approx(final[f"{split}_loss"], rel=1e-5)
    learner, reference = own_loop(cell, data)
    model = checkpoint.load_model(store / results.cell_folder(cell.id), "model.safetensors")
    assert all(torch.allclose(model[k], v, atol=1e-5) for k, v in reference.items())
    assert not torch.allclose(learner.x, torch.cat([v.reshape(-1) for v in reference.values()]), atol=1e-3)
    # stopped after two epochs, and gone on from the resume file
    again = Store(tmp_path / "again")

    class Stop(Exception):
        pass

    def stop(metrics: dict[str, float]) -> None:
        if metrics["epoch"] == 2:
            raise Stop

    with pytest.raises(Stop):
        train(cell, data, store=again, report=stop)
    _, x = train(cell, data, store=again)
    _, whole = train(cell, data)
    assert torch.equal(x, whole)


def own_loop(cell: Any, data: Any) -> tuple[Learner, dict[str, Tensor]]:
    """The steps of a run without any evaluation, and the optimiser's own model."""
    learner = make_learner(cell, networks.make(cell.network, cell.seed), Workers())
    for epoch in range(cell.epochs):
        given = {"global_batch_size": cell.global_batch_size, "seed": cell.seed, "epoch": epoch}
        for batch in batches(*on_device(data.train, "cpu"), **given, workers=Workers()):
            learner.gradient(batch)
            learner.update()
    here = learner.x.clone()
    evaluating(learner.optimizer, True)
    model = {name: value.detach().clone() for name, value in learner.network.named_parameters()}
    learner.x.copy_(here)
    return learner, model
