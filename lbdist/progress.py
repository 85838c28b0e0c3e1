"""Progress of a study: what is done, what it gave, and an estimate of the time left."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as Bar


class Progress:
    """A bar on a terminal, plain lines elsewhere.

    Args:
        cells: Cells of the study.
        values: Sharpness values of the study.
    """

    def __init__(self, cells: int, values: int) -> None:
        self.cells, self.values = cells, values
        self.began = time.monotonic()
        self.cells_done = self.values_done = 0
        self.plain = not sys.stdout.isatty()
        self.bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[left]}"),
            console=Console(),
            disable=self.plain,
            transient=True,
        )
        self.task = self.bar.add_task("training", total=cells, left="")

    def __enter__(self) -> Progress:
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()

    def note(self, line: str) -> None:
        """Says a line of its own."""
        if self.plain:
            print(line, flush=True)
        else:
            self.bar.console.print(line, highlight=False)

    def trained(self, job: Any, metrics: Mapping[str, Any]) -> None:
        """Books a training job, with its final metrics or its `error`."""
        self.cells_done += len(job.cells)
        label = job.cells[0].label_without_seed + " seed " + ", ".join(str(c.seed) for c in job.cells)
        if "error" in metrics:
            said = "failed: " + str(metrics["error"]).strip().splitlines()[-1]
        elif metrics.get("diverged"):
            said = "diverged"
        else:
            split = "validation" if job.cells[0].stage == "search" else "test"
            accuracy, seconds = (metrics.get(key, math.nan) for key in ("accuracy", "seconds"))
            said = f"{split} accuracy {accuracy:.1f} %, {seconds:.1f} s"
        left = self._left(self.cells_done, self.cells)
        self.note(f"[{self.cells_done}/{self.cells}] {label}: {said}{left if self.plain else ''}")
        self.bar.update(self.task, completed=self.cells_done, left=left)

    def begin_sharpness(self, jobs: int) -> None:
        """Turns to the sharpness values, of which `jobs` have still to be measured."""
        self.note(f"sharpness: {jobs} values to measure")
        self.began, self.values, self.values_done = time.monotonic(), jobs, 0
        self.bar.reset(self.task, total=jobs, description="sharpness", left="")

    def measured(self, job: Any, row: Mapping[str, Any]) -> None:
        """Books a sharpness value."""
        self.values_done += 1
        left = self._left(self.values_done, self.values)
        self.bar.update(self.task, completed=self.values_done, left=left)
        if row.get("error"):
            self.note(f"sharpness of {job.cell.label}: {row['error']}")
        elif self.plain and (
            self.values_done % max(1, self.values // 8) == 0 or self.values_done == self.values
        ):
            self.note(f"[{self.values_done}/{self.values}] sharpness values{left}")

    def _left(self, done: int, total: int) -> str:
        if done >= total:
            return ""
        seconds = (time.monotonic() - self.began) / done * (total - done)
        return f", about {seconds / 60:.0f} min left" if seconds >= 90 else f", about {seconds:.0f} s left"
