"""What can be known of cells before they run: whether they can, what they cost, in what they are fastest."""

from __future__ import annotations

import functools
import math
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor

from lbdist import networks
from lbdist.config.build import build
from lbdist.data.base import Dataset, handed_out, on_device
from lbdist.errors import InputError, one_line, warn
from lbdist.losses import Loss
from lbdist.objective import Objective
from lbdist.plan import AUTO, Cell, held_out
from lbdist.remedies.base import Batch, make_remedy
from lbdist.training import checkpoint
from lbdist.training.batches import Workers, batches
from lbdist.training.deadline import Deadline
from lbdist.training.hardware import using
from lbdist.training.learner import Learner, make_learner
from lbdist.training.precision import Arithmetic, candidates, in_which, native, plainest
from lbdist.training.proof import same
from lbdist.training.seeds_at_once import SeedsAtOnce

CONTEXT_BYTES = 0.6 * 2**30
"""What CUDA takes of a GPU's memory for each process, beside its tensors."""

MEASURED_SAMPLES, MEASURED_SECONDS, MEASURED_TIMES = 256, 0.2, 15
"""A precision is measured on at most so many samples, for so long or so often."""


def gradients(cell: Cell, train_size: int) -> tuple[int, float]:
    """The gradients that a cell will take, and the samples that they see, both as far as is known."""
    remedy, samples = make_remedy(cell.remedies), train_size - held_out(train_size, cell.validation_fraction)
    sizes = [remedy.batch_size(cell.global_batch_size, epoch, cell.epochs) for epoch in range(cell.epochs)]
    each = remedy.gradients_per_step()
    return round(each * sum(math.ceil(samples / size) for size in sizes)), each * samples * cell.epochs


def rehearse(cell: Cell, data: Dataset, limit: float = 300.0, thorough: bool = True) -> None:
    """One step of a cell's learner on a few samples, to see before anything starts that it can be taken.

    Args:
        cell: The cell.
        data: Training and test set.
        thorough: Whether the network is passed through many times (see `training.proof`), and its
            model and its resume file are written and read, and give what was there.
        limit: Seconds after which the process ends, with one line and status 2.

    Raises:
        InputError: What the network, the loss or the optimiser does not allow.
    """

    def late(what: str) -> None:
        warn(f"network: {what}")

    few = on_device(data.train.first(4), "cpu")
    with Deadline(late, 2) as deadline:
        deadline.allow(limit, f"a training step on {len(few[1])} samples")
        network = networks.make(cell.network, cell.seed)
        networks.check(network)
        learner = make_learner(cell, network.float(), Workers(), plainest(cell.precision))
        (batch,) = batches(*few, global_batch_size=4, seed=0, epoch=0, workers=Workers())

        def first() -> None:
            learner.prove(batch, thorough)
            learner.gradient(batch)

        def remedied() -> None:
            remedy = make_remedy(cell.remedies)
            changed = remedy.transform(batch)
            remedy.step(learner, changed, functools.partial(remedy.gradient, learner, changed))

        steps: dict[str, Callable[[], None]] = {"network": first, "optimizer": learner.update}
        if cell.remedies:
            steps[f"remedy.{cell.remedy}"] = remedied
        if thorough:
            steps["network, saved and loaded"] = lambda: _travels(cell, learner, few)
            steps["optimizer, resumed"] = lambda: _resumes(cell, learner, batch)
        for key, do in steps.items():
            try:
                do()
            except InputError:
                raise
            except Exception as error:
                raise InputError(f"{key}: {_why(error)}") from error


@torch.no_grad()
def _travels(cell: Cell, learner: Learner, few: tuple[Tensor, Tensor]) -> None:
    """The model that is saved is the one that was trained, once it is loaded again.

    Raises:
        InputError: It is another one.
    """
    network, model = networks.make(cell.network, cell.seed).float(), learner.model()
    network.load_state_dict(checkpoint.unpacked(checkpoint.packed(model, "model"), "model", "model"))
    for name, value in network.state_dict().items():
        if not torch.equal(value, model[name]) and not bool((value.isnan() & model[name].isnan()).any()):
            raise InputError(f"network: its {name} is not what it was once a model is saved and loaded")
    with learner.at_the_model():
        learner.network.eval()
        trained = learner.network(handed_out(few[0]))
        learner.network.train()
    network.eval()
    if not same(network(handed_out(few[0])), trained):
        raise InputError(
            "network: it gives something else once its state dict is saved and loaded: what it learns must "
            "lie in parameters and persistent buffers"
        )


