"""What a cell may run instead of its training: the same work, timed, by lbdist and by what one would write.

Each trains the cell's network on the cell's data with its batch and optimiser for its epochs, evaluates on
the training and the test set as often, and once more in float32 where it trains in less, and tells what a
median epoch takes, what the first takes longer, and what all of it takes.
"""

from __future__ import annotations

import itertools
import math
import statistics
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from lbdist import networks, results
from lbdist.data.base import Split, handed_out, on_device, to_float
from lbdist.results import Row
from lbdist.training import checkpoint, loop
from lbdist.training.cell import Task
from lbdist.training.hardware import peak_memory, rates, using, wait
from lbdist.training.learner import evaluating, optimizer_factory
from lbdist.training.precision import EXACT, Arithmetic

Epoch = Callable[[], None]
"""Called after each epoch."""


@dataclass
class Procedure(ABC):
    """One way to train a cell, timed.

    Attributes:
        threads: Of a CPU, for each worker.
    """

    threads = 1

    def __call__(self, task: Task) -> list[Row]:
        """Trains the cell.

        Returns:
            Final rows: test `loss` and score; `samples_per_second` of a median epoch but the first, what is
            evaluated after it included; `startup_seconds`, by which the first epoch takes longer;
            `whole_seconds`, from the building of the network to the last file; `peak_memory`, bytes of the
            process, or on a GPU of its tensors; `share_of_limit`, `limit` over the time of an epoch.
        """
        self._warm_up(task)
        with peak_memory(task.device) as peak:
            ends = [time.perf_counter()]

            def epoch() -> None:
                wait(task.device)
                ends.append(time.perf_counter())

            loss, score = self.train(task, epoch)
            wait(task.device)
            whole = time.perf_counter() - ends[0]
        times = [after - before for before, after in itertools.pairwise(ends)]
        usual = statistics.median(times[1:] or times)
        found = {
            "samples_per_second": len(task.data.train) / usual,
            "startup_seconds": times[0] - usual,
            "whole_seconds": whole,
            "peak_memory": peak(),
            "share_of_limit": self.limit(task) / usual,
            "seconds": sum(times),
            "threads": self.threads,
        }
        rows: list[Row] = [
            {"metric": "loss", "value": loss, "split": "test"},
            {"metric": task.criterion.score, "value": score, "split": "test"},
        ]
        how = self.arithmetic(task.arithmetic).columns()
        return [{**row, **how} for row in rows + [{"metric": k, "value": float(v)} for k, v in found.items()]]

    def _warm_up(self, task: Task) -> None:
        """A step on a few samples: what a process imports and prepares once is no part of a cell's time."""
        few, how = on_device(task.data.train.first(2), task.device), self.arithmetic(task.arithmetic)
        network = networks.make(task.cell.network).to(task.device).eval()
        optimizer = optimizer_factory(task.cell.optimizer)(list(network.named_parameters()))
        evaluating(optimizer, False)
        with how.applied(), how.forward(next(network.parameters())):
            outputs = network(handed_out(few[0]))
        task.criterion.total(outputs.float(), few[1]).backward()
        optimizer.step()

    def arithmetic(self, chosen: Arithmetic) -> Arithmetic:
        """In which it trains, given what lbdist has chosen."""
        return chosen

    @abstractmethod
    def train(self, task: Task, epoch: Epoch) -> tuple[float, float]:
        """Trains for the cell's epochs and calls `epoch` after each; the test loss and score at the end."""

    def limit(self, task: Task) -> float:
        """Seconds under which no epoch can be on this hardware.

        Products take at least what a large one takes a FLOP; each step reads the parameters twice, writes and
        reads the gradient, and reads and writes the parameters, no faster than a large copy.
        """
        cell, samples, how = task.cell, task.data.train, self.arithmetic(task.arithmetic)
        network = networks.make(cell.network)
        flops = networks.sample_flops(network, samples.inputs[:2], task.criterion.check(task.data))
        steps = math.ceil(len(samples) / cell.global_batch_size)
        moved = 6 * 4 * networks.parameter_count(network) * steps
        with how.applied():
            rate, bandwidth = rates(task.device, how.precision == "bfloat16")
        return float(max(flops * len(samples) / task.workers.size / rate, moved / bandwidth))


@dataclass
class Lbdist(Procedure):
    """lbdist's own loop, with the files that it writes.

    Attributes:
        precision: The cell's; None for the study's.
    """

    precision: str | None = None

    def train(self, task: Task, epoch: Epoch) -> tuple[float, float]:
        """See `lbdist.training.loop.train`."""
        cell, store = task.cell, task.store
        store.remove(f"{results.cell_folder(cell.id)}/{checkpoint.RESUME}")  # of a try that was cut off
        rows, _ = loop.train(
            cell,
            task.data,
            workers=task.workers,
            device=task.device,
            arithmetic=task.arithmetic,
            store=store,
            report=lambda metrics: epoch(),
        )
        final = results.final_metrics(rows)
        return final["test_loss"], final[results.final_name(task.criterion.score, "test")]


