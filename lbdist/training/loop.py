"""The training loop. It knows nothing of Ray: with a torch.distributed group it is data-parallel, without
one it is a plain loop, and the trajectory is the same to rounding.

    learner = Learner(...)
    for epoch in epochs:
        for batch in batches(seed, epoch):      # this worker's slice of each global batch
            batch = remedy.transform(batch)
            remedy.step(learner, batch)
        remedy.after_epoch(learner, batch)
        evaluate; report; checkpoint
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lbdist import networks, results
from lbdist.config.build import build
from lbdist.data.base import Dataset, Split, to_float
from lbdist.errors import InputError
from lbdist.losses import CrossEntropy, Loss
from lbdist.networks.flat import Flat, buffers
from lbdist.plan import Cell
from lbdist.remedies.base import Batch, Remedy
from lbdist.storage import Store
from lbdist.training import checkpoint
from lbdist.training.batch_norm import group_batch_norm
from lbdist.training.batches import Workers, batches
from lbdist.training.dropout import Dropouts

Row = dict[str, Any]


class Learner:
    """A network in training: the global gradient, the optimiser, and what they have cost so far.

    Args:
        network: The network at its starting point, on its device and in its precision; changed in place.
        make_optimizer: Maps a list of parameters to an optimiser.
        workers: The data-parallel group.
        ghost_batch_size: Batch-norm group in samples; None for the whole global batch.
        micro_batch_size: Samples taken through the network at once; None for all of this worker's share.
        criterion: What is learnt; None for cross-entropy over classes.
    """

    def __init__(
        self,
        network: nn.Module,
        make_optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer],
        workers: Workers,
        ghost_batch_size: int | None = None,
        micro_batch_size: int | None = None,
        criterion: Loss | None = None,
    ) -> None:
        self.network = network.train()
        self.criterion = criterion or CrossEntropy()
        self.workers = workers
        self.micro_batch_size, self.ghost_batch_size = micro_batch_size, ghost_batch_size
        self.norms = group_batch_norm(network, workers, ghost_batch_size)
        if micro_batch_size is not None and self.norms and ghost_batch_size is None:
            raise InputError(
                f"micro_batch_size={micro_batch_size}: batch normalisation over the global batch needs a "
                "worker's whole share at once; set ghost_batch_size as well, or micro_batch_size=null"
            )
        self.dropouts = Dropouts(network)
        self.flat = Flat(network)
        self.x, self.g = self.flat.x.detach(), self.flat.g
        self.optimizer = make_optimizer([self.flat.x])
        self.loss = torch.zeros((), dtype=torch.float64, device=self.x.device)  # summed over samples
        self.loss_samples = 0.0
        self.counts = {"steps": 0, "gradient_evaluations": 0, "samples": 0}

    def gradient(
        self, batch: Batch, *, weight: float = 1.0, add: bool = False, statistics: bool = True
    ) -> None:
        """Sets g to the gradient of the global batch's mean loss at x (see `remedies.base.Learner`)."""
        before = self.g.clone() if add else None
        self.g.zero_()
        for norm in self.norms:
            norm.tracking = statistics
        scale = weight / batch.size
        for start, stop in self._micro_batches(len(batch.labels)):
            micro = batch.local(start, stop)
            self.dropouts.draw(micro)
            loss = self.criterion.total(self.network(micro.inputs), micro.labels) * scale
            loss.backward()
            self.loss += loss.detach() * batch.size
        for norm in self.norms:
            norm.finish()
        self.loss_samples += weight * batch.size
        self.workers.sum(self.g)
        if before is not None:
            self.g += before
        self.counts["gradient_evaluations"] += 1
        self.counts["samples"] += batch.size

    def _micro_batches(self, count: int) -> list[tuple[int, int]]:
        """Bounds of this worker's micro-batches; what is less than a ghost group joins the one before.

        A worker without samples still takes part, in the batch norm's collective calls.
        """
        size, ghost = self.micro_batch_size or max(1, count), self.ghost_batch_size or 1
        starts = [s for s in range(0, count, size) if s == 0 or count - s >= ghost] or [0]
        return list(zip(starts, [*starts[1:], count], strict=True))

    def input_gradient(self, batch: Batch) -> Tensor:
        """The gradient of the summed loss with respect to this worker's inputs, in training mode."""
        for norm in self.norms:
            norm.tracking = False
        self.dropouts.draw(batch)
        inputs = batch.inputs.detach().requires_grad_()
        loss = self.criterion.total(self.network(inputs), batch.labels)
        self.counts["gradient_evaluations"] += 1
        self.counts["samples"] += batch.size
        return torch.autograd.grad(loss, inputs)[0]

    def update(self) -> None:
        """One step of the optimiser along g."""
        self.optimizer.step()

    @torch.no_grad()
    def evaluate(self, split: tuple[Tensor, Tensor], micro_batch_size: int = 1000) -> tuple[float, float]:
        """Mean loss and score over a split, with the running averages of batch norm."""
        inputs, labels = split
        start, stop = self.workers.share(len(labels))
        sums: Tensor | None = None
        self.network.eval()
        bounds = [(at, min(at + micro_batch_size, stop)) for at in range(start, stop, micro_batch_size)]
        for begin, end in bounds or [(0, 1)]:
            outputs = self.network(to_float(inputs[begin:end], self.x.dtype))
            loss = self.criterion.total(outputs, labels[begin:end]).double()[None]
            found = torch.cat([loss, self.criterion.scored(outputs, labels[begin:end])])
            sums = found if sums is None else sums + found
        if not bounds and sums is not None:
            sums.zero_()  # a worker without samples takes part in the sum with nothing
        self.network.train()
        assert sums is not None
        sums = self.workers.sum(sums)
        return float(sums[0]) / len(labels), self.criterion.value(sums[1:], len(labels))

    def state(self) -> dict[str, Any]:
        """Everything that the rest of the run depends on."""
        return {
            "x": self.x,
            "buffers": dict(buffers(self.network)),
            "optimizer": self.optimizer.state_dict(),
            "counts": self.counts,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Takes back what `state` gave."""
        self.x.copy_(state["x"])
        own = dict(buffers(self.network))
        for name, value in state["buffers"].items():
            own[name].copy_(value)
        self.optimizer.load_state_dict(state["optimizer"])
        self.counts = dict(state["counts"])


def optimizer_factory(node: dict[str, Any]) -> Callable[[list[nn.Parameter]], torch.optim.Optimizer]:
    """The constructor of a configured optimiser; PyTorch's fused kernels are used where it has them."""

    def make(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        optimizer: torch.optim.Optimizer = build(node, "optimizer", parameters)
        if "fused" in optimizer.defaults and optimizer.defaults["fused"] is None:
            return build({**node, "fused": True}, "optimizer", parameters)
        return optimizer

    return make


def on_device(
    split: Split, device: torch.device | str, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """A split as tensors: uint8 stays uint8, floating point takes the run's precision."""
    inputs = torch.from_numpy(np.array(split.inputs, copy=not split.inputs.flags.writeable))
    inputs = inputs.to(device, dtype if inputs.is_floating_point() else None)
    return inputs, torch.from_numpy(np.array(split.labels, copy=not split.labels.flags.writeable)).to(device)


def train(
    cell: Cell,
    data: Dataset,
    *,
    workers: Workers | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    store: Store | None = None,
    report: Callable[[dict[str, float]], None] = lambda metrics: None,
) -> tuple[list[Row], Tensor]:
    """Trains one cell from its checkpoint or its start to its last epoch.

    Args:
        cell: What to train.
        data: Training set, and the split on which the curve is measured (test or validation).
        workers: This process's place in the data-parallel group; None asks torch.distributed.
        device: Where to train.
        dtype: Precision of parameters and samples.
        store: The cell's own folder. Its checkpoint is read at the start and written after every epoch by
            worker 0; None keeps none.
        report: Called by every worker after every epoch with the latest metrics.

    Returns:
        The cell's rows (the same on every worker) and the final parameters, shape (n,).
    """
    workers = workers or Workers.current()
    remedy: Remedy = build(cell.remedy, f"remedy.{cell.remedy_name}")
    network = networks.make(cell.network, cell.seed).to(device, dtype)
    learner = Learner(
        network, optimizer_factory(cell.optimizer), workers, cell.ghost_batch_size, cell.micro_batch_size
    )
    start = learner.x.clone()
    train_split, test_split = on_device(data.train, device, dtype), on_device(data.test, device, dtype)
    split = "validation" if cell.stage == "search" else "test"
    history: list[Row] = []
    seconds, first, diverged = 0.0, 0, False
    state = _resume(store, device)
    if state is not None:
        learner.restore(state["learner"])
        remedy.restore(state["remedy"])
        history, seconds, first, diverged = (
            state["history"],
            state["seconds"],
            state["epoch"],
            state["diverged"],
        )
    every = max(1, cell.epochs // cell.evaluations)
    for epoch in range(first, cell.epochs):
        if diverged:
            break
        began = time.perf_counter()
        learner.loss.zero_()
        learner.loss_samples = 0.0
        size = remedy.batch_size(cell.global_batch_size, epoch, cell.epochs)
        whole = None
        for batch in batches(
            *train_split,
            global_batch_size=size,
            seed=cell.seed,
            epoch=epoch,
            workers=workers,
            ghost_batch_size=cell.ghost_batch_size,
            dtype=dtype,
        ):
            batch = remedy.transform(batch)
            remedy.step(learner, batch)
            learner.counts["steps"] += 1
            whole = batch if batch.size == size or whole is None else whole
        running = float(workers.sum(learner.loss)) / learner.loss_samples
        diverged = not math.isfinite(running)
        assert whole is not None
        remedy.after_epoch(learner, whole)
        point = {"epoch": epoch + 1, "step": learner.counts["steps"]}
        history.append({**point, "metric": "running_loss", "value": running, "split": "train"})
        metrics = {"epoch": epoch + 1, "running_loss": running}
        last = epoch + 1 == cell.epochs or diverged
        if last or (epoch + 1) % every == 0:
            loss, accuracy = learner.evaluate(test_split)
            history += [
                {**point, "metric": "loss", "value": loss, "split": split},
                {**point, "metric": "accuracy", "value": accuracy, "split": split},
            ]
            metrics |= {"loss": loss, "accuracy": accuracy}
        seconds += time.perf_counter() - began
        if store is not None and workers.rank == 0:
            checkpoint.save(
                store,
                {
                    "learner": learner.state(),
                    "remedy": remedy.state(),
                    "history": history,
                    "seconds": seconds,
                    "epoch": epoch + 1,
                    "diverged": diverged,
                },
            )
        report(metrics)
    return history + _final(learner, train_split, test_split, split, start, seconds, diverged), learner.x


def _resume(store: Store | None, device: torch.device | str) -> dict[str, Any] | None:
    """The last whole checkpoint; a damaged one is as good as none."""
    if store is None:
        return None
    try:
        return checkpoint.load(store, device)
    except (FileNotFoundError, InputError):
        return None


def _final(
    learner: Learner,
    train_split: tuple[Tensor, Tensor],
    test_split: tuple[Tensor, Tensor],
    split: str,
    start: Tensor,
    seconds: float,
    diverged: bool,
) -> list[Row]:
    rows: list[Row] = []
    for name, tensors in (("train", train_split), (split, test_split)):
        loss, accuracy = learner.evaluate(tensors)
        rows += [
            {"metric": "loss", "value": loss, "split": name},
            {"metric": "accuracy", "value": accuracy, "split": name},
        ]
    totals = {
        **learner.counts,
        "seconds": seconds,
        "distance_from_start": float((learner.x - start).norm()),
        "diverged": float(diverged),
    }
    return rows + [{"metric": metric, "value": float(value)} for metric, value in totals.items()]


def run_cell(
    cell: Cell,
    data: Dataset,
    store: Store,
    device: torch.device | str = "cpu",
    report: Callable[[dict[str, float]], None] = lambda metrics: None,
) -> dict[str, float]:
    """Trains a cell and writes its rows; a cell that has its rows is only read.

    Every worker of a group calls this; worker 0 writes.

    Returns:
        The final metrics, for Tune.
    """
    rows: Sequence[Row] = results.job_rows(store, cell.id)
    if not rows:
        workers = Workers.current()
        if cell.validation_fraction is not None:
            data = data.validation_split(cell.validation_fraction)
        own = store / f"cells/{cell.id}"
        rows, _ = train(cell, data, workers=workers, device=device, store=own, report=report)
        if workers.rank == 0:
            results.write_rows(store, cell.id, [{**cell.columns(), **row} for row in rows])
    return final_metrics(rows)


def final_metrics(rows: Sequence[Row]) -> dict[str, float]:
    """The final values among a cell's rows, by name; `accuracy` and `loss` are those off the training set."""
    return {
        row["metric"]: row["value"]
        for row in rows
        if row.get("epoch") is None and row.get("split") != "train"
    }