def _resumes(cell: Cell, learner: Learner, batch: Batch) -> None:
    """A run that is resumed goes on as it would have.

    Raises:
        InputError: It does not.
    """
    state = checkpoint.tensors(bytes(checkpoint.pickled(learner.state())), "resume", "cpu")
    other = make_learner(cell, networks.make(cell.network, cell.seed).float(), Workers(), learner.arithmetic)
    other.restore(state)
    for one in (learner, other):
        one.gradient(batch)
        one.update()
    if not same(other.x, learner.x):
        raise InputError(
            "optimizer: its next step is another one once its state is saved and loaded, so that a run that "
            "is resumed would not go on as it was"
        )


def _why(error: Exception) -> str:
    """What a training step failed of."""
    said = one_line(error)
    if "create_graph" in said or "does not have a grad_fn" in said:
        return f"wants second derivatives (create_graph=True), which lbdist does not take: {said[:200]}"
    return f"{type(error).__name__} in training: {said[:300]}"


def memory(cells: Sequence[Cell], data: Dataset) -> tuple[float, float]:
    """What cells take of a GPU: a step of each, an evaluation, and a gradient of f.

    Args:
        cells: One of each kind.
        data: Training and test set.

    Returns:
        Bytes that the largest of them takes in a process of its own, and bytes that the GPU has.
    """
    for cell in cells:
        torch.cuda.empty_cache()
        train_split = on_device(data.train, "cuda")
        network = networks.make(cell.network, cell.seed).to("cuda").float()
        learner = make_learner(cell, network, Workers())
        remedy = make_remedy(cell.remedies)
        for epoch in {0, cell.epochs - 1}:  # a batch may grow
            size = remedy.batch_size(cell.global_batch_size, epoch, cell.epochs)
            given = batches(
                *train_split,
                global_batch_size=size,
                seed=0,
                epoch=0,
                workers=Workers(),
                ghost_batch_size=cell.ghost_batch_size,
                device=torch.device("cuda"),
            )
            batch = remedy.transform(next(iter(given)))
            remedy.step(learner, batch, functools.partial(remedy.gradient, learner, batch))
        learner.evaluate(train_split)
        f = Objective(network, train_split, loss=learner.criterion)
        f(f.x)
    return CONTEXT_BYTES + torch.cuda.max_memory_reserved(), torch.cuda.mem_get_info()[1]


def speeds(
    cells: Iterable[Cell], data: Dataset, device: str, threads: int | None = None
) -> tuple[dict[Arithmetic, float], set[str]]:
    """What the gradients of cells of one network take in each arithmetic that they could be computed in.

    Args:
        cells: The cells; those of one batch are measured once, on a few samples.
        data: Training and test set.
        device: Where to measure.
        threads: Of the CPU, for as long as it lasts; None for as many as there are.

    Returns:
        Seconds of all gradients together, and the precisions that `auto` may resolve to on this device. What
        the network does not bear is left out; nothing is measured where there is nothing to choose.
    """
    cells = list(cells)
    images, there = data.train.inputs.ndim == 4, native(gpu=device != "cpu")
    choice = candidates({cell.precision for cell in cells}, images, there)
    one_format = len({arithmetic.channels_last for arithmetic in choice}) == 1
    if one_format and (len(choice) == 1 or all(cell.precision != AUTO for cell in cells)):
        return {}, there
    work: dict[int, tuple[Cell, float]] = {}
    for cell in cells:
        size = min(cell.global_batch_size, MEASURED_SAMPLES, len(data.train))
        number, samples = gradients(cell, len(data.train))
        first, so_far = work.get(size, (cell, 0.0))
        work[size] = first, so_far + max(number, samples / size)
    found = dict.fromkeys(choice, 0.0)
    with using(threads or torch.get_num_threads()):
        for size, (cell, steps) in work.items():
            seconds = _seconds(cell, size, data, device, list(found))
            found = {arithmetic: found[arithmetic] + steps * taken for arithmetic, taken in seconds.items()}
    return found, there


def estimate(cells: Sequence[Cell], data: Dataset, device: str) -> dict[str, float]:
    """About how many seconds each cell takes in one process of one thread, by a step that is measured here.

    Args:
        cells: The cells; those of one network and batch are measured once, on a few samples, in float32 where
            the precision is open.
        data: Training and test set.
        device: Where to measure.

    Returns:
        Seconds by the cell's id: of its gradients, and of its points of the test curve.
    """
    steps: dict[tuple[str, int], float] = {}
    found = {}
    with using(1):
        for cell in cells:
            size = min(cell.global_batch_size, MEASURED_SAMPLES, len(data.train))
            kind = repr(cell.network), size
            if kind not in steps:
                how = plainest(cell.precision)
                steps[kind] = _seconds(cell, size, data, device, [how]).get(how, math.nan)
            number, samples = gradients(cell, len(data.train))
            looked_at = min(cell.test_points, cell.epochs) * (len(data.train) + len(data.test)) / 3
            found[cell.id] = steps[kind] * (max(number, samples / size) + looked_at / size)
    return found


