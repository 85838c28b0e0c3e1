"""What brief runs say of the batch and the learning-rate rule to take."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lbdist.analysis.statistics import Summary, correlation, summarise

FILLED = 0.9
"""The share of a device's memory that may be taken."""

GROWS = 0.05
"""The share by which memory must grow over the batches that were timed, for a limit to be told from it."""

STRAIGHT = 0.9
"""The correlation from which on memory is taken to grow along a line with a worker's share."""


@dataclass(frozen=True)
class Timed:
    """A timed step; None for what is not known, since it failed.

    Attributes:
        batch: The global batch.
        workers: The workers.
        seconds: What it takes.
        memory: Bytes that the largest worker takes.
        device_memory: Bytes that its device has.
    """

    batch: int
    workers: int
    seconds: float | None
    memory: float | None = None
    device_memory: float | None = None


@dataclass(frozen=True)
class Branch:
    """The training loss after a branch of a seed at a batch by a rule; None where it failed or diverged."""

    batch: int
    rule: str
    seed: int
    loss: float | None


@dataclass(frozen=True)
class Option:
    """A batch that may be taken.

    Attributes:
        batch: The global batch.
        rule: The rule by which its branches keep up best.
        rises: By rule, the loss of its branches minus that at SB's batch, a seed each.
        workers: On how many workers it is fastest: the fewest whose rate is not below the highest by more
            than the slack.
        rate: Samples a second there; NaN where it was not timed.
        memory: Bytes that the largest worker takes there; NaN likewise.
        keeps_up: Whether it, and every smaller batch, stays within the tolerance by its best rule.
    """

    batch: int
    rule: str
    rises: dict[str, Summary]
    workers: int
    rate: float
    memory: float
    keeps_up: bool


@dataclass(frozen=True)
class Advice:
    """The recommendation.

    Attributes:
        batch: The global batch.
        rule: The learning-rate rule.
        workers: On how many workers.
        options: Every batch that was tried, in order.
        most_share: The largest share of a worker that its memory holds, by a line through what was measured;
            NaN where memory did not grow with the batch.
        measured: Whether anything was there to choose by.
        tolerance: By how much the loss of a branch that keeps up may be above that at SB's batch.
    """

    batch: int
    rule: str
    workers: int
    options: list[Option]
    most_share: float
    measured: bool
    tolerance: float = 0.0


def advise(
    timed: Sequence[Timed], branches: Sequence[Branch], *, small: int, tolerance: float, slack: float
) -> Advice:
    """The batch with the most samples a second, of those that keep up with SB sample by sample and fit.

    Args:
        timed: Steps, on one worker and more.
        branches: Of every batch, SB's among them.
        small: SB's batch.
        tolerance: By how much the loss of a branch may be above that at SB's batch.
        slack: The smallest batch is taken whose rate is at least this share below the highest.

    Example:
        >>> timed = [Timed(b, 1, 0.01 + 1e-4 * b) for b in (32, 64, 128, 256)]
        >>> losses = {32: 1.0, 64: 1.0, 128: 1.005, 256: 1.3}
        >>> branches = [Branch(batch, "sqrt", 0, loss) for batch, loss in losses.items()]
        >>> found = advise(timed, branches, small=32, tolerance=0.01, slack=0.1)
        >>> found.batch, found.rule, [option.keeps_up for option in found.options]
        (128, 'sqrt', [True, True, True, False])
    """
    sizes = sorted({item.batch for item in timed} | {item.batch for item in branches})
    base = {item.seed: item.loss for item in branches if item.batch == small and item.loss}
    rules = list(dict.fromkeys(item.rule for item in branches)) or ["none"]
    options: list[Option] = []
    going = True
    for batch in sizes:
        rises = {}
        for rule in rules:
            own = [item for item in branches if (item.batch, item.rule) == (batch, rule)]
            if own:
                known = [item.loss - base[item.seed] for item in own if item.loss and base.get(item.seed)]
                rises[rule] = summarise(known if len(known) == len(own) else [])
        usable = {rule: rise.mean for rule, rise in rises.items() if rise.n}
        rule = min(usable, key=lambda name: usable[name], default=rules[0])
        going = going and bool(usable) and usable[rule] <= tolerance
        steps = [item for item in timed if item.batch == batch and item.seconds]
        step = fewest(sorted(steps, key=lambda item: item.workers), slack)
        rate = _rate(step) if step else math.nan
        memory = step.memory if step and step.memory else math.nan
        options.append(Option(batch, rule, rises, step.workers if step else 1, rate, memory, going))
    good = [option for option in options if option.keeps_up and not math.isnan(option.rate)]
    highest = max((option.rate for option in good), default=0.0)
    # where nothing keeps up, or nothing is known, SB's batch as it is
    chosen = next((option for option in good if option.rate >= (1 - slack) * highest), None)
    batch, rule, workers = (chosen.batch, chosen.rule, chosen.workers) if chosen else (small, rules[0], 1)
    return Advice(batch, rule, workers, options, most_share(timed), chosen is not None, tolerance)


def _rate(item: Timed) -> float:
    return item.batch / item.seconds if item.seconds else math.nan


def fewest(timed: Sequence[Timed], slack: float) -> Timed | None:
    """The first step whose rate is not below the highest by more than a share; None without steps.

    Example:
        >>> fewest([Timed(32, 1, 0.02), Timed(32, 2, 0.012), Timed(32, 4, 0.011)], 0.1).workers
        2
    """
    highest = max(map(_rate, timed), default=0.0)
    return next((item for item in timed if _rate(item) >= (1 - slack) * highest), None)


def most_share(timed: Sequence[Timed]) -> float:
    """The largest share of a worker that its memory holds; NaN where memory does not grow along a line.

    Example:
        >>> round(most_share([Timed(b, 1, 1.0, 1e9 + 1e6 * b, 10e9) for b in (32, 64, 256)]))
        8000
    """
    known = [(t.batch / t.workers, t.memory, t.device_memory) for t in timed if t.memory and t.device_memory]
    if len({share for share, _, _ in known}) < 3:
        return math.nan
    share, memory, device = (np.array(column) for column in zip(*known, strict=True))
    if not correlation(share, memory) >= STRAIGHT:  # nor where memory is the same for all
        return math.nan
    if memory.max() < (1 + GROWS) * memory.min():
        return math.nan  # what grows is not told from what does not
    slope, start = np.polyfit(share, memory, 1)
    return float((FILLED * device.min() - start) / slope)
