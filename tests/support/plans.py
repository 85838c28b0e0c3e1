"""Studies as shipped, on data and a network that need not be there."""

from __future__ import annotations

import functools
import random
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

from lbdist import prepare
from lbdist.config.compose import compose_parts, config_root
from lbdist.config.schema import check
from lbdist.plan import Cell
from lbdist.studies.base import Study, cells_of

# `checkpoints` trains nothing: see tests/studies/test_checkpoints.py
SHIPPED = sorted({path.stem for path in (config_root() / "experiment").glob("*.yaml")} - {"checkpoints"})


@functools.cache
def composed_of(overrides: tuple[str, ...]) -> tuple[DictConfig, dict[str, DictConfig]]:
    """The default study with these overrides, and its parts, resolved."""
    composed, parts = compose_parts(overrides)
    for each in (composed, *parts.values()):
        each.derived.update({"inputs": 40, "channels": 1, "classes": 10, "outputs": 10})
        OmegaConf.resolve(each)
        check(each)
    return composed, parts


def make_study(*overrides: str, train_size: int = 4000) -> Study:
    """The study of overrides of the default one."""
    composed, parts = composed_of(overrides)
    config, *others = (OmegaConf.to_object(each) for each in (composed, *parts.values()))
    data = {key: value for key, value in config.data.items() if key != "root"}
    own = dict(zip(parts, others, strict=True))
    known = {repr(each.network): (10_000, None) for each in (config, *others)}
    return prepare.make_study(config, own, known, train_size=train_size, data=data)


class Story:
    """What the cells of a study came to: a `done` to which cells are added."""

    def __init__(self, score: Callable[[Cell], float | None]) -> None:
        self.score = score
        self.finals: dict[str, tuple[frozenset[int], Mapping[str, float]]] = {}

    def __call__(self, cell: Cell) -> Mapping[str, float] | None:
        kept, final = self.finals.get(cell.id, (frozenset(), None))
        return final if cell.keep <= kept else None

    def end(self, cell: Cell) -> None:
        """A cell ends; one without a score has failed."""
        value = self.score(cell)
        self.finals[cell.id] = cell.keep, {} if value is None else {f"{cell.split}_accuracy": value}


def quality(cell: Cell) -> float:
    """A score for which the best settings are known; the seeds differ by less."""
    best = {"robust": ("rho", 0.2), "growth": ("stages", 6)}.get(cell.remedy)
    value = 80.0 if best is None else 70.0 + 10 * (cell.remedies[0][best[0]] == best[1])
    return value + 0.1 * (cell.seed % 7)


def shuffled(seed: int, cells: list[Any]) -> list[Any]:
    """The cells in a random order."""
    return random.Random(seed).sample(cells, len(cells))


def finish(study: Study, story: Story, seed: int, stop: float = 0.0) -> Counter[str]:
    """Ends cells in a random order until none is left, or the program is killed; what ran, how often."""
    chance, ran = random.Random(seed), Counter[str]()
    running: list[Cell] = []
    while True:
        known = cells_of(study, story)
        waiting = [c for c in known.values() if story(c) is None and c.id not in {r.id for r in running}]
        while waiting and len(running) < 3:
            running.append(waiting.pop(chance.randrange(len(waiting))))
        if not running:
            return ran
        cell = running.pop(chance.randrange(len(running)))
        ran[cell.id] += 1
        story.end(cell)
        assert known.keys() <= cells_of(study, story).keys(), "a cell that was yielded is gone"
        if chance.random() < stop:
            return ran  # what runs at that moment is lost