def seconds_of_f(cell: Cell, data: Dataset, device: str) -> float:
    """About how many seconds f and its gradient take over the training set, in one process of one thread.

    Args:
        cell: One whose network and loss it is of.
        data: Training and test set.
        device: Where to measure, on a few samples.
    """
    some = on_device(data.train.first(min(MEASURED_SAMPLES, len(data.train))), device)
    loss: Loss = build(cell.loss, "loss", kind=Loss)
    taken = []
    with using(1):
        f = Objective(networks.make(cell.network, cell.seed).to(device).float(), some, loss=loss)
        for _ in range(3):  # the first proves what f is, and warms up
            began = time.perf_counter()
            f(f.x)
            taken.append(time.perf_counter() - began)
    return min(taken) * len(data.train) / len(some[1])


def gain_at_once(
    kinds: Sequence[tuple[Cell, int]], data: Dataset, device: str, arithmetic: Mapping[str, Arithmetic]
) -> list[float]:
    """How much faster several cells of a kind are trained at once than one after the other.

    Args:
        kinds: A cell of each kind, and how many of it at once.
        data: Training and test set.
        device: Where to measure.
        arithmetic: What each precision that cells ask for resolves to.

    Returns:
        For each kind, the time of a step of all cells one by one over that of one together; 0 where their
        gradients cannot be computed together.
    """
    found: list[float] = []
    for cell, count in kinds:
        try:
            how = in_which(arithmetic, cell)
            (alone, _), (together, joined) = (_step(cell, many, data, device, how) for many in (1, count))
            found.append(count * alone / together if joined else 0.0)
        except torch.OutOfMemoryError:
            found.append(0.0)
    return found


def _step(cell: Cell, count: int, data: Dataset, device: str, arithmetic: Arithmetic) -> tuple[float, bool]:
    """The median time of a step of so many cells at once, and whether their gradients are taken together."""
    size = min(cell.global_batch_size, len(data.train))
    some = on_device(data.train.first(size), device)
    together, times = SeedsAtOnce(), []

    def steps(number: int, say: object) -> None:
        network = networks.make(cell.network, cell.seed + number).to(device).float()
        learner = make_learner(cell, network, Workers(), arithmetic, together.gradient)
        (batch,) = batches(
            *some, global_batch_size=size, seed=number, epoch=0, workers=Workers(), device=learner.x.device
        )
        began = time.perf_counter()
        for _ in range(MEASURED_TIMES):
            learner.gradient(batch)
            learner.update()
            if number == 0:  # the first steps warm up
                if device != "cpu":
                    torch.cuda.synchronize()
                began, before = time.perf_counter(), began
                times.append(began - before)

    together.run([functools.partial(steps, number) for number in range(count)], lambda metrics: None)
    return statistics.median(times[2:]), bool(together.works)


def _seconds(
    cell: Cell, size: int, data: Dataset, device: str, choice: Sequence[Arithmetic]
) -> dict[Arithmetic, float]:
    """The time of a gradient of `size` samples in each arithmetic that the network bears.

    The minimum of interleaved timings, since whatever else the machine does can only add to one.
    """
    some = on_device(data.train.first(size), device)
    (batch,) = batches(*some, global_batch_size=size, seed=0, epoch=0, workers=Workers())
    learners = {
        arithmetic: make_learner(
            cell, networks.make(cell.network, cell.seed).to(device).float(), Workers(), arithmetic
        )
        for arithmetic in choice
    }
    times: dict[Arithmetic, list[float]] = {arithmetic: [] for arithmetic in choice}
    for turn in range(MEASURED_TIMES + 1):
        for arithmetic in list(times):
            try:
                with arithmetic.applied():
                    began = time.perf_counter()
                    learners[arithmetic].gradient(batch)
                    learners[arithmetic].update()
                    if device != "cpu":
                        torch.cuda.synchronize()
            except Exception:  # a layer without a kernel for it, a view that wants another memory format
                del times[arithmetic]
                continue
            if turn > 0:  # the first warms up
                times[arithmetic].append(time.perf_counter() - began)
        if turn > 0 and sum(map(sum, times.values())) > MEASURED_SECONDS * len(times):
            break
    return {arithmetic: min(taken) for arithmetic, taken in times.items()}
