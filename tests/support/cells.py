"""Small cells, and a group of real gloo processes to train them in."""

import dataclasses
import math
import multiprocessing
import os
import pickle
import tempfile
import traceback
from collections.abc import Sequence
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lbdist.config.build import plain
from lbdist.data.base import Dataset
from lbdist.plan import Cell
from lbdist.storage import Store
from lbdist.training import buckets, loop
from lbdist.training.cell import run_cell
from lbdist.training.loop import train
from lbdist.training.precision import EXACT, Arithmetic
from tests.support import seeds

SERVER = multiprocessing.get_context("forkserver")
"""Starts the processes of groups, from one that has imported what they all need."""

SERVER.set_forkserver_preload([__name__, "torch._dynamo"])

DENSE = {"_target_": "lbdist.networks.dense.Dense", "inputs": 12, "widths": [16, 16], "classes": 4}
CONVOLUTIONAL = {"_target_": "tests.support.cells.Small", "name": "small"}
ADAM = {"_target_": "torch.optim.Adam", "name": "adam", "lr": 1e-2}
SGD = {"_target_": "torch.optim.SGD", "name": "sgd", "lr": 0.05, "momentum": 0.9}


class Small(nn.Sequential):
    """Convolution, batch norm, dropout and pooling for 3 x 8 x 8 images."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(0.3), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(96, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 4),
        )  # fmt: skip


class Greedy(nn.Sequential):
    """A dense network that has no memory for more than some samples."""

    def __init__(self, most: int = 16) -> None:
        super().__init__(nn.Linear(12, 4))
        self.most = most

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > self.most:
            raise torch.OutOfMemoryError("no memory")
        return super().forward(x)


class Normed(nn.Module):
    """A dense network with a batch norm of any kind, and a dropout used twice, checkpointed or not."""

    def __init__(
        self,
        momentum: float | None = 0.1,
        affine: bool = True,
        track: bool = True,
        dropouts: bool = False,
        checkpoint: bool = False,
    ) -> None:
        super().__init__()
        self.body = nn.Linear(12, 8)
        self.norm = nn.BatchNorm1d(8, momentum=momentum, affine=affine, track_running_stats=track)
        self.drop = nn.Dropout(0.3 if dropouts or checkpoint else 0.0)
        self.head, self.checkpoint = nn.Linear(8, 4), checkpoint

    def _twice(self, x: Tensor) -> Tensor:
        return self.drop(torch.tanh(self.drop(x)))

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.body(x))
        x = checkpoint(self._twice, x, use_reentrant=False) if self.checkpoint else self._twice(x)
        return self.head(x)


class Fork(nn.Module):
    """Workers take different batch norms, which nothing shows on one worker."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.head = nn.BatchNorm1d(12), nn.BatchNorm1d(12), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        rank = dist.get_rank() if dist.is_initialized() else 0
        return self.head(self.two(x) if rank else self.one(x))


def make_cell(**changes: Any) -> Cell:
    """A cell of the dense network on signals, LB without remedy, changed as asked."""
    base = Cell(
        network={**DENSE, "name": "dense"}, optimizer=ADAM, data={"_target_": "none", "name": "signals"},
        loss={"_target_": "lbdist.losses.CrossEntropy"}, remedies=(), global_batch_size=48, epochs=2, seed=0,
        num_workers=1,
    )  # fmt: skip
    return dataclasses.replace(base, **plain(changes))


def start_group(
    home: Path,
    size: int,
    work: Sequence[tuple[Cell, Dataset]],
    dtype: torch.dtype,
    arithmetic: Arithmetic = EXACT,
    store: Store | None = None,
    whole: bool = False,
    bucket: int | None = None,
) -> list[ForkServerProcess]:
    """`size` processes, joined by gloo, that train cells one after the other.

    What ends a process with an exception is in the file `error-RANK` of its home. Gradients are summed in
    buckets of at least so many bytes, if any.
    """
    how = (dtype, arithmetic, store, whole, bucket)
    group = [SERVER.Process(target=_member, args=(home, rank, size, work, *how)) for rank in range(size)]
    for process in group:
        process.start()
    return group


def end_group(group: Sequence[ForkServerProcess], seconds: float = 240) -> list[int | None]:
    """The exit codes of a group that ends by itself; what has not by then has none, and is killed."""
    for process in group:
        process.join(seconds)
    codes = [process.exitcode for process in group]
    for process in group:
        process.kill()
    return codes


def train_in_group(
    size: int, work: Sequence[tuple[Cell, Dataset]], dtype: torch.dtype, *options: Any, **more: Any
) -> list[Any]:
    """Trains cells one after the other in `size` real processes joined by gloo; worker 0's results.

    These are what `train` gives, or, of `whole` cells, `run_cell`; the options are those of `start_group`.
    """
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        group = start_group(home, size, work, dtype, *options, **more)
        codes = end_group(group)
        failed = [file.read_text() for file in home.glob("error-*")]
        assert codes == [0] * size, "\n".join(failed)
        results: list[Any] = pickle.loads((home / "results.pickle").read_bytes())
        return results


def _member(
    home: Path,
    rank: int,
    size: int,
    work: Sequence[tuple[Cell, Dataset]],
    dtype: torch.dtype,
    arithmetic: Arithmetic,
    store: Store | None,
    whole: bool,
    bucket: int | None,
) -> None:
    torch.set_num_threads(1)
    seeds.shift()
    dist.init_process_group("gloo", init_method=f"file://{home}/store", rank=rank, world_size=size)
    buckets.BUCKET_BYTES = bucket or buckets.BUCKET_BYTES
    loop.SHARE = math.inf  # a resume file after every epoch
    how = {"arithmetic": arithmetic, "store": store}
    try:
        results: list[Any] = [
            run_cell(cell, data, **how) if whole else train(cell, data, dtype=dtype, **how)
            for cell, data in work
        ]
    except Exception:
        (home / f"error-{rank}").write_text(traceback.format_exc())
        os._exit(1)
    if rank == 0:
        (home / "results.pickle").write_bytes(pickle.dumps(results))
    dist.barrier()
    dist.destroy_process_group()
    os._exit(0)  # a thread of gloo's that is still there would end the process with status -6
