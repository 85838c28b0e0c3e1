"""Takes measurements, of any measure, in this process."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch

from lbdist import results
from lbdist.config.build import build
from lbdist.data.base import Dataset, on_device
from lbdist.errors import one_line
from lbdist.losses import Loss
from lbdist.networks.flat import flatten
from lbdist.objective import Objective
from lbdist.plan import Measurement, Point, digest, title
from lbdist.results import Row
from lbdist.sharpness.measure import Measure, Minimiser
from lbdist.storage import Store
from lbdist.training import checkpoint


class Evaluator:
    """Measures in one process; the data stay on its device, the last models and their f in memory.

    Args:
        data: Training and test set.
        store: The storage folder.
        device: Where to compute.

    Attributes:
        passes: Exceptions that are no result of a measurement.
    """

    passes: ClassVar[tuple[type[Exception], ...]] = ()

    def __init__(self, data: Dataset, store: Store, device: str) -> None:
        self.store, self.device = store, device
        self._splits = {"train": data.train, "test": data.test}
        self._loaded: dict[str, Minimiser] = {}

    @functools.cache  # noqa: B019
    def _data(self, split: str) -> tuple[torch.Tensor, torch.Tensor]:
        """A split on the device, put there when it is first asked for: few measures need the test set."""
        return on_device(self._splits[split], self.device)

    def minimisers(self, points: Sequence[Point]) -> list[Minimiser]:
        """The models at these points; those of the call before stay loaded."""
        keys = [digest(point.key) for point in points]
        found = zip(keys, points, strict=True)
        self._loaded = {key: self._loaded.get(key) or self._load(point) for key, point in found}
        return [self._loaded[key] for key in keys]

    def _load(self, point: Point) -> Minimiser:
        cell = point.cell
        network = checkpoint.starting_point(self.store, cell, self.device)
        start = flatten(network)
        if point.file is None:
            folder = self.store / results.cell_folder(cell.id)
            network.load_state_dict(
                checkpoint.load_model(folder, checkpoint.model_name(point.epoch), self.device)
            )
        else:
            network.load_state_dict(checkpoint.load_file(network, point.file, point.entry))
        loss: Loss = build(cell.loss, "loss", kind=Loss)
        made: dict[tuple[Any, ...], Objective] = {}

        def objective(split: str = "train", **options: Any) -> Objective:
            key = split, *sorted(options.items())
            if key not in made:
                made[key] = self._objective(point, split, network, loss, options)
            return made[key]

        return Minimiser(flatten(network), start, objective)

    def _objective(
        self, point: Point, split: str, network: torch.nn.Module, loss: Loss, options: dict[str, Any]
    ) -> Objective:
        """The f of a model."""
        return Objective(network, self._data(split), loss=loss, **options)

    def measure(self, measurement: Measurement) -> list[Row]:
        """Measures, writes the rows and returns them; what cannot be measured is a row with its error.

        Raises:
            Exception: A model could not be read, or the rows not be written: that is no result, and the next
                run tries again.
        """
        name, file = f"measure.{title(measurement.measure)}", results.measurement_file(measurement.id)
        columns, failed = measurement.columns(), {"metric": title(measurement.measure)}
        at = self.minimisers(measurement.at)
        try:
            measure: Measure = build(measurement.measure, name, kind=Measure)
            failed = measure.failed()
            rows = [{**columns, **_believable(row)} for row in measure(at)]
            table = results.as_table(rows)
        except self.passes:
            raise
        except Exception as error:
            rows = [{**columns, **_unmeasured(failed, f"{type(error).__name__}: {one_line(error)}")}]
            table = results.as_table(rows)
        results.write_rows(self.store, file, table)
        return rows


def _believable(row: Row) -> Row:
    """A row, or, where its value is no number, one that says so."""
    return row if math.isfinite(row["value"]) else _unmeasured(row, "its value is no number: it overflows")


def _unmeasured(row: Row, why: str) -> Row:
    return {**row, "value": math.nan, "converged": False, "error": why}