@dataclass
class Bare(Procedure):
    """A plain loop over tensors that are in memory: PyTorch's layers, its fused optimiser, nothing else.

    Attributes:
        precision: `float32` or `bfloat16` (autocast).
        threads: Of a CPU.
    """

    precision: str = "float32"
    threads: int = 1

    def arithmetic(self, chosen: Arithmetic) -> Arithmetic:
        """The precision that it is given, whatever lbdist has chosen."""
        return Arithmetic(self.precision)

    def train(self, task: Task, epoch: Epoch) -> tuple[float, float]:
        """Shuffles by index; everything else is PyTorch's."""
        cell, device = task.cell, task.device
        with using(self.threads):
            network = networks.make(cell.network, cell.seed).to(device)
            inputs, labels = _tensors(task.data.train, device)
            test = _tensors(task.data.test, device)
            splits = [
                list(zip(*(tensor.split(1000) for tensor in split), strict=True))
                for split in ((inputs, labels), test)
            ]

            def batches(number: int) -> Iterator[tuple[Tensor, Tensor]]:
                for index in torch.randperm(len(labels), device=device).split(cell.global_batch_size):
                    yield inputs[index], labels[index]

            return _plain(task, network, batches, splits, self.arithmetic(task.arithmetic), epoch)

    def limit(self, task: Task) -> float:
        """The limit of as many threads."""
        with using(self.threads):
            return super().limit(task)


@dataclass
class Loader(Procedure):
    """What most would write: a torchvision data set, a `DataLoader`, on several workers
    `DistributedDataParallel`, in float32.

    Attributes:
        processes: That load samples, for each worker.
    """

    processes: int = 2

    def arithmetic(self, chosen: Arithmetic) -> Arithmetic:
        """Always float32."""
        return EXACT

    def train(self, task: Task, epoch: Epoch) -> tuple[float, float]:
        """Each image is decoded to a PIL image and turned into a tensor; batches are collated."""
        cell, several = task.cell, task.workers.size > 1
        network: nn.Module = networks.make(cell.network, cell.seed).to(task.device)
        if several:
            network = DistributedDataParallel(network)
        train = _data_set(task.data.train)
        sampler: Any = DistributedSampler(train, seed=cell.seed) if several else None
        many: dict[str, Any] = {"num_workers": self.processes, "pin_memory": task.device.type == "cuda"}
        many |= {"persistent_workers": self.processes > 0}
        share = math.ceil(cell.global_batch_size / task.workers.size)
        given = DataLoader(train, share, shuffle=sampler is None, sampler=sampler, **many)
        splits = [DataLoader(split, 1000, **many) for split in (train, _data_set(task.data.test))]

        def batches(number: int) -> Iterator[tuple[Tensor, Tensor]]:
            if sampler is not None:
                sampler.set_epoch(number)
            yield from given

        return _plain(task, network, batches, splits, EXACT, epoch)


def _plain(
    task: Task,
    network: nn.Module,
    batches: Callable[[int], Iterator[tuple[Tensor, Tensor]]],
    splits: Sequence[Iterable[tuple[Tensor, Tensor]]],
    arithmetic: Arithmetic,
    epoch: Epoch,
) -> tuple[float, float]:
    """The loop of every introduction to PyTorch; the last of the splits is the test set."""
    cell, device, criterion = task.cell, task.device, task.criterion
    optimizer = optimizer_factory(cell.optimizer)(list(network.named_parameters()))
    evaluating(optimizer, False)
    every, found = max(1, cell.epochs // cell.test_points), (math.nan, math.nan)
    like = next(network.parameters())

    def outputs(inputs: Tensor, arithmetic: Arithmetic = arithmetic) -> Tensor:
        with arithmetic.forward(like):
            made: Tensor = network(inputs)
        return made.float()

    @torch.no_grad()
    def evaluated(split: Iterable[tuple[Tensor, Tensor]], how: Arithmetic) -> tuple[float, float]:
        sums, count = [], 0
        for inputs, labels in split:
            inputs, labels = inputs.to(device), labels.to(device)
            made = outputs(inputs, how)
            loss = criterion.total(made, labels).double()[None]
            sums.append(torch.cat([loss, criterion.scored(made, labels)]))
            count += len(labels)
        total = torch.stack(sums).sum(0)
        return float(total[0]) / count, criterion.value(total[1:], count)

    with arithmetic.applied():
        for number in range(cell.epochs):
            network.train()
            for inputs, labels in batches(number):
                inputs, labels = inputs.to(device, non_blocking=True), labels.to(device, non_blocking=True)
                optimizer.zero_grad()
                (criterion.total(outputs(inputs), labels) / len(labels)).backward()
                optimizer.step()
            if (number + 1) % every == 0 or number + 1 == cell.epochs:
                network.eval()
                evaluating(optimizer, True)
                for how in dict.fromkeys((arithmetic, EXACT) if number + 1 == cell.epochs else (arithmetic,)):
                    *_, found = [evaluated(split, how) for split in splits]
                evaluating(optimizer, False)
            epoch()
    return found


def _tensors(split: Split, device: torch.device) -> tuple[Tensor, Tensor]:
    inputs, labels = on_device(split, device)
    return to_float(inputs), labels


def _data_set(split: Split) -> Any:
    """A split as a data set: uint8 images as torchvision's give them."""
    if split.inputs.dtype != "uint8" or split.inputs.ndim != 4:
        return TensorDataset(*_tensors(split, torch.device("cpu")))
    from torchvision.datasets import VisionDataset  # slow to import
    from torchvision.transforms.functional import to_pil_image, to_tensor

    class Images(VisionDataset):
        def __len__(self) -> int:
            return len(split)

        def __getitem__(self, index: int) -> tuple[Tensor, int]:
            image = to_pil_image(torch.from_numpy(split.inputs[index].copy()))
            return to_tensor(image), int(split.labels[index])

    return Images(root="")
