"""Layers as people have them: batch norms, dropout used twice, checkpointed, weights that were loaded."""

from __future__ import annotations

import copy
import itertools
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from lbdist import networks, results
from lbdist.errors import InputError
from lbdist.storage import Store
from lbdist.training.batch_norm import group_batch_norm
from lbdist.training.batches import Workers, batches
from lbdist.training.cell import run_cell
from lbdist.training.deadline import Deadline
from lbdist.training.learner import Learner
from tests.support.cells import end_group, make_cell, start_group
from tests.support.samples import signals

KINDS = list(itertools.product((0.1, 0.0, 0.7, None), (True, False), (True, False)))


@pytest.mark.parametrize(("momentum", "affine", "track"), KINDS)
def test_batch_norm_is_pytorchs_in_every_kind(momentum: float | None, affine: bool, track: bool) -> None:
    options = {"momentum": momentum, "affine": affine, "track_running_stats": track}
    reference = nn.BatchNorm1d(5, **options).double()
    ours = nn.Sequential(copy.deepcopy(reference))
    (layer,) = group_batch_norm(ours, Workers(), None)
    assert isinstance(layer, nn.BatchNorm1d)  # a network that asks for the kind still finds it
    for step in range(4):
        x = torch.randn(7, 5, dtype=torch.float64) * 2 + 1
        if step == 2:
            reference.eval(), ours.eval()
        torch.testing.assert_close(ours(x), reference(x))
        reference.train(), ours.train()
        for (name, found), (_, expected) in zip(
            layer.named_buffers(), reference.named_buffers(), strict=True
        ):
            torch.testing.assert_close(found, expected, msg=name)
    assert set(layer.state_dict()) == set(reference.state_dict())


def test_ghost_batches_count_as_one_batch() -> None:
    layer = nn.BatchNorm1d(5, momentum=None).double()
    ours = nn.Sequential(copy.deepcopy(layer))
    group_batch_norm(ours, Workers(), 4)
    means = []
    for _ in range(3):
        x = torch.randn(12, 5, dtype=torch.float64)
        ours(x)
        ours[0].finish()
        means.append(x.mean(0))
    assert int(ours[0].num_batches_tracked) == 3
    torch.testing.assert_close(ours[0].running_mean, torch.stack(means).mean(0))  # cumulative


@pytest.mark.parametrize("momentum", [0.1, 0.0])
def test_a_layer_that_nothing_passes_keeps_its_averages(momentum: float) -> None:
    class Beside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.BatchNorm1d(5), nn.BatchNorm1d(5, momentum=momentum)

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x)

    network = Beside()
    for norm in group_batch_norm(network, Workers(), 4):
        norm.tracking = True
    network(torch.randn(12, 5))
    for norm in (network.used, network.unused):
        norm.finish()
    assert network.unused.running_mean.eq(0).all() and network.unused.running_var.eq(1).all()
    assert not network.used.running_mean.eq(0).any()


def test_a_subclass_without_a_forward_of_its_own_is_a_batch_norm() -> None:
    class Slow(nn.BatchNorm1d):
        def __init__(self, width: int) -> None:
            super().__init__(width, momentum=0.01, eps=1e-3)

    network = nn.Sequential(Slow(5))
    (layer,) = group_batch_norm(network, Workers(), None)
    assert isinstance(layer, Slow) and layer.momentum == 0.01 and layer.eps == 1e-3


def test_checkpointed_dropout_has_the_gradient_of_its_own_mask() -> None:
    """The backward pass computes the block again; its masks must be those of the forward pass."""
    inputs, labels = torch.randn(64, 12).double(), torch.zeros(64).long()
    fixed = {"global_batch_size": 64, "seed": 0, "epoch": 0, "workers": Workers(), "dtype": torch.float64}
    gradients = []
    for checkpoint in (False, True):
        network = networks.make(
            {"_target_": "tests.support.cells.Normed", "dropouts": True, "checkpoint": checkpoint}
        )
        learner = Learner(network.double(), lambda named: torch.optim.SGD(named, 0.1), Workers())
        (batch,) = batches(inputs, labels, **fixed)  # type: ignore[arg-type]
        learner.gradient(batch)
        gradients.append(learner.g.clone())
    torch.testing.assert_close(gradients[0], gradients[1])


def test_workers_at_different_layers_are_refused(tmp_path: Path) -> None:
    cell = make_cell(network={"_target_": "tests.support.cells.Fork"}, epochs=5)
    work = [(cell, signals())]
    assert end_group(start_group(tmp_path, 2, work, torch.float64)) == [1, 1]
    said = [(tmp_path / f"error-{rank}").read_text() for rank in range(2)]
    assert all(
        "InputError: network: some workers were at another batch norm than others" in err for err in said
    )


