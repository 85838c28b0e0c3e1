"""The search of each remedy's setting, on a validation split, which several shapes of study begin with."""

from __future__ import annotations

import math
from collections.abc import Generator, Hashable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from lbdist.plan import Cell
from lbdist.results import final_name
from lbdist.studies.base import Done, Plan

SEARCH_SEED = 10_000
"""Search runs start from seeds of their own, so that confirmation is on fresh ones."""

Key = TypeVar("Key", bound=Hashable)

Chosen = dict[str, Mapping[str, Any]]
"""The setting of each remedy for which it is known."""


def searched(plan: Plan, done: Done) -> Generator[Cell, None, Chosen]:
    """The search runs of all remedies.

    Args:
        plan: What the cells are made of.
        done: What is finished.

    Returns:
        The settings that are chosen: of a remedy with several, once all its runs are over.
    """
    chosen: Chosen = {}
    for name, candidates in plan.remedies.items():
        if len(candidates.settings) == 1:
            chosen[name] = candidates.settings[0]
            continue
        trials = {
            key: [
                plan.cell("LB", {name: setting}, seed=SEARCH_SEED + seed, role="search")
                for seed in range(plan.config.search.seeds)
            ]
            for key, setting in enumerate(candidates.settings)
        }
        for cells in trials.values():
            yield from cells
        key = best(trials, done, final_name(plan.score, "validation"))
        if key is not None:
            chosen[name] = candidates.settings[key]
    return chosen


def best(trials: Mapping[Key, Sequence[Cell]], done: Done, score: str) -> Key | None:
    """The key whose cells have the highest mean score; None until all are over, or when none of them has one.

    The first of equals wins.
    """
    finals = {key: [done(cell) for cell in cells] for key, cells in trials.items()}
    if any(final is None for found in finals.values() for final in found):
        return None
    means = {
        key: float(np.mean([final.get(score, math.nan) for final in found if final is not None]))
        for key, found in finals.items()
    }
    usable = [key for key, mean in means.items() if math.isfinite(mean)]
    return max(usable, key=lambda key: means[key], default=None)
