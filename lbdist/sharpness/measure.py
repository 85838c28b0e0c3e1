"""What a measure is: settings, checked as a remedy's are, and a call that gives rows at one or more models.

One file and one YAML in `experiments/measure/` a measure. A dataclass: its fields are its settings.
"""

from __future__ import annotations

import functools
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from lbdist.config.build import build
from lbdist.errors import require
from lbdist.objective import BATCH_NORM_MODES, Objective
from lbdist.plan import Cell, Measurement, Node
from lbdist.results import Row


@dataclass(frozen=True)
class Minimiser:
    """A model to measure at.

    Attributes:
        x: Its parameters, shape (n,).
        start: Those of its run's starting point, shape (n,).
        objective: Gives f, as an `Objective` of these options (`batch_norm`, `micro_batch_size`), on the
            training set or, with `split="test"`, on the test set; the same options give the same one.
    """

    x: Tensor
    start: Tensor
    objective: Callable[..., Objective]


class Measure(ABC):
    """A measure; a subclass is a dataclass.

    Attributes:
        points: At how many models one measurement is made.
    """

    points: ClassVar[int] = 1

    @abstractmethod
    def __call__(self, at: Sequence[Minimiser]) -> list[Row]:
        """Measures.

        Args:
            at: The models.

        Returns:
            Rows: `metric` and `value`, with any other columns of `lbdist.results.SCHEMA`.
        """

    def parts(self, node: Node, cell: Cell) -> list[Node]:
        """The nodes of the single measurements at a cell, which run in parallel; by default one.

        Args:
            node: The measure's own node.
            cell: The cell.
        """
        return [node]

    def cost(self) -> float:
        """About how often one measurement evaluates f and its gradient over the training set.

        For an estimate of its time alone; a value without its gradient is a third of that.
        """
        return 1.0

    def failed(self) -> Row:
        """The columns of the row that a measurement which failed leaves, beside its `error`."""
        return {"metric": type(self).__name__.lower()}

    def check(self, parameters: int) -> None:
        """Refuses settings that do not fit a network of this many parameters.

        Raises:
            InputError: With the key that is wrong.
        """

    def check_samples(self, samples: int) -> None:
        """Refuses settings that do not fit so many training samples.

        Raises:
            InputError: With the key that is wrong.
        """


def cost(measurement: Measurement) -> float:
    """What a measurement costs, as its measure says."""
    return _cost(json.dumps(measurement.measure))


@functools.cache
def _cost(node: str) -> float:
    """Of one node, which many measurements have: to build a measure takes about a millisecond."""
    measure: Measure = build(json.loads(node), "measure", kind=Measure)
    return measure.cost()


def check_objective(batch_norm: str, micro_batch_size: int) -> None:
    """Refuses options that no `Objective` takes.

    Raises:
        InputError: With the key that is wrong.
    """
    require(micro_batch_size >= 1, "micro_batch_size", micro_batch_size, "at least 1")
    require(batch_norm in BATCH_NORM_MODES, "batch_norm", batch_norm, " or ".join(BATCH_NORM_MODES))
