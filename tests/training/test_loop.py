"""The loop: what it computes against plain PyTorch, resuming, divergence, batches, batch norm, dropout."""

import copy
import time
from typing import ClassVar

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lbdist import networks, random, results
from lbdist.data.base import on_device
from lbdist.errors import InputError
from lbdist.plan import Origin
from lbdist.remedies.base import Batch
from lbdist.results import final_metrics
from lbdist.storage import Damaged, Store
from lbdist.training import checkpoint
from lbdist.training.batch_norm import group_batch_norm
from lbdist.training.batches import Workers, batches
from lbdist.training.cell import finished_rows, run_cell
from lbdist.training.dropout import Dropouts
from lbdist.training.learner import Learner, make_learner, optimizer_factory
from lbdist.training.loop import train
from tests.support.cells import ADAM, CONVOLUTIONAL, SGD, make_cell
from tests.support.samples import images, signals


def plain_pytorch(cell, data):
    """What a user would write: one process, PyTorch's own layers and optimiser."""
    network = networks.make(cell.network, cell.seed).double()
    kind = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}[cell.optimizer["name"]]
    given = {k: v for k, v in cell.optimizer.items() if k not in ("_target_", "name")}
    optimizer = kind(network.parameters(), **given)
    inputs, labels = torch.tensor(data.train.inputs).double(), torch.tensor(data.train.labels)
    for epoch in range(cell.epochs):
        order = random.permutation(len(labels), seed=cell.seed, epoch=epoch)
        for index in order.split(cell.global_batch_size):
            optimizer.zero_grad()
            F.cross_entropy(network(inputs[index]), labels[index]).backward()
            optimizer.step()
    return network


@pytest.mark.parametrize("optimizer", [ADAM, SGD])
def test_the_loop_equals_plain_pytorch(optimizer):
    cell, data = make_cell(optimizer=optimizer, epochs=3), signals()
    reference = plain_pytorch(cell, data)
    rows, x = train(cell, data, dtype=torch.float64)
    flat = torch.cat([p.detach().flatten() for p in reference.parameters()])
    # Adam moves a bias that a batch norm takes away again by the rounding of its gradient
    torch.testing.assert_close(x, flat, rtol=1e-9, atol=1e-9)
    reference.eval()
    scores = reference(torch.tensor(data.test.inputs).double()).detach()
    labels = torch.tensor(data.test.labels)
    final = {(r["metric"], r.get("split")): r["value"] for r in rows if r.get("epoch") is None}
    assert final["loss", "test"] == pytest.approx(float(F.cross_entropy(scores, labels)), rel=1e-9)
    correct = (scores.argmax(1) == labels).double().mean()
    assert final["accuracy", "test"] == pytest.approx(100 * correct.item())
    start = torch.cat([p.detach().flatten() for p in networks.make(cell.network, 0).double().parameters()])
    assert final["distance_from_start", None] == pytest.approx(float((flat - start).norm()))


def test_the_running_loss_is_the_mean_over_the_epochs_samples():
    cell, data = make_cell(optimizer={**SGD, "lr": 0.0}, epochs=1, global_batch_size=130), signals()
    rows, _ = train(cell, data, dtype=torch.float64)
    network = networks.make(cell.network, 0).double().train()
    loss = F.cross_entropy(network(torch.tensor(data.train.inputs).double()), torch.tensor(data.train.labels))
    (running,) = [r["value"] for r in rows if r["metric"] == "running_loss"]
    assert running == pytest.approx(loss.item(), rel=1e-9)


def test_small_and_large_batch_start_from_the_same_point():
    one, other = (networks.make(make_cell(global_batch_size=b).network, 3) for b in (8, 64))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