# weights that were loaded, and reparametrised ones


class Pretrained(nn.Module):
    def __init__(self, trainable: bool = True) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(12, 12), nn.Linear(12, 4)
        self.body.weight.data = torch.linspace(-1, 1, 144).view(12, 12)
        self.body.requires_grad_(trainable)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.body(x)))


def test_loaded_weights_are_kept_or_drawn_as_asked() -> None:
    node = {"_target_": f"{__name__}.Pretrained"}
    loaded = torch.linspace(-1, 1, 144).view(12, 12)
    with pytest.raises(InputError, match=r"body\.weight is the same for every seed.*network\.init=keep"):
        networks.check_start(node)
    for seed in (0, 1):
        kept = networks.make({**node, "init": "keep"}, seed)
        assert torch.equal(kept.body.weight, loaded)
        drawn = networks.make({**node, "init": "glorot"}, seed)
        assert torch.equal(drawn.body.weight, loaded)  # what was loaded is never drawn anew
        assert torch.equal(drawn.body.bias, kept.body.bias)
        assert not torch.equal(drawn.head.weight, kept.head.weight) and not drawn.head.bias.any()
    frozen = networks.make({**node, "trainable": False}, 0)
    assert torch.equal(frozen.body.weight, loaded)  # what is not trained is not drawn
    with pytest.raises(InputError, match=r"body\.weight is the same for every seed"):
        networks.check_start({**node, "trainable": False})
    for init in ("keep", "glorot"):
        networks.check_start({**node, "init": init})
    with pytest.raises(InputError, match=r"network\.init=zeros: must be glorot or keep"):
        networks.make({**node, "init": "zeros"})


def test_reparametrised_weights_are_started_by_what_they_are() -> None:
    torch.manual_seed(0)
    for wrap in (nn.utils.parametrizations.weight_norm, nn.utils.parametrizations.spectral_norm):
        layer = wrap(nn.Linear(400, 300))
        before = layer.weight.detach().clone()
        networks._start("layer", layer)
        if wrap is nn.utils.parametrizations.weight_norm:
            assert float(layer.weight.detach().abs().max()) == pytest.approx((6 / 700) ** 0.5, rel=1e-3)
        assert not torch.equal(layer.weight, before) and layer.bias.eq(0).all()
    with pytest.raises(InputError, match="a hook computes it"):
        networks._start("layer", nn.utils.spectral_norm(nn.Linear(4, 3)))


# what never ends


class Stuck(nn.Module):
    """Never returns from its eleventh training step."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.calls = nn.Linear(12, 4), 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += self.training and len(x) > 4
        while self.calls > 10:
            time.sleep(0.1)
        return self.layer(x)


def test_a_cell_that_never_ends_is_ended(tmp_path: Path) -> None:
    """The process dies, having written what did not end; another cell is not touched."""
    program = f"""
import sys
sys.path[:0] = {sys.path!r}
from tests.support.cells import make_cell
from tests.support.samples import signals
from lbdist.storage import Store
from lbdist.training import loop
from lbdist.training.cell import run_cell
loop._patience = lambda seconds: 2.0
loop.SHARE = float("inf")
cell = make_cell(network={{"_target_": "{__name__}.Stuck"}}, epochs=50)
run_cell(cell, signals(), Store({str(tmp_path)!r}))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=100)
    assert done.returncode == 1, done.stderr
    (folder,) = (tmp_path / "cells").iterdir()
    assert (tmp_path / results.late_file(folder.name)).read_text() == "epoch 4 did not end within 2 s"
    assert (folder / "resume.pt").exists()  # from which a retry goes on


def test_a_deadline_that_is_kept_does_nothing() -> None:
    said: list[str] = []
    before = threading.active_count()
    with Deadline(said.append) as deadline:
        for _ in range(20):
            deadline.allow(0.5, "a nap")
            time.sleep(0.05)
    with Deadline(said.append) as deadline:
        deadline.allow(1000, "what ends long before")
        time.sleep(0.5)  # by now its end is far for who watches
    time.sleep(0.6)
    assert said == [] and threading.active_count() == before  # nothing watches any longer


def test_a_late_note_is_gone_once_the_cell_is_finished(tmp_path: Path) -> None:
    cell, store = make_cell(), Store(tmp_path)
    store.write(results.late_file(cell.id), b"epoch 1 did not end within 9 s")
    run_cell(cell, signals(), store)
    assert not store.exists(results.late_file(cell.id))
