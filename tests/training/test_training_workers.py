"""The trajectory is the same on any number of workers: every optimiser and network, killed and regrouped."""

from __future__ import annotations

import itertools
import shutil
import tempfile
import time
from pathlib import Path

import pytest
import test_remedies
import torch
from conftest import images, signals
from omegaconf import OmegaConf
from torch import nn
from training_cells import CONVOLUTIONAL, SGD, make_cell, start_group, train_in_group

from lbdist import networks
from lbdist.config.build import plain
from lbdist.config.compose import compose, config_root
from lbdist.data.base import Dataset, Split
from lbdist.plan import Cell
from lbdist.storage import Store
from lbdist.training import checkpoint
from lbdist.training.loop import train

OPTIMIZERS = sorted(path.stem for path in (config_root() / "optimizer").glob("*.yaml"))
NETWORKS = sorted(path.stem for path in (config_root() / "network").glob("*.yaml"))


def shipped(group: str, name: str, shape: tuple[int, ...] = ()) -> dict:
    config = compose([f"{group}={name}"])
    size = int(torch.Size(shape).numel())
    config.derived.update({"inputs": size, "channels": 3, "classes": 10, "outputs": 10})
    OmegaConf.resolve(config)
    return plain(config[group])


def few(shape: tuple[int, ...]) -> Dataset:
    """Twelve samples of ten classes."""
    made = images if len(shape) == 3 else signals
    data = made(train=12, test=4)
    generator = torch.Generator().manual_seed(0)

    def split(count: int) -> Split:
        inputs = torch.rand(count, *shape, generator=generator).mul(255).byte().numpy()
        return Split(inputs, torch.randint(0, 10, (count,), generator=generator).numpy())

    return Dataset(split(len(data.train)), split(len(data.test)), 10)


def cases() -> dict[str, tuple[Cell, Dataset]]:
    found = {}
    for name in OPTIMIZERS:
        # 130 samples in batches of 48: the last has 34, which 4 workers cannot share evenly
        found[name] = make_cell(optimizer=shipped("optimizer", name)), signals()
    for name in NETWORKS:  # c3 and c4 are c1 and c2 with more outputs
        if name in ("c3", "c4"):
            continue
        batch = 12 if name == "c2" else 8  # of 12 samples: one step is enough of 15 million parameters
        shape = (3, 32, 32) if name.startswith("c") else (40,)
        node = shipped("network", name, shape)
        fields = {"epochs": 1, "global_batch_size": batch, "optimizer": SGD, "evaluations": 1}
        found[name] = make_cell(network=node, **fields), few(shape)
    # batch norm in every kind, global and ghost; dropout used twice, and under activation checkpointing
    kinds = [
        {"momentum": momentum, "affine": affine, "track": track}
        for momentum, affine, track in itertools.product((0.1, 0.0, None), (True, False), (True, False))
    ]
    for kind in [*kinds, {"dropouts": True}, {"checkpoint": True}]:
        node = {"_target_": "training_cells.Normed", **kind}
        found[f"normed {kind}"] = make_cell(network=node, optimizer=SGD), signals()
    untracked = {"_target_": "training_cells.Normed", "track": False}
    found["untracked, ghost"] = make_cell(network=untracked, optimizer=SGD, ghost_batch_size=16), signals()
    schedule = {"warmup": 0.5, "decay": "cosine"}
    found["schedule"] = make_cell(optimizer=SGD, schedule=schedule), signals()
    found["patience"] = make_cell(epochs=40, patience=1), signals()
    found["ghost batches accumulated"] = (
        make_cell(
            network=CONVOLUTIONAL, ghost_batch_size=4, micro_batch_size=8, global_batch_size=32, epochs=1
        ),
        images(),
    )
    return found


CASES = {label: (cell, data) for label, cell, data in test_remedies.cases()} | cases()


@pytest.fixture(scope="module")
def groups():
    """Each number of workers, and what it gives; four of them sum their gradients in small buckets."""
    given = list(CASES.values()), torch.float64
    return {size: dict(zip(CASES, train_in_group(size, *given, bucket=bucket), strict=True))
            for size, bucket in ((2, None), (4, 500))}  # fmt: skip


def live(cell):
    """Which parameters f depends on: not the biases that a batch norm subtracts again.

    Their gradient is rounding, which ADAM scales up; the function is the same.
    """
    network = networks.make(cell.network)
    flags = {name: torch.ones_like(p, dtype=torch.bool) for name, p in network.named_parameters()}
    for (name, _), (_, after) in itertools.pairwise(network.named_children()):
        if isinstance(after, nn.modules.batchnorm._BatchNorm):
            flags[f"{name}.bias"].zero_()
    return torch.cat([flag.flatten() for flag in flags.values()])


@pytest.mark.parametrize("label", CASES)
def test_any_number_of_workers_gives_the_same_result(label, groups):
    cell, data = CASES[label]
    rows, x = train(cell, data, dtype=torch.float64)
    values = {(r["metric"], r.get("split"), r.get("epoch")): r["value"] for r in rows}
    kept = live(cell)
    # ADAM moves dead biases by rounding, the proximal term feeds that back, and running averages lag behind
    tolerance = 1e-9 if "SGD" in cell.optimizer["_target_"] else 1e-7
    tolerance = 2e-3 if label in ("conservative", "combination", "lamb") else tolerance
    for size, results in groups.items():
        other_rows, other = results[label]
        assert torch.linalg.norm((other - x)[kept]) <= 1e-9 * torch.linalg.norm(x[kept]), f"{size} workers"
        for r in other_rows:
            if r["metric"] not in ("seconds", "distance_from_start"):
                same = tolerance if r.get("split") and r["metric"] != "running_loss" else 1e-9
                key = r["metric"], r.get("split"), r.get("epoch")
                assert r["value"] == pytest.approx(values[key], rel=same)


def test_a_killed_group_goes_on_bitwise_and_on_another_number_of_workers_to_rounding(tmp_path: Path) -> None:
    data = signals()
    cell = make_cell(optimizer=SGD, epochs=60, evaluations=1)
    ((_, undisturbed),) = train_in_group(2, [(cell, data)], torch.float64)
    _, alone = train(cell, data, dtype=torch.float64)
    store = Store(tmp_path / "killed")
    own = store / f"cells/{cell.id}"
    with tempfile.TemporaryDirectory() as folder:
        group = start_group(Path(folder), 2, [(cell, data)], torch.float64, store=store)
        end = time.monotonic() + 60
        epoch = 0
        while epoch < 5:
            assert time.monotonic() < end and group[0].poll() is None
            time.sleep(0.01)
            if own.exists(checkpoint.RESUME):
                epoch = checkpoint.load(own)["course"]["epoch"]
        for process in group:
            process.kill()
            process.wait(20)
    epoch = checkpoint.load(own)["course"]["epoch"]
    assert 5 <= epoch < 60
    shutil.copytree(tmp_path / "killed", tmp_path / "alone")
    ((_, again),) = train_in_group(2, [(cell, data)], torch.float64, store=store)
    assert torch.equal(again, undisturbed)
    reports: list[float] = []
    _, fewer = train(cell, data, dtype=torch.float64, store=Store(tmp_path / "alone"),
                     report=lambda metrics: reports.append(metrics["epoch"]))  # fmt: skip
    assert reports[0] == epoch + 1  # nothing was trained twice
    for x in (undisturbed, fewer):
        assert (x - alone).norm() <= 1e-9 * alone.norm()
