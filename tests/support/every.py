"""Every remedy, optimiser and network that is shipped, and every kind of batch norm, as a small cell."""

from __future__ import annotations

import itertools

import torch
from omegaconf import OmegaConf
from torch import nn

from lbdist import networks
from lbdist.config.build import plain
from lbdist.config.compose import compose, config_root
from lbdist.data.base import Dataset, Split
from lbdist.plan import Cell
from tests.support.cells import CONVOLUTIONAL, SGD, make_cell
from tests.support.samples import images, signals

NAMES = sorted(path.stem for path in (config_root() / "remedy").glob("*.yaml"))
VARIANTS = {
    "growth": {"rule": "norm_test", "start": 20, "theta": 0.5},
    "robust": {"ascent_steps": 2, "norm": "inf", "rho": 0.01},
}


def remedy(name, **changes):
    node = OmegaConf.create({"small_batch": 16, **OmegaConf.load(config_root() / "remedy" / f"{name}.yaml")})
    return {**{k: v for k, v in plain(node)[name].items() if k != "search"}, **changes}


def remedy_cases():
    """(id, cell, data): every remedy as shipped and in its other forms, on signals and on images."""
    epochs = {name: 2 if name == "growth" else 1 for name in NAMES}  # the norm test shows in the second
    for name in NAMES:
        for variant in [{}] + ([VARIANTS[name]] if name in VARIANTS else []):
            # 130 samples in batches of 48: the last has 34, which 4 workers cannot share evenly
            cell = make_cell(remedies=[remedy(name, **variant)], epochs=epochs[name])
            label = "-".join([name, *map(str, variant.values())])
            yield label, cell, signals()
            image = make_cell(remedies=[remedy(name, **variant)], network=CONVOLUTIONAL,
                              global_batch_size=32, optimizer=SGD, epochs=epochs[name])  # fmt: skip
            yield f"{label}-images", image, images()
    several = [remedy("augmentation"), remedy("conservative"), remedy("robust", rho=0.05)]
    yield "combination", make_cell(remedies=several, epochs=1), signals()
    yield "ghost", make_cell(ghost_batch_size=8), signals()
    yield "ghost-accumulation", make_cell(ghost_batch_size=4, micro_batch_size=8, optimizer=SGD), signals()
    yield "tiny-last-batch", make_cell(global_batch_size=43), signals(train=130)


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
        inputs = torch.rand(count, *shape, generator=generator)
        if len(shape) == 3:  # pictures
            inputs = inputs.mul(255).byte()
        return Split(inputs.numpy(), torch.randint(0, 10, (count,), generator=generator).numpy())

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
        fields = {"epochs": 1, "global_batch_size": batch, "optimizer": SGD, "test_points": 1}
        found[name] = make_cell(network=node, **fields), few(shape)
    # batch norm in every kind, global and ghost; dropout used twice, and under activation checkpointing
    kinds = [
        {"momentum": momentum, "affine": affine, "track": track}
        for momentum, affine, track in itertools.product((0.1, 0.0, None), (True, False), (True, False))
    ]
    for kind in [*kinds, {"dropouts": True}, {"checkpoint": True}]:
        node = {"_target_": "tests.support.cells.Normed", **kind}
        found[f"normed {kind}"] = make_cell(network=node, optimizer=SGD), signals()
    untracked = {"_target_": "tests.support.cells.Normed", "track": False}
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


CASES = {label: (cell, data) for label, cell, data in remedy_cases()} | cases()


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