@pytest.mark.usefixtures("every_epoch")
@pytest.mark.parametrize("network", ["dense", "convolutional"])
@pytest.mark.parametrize("remedy", ["none.NoRemedy", "growth.Growth"])
def test_a_resumed_run_is_bitwise_the_undisturbed_one(tmp_path, network, remedy):
    fields = {"rule": "norm_test", "start": 16} if remedy.startswith("growth") else {}
    changes = {"remedies": ({"_target_": f"lbdist.remedies.{remedy}", **fields},), "epochs": 6}
    data = signals()
    if network == "convolutional":
        changes, data = {**changes, "network": CONVOLUTIONAL}, images()
    cell = make_cell(**changes)
    whole_rows, whole = train(cell, data)
    store, seen = Store(tmp_path), []

    def stop(metrics):
        seen.append(metrics["epoch"])
        if len(seen) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(cell, data, store=store, report=stop)
    rows, x = train(cell, data, store=store, report=lambda m: seen.append(m["epoch"]))
    assert seen == [1, 2, 3, 4, 5, 6]
    assert torch.equal(x, whole)
    timeless = [[r for r in some if r["metric"] != "seconds"] for some in (rows, whole_rows)]
    assert timeless[0] == timeless[1]


@pytest.mark.usefixtures("every_epoch")
def test_a_damaged_checkpoint_is_as_good_as_none(tmp_path):
    cell, data, store = make_cell(), signals(), Store(tmp_path)
    _, x = train(cell, data, store=store)
    own = store / f"cells/{cell.id}"
    whole = own.read(checkpoint.RESUME)
    own.write(checkpoint.RESUME, whole[: len(whole) // 2])
    with pytest.raises(Damaged, match="is not as it was written"):
        checkpoint.load(own)
    assert torch.equal(train(cell, data, store=store)[1], x)


def test_models_are_plain_state_dicts_one_file_a_kept_epoch(tmp_path):
    cell, data = make_cell(network=CONVOLUTIONAL, epochs=4, keep=frozenset({1, 3})), images()
    run_cell(cell, data, Store(tmp_path))
    folder = tmp_path / "cells" / cell.id
    names = ["model-1.safetensors", "model-3.safetensors", "model.safetensors", "rows.parquet"]
    assert sorted(path.name for path in folder.iterdir()) == names  # the resume file is gone
    network = networks.make(cell.network)
    network.load_state_dict(safetensors.torch.load_file(folder / "model.safetensors"))
    network.eval()
    scores = network(torch.tensor(data.test.inputs) / 255)
    rows = results.read_rows(tmp_path, results.cell_file(cell.id))
    (loss,) = (r["value"] for r in rows if (r["metric"], r["split"], r["epoch"]) == ("loss", "test", None))
    assert F.cross_entropy(scores, torch.tensor(data.test.labels)).item() == pytest.approx(loss, rel=1e-5)
    # a shorter run of the same seed ends where this one was
    one = make_cell(network=CONVOLUTIONAL, epochs=1)
    _, x = train(one, data)
    kept = safetensors.torch.load_file(folder / "model-1.safetensors")
    parameters = dict(networks.make(cell.network).named_parameters())
    assert torch.equal(torch.cat([kept[name].flatten() for name in parameters]), x)


def test_a_run_begins_at_another_ones_model(tmp_path):
    data, store = signals(), Store(tmp_path)
    first = make_cell(epochs=3, keep=frozenset({2}))
    run_cell(first, data, store)
    warm = make_cell(origin=Origin(first.id, 2), epochs=1, optimizer={**SGD, "lr": 0.0})
    _, x = train(warm, data, store=store)
    kept = safetensors.torch.load_file(tmp_path / "cells" / first.id / "model-2.safetensors")
    names = dict(networks.make(first.network).named_parameters())
    assert torch.equal(torch.cat([kept[name].flatten() for name in names]), x)
    final = run_cell(warm, data, store)
    assert final["distance_from_start"] == 0.0
    with pytest.raises(FileNotFoundError):
        train(make_cell(origin=Origin(first.id, 1)), data, store=store)


def test_a_cell_whose_kept_model_is_missing_is_trained_again_to_the_same_end(tmp_path):
    cell, data, store = make_cell(epochs=3), signals(), Store(tmp_path)
    before = run_cell(cell, data, store)
    asked = make_cell(epochs=3, keep=frozenset({2}))
    assert asked.id == cell.id and finished_rows(store, cell) and not finished_rows(store, asked)
    after = run_cell(asked, data, store)
    timeless = [{k: v for k, v in final.items() if "seconds" not in k} for final in (before, after)]
    assert timeless[0] == timeless[1]
    assert finished_rows(store, asked)


class LayerWise(torch.optim.Optimizer):
    """A trust ratio a layer: each parameter moves by lr |p| along its gradient's direction."""

    seen: ClassVar[list] = []

    def __init__(self, params, lr=0.1):
        super().__init__(params, {"lr": lr})
        self.named = self.param_groups[0].get("param_names")

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                before = p.norm()
                move = p.grad * (group["lr"] * before / p.grad.norm().clamp_min(1e-30))
                p.sub_(move)
                LayerWise.seen.append((tuple(p.shape), float(move.norm() / before.clamp_min(1e-30))))


def test_a_layer_wise_optimiser_sees_layers():
    LayerWise.seen.clear()
    cell = make_cell(
        optimizer={"_target_": f"{__name__}.LayerWise", "lr": 0.1}, epochs=1, global_batch_size=130
    )
    train(cell, signals(), dtype=torch.float64)
    weights = [ratio for shape, ratio in LayerWise.seen if len(shape) == 2]
    assert len(weights) == 3 and weights == pytest.approx([0.1] * 3)
    network = networks.make(cell.network).double()
    learner = Learner(network, optimizer_factory(cell.optimizer), Workers())
    assert learner.optimizer.named == [name for name, _ in network.named_parameters()]
    assert learner.x.numel() == sum(p.numel() for p in network.parameters())
    next(network.parameters()).data.fill_(7.0)
    assert float(learner.x[0]) == 7.0  # views of one vector


def test_a_checkpoint_never_runs_code(tmp_path):
    class Attack:
        def __reduce__(self):
            return (open, (str(tmp_path / "owned"), "w"))

    torch.save({"x": Attack()}, tmp_path / "bad.pt")
    store = Store(tmp_path)
    with pytest.raises(InputError, match="not a checkpoint of tensors"):
        checkpoint.load_file(nn.Linear(1, 1), tmp_path / "bad.pt")
    checkpoint.save(store, {"x": Attack()})
    with pytest.raises(InputError, match="not a checkpoint of tensors"):
        checkpoint.load(store)
    assert not (tmp_path / "owned").exists()


def test_a_diverged_run_ends_as_a_row(tmp_path):
    cell = make_cell(optimizer={**SGD, "lr": 1e30}, epochs=50)
    final = run_cell(cell, signals(), Store(tmp_path))
    assert final["diverged"] == 1.0
    rows = results.read_rows(tmp_path, results.cell_file(cell.id))
    assert max(row["epoch"] for row in rows if row["metric"] == "running_loss") < 50
    assert {row["cell"] for row in rows} == {cell.id}


def test_what_is_no_training_is_overhead(tmp_path):
    """A cell that waited for an hour, in all that it took."""
    cell, asked = make_cell(), time.time() - 3600
    run_cell(cell, signals(), Store(tmp_path), began=asked)
    spent = [
        row["value"]
        for row in results.read_rows(tmp_path, results.cell_file(cell.id))
        if row["metric"] in ("seconds", "overhead_seconds")
    ]
    assert max(spent) >= 3600 and sum(spent) <= time.time() - asked and len(spent) == 2


def test_a_finished_cell_is_not_run_again(tmp_path):
    cell = make_cell()
    first = run_cell(cell, signals(), Store(tmp_path))
    calls = []
    assert run_cell(cell, signals(), tmp_path, report=calls.append) == first
    assert calls == []


@given(
    n=st.integers(1, 200),
    batch=st.integers(1, 70),
    workers=st.integers(1, 5),
    ghost=st.one_of(st.none(), st.integers(1, 20)),
    epoch=st.integers(0, 3),
)
def test_the_workers_slices_make_up_each_global_batch(n, batch, workers, ghost, epoch):
    inputs, labels = torch.arange(n)[:, None].float(), torch.arange(n)
    fixed = {"global_batch_size": batch, "seed": 1, "epoch": epoch, "ghost_batch_size": ghost}
    share = [list(batches(inputs, labels, workers=Workers(r, workers), **fixed)) for r in range(workers)]
    whole = list(batches(inputs, labels, workers=Workers(), **fixed))
    assert sorted(int(i) for b in whole for i in b.samples) == list(range(n))
    assert [b.size for b in whole] == [len(b.samples) for b in whole]
    for step, reference in enumerate(whole):
        parts = [slices[step] for slices in share]
        assert torch.equal(torch.cat([p.samples for p in parts]), reference.samples)
        assert torch.equal(torch.cat([p.inputs for p in parts])[:, 0].long(), reference.samples)
        for rank, part in enumerate(parts):
            assert part.offset == sum(len(p.samples) for p in parts[:rank])
            if ghost and rank and len(part.samples):
                assert part.offset % min(ghost, part.size) == 0  # a ghost group is never cut


def make_batch(n, seed=0, epoch=0):
    samples = torch.randperm(1000, generator=torch.Generator().manual_seed(n))[:n]
    return Batch(torch.randn(n, 3), torch.zeros(n, dtype=torch.int64), samples, n, 0, seed, epoch)


@given(start=st.integers(0, 30), length=st.integers(0, 30), cut=st.integers(0, 30))
def test_parts_of_a_slice_are_parts_of_the_global_batch(start, length, cut):
    whole = make_batch(30)
    local = whole.part(cut, 30)  # a worker's slice, as if it were a batch of its own
    local = Batch(local.inputs, local.labels, local.samples, 30, cut, 0, 0)
    stop = min(30, start + length)
    if stop <= start:
        return
    part = local.part(start, stop)
    assert torch.equal(part.samples, whole.samples[max(start, cut) : stop])
    assert part.size == stop - start


def test_dropout_depends_on_the_sample_and_the_call():
    network = nn.Sequential(nn.Dropout(0.5), nn.Dropout(0.5))
    dropouts = Dropouts(network)
    batch, ones = make_batch(64), torch.ones(64, 40)

    def masks(batch, ones, calls=(0, 0, 1)):
        with dropouts.drawing(batch):
            return [network[layer](ones) for layer in calls]

    whole = masks(batch, ones)
    half = Batch(batch.inputs[32:], batch.labels[32:], batch.samples[32:], 64, 32, 0, 0)
    for found, expected in zip(masks(half, ones[32:]), whole, strict=True):
        assert torch.equal(found, expected[32:])
    assert set(whole[0].unique().tolist()) == {0.0, 2.0}
    for one, other in ((0, 1), (0, 2), (1, 2)):  # two calls of one layer, and two layers, draw apart
        assert 0.45 < float((whole[one] == whole[other]).float().mean()) < 0.55
    assert not torch.equal(masks(make_batch(64, epoch=1), ones)[0], whole[0])  # and epochs
    state = torch.get_rng_state()
    masks(batch, ones)
    assert torch.equal(torch.get_rng_state(), state)


def test_other_kinds_of_dropout_are_refused():
    with pytest.raises(InputError, match="Dropout2d"):
        Dropouts(nn.Sequential(nn.Dropout2d(0.5)))


def test_global_batch_norm_on_one_worker_is_pytorchs():
    layer = nn.BatchNorm2d(5).double()
    ours = nn.Sequential(copy.deepcopy(layer))
    group_batch_norm(ours, Workers(), None)
    for _ in range(3):
        x = torch.randn(7, 5, 3, 3, dtype=torch.float64)
        torch.testing.assert_close(ours(x), layer(x))
    torch.testing.assert_close(dict(ours[0].named_buffers())["running_var"], layer.running_var)
    ours.eval(), layer.eval()
    torch.testing.assert_close(ours(x), layer(x))


def test_a_ghost_batch_norm_normalises_each_group_by_itself():
    layer = nn.BatchNorm1d(5, momentum=1.0).double()
    ours = nn.Sequential(copy.deepcopy(layer))
    group_batch_norm(ours, Workers(), 8)
    x = torch.randn(27, 5, dtype=torch.float64, requires_grad=True)
    groups = [x[:8], x[8:16], x[16:]]  # the remainder joins the last
    expected = torch.cat([copy.deepcopy(layer)(g) for g in groups])
    out = ours(x)
    ours[0].finish()
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(
        torch.autograd.grad(out.pow(3).sum(), x)[0], torch.autograd.grad(expected.pow(3).sum(), x)[0]
    )
    mean, variance = (
        torch.stack([f(g, 0) for g in groups]).mean(0).detach() for f in (torch.mean, torch.var)
    )
    torch.testing.assert_close(ours[0].running_mean, mean)
    torch.testing.assert_close(ours[0].running_var, variance)


def test_accumulation_needs_a_declared_group():
    with pytest.raises(InputError, match="micro_batch_size=8"):
        train(make_cell(micro_batch_size=8), signals())


def test_g_is_what_a_remedy_reads_and_writes_and_what_the_optimiser_steps_along():
    """Whether it was asked for or not, and as often as it was."""
    cell, samples, ends = make_cell(optimizer=SGD), on_device(signals().train, "cpu"), []
    for use in ("not at all", "read", "written", "replaced"):
        learner = make_learner(cell, networks.make(cell.network, 0), Workers())
        for batch in batches(*samples, global_batch_size=10, seed=0, epoch=0, workers=Workers()):
            learner.gradient(batch)
            if use == "read":
                assert learner.g.norm() > 0
            elif use == "written":
                learner.g *= 2
                learner.g /= 2
            elif use == "replaced":
                learner.g = learner.g.clone()
                assert learner.g.data_ptr() == learner.gradients[0].data_ptr()
            learner.update()
        ends.append(learner.x.clone())
    assert all(torch.equal(ends[0], x) for x in ends[1:])


def test_a_batch_of_one_sample_is_no_trouble():
    _, x = train(make_cell(global_batch_size=43), signals(train=44))
    assert torch.isfinite(x).all()


@pytest.mark.usefixtures("every_epoch")
def test_a_run_ends_where_its_training_loss_is_what_it_was_to_come_to(tmp_path):
    """As f has it, evaluated after each epoch; resumed from any of them it ends at the same one."""
    data, store = signals(), Store(tmp_path)
    rows, _ = train(make_cell(epochs=12), data)
    losses = {r["epoch"]: r["value"] for r in rows
              if r["metric"] == "loss" and r.get("split") == "train" and r.get("epoch")}  # fmt: skip
    target = losses[6]
    cell = make_cell(epochs=12, target_loss=target)
    found, x = train(cell, data)
    running = [r["epoch"] for r in found if r["metric"] == "running_loss"]
    assert running == list(range(1, 7)) and min(losses, key=lambda epoch: losses[epoch] > target) == 6
    final = {(r["metric"], r.get("split")): r["value"] for r in found if r.get("epoch") is None}
    assert final["loss", "train"] == target

    def stop(metrics):
        if metrics["epoch"] == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(cell, data, store=store, report=stop)
    again, resumed = train(cell, data, store=store)
    assert torch.equal(resumed, x) and [r["value"] for r in again if r["metric"] == "loss"] == [
        r["value"] for r in found if r["metric"] == "loss"
    ]
    assert final_metrics(found)["train_loss"] == target


def test_the_curve_is_of_both_splits_and_a_search_is_of_its_validation_split(tmp_path):
    data = signals()
    rows, _ = train(make_cell(epochs=4, test_points=2), data)
    points = [(r["epoch"], r["split"]) for r in rows if r["metric"] == "accuracy" and r.get("epoch")]
    assert points == [(2, "train"), (2, "test"), (4, "train"), (4, "test")]
    held_out = data.validation_split(0.25)
    rows, _ = train(make_cell(epochs=4, test_points=2, validation_fraction=0.25), held_out)
    points = [(r["epoch"], r["split"]) for r in rows if r["metric"] == "accuracy" and r.get("epoch")]
    assert points == [(2, "validation"), (4, "train"), (4, "validation")]
