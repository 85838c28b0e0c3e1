"""The trajectory is the same on any number of workers: every optimiser and network, killed and regrouped."""

from __future__ import annotations

import shutil
import tempfile
import time
from pathlib import Path

import pytest
import torch
from conftest import images, signals
from omegaconf import OmegaConf
from test_remedies import live
from training_cells import CONVOLUTIONAL, SGD, make_cell, start_group, train_in_group

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
        shape = (3, 32, 32) if name.startswith("c") else (40,)
        node = shipped("network", name, shape)
        fields = {"epochs": 1, "global_batch_size": 8, "optimizer": SGD, "evaluations": 1}
        found[name] = make_cell(network=node, **fields), few(shape)
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


CASES = cases()


@pytest.fixture(scope="module")
def groups() -> dict:
    return {size: dict(zip(CASES, train_in_group(size, list(CASES.values()), torch.float64), strict=True))
            for size in (2, 4)}  # fmt: skip


@pytest.mark.parametrize("label", CASES)
def test_any_number_of_workers_gives_the_same_parameters(label: str, groups: dict) -> None:
    cell, data = CASES[label]
    rows, x = train(cell, data, dtype=torch.float64)
    kept = live(cell)
    losses = [row["value"] for row in rows if row["metric"] == "running_loss"]
    for size, results in groups.items():
        other_rows, other = results[label]
        assert (other - x)[kept].norm() <= 1e-9 * x[kept].norm(), f"{size} workers"
        assert [r["value"] for r in other_rows if r["metric"] == "running_loss"] == pytest.approx(
            losses, rel=1e-9
        )


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
