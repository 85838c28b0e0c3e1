"""How large a batch can a model take, what does it cost, and which remedy buys it back.

As a library: `lbdist.run_study`, `lbdist.train`, `lbdist.leaderboard`, `lbdist.report`,
`lbdist.sharpness.box_sharpness`, `lbdist.objective.Objective` and `lbdist.results.load`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lbdist import objective, results, sharpness
    from lbdist.library import leaderboard, report, run_study, train

_FUNCTIONS = ("leaderboard", "report", "run_study", "train")
_MODULES = ("objective", "results", "sharpness")

__all__ = ["leaderboard", "objective", "report", "results", "run_study", "sharpness", "train"]


def __getattr__(name: str) -> Any:
    """What is public is imported when it is first asked for: torch takes its time."""
    if name in _MODULES:
        return importlib.import_module(f"lbdist.{name}")
    if name in _FUNCTIONS:
        return getattr(importlib.import_module("lbdist.library"), name)
    raise AttributeError(f"module 'lbdist' has no attribute {name!r}")
